"""CLIP (Radford et al. 2021, arXiv 2103.00020) with ViT towers, any size; parameters named as in
Hugging Face's CLIPModel.

`image_features` and `text_features` are the projected, not yet normalised embeddings, as
`get_image_features` and `get_text_features` there. Shapes: B batch, L tokens, D embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emojax.models import convert

_ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


def _sizes(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}, not a whole number above zero")


@dataclass(frozen=True)
class TowerConfig:
    """One transformer: width, feed-forward width, depth, heads, activation, LayerNorm epsilon."""

    width: int
    mlp: int
    depth: int
    heads: int
    activation: str = "quick_gelu"
    epsilon: float = 1e-5

    def __post_init__(self):
        if self.activation not in _ACTIVATIONS:
            raise ValueError(
                f"activation {self.activation!r} is not supported; known: {', '.join(_ACTIVATIONS)}"
            )
        _sizes(self, "width", "mlp", "depth", "heads")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")


@dataclass(frozen=True)
class ClipConfig:
    """Both towers, image and patch size, vocabulary, context length, end-of-text token and
    embedding width.
    """

    vision: TowerConfig
    text: TowerConfig
    image_size: int
    patch_size: int
    vocabulary: int
    context: int
    end_token: int
    embedding: int

    def __post_init__(self):
        _sizes(self, "image_size", "patch_size", "vocabulary", "context", "embedding")
        if self.patch_size > self.image_size:
            raise ValueError(
                f"patches of {self.patch_size} do not fit into images of {self.image_size}"
            )
        if not 0 <= self.end_token < self.vocabulary:
            raise ValueError(
                f"eos_token_id {self.end_token} is outside the vocabulary of {self.vocabulary}"
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "ClipConfig":
        """From the complete dictionary of a Hugging Face CLIPConfig (`CLIPConfig.to_dict()`)."""

        def tower(part: Mapping[str, Any]) -> TowerConfig:
            return TowerConfig(
                width=part["hidden_size"],
                mlp=part["intermediate_size"],
                depth=part["num_hidden_layers"],
                heads=part["num_attention_heads"],
                activation=part["hidden_act"],
                epsilon=part["layer_norm_eps"],
            )

        vision, text = config["vision_config"], config["text_config"]
        return cls(
            vision=tower(vision),
            text=tower(text),
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            vocabulary=text["vocab_size"],
            context=text["max_position_embeddings"],
            end_token=text["eos_token_id"],
            embedding=config["projection_dim"],
        )


class Attention(nnx.Module):
    """Multi-head self-attention; softmax in float32."""

    def __init__(self, config: TowerConfig, *, causal: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.heads, self.causal = config.heads, causal
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(
                self,
                name,
                nnx.Linear(config.width, config.width, dtype=dtype, param_dtype=dtype, rngs=rngs),
            )

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, L, width] → [B, L, width]."""
        q, k, v = (
            getattr(self, n)(x).reshape(*x.shape[:2], self.heads, -1)
            for n in ("q_proj", "k_proj", "v_proj")
        )
        return self.out_proj(
            jax.nn.dot_product_attention(q, k, v, is_causal=self.causal).reshape(x.shape)
        )


class Mlp(nnx.Module):
    """Feed-forward block."""

    def __init__(self, config: TowerConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.fc1 = nnx.Linear(config.width, config.mlp, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(config.mlp, config.width, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.activation = config.activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, L, width] → [B, L, width]."""
        return self.fc2(_ACTIVATIONS[self.activation](self.fc1(x)))


def _layer_norm(config: TowerConfig, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        config.width, epsilon=config.epsilon, dtype=dtype, param_dtype=dtype, rngs=rngs
    )


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: TowerConfig, *, causal: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.layer_norm1 = _layer_norm(config, dtype, rngs)
        self.self_attn = Attention(config, causal=causal, dtype=dtype, rngs=rngs)
        self.layer_norm2 = _layer_norm(config, dtype, rngs)
        self.mlp = Mlp(config, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, L, width] → [B, L, width]."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nnx.Module):
    """A stack of blocks."""

    def __init__(self, config: TowerConfig, *, causal: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.layers = nnx.List(
            [Block(config, causal=causal, dtype=dtype, rngs=rngs) for _ in range(config.depth)]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, L, width] → [B, L, width]."""
        for block in self.layers:
            x = block(x)
        return x


class PatchEmbedding(nnx.Module):
    """Splits an image into patches and projects each; as reshape and matrix product, which beats a
    strided conv.
    """

    def __init__(self, patch: int, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.kernel = nnx.Param(
            nnx.initializers.normal(0.02)(rngs.params(), (patch, patch, 3, width), dtype)
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 3] → [B, patches, width]."""
        kernel = self.kernel[...]
        p, width = kernel.shape[0], kernel.shape[-1]
        batch, rows, columns = images.shape[0], images.shape[1] // p, images.shape[2] // p
        patches = (
            images[:, : rows * p, : columns * p]
            .reshape(batch, rows, p, columns, p, 3)
            .transpose(0, 1, 3, 2, 4, 5)
        )
        return patches.reshape(batch, rows * columns, -1).astype(kernel.dtype) @ kernel.reshape(
            -1, width
        )


class VisionEmbeddings(nnx.Module):
    """Class token, patches and positions."""

    def __init__(self, config: ClipConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width, normal = config.vision.width, nnx.initializers.normal(0.02)
        tokens = (config.image_size // config.patch_size) ** 2 + 1
        self.class_embedding = nnx.Param(normal(rngs.params(), (width,), dtype))
        self.patch_embedding = PatchEmbedding(config.patch_size, width, dtype=dtype, rngs=rngs)
        self.position_embedding = nnx.Embed(
            tokens, width, dtype=dtype, param_dtype=dtype, rngs=rngs
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 3] → [B, 1 + patches, width]."""
        patches = self.patch_embedding(images)
        first = jnp.broadcast_to(self.class_embedding[...], (patches.shape[0], 1, patches.shape[2]))
        return (
            jnp.concatenate([first, patches], axis=1) + self.position_embedding.embedding[...][None]
        )


class VisionTower(nnx.Module):
    """Image tower up to the pooled class token."""

    def __init__(self, config: ClipConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.embeddings = VisionEmbeddings(config, dtype=dtype, rngs=rngs)
        self.pre_layrnorm = _layer_norm(
            config.vision, dtype, rngs
        )  # spelled so in the published files
        self.encoder = Encoder(config.vision, causal=False, dtype=dtype, rngs=rngs)
        self.post_layernorm = _layer_norm(config.vision, dtype, rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 3] → [B, width]."""
        return self.post_layernorm(self.encoder(self.pre_layrnorm(self.embeddings(images)))[:, 0])


class TextEmbeddings(nnx.Module):
    """Token and position embeddings."""

    def __init__(self, config: ClipConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width = config.text.width
        self.token_embedding = nnx.Embed(
            config.vocabulary, width, dtype=dtype, param_dtype=dtype, rngs=rngs
        )
        self.position_embedding = nnx.Embed(
            config.context, width, dtype=dtype, param_dtype=dtype, rngs=rngs
        )

    def __call__(self, token_ids: jax.Array) -> jax.Array:
        """[B, L] → [B, L, width]."""
        return (
            self.token_embedding(token_ids)
            + self.position_embedding.embedding[...][None, : token_ids.shape[1]]
        )


class TextTower(nnx.Module):
    """Text tower up to the state at the end-of-text token."""

    def __init__(self, config: ClipConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.embeddings = TextEmbeddings(config, dtype=dtype, rngs=rngs)
        self.encoder = Encoder(config.text, causal=True, dtype=dtype, rngs=rngs)
        self.final_layer_norm = _layer_norm(config.text, dtype, rngs)
        self.end_token = config.end_token

    def __call__(self, token_ids: jax.Array) -> jax.Array:
        """[B, L] int32 → [B, width]."""
        states = self.final_layer_norm(self.encoder(self.embeddings(token_ids)))
        # Old published configs say end token 2 although the vocabulary's largest id ends the text;
        # transformers keeps both.
        score = token_ids if self.end_token == 2 else token_ids == self.end_token
        return states[jnp.arange(token_ids.shape[0]), jnp.argmax(score, axis=1)]


class Clip(nnx.Module):
    """Both towers and their projections into one embedding space."""

    def __init__(self, config: ClipConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.vision_model = VisionTower(config, dtype=dtype, rngs=rngs)
        self.text_model = TextTower(config, dtype=dtype, rngs=rngs)
        linear = {"use_bias": False, "dtype": dtype, "param_dtype": dtype, "rngs": rngs}
        self.visual_projection = nnx.Linear(config.vision.width, config.embedding, **linear)
        self.text_projection = nnx.Linear(config.text.width, config.embedding, **linear)
        self.logit_scale = nnx.Param(jnp.asarray(np.log(1 / 0.07), jnp.float32))

    def image_features(self, images: jax.Array) -> jax.Array:
        """Preprocessed images [B, H, W, 3] → embeddings [B, D], not normalised."""
        return self.visual_projection(self.vision_model(images))

    def text_features(self, token_ids: jax.Array) -> jax.Array:
        """Token ids [B, L] → embeddings [B, D], not normalised."""
        return self.text_projection(self.text_model(token_ids))


def _hf_name(path: convert.Path) -> str:
    *module, leaf = (str(part) for part in path)
    if leaf in ("kernel", "scale", "embedding"):
        leaf = "weight"
    return ".".join([*module, leaf])


def from_hf_state_dict(
    arrays: Mapping[str, np.ndarray], config: ClipConfig, *, dtype: jnp.dtype = jnp.float32
) -> Clip:
    """The network from arrays under Hugging Face's names; computes in `dtype` (float32 or
    bfloat16).

    Raises:
      ValueError: names are missing or unknown, shapes disagree, or values are not finite.
    """
    return convert.fill(
        lambda: Clip(config, dtype=dtype, rngs=nnx.Rngs(0)),
        arrays,
        _hf_name,
        ignore=lambda name: name.endswith("position_ids"),  # a constant buffer of older files
        dtype=dtype,
    )


def to_hf_state_dict(model: Clip) -> dict[str, np.ndarray]:
    """The parameters under Hugging Face's names and layouts."""
    return convert.to_torch(model, _hf_name)
