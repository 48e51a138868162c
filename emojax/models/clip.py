"""CLIP (Radford et al. 2021, arXiv 2103.00020) with ViT towers of any size.

The probe embeds images and concepts with it; `siglip` is made of the same blocks. Parameters are
named as in Hugging Face's CLIPModel; `image_features` and `text_features` are the projected, not
yet normalised embeddings, as `get_image_features` and `get_text_features` there.
Shapes: B batch, H height, W width, L tokens, D embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from emojax.models import convert
from emojax.ops.arrays import AnyArray

_ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}
HF_NAMES: convert.Table = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def check_sizes(**sizes: object) -> None:
    """Sizes come from a file and may be anything."""
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}, not a whole number above zero")


@dataclass(frozen=True)
class TowerConfig:
    """One transformer: width, feed-forward width, depth, heads, activation, LayerNorm's epsilon.

    Raises:
      ValueError: sizes that no network can have, or an unknown activation.
    """

    width: int
    mlp: int
    depth: int
    heads: int
    activation: str = "quick_gelu"
    epsilon: float = 1e-5

    def __post_init__(self):
        if self.activation not in _ACTIVATIONS:
            known = ", ".join(_ACTIVATIONS)
            raise ValueError(f"activation {self.activation!r} is not supported; known: {known}")
        check_sizes(width=self.width, mlp=self.mlp, depth=self.depth, heads=self.heads)
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "TowerConfig":
        """From the complete dictionary of a Hugging Face configuration of one tower.

        Raises:
          KeyError: a name is missing.
          ValueError: a value is one that no network can have.
        """
        return cls(
            width=config["hidden_size"],
            mlp=config["intermediate_size"],
            depth=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            activation=config["hidden_act"],
            epsilon=config["layer_norm_eps"],
        )


@dataclass(frozen=True)
class ClipConfig:
    """Both towers and their common embedding.

    `vocabulary` and `context` are the text's number of token ids and tokens, `end_token` is its
    end-of-text id, `embedding` the width of what both towers are projected to.

    Raises:
      ValueError: sizes that no network can have.
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
        check_sizes(
            image_size=self.image_size,
            patch_size=self.patch_size,
            vocabulary=self.vocabulary,
            context=self.context,
            embedding=self.embedding,
        )
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
        """From the complete dictionary of a Hugging Face CLIPConfig (`CLIPConfig.to_dict()`).

        Raises:
          KeyError: a name is missing.
          ValueError: a value is one that no network can have.
        """

        vision = config["vision_config"]
        text = config["text_config"]
        return cls(
            vision=TowerConfig.from_hf(vision),
            text=TowerConfig.from_hf(text),
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            vocabulary=text["vocab_size"],
            context=text["max_position_embeddings"],
            end_token=text["eos_token_id"],
            embedding=config["projection_dim"],
        )


class Attention(nnx.Module):
    """Multi-head self-attention; softmax in float32."""

    def __init__(self, config: TowerConfig, *, causal: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.heads = config.heads
        self.causal = causal

        def projection() -> nnx.Linear:
            return linear(config.width, config.width, dtype, rngs)

        self.q_proj = projection()
        self.k_proj = projection()
        self.v_proj = projection()
        self.out_proj = projection()

    def __call__(self, x: Float[Array, "B L width"]) -> Float[Array, "B L width"]:
        """Each token's mixture of all, or of those up to it if causal."""
        by_head = (*x.shape[:2], self.heads, -1)
        mixed = jax.nn.dot_product_attention(
            self.q_proj(x).reshape(by_head),
            self.k_proj(x).reshape(by_head),
            self.v_proj(x).reshape(by_head),
            is_causal=self.causal,
        )
        return self.out_proj(mixed.reshape(x.shape))


class Mlp(nnx.Module):
    """Feed-forward block."""

    def __init__(self, config: TowerConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.fc1 = linear(config.width, config.mlp, dtype, rngs)
        self.fc2 = linear(config.mlp, config.width, dtype, rngs)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "B L width"]) -> Float[Array, "B L width"]:
        """Each token by itself."""
        return self.fc2(_ACTIVATIONS[self.activation](self.fc1(x)))


def linear(
    inputs: int, outputs: int, dtype: DTypeLike, rngs: nnx.Rngs, *, bias: bool = True
) -> nnx.Linear:
    """A dense layer that holds and computes in `dtype`."""
    return nnx.Linear(inputs, outputs, use_bias=bias, dtype=dtype, param_dtype=dtype, rngs=rngs)


def embed(entries: int, width: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Embed:
    """A table of embeddings that holds and computes in `dtype`."""
    return nnx.Embed(entries, width, dtype=dtype, param_dtype=dtype, rngs=rngs)


def layer_norm(config: TowerConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A LayerNorm of a tower's width and epsilon that holds and computes in `dtype`."""
    return nnx.LayerNorm(
        config.width, epsilon=config.epsilon, dtype=dtype, param_dtype=dtype, rngs=rngs
    )


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: TowerConfig, *, causal: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.layer_norm1 = layer_norm(config, dtype, rngs)
        self.self_attn = Attention(config, causal=causal, dtype=dtype, rngs=rngs)
        self.layer_norm2 = layer_norm(config, dtype, rngs)
        self.mlp = Mlp(config, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B L width"]) -> Float[Array, "B L width"]:
        """States after the block."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nnx.Module):
    """A stack of blocks."""

    def __init__(self, config: TowerConfig, *, causal: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        blocks = [Block(config, causal=causal, dtype=dtype, rngs=rngs) for _ in range(config.depth)]
        self.layers = nnx.List(blocks)

    def __call__(self, x: Float[Array, "B L width"]) -> Float[Array, "B L width"]:
        """States after the last block."""
        for block in self.layers:
            x = block(x)
        return x


class PatchEmbedding(nnx.Module):
    """Cuts an image into patches and projects each."""

    def __init__(
        self, patch: int, width: int, *, bias: bool = False, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        shape = (patch, patch, 3, width)
        self.kernel = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), shape, dtype))
        self.bias = nnx.Param(jnp.zeros(width, dtype)) if bias else None

    def __call__(self, images: Float[AnyArray, "B H W 3"]) -> Float[Array, "B patches width"]:
        """Patches row by row; pixels that fill no patch are left out."""
        kernel = self.kernel[...]
        side = kernel.shape[0]
        batch, height, width = images.shape[:3]
        rows = height // side
        columns = width // side
        cut = images[:, : rows * side, : columns * side]
        # A strided convolution by reshape and one matrix product, which is faster: patches do not
        # overlap, so it only has to bring each patch's pixels together.
        grid = cut.reshape(batch, rows, side, columns, side, 3).transpose(0, 1, 3, 2, 4, 5)
        patches = jnp.asarray(grid.reshape(batch, rows * columns, -1), kernel.dtype)
        projected = patches @ kernel.reshape(-1, kernel.shape[-1])
        return projected if self.bias is None else projected + self.bias[...]


class VisionEmbeddings(nnx.Module):
    """Class token, patches and positions."""

    def __init__(self, config: ClipConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width = config.vision.width
        normal = nnx.initializers.normal(0.02)
        tokens = (config.image_size // config.patch_size) ** 2 + 1
        self.class_embedding = nnx.Param(normal(rngs.params(), (width,), dtype))
        self.patch_embedding = PatchEmbedding(config.patch_size, width, dtype=dtype, rngs=rngs)
        self.position_embedding = embed(tokens, width, dtype, rngs)

    def __call__(self, images: Float[AnyArray, "B H W 3"]) -> Float[Array, "B L width"]:
        """The class token, then the patches: L = 1 + patches."""
        patches = self.patch_embedding(images)
        batch, _, width = patches.shape
        first = jnp.broadcast_to(self.class_embedding[...], (batch, 1, width))
        tokens = jnp.concatenate([first, patches], axis=1)
        return tokens + self.position_embedding.embedding[...][None]


class VisionTower(nnx.Module):
    """Image tower up to the pooled class token."""

    def __init__(self, config: ClipConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.embeddings = VisionEmbeddings(config, dtype=dtype, rngs=rngs)
        # Spelled so in the published files.
        self.pre_layrnorm = layer_norm(config.vision, dtype, rngs)
        self.encoder = Encoder(config.vision, causal=False, dtype=dtype, rngs=rngs)
        self.post_layernorm = layer_norm(config.vision, dtype, rngs)

    def __call__(self, images: Float[AnyArray, "B H W 3"]) -> Float[Array, "B width"]:
        """The class token's last state."""
        states = self.encoder(self.pre_layrnorm(self.embeddings(images)))
        return self.post_layernorm(states[:, 0])


class TextEmbeddings(nnx.Module):
    """Token and position embeddings."""

    def __init__(self, config: ClipConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width = config.text.width
        self.token_embedding = embed(config.vocabulary, width, dtype, rngs)
        self.position_embedding = embed(config.context, width, dtype, rngs)

    def __call__(self, token_ids: Int[AnyArray, "B L"]) -> Float[Array, "B L width"]:
        """Each token's embedding and its position's."""
        positions = self.position_embedding.embedding[...][None, : token_ids.shape[1]]
        return self.token_embedding(jnp.asarray(token_ids)) + positions


class TextTower(nnx.Module):
    """Text tower up to the state at the end-of-text token."""

    def __init__(self, config: ClipConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.embeddings = TextEmbeddings(config, dtype=dtype, rngs=rngs)
        self.encoder = Encoder(config.text, causal=True, dtype=dtype, rngs=rngs)
        self.final_layer_norm = layer_norm(config.text, dtype, rngs)
        self.end_token = config.end_token

    def __call__(self, token_ids: Int[AnyArray, "B L"]) -> Float[Array, "B width"]:
        """The state at the first end-of-text token."""
        states = self.final_layer_norm(self.encoder(self.embeddings(token_ids)))
        # Old published configs say end token 2 although the vocabulary's largest id ends the text;
        # transformers takes the largest id for them, and so does this.
        score = token_ids if self.end_token == 2 else token_ids == self.end_token
        return states[jnp.arange(token_ids.shape[0]), jnp.argmax(score, axis=1)]


class Clip(nnx.Module):
    """Both towers and their projections into one embedding space."""

    def __init__(self, config: ClipConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.vision_model = VisionTower(config, dtype=dtype, rngs=rngs)
        self.text_model = TextTower(config, dtype=dtype, rngs=rngs)
        self.visual_projection = linear(
            config.vision.width, config.embedding, dtype, rngs, bias=False
        )
        self.text_projection = linear(config.text.width, config.embedding, dtype, rngs, bias=False)
        self.logit_scale = nnx.Param(jnp.asarray(np.log(1 / 0.07), jnp.float32))

    def image_features(self, images: Float[AnyArray, "B H W 3"]) -> Float[Array, "B D"]:
        """Preprocessed images → embeddings, not normalised."""
        return self.visual_projection(self.vision_model(images))

    def text_features(self, token_ids: Int[AnyArray, "B L"]) -> Float[Array, "B D"]:
        """Token ids → embeddings, not normalised."""
        return self.text_projection(self.text_model(token_ids))


def from_hf_state_dict(
    arrays: convert.Arrays, config: ClipConfig, *, dtype: DTypeLike = jnp.float32
) -> Clip:
    """The network from arrays under Hugging Face's names; computes in `dtype`.

    Raises:
      ValueError: names are missing or unknown, shapes disagree, or values are not finite.
    """
    return convert.fill(
        lambda: Clip(config, dtype=dtype, rngs=nnx.Rngs(0)),
        arrays,
        HF_NAMES,
        ignore=lambda name: name.endswith("position_ids"),  # a constant buffer of older files
        dtype=dtype,
    )


def to_hf_state_dict(model: Clip) -> dict[str, np.ndarray]:
    """The parameters under Hugging Face's names and layouts."""
    return convert.to_torch(model, HF_NAMES)
