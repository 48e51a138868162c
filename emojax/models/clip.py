"""CLIP (Radford et al. 2021, arXiv 2103.00020) with ViT towers of any size.

The probe embeds images and concepts with it; `siglip` is made of the same blocks. Parameters are
named as in Hugging Face's CLIPModel; `image_features` and `text_features` are the projected, not
yet normalised embeddings, as `get_image_features` and `get_text_features` there.
Shapes: B batch, H height, W width, L tokens, D embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from emojax.models import convert
from emojax.models.taps import Tap
from emojax.models.transformer import (
    Encoder,
    PatchEmbedding,
    TextEmbeddings,
    TowerConfig,
    TwoTowersConfig,
    VisionConfig,
    embed,
    layer_norm,
    linear,
)
from emojax.ops.arrays import AnyArray

HF_NAMES: convert.Table = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


@dataclass(frozen=True, kw_only=True)
class ClipConfig(TwoTowersConfig):
    """Both towers, and the text's end token.

    Raises:
      ValueError: sizes that no network can have.
    """

    end_token: int

    def __post_init__(self):
        super().__post_init__()
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


def _published(patch: int, vision: TowerConfig, text: TowerConfig, embedding: int) -> ClipConfig:
    return ClipConfig(
        vision=vision,
        text=text,
        image_size=224,
        patch_size=patch,
        vocabulary=49_408,
        context=77,
        embedding=embedding,
        end_token=49_407,
    )


_BASE = TowerConfig(width=768, mlp=3072, depth=12, heads=12)
_SMALL_TEXT = TowerConfig(width=512, mlp=2048, depth=12, heads=8)
# The sizes that OpenAI published (Radford et al. 2021, table 20), by name.
PUBLISHED = {
    "ViT-B/32": _published(32, _BASE, _SMALL_TEXT, 512),
    "ViT-B/16": _published(16, _BASE, _SMALL_TEXT, 512),
    "ViT-L/14": _published(14, TowerConfig(width=1024, mlp=4096, depth=24, heads=16), _BASE, 768),
}


class VisionEmbeddings(nnx.Module):
    """Class token, patches and positions."""

    def __init__(self, config: VisionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
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

    def __init__(self, config: VisionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.embeddings = VisionEmbeddings(config, dtype=dtype, rngs=rngs)
        # Spelled so in the published files.
        self.pre_layrnorm = layer_norm(config.vision, dtype, rngs)
        self.encoder = Encoder(config.vision, causal=False, dtype=dtype, rngs=rngs)
        self.post_layernorm = layer_norm(config.vision, dtype, rngs)

    def __call__(
        self, images: Float[AnyArray, "B H W 3"], tap: Tap | None = None
    ) -> Float[Array, "B width"]:
        """The class token's last state; what lies before it goes to the tap."""
        tap = tap or Tap()
        tokens = tap("embeddings", self.pre_layrnorm(self.embeddings(images)))
        states = self.encoder(tokens, tap)
        return self.post_layernorm(states[:, 0])


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
        Clip,
        config,
        arrays,
        HF_NAMES,
        ignore=lambda name: name.endswith("position_ids"),  # a constant buffer of older files
        dtype=dtype,
    )


def to_hf_state_dict(model: Clip) -> dict[str, np.ndarray]:
    """The parameters under Hugging Face's names and layouts."""
    return convert.to_torch(model, HF_NAMES)
