"""The image towers of CLIP and SigLIP as networks under study, with or without a projection.

Hugging Face's CLIPVisionModel, CLIPVisionModelWithProjection and SiglipVisionModel; their output is
an embedding, so their config has no classes. Taps: `embeddings`, those of every block
(`transformer`), and `pooled`, the tower's own output. Shapes: B batch, H height, W width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from emojax.models import clip, convert, siglip
from emojax.models.preprocess import Preprocess
from emojax.models.tapped import POOLED, NetworkConfig, TappedNetwork
from emojax.models.taps import Slices, Tap
from emojax.models.transformer import TowerConfig, block_outgoing, block_units, check_sizes, linear


@dataclass(frozen=True, kw_only=True)
class VisionTowerConfig(NetworkConfig):
    """A transformer, its images and patches, and the width that it is projected to, if any.

    Raises:
      ValueError: sizes that no network can have.
    """

    kind: Literal["clip", "siglip"]
    vision: TowerConfig
    image_size: int
    patch_size: int
    projection: int | None
    classes: int = 0

    def __post_init__(self):
        check_sizes(image_size=self.image_size, patch_size=self.patch_size)
        if self.projection is not None:
            check_sizes(projection_dim=self.projection)
        if self.patch_size > self.image_size:
            raise ValueError(
                f"patches of {self.patch_size} do not fit into images of {self.image_size}"
            )

    def units(self) -> dict[str, int]:
        """Units of every tap."""
        tokens = {"embeddings": self.vision.width}
        return tokens | block_units(self.vision) | {POOLED: self.vision.width}

    def probed(self) -> tuple[str, ...]:
        """The states after every block."""
        return tuple(f"block{number}" for number in range(self.vision.depth))

    @classmethod
    def from_hf(
        cls, config: Mapping[str, Any], *, preprocess: Preprocess, projected: bool
    ) -> "VisionTowerConfig":
        """From the complete dictionary of a CLIPVisionConfig or SiglipVisionConfig.

        Raises:
          KeyError: a name is missing.
          ValueError: a value is one that no network can have, or that is not supported.
        """
        is_siglip = config["model_type"].startswith("siglip")
        if is_siglip and not config["vision_use_head"]:
            raise ValueError("vision_use_head is false: images are not pooled")
        return cls(
            kind="siglip" if is_siglip else "clip",
            vision=TowerConfig.from_hf(config),
            image_size=config["image_size"],
            patch_size=config["patch_size"],
            projection=config["projection_dim"] if projected else None,
            preprocess=preprocess,
        )


class VisionNetwork(TappedNetwork):
    """An image tower; see the module for its taps."""

    def __init__(self, config: VisionTowerConfig, *, rngs: nnx.Rngs):
        self.config = config
        tower = siglip.VisionTower if config.kind == "siglip" else clip.VisionTower
        self.vision_model = tower(config, dtype=jnp.float32, rngs=rngs)
        self.is_projected = config.projection is not None
        if config.projection is not None:
            self.visual_projection = linear(
                config.vision.width, config.projection, jnp.float32, rngs, bias=False
            )

    def run(self, images: Float[Array, "B H W 3"], tap: Tap) -> Float[Array, "B D"]:
        """Embeddings, not normalized."""
        pooled = tap(POOLED, self.vision_model(images, tap))
        return self.visual_projection(pooled) if self.is_projected else pooled

    def state_dict(self) -> dict[str, np.ndarray]:
        """The parameters under Hugging Face's names, with `vision_model.` before them."""
        return convert.to_torch(self, clip.HF_NAMES)

    def outgoing(self, layer: str) -> tuple[Slices, ...]:
        """The projection's rows for `pooled`, and what the blocks' parts feed."""
        if layer == POOLED:
            return (Slices(("visual_projection", "kernel"), 0),) if self.is_projected else ()
        return block_outgoing(layer, ("vision_model", "encoder", "layers"))


_PREFIX = "vision_model."


def from_hf_state_dict(arrays: convert.Arrays, config: VisionTowerConfig) -> VisionNetwork:
    """The network from arrays under Hugging Face's names, with `vision_model.` before them or not.

    Raises:
      ValueError: names are missing or unknown, shapes disagree, or values are not finite.
    """
    if not any(name.startswith(_PREFIX) for name in arrays):
        arrays = {_PREFIX + name: array for name, array in arrays.items()}
    model = convert.fill(
        VisionNetwork,
        config,
        arrays,
        clip.HF_NAMES,
        ignore=lambda name: name.endswith("position_ids"),
    )
    model.eval()
    return model
