"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545), Hugging Face's ConvNextForImageClassification and
timm's of the paper's sizes.

Taps: `stem`, `stage0.block0` (states after each block), `stage0` (after the stage's last),
`stage0.block0.hidden` (the hidden units of its MLP, after the activation) and `pooled`, what the
classifier reads. Shapes: B batch, H height, W width.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from emojax.models import convert
from emojax.models.preprocess import Preprocess
from emojax.models.staged import StagedConfig
from emojax.models.tapped import POOLED, TappedNetwork
from emojax.models.taps import Slices, Tap
from emojax.models.transformer import (
    ACTIVATIONS,
    PatchEmbedding,
    check_channels,
    check_epsilon,
    check_sizes,
)

_HF_NAMES: convert.Table = {
    "kernel": "weight",
    "scale": "weight",
    "embeddings": "convnext.embeddings",
    "stages": "convnext.encoder.stages",
    "final_norm": "convnext.layernorm",
    "downsampling_norm": "downsampling_layer.0",
    "downsampling_conv": "downsampling_layer.1",
}
_TIMM: convert.Table = {
    "kernel": "weight",
    "scale": "weight",
    "layers": "blocks",
    "downsampling_norm": "downsample.0",
    "downsampling_conv": "downsample.1",
    "dwconv": "conv_dw",
    "layernorm": "norm",
    "pwconv1": "mlp.fc1",
    "pwconv2": "mlp.fc2",
    "layer_scale_parameter": "gamma",
    "final_norm": "head.norm",
    "classifier": "head.fc",
}
# Its stem has other names for the same parts.
_TIMM_STEM = _TIMM | {"embeddings": "stem", "patch_embeddings": "0", "layernorm": "1"}
_EPSILON = 1e-6  # of all LayerNorms but the last, whatever the config says


@dataclass(frozen=True, kw_only=True)
class ConvNextConfig(StagedConfig):
    """Widths and depths of the stages, the stem's patches, and the last LayerNorm's epsilon.

    `layer_scale`: whether the blocks have a learned scale for each unit. `timm`: whether the
    parameters have timm's names in the network's file.

    Raises:
      ValueError: sizes that no network can have, or an unknown activation.
    """

    patch_size: int
    activation: str = "gelu"
    epsilon: float = 1e-12
    layer_scale: bool = True
    timm: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_sizes(patch_size=self.patch_size)
        check_epsilon(self.epsilon)

    def stem_width(self) -> int:
        """Units of the tap `stem`."""
        return self.widths[0]

    def inside(self, width: int) -> Iterator[tuple[str, int]]:
        """The hidden units of a block's MLP."""
        yield "hidden", 4 * width

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, preprocess: Preprocess) -> "ConvNextConfig":
        """From the complete dictionary of a Hugging Face ConvNextConfig.

        Raises:
          KeyError: a name is missing.
          ValueError: a value is one that no network can have, or that is not supported.
        """
        check_channels(config["num_channels"])
        return cls(
            widths=tuple(config["hidden_sizes"]),
            depths=tuple(config["depths"]),
            patch_size=config["patch_size"],
            activation=config["hidden_act"],
            epsilon=config["layer_norm_eps"],
            layer_scale=config["layer_scale_init_value"] > 0,
            classes=len(config["id2label"]),
            preprocess=preprocess,
        )


class Stem(nnx.Module):
    """Patches, normalized."""

    def __init__(self, config: ConvNextConfig, *, rngs: nnx.Rngs):
        width = config.widths[0]
        self.patch_embeddings = PatchEmbedding(
            config.patch_size, width, bias=True, dtype=jnp.float32, rngs=rngs
        )
        self.layernorm = nnx.LayerNorm(width, epsilon=_EPSILON, rngs=rngs)

    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w width"]:
        """One state for each patch, in place."""
        side = self.patch_embeddings.kernel.shape[0]
        batch, height, width = images.shape[:3]
        patches = self.patch_embeddings(images)
        return self.layernorm(patches.reshape(batch, height // side, width // side, -1))


class Block(nnx.Module):
    """Depthwise 7×7 convolution and an MLP at each place, beside a shortcut."""

    def __init__(self, config: ConvNextConfig, width: int, *, rngs: nnx.Rngs):
        self.activation = config.activation
        self.dwconv = nnx.Conv(
            width, width, (7, 7), padding=3, feature_group_count=width, rngs=rngs
        )
        self.layernorm = nnx.LayerNorm(width, epsilon=_EPSILON, rngs=rngs)
        self.pwconv1 = nnx.Linear(width, 4 * width, rngs=rngs)
        self.pwconv2 = nnx.Linear(4 * width, width, rngs=rngs)
        self.layer_scale_parameter = nnx.Param(jnp.ones(width)) if config.layer_scale else None

    def __call__(self, x: Float[Array, "B H W width"], tap: Tap) -> Float[Array, "B H W width"]:
        """States after the block."""
        hidden = self.pwconv1(self.layernorm(self.dwconv(x)))
        hidden = tap("hidden", ACTIVATIONS[self.activation](hidden))
        update = self.pwconv2(hidden)
        if self.layer_scale_parameter is not None:
            update = update * self.layer_scale_parameter[...]
        return x + update


class Stage(nnx.Module):
    """Blocks of one width; all but the first stage halve the sides before them."""

    def __init__(
        self, config: ConvNextConfig, inputs: int, width: int, depth: int, *, rngs: nnx.Rngs
    ):
        self.downsamples = inputs > 0
        if self.downsamples:
            self.downsampling_norm = nnx.LayerNorm(inputs, epsilon=_EPSILON, rngs=rngs)
            self.downsampling_conv = nnx.Conv(
                inputs, width, (2, 2), strides=2, padding="VALID", rngs=rngs
            )
        self.layers = nnx.List([Block(config, width, rngs=rngs) for _ in range(depth)])

    def __call__(self, x: Float[Array, "B H W inputs"], tap: Tap) -> Float[Array, "B h w width"]:
        """States after the last block."""
        if self.downsamples:
            x = self.downsampling_conv(self.downsampling_norm(x))
        for number, block in enumerate(self.layers):
            name = f"block{number}"
            x = tap(name, block(x, tap.within(name)))
        return x


class ConvNext(TappedNetwork):
    """A classifier of images; see the module for its taps."""

    def __init__(self, config: ConvNextConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = Stem(config, rngs=rngs)
        inputs = (0, *config.widths)  # none: the first stage takes the stem as it is
        self.stages = nnx.List(
            [
                Stage(config, before, width, depth, rngs=rngs)
                for before, width, depth in zip(inputs, config.widths, config.depths, strict=False)
            ]
        )
        self.final_norm = nnx.LayerNorm(config.widths[-1], epsilon=config.epsilon, rngs=rngs)
        self.classifier = nnx.Linear(config.widths[-1], config.classes, rngs=rngs)

    def run(self, images: Float[Array, "B H W 3"], tap: Tap) -> Float[Array, "B classes"]:
        """Logits."""
        x = tap("stem", self.embeddings(images))
        for number, stage in enumerate(self.stages):
            name = f"stage{number}"
            x = tap(name, stage(x, tap.within(name)))
        return self.classifier(tap(POOLED, self.final_norm(x.mean(axis=(1, 2)))))

    def state_dict(self) -> dict[str, np.ndarray]:
        """The parameters under Hugging Face's or timm's names and layouts."""
        return convert.to_torch(self, _names(self.config))

    def outgoing(self, layer: str) -> tuple[Slices, ...]:
        """The classifier's rows for `pooled`, the MLP's second layer for hidden units."""
        if layer == POOLED:
            return (Slices(("classifier", "kernel"), 0),)
        inside = re.fullmatch(r"stage(\d+)\.block(\d+)\.hidden", layer)
        if inside is None:
            return ()
        stage, block = map(int, inside.groups())
        return (Slices(("stages", stage, "layers", block, "pwconv2", "kernel"), 0),)


def from_hf_state_dict(arrays: convert.Arrays, config: ConvNextConfig) -> ConvNext:
    """The network in eval mode from arrays under Hugging Face's names.

    Raises:
      ValueError: names are missing or unknown, shapes disagree, or values are not finite.
    """
    return _fill(arrays, config)


def from_timm_state_dict(arrays: convert.Arrays, preprocess: Preprocess) -> ConvNext:
    """A timm `convnext_tiny`, … in eval mode; depths and widths are read off.

    Raises:
      ValueError: names are missing or unknown, shapes disagree, or values are not finite.
    """
    return _fill(arrays, _timm_config(arrays, preprocess))


def _fill(arrays: convert.Arrays, config: ConvNextConfig) -> ConvNext:
    model = convert.fill(ConvNext, config, arrays, _names(config))
    model.eval()
    return model


def _names(config: ConvNextConfig) -> convert.Names:
    return _timm_name if config.timm else _HF_NAMES


def _timm_name(path: convert.Path) -> str:
    """timm's name of a parameter."""
    return convert.torch_name(path, _TIMM_STEM if path[0] == "embeddings" else _TIMM)


def _timm_config(arrays: convert.Arrays, preprocess: Preprocess) -> ConvNextConfig:
    """The config whose network has arrays of these names and shapes."""

    def first_missing(name: str) -> int:
        """The number that this name is not there with."""
        return next(number for number in count() if name.format(number) not in arrays)

    try:
        stages = range(first_missing("stages.{}.blocks.0.conv_dw.weight"))
        blocks = [f"stages.{stage}.blocks" for stage in stages]
        return ConvNextConfig(
            widths=tuple(arrays[f"{name}.0.conv_dw.weight"].shape[0] for name in blocks),
            depths=tuple(first_missing(name + ".{}.conv_dw.weight") for name in blocks),
            patch_size=arrays["stem.0.weight"].shape[-1],
            epsilon=_EPSILON,
            layer_scale="stages.0.blocks.0.gamma" in arrays,
            classes=arrays["head.fc.weight"].shape[0],
            preprocess=preprocess,
            timm=True,
        )
    except (KeyError, IndexError) as error:
        raise ValueError(f"this is not a ConvNeXt of timm: {error} is missing") from None
