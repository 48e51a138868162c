"""SigLIP (Zhai et al. 2023, arXiv 2303.15343) and SigLIP 2 (arXiv 2502.14786), ViT towers of any
size.

An encoder beside CLIP, of the same transformer blocks. What differs: no class token, the image is
pooled by an attention whose query is learned; the text is not causal and always padded to the whole
context, and read off at its last token. Parameters are named as in Hugging Face's SiglipModel.
A Siglip2Model (the variant whose images keep their aspect ratio, NaFlex) is the same network on
square images, which fill its grid of patches.
Shapes: B batch, H height, W width, L tokens, D embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from emojax.models import convert
from emojax.models.clip import HF_NAMES
from emojax.models.taps import Tap
from emojax.models.transformer import (
    Encoder,
    Mlp,
    PatchEmbedding,
    TextEmbeddings,
    TowerConfig,
    TwoTowersConfig,
    VisionConfig,
    check_sizes,
    embed,
    layer_norm,
    linear,
)
from emojax.ops.arrays import AnyArray


@dataclass(frozen=True, kw_only=True)
class SiglipConfig(TwoTowersConfig):
    """Both towers; their embedding is as wide as the image tower.

    Raises:
      ValueError: sizes that no network can have.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.embedding != self.vision.width:
            raise ValueError(
                f"texts are projected to {self.embedding}, images have {self.vision.width}"
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "SiglipConfig":
        """From the complete dictionary of a Hugging Face SiglipConfig or Siglip2Config.

        Raises:
          KeyError: a name is missing.
          ValueError: a value is one that no network can have, or one of images that are not square
            or not pooled.
        """
        vision = config["vision_config"]
        text = config["text_config"]
        if not vision["vision_use_head"]:
            raise ValueError("vision_use_head is false: images are not pooled")
        patch_size = vision["patch_size"]
        if config["model_type"] == "siglip2":
            check_sizes(num_patches=vision["num_patches"], patch_size=patch_size)
            side = isqrt(vision["num_patches"])
            if side**2 != vision["num_patches"]:
                raise ValueError(f"num_patches is {vision['num_patches']}, not a square")
            image_size = side * patch_size
        else:
            image_size = vision["image_size"]
        return cls(
            vision=TowerConfig.from_hf(vision),
            text=TowerConfig.from_hf(text),
            image_size=image_size,
            patch_size=patch_size,
            vocabulary=text["vocab_size"],
            context=text["max_position_embeddings"],
            embedding=text["projection_size"] or text["hidden_size"],
        )


class VisionEmbeddings(nnx.Module):
    """Patches and positions."""

    def __init__(self, config: VisionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width = config.vision.width
        tokens = (config.image_size // config.patch_size) ** 2
        self.patch_embedding = PatchEmbedding(
            config.patch_size, width, bias=True, dtype=dtype, rngs=rngs
        )
        self.position_embedding = embed(tokens, width, dtype, rngs)

    def __call__(self, images: Float[AnyArray, "B H W 3"]) -> Float[Array, "B L width"]:
        """One token a patch."""
        return self.patch_embedding(images) + self.position_embedding.embedding[...][None]


class PoolAttention(nnx.Module):
    """Multi-head attention of one query to all tokens, named as torch's `MultiheadAttention`."""

    def __init__(self, config: TowerConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.heads = config.heads
        width = config.width
        normal = nnx.initializers.normal(0.02)
        # The projections of queries, keys and values in one array of torch's layout.
        self.in_proj_weight = nnx.Param(normal(rngs.params(), (3 * width, width), dtype))
        self.in_proj_bias = nnx.Param(jnp.zeros(3 * width, dtype))
        self.out_proj = linear(width, width, dtype, rngs)

    def __call__(
        self, query: Float[Array, "B 1 width"], tokens: Float[Array, "B L width"]
    ) -> Float[Array, "B 1 width"]:
        """The tokens' mixture for the query."""
        weights = jnp.split(self.in_proj_weight[...], 3)
        biases = jnp.split(self.in_proj_bias[...], 3)
        by_head = [
            (states @ weight.T + bias).reshape(*states.shape[:2], self.heads, -1)
            for states, weight, bias in zip((query, tokens, tokens), weights, biases, strict=True)
        ]
        mixed = jax.nn.dot_product_attention(*by_head)
        return self.out_proj(mixed.reshape(query.shape))


class PoolingHead(nnx.Module):
    """Tokens to one vector: attention with a learned query, then a feed-forward block."""

    def __init__(self, config: TowerConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(0.02)
        self.probe = nnx.Param(normal(rngs.params(), (1, 1, config.width), dtype))
        self.attention = PoolAttention(config, dtype=dtype, rngs=rngs)
        self.layernorm = layer_norm(config, dtype, rngs)
        self.mlp = Mlp(config, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Float[Array, "B L width"]) -> Float[Array, "B width"]:
        """The pooled vector."""
        query = jnp.broadcast_to(self.probe[...], (len(tokens), 1, tokens.shape[2]))
        pooled = self.attention(query, tokens)
        return (pooled + self.mlp(self.layernorm(pooled)))[:, 0]


class VisionTower(nnx.Module):
    """Image tower with its pooling."""

    def __init__(self, config: VisionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.embeddings = VisionEmbeddings(config, dtype=dtype, rngs=rngs)
        self.encoder = Encoder(config.vision, causal=False, dtype=dtype, rngs=rngs)
        self.post_layernorm = layer_norm(config.vision, dtype, rngs)
        self.head = PoolingHead(config.vision, dtype=dtype, rngs=rngs)

    def __call__(
        self, images: Float[AnyArray, "B H W 3"], tap: Tap | None = None
    ) -> Float[Array, "B D"]:
        """The pooled states; what lies before them goes to the tap."""
        tap = tap or Tap()
        tokens = tap("embeddings", self.embeddings(images))
        return self.head(self.post_layernorm(self.encoder(tokens, tap)))


class TextTower(nnx.Module):
    """Text tower with its projection."""

    def __init__(self, config: SiglipConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.embeddings = TextEmbeddings(config, dtype=dtype, rngs=rngs)
        self.encoder = Encoder(config.text, causal=False, dtype=dtype, rngs=rngs)
        self.final_layer_norm = layer_norm(config.text, dtype, rngs)
        self.head = linear(config.text.width, config.embedding, dtype, rngs)

    def __call__(self, token_ids: Int[AnyArray, "B L"]) -> Float[Array, "B D"]:
        """The projected state of the last token, which may be padding; L is the whole context."""
        states = self.final_layer_norm(self.encoder(self.embeddings(token_ids)))
        return self.head(states[:, -1])


class Siglip(nnx.Module):
    """Both towers, into one embedding space."""

    def __init__(self, config: SiglipConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.vision_model = VisionTower(config, dtype=dtype, rngs=rngs)
        self.text_model = TextTower(config, dtype=dtype, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.full(1, np.log(10), jnp.float32))
        self.logit_bias = nnx.Param(jnp.full(1, -10, jnp.float32))

    def image_features(self, images: Float[AnyArray, "B H W 3"]) -> Float[Array, "B D"]:
        """Preprocessed images → embeddings, not normalised."""
        return self.vision_model(images)

    def text_features(self, token_ids: Int[AnyArray, "B L"]) -> Float[Array, "B D"]:
        """Token ids, padded to the whole context → embeddings, not normalised."""
        return self.text_model(token_ids)


_PATCHES = "vision_model.embeddings.patch_embedding.weight"


def from_hf_state_dict(
    arrays: convert.Arrays, config: SiglipConfig, *, dtype: DTypeLike = jnp.float32
) -> Siglip:
    """The network from arrays under Hugging Face's names; computes in `dtype`.

    Raises:
      ValueError: names are missing or unknown, shapes disagree, or values are not finite.
    """
    patches = arrays.get(_PATCHES)
    if patches is not None and patches.ndim == 2:
        # A Siglip2Model projects patches that were cut before, with their channels last.
        side = config.patch_size
        if patches.shape[1] != side * side * 3:
            raise ValueError(f"{_PATCHES} has shape {patches.shape}, not (…, {side * side * 3})")
        as_kernel = patches.reshape(-1, side, side, 3).transpose(0, 3, 1, 2)
        arrays = {**arrays, _PATCHES: as_kernel}
    return convert.fill(
        Siglip,
        config,
        arrays,
        HF_NAMES,
        ignore=lambda name: name.endswith("position_ids"),  # a constant buffer of older files
        dtype=dtype,
    )
