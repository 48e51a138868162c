"""ResNet (He et al. 2016, arXiv 1512.03385) of basic or bottleneck blocks, as Hugging Face and
torchvision have it.

Taps: `stem` (after its max pooling), `stage0.block0` (states after each block), `stage0` (after the
stage's last), `stage0.block0.conv0` (inside a block, after BatchNorm and activation) and `pooled`,
what the classifier reads. Shapes: B batch, H height, W width.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from emojax.models import convert
from emojax.models.preprocess import TORCHVISION, Preprocess
from emojax.models.staged import StagedConfig
from emojax.models.tapped import POOLED, TappedNetwork
from emojax.models.taps import Slices, Tap
from emojax.models.transformer import ACTIVATIONS, check_channels, check_sizes

_HF_NAMES: convert.Table = {
    **convert.LEAVES,
    "embedder": "resnet.embedder.embedder",
    "stages": "resnet.encoder.stages",
    "classifier": "classifier.1",
}
_REDUCTION = 4  # a bottleneck is as many times narrower than its block


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(StagedConfig):
    """Widths and depths of the stages, and how their blocks are built.

    `stem` is the first convolution's width. `stride_first`: whether a bottleneck strides in its
    first convolution (the paper's) rather than its second; `stride_stage0`: whether the first stage
    strides too. `torchvision`: whose names the parameters have in the network's file.

    Raises:
      ValueError: sizes that no network can have, or an unknown activation or kind of block.
    """

    stem: int
    block: Literal["basic", "bottleneck"]
    activation: str = "relu"
    stride_first: bool = False
    stride_stage0: bool = False
    torchvision: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_sizes(stem=self.stem)
        if self.block not in ("basic", "bottleneck"):
            raise ValueError(f"layer_type is {self.block!r}, not 'basic' or 'bottleneck'")

    def inner(self, width: int) -> tuple[int, ...]:
        """Units of the convolutions inside a block of this width."""
        return (width,) if self.block == "basic" else (width // _REDUCTION,) * 2

    def stem_width(self) -> int:
        """Units of the tap `stem`."""
        return self.stem

    def inside(self, width: int) -> Iterator[tuple[str, int]]:
        """All convolutions of a block but its last."""
        for number, units in enumerate(self.inner(width)):
            yield f"conv{number}", units

    @classmethod
    def resnet50(cls) -> "ResNetConfig":
        """The ResNet-50 of torchvision for ImageNet's classes."""
        return cls(
            stem=64,
            widths=(256, 512, 1024, 2048),
            depths=(3, 4, 6, 3),
            block="bottleneck",
            torchvision=True,
            classes=1000,
            preprocess=TORCHVISION,
        )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, preprocess: Preprocess) -> "ResNetConfig":
        """From the complete dictionary of a Hugging Face ResNetConfig.

        Raises:
          KeyError: a name is missing.
          ValueError: a value is one that no network can have, or that is not supported.
        """
        check_channels(config["num_channels"])
        return cls(
            stem=config["embedding_size"],
            widths=tuple(config["hidden_sizes"]),
            depths=tuple(config["depths"]),
            block=config["layer_type"],
            activation=config["hidden_act"],
            stride_first=config["downsample_in_bottleneck"],
            stride_stage0=config["downsample_in_first_stage"],
            classes=len(config["id2label"]),
            preprocess=preprocess,
        )


class ConvNorm(nnx.Module):
    """Convolution without bias, and BatchNorm."""

    def __init__(self, inputs: int, outputs: int, side: int, *, stride: int = 1, rngs: nnx.Rngs):
        self.convolution = nnx.Conv(
            inputs,
            outputs,
            (side, side),
            strides=stride,
            padding=side // 2,
            use_bias=False,
            rngs=rngs,
        )
        self.normalization = nnx.BatchNorm(outputs, momentum=0.9, epsilon=1e-5, rngs=rngs)
        self.stride = stride

    def __call__(self, x: Float[Array, "B H W inputs"]) -> Float[Array, "B h w outputs"]:
        """Before the activation."""
        kernel = self.convolution.kernel[...]
        if kernel.shape[:2] == (1, 1):
            # A matrix product, which takes a CPU less time than a convolution of single pixels.
            x = x[:, :: self.stride, :: self.stride] @ kernel[0, 0]
        else:
            x = self.convolution(x)
        return self.normalization(x)


class Block(nnx.Module):
    """Two or three convolutions beside a shortcut."""

    def __init__(
        self, config: ResNetConfig, inputs: int, width: int, *, stride: int, rngs: nnx.Rngs
    ):
        self.activation = config.activation
        inner = config.inner(width)
        if config.block == "basic":
            sides, strides = (3, 3), (stride, 1)
        else:
            sides = (1, 3, 1)
            strides = (stride, 1, 1) if config.stride_first else (1, stride, 1)
        widths = (inputs, *inner, width)
        self.layer = nnx.List(
            [
                ConvNorm(widths[i], widths[i + 1], sides[i], stride=strides[i], rngs=rngs)
                for i in range(len(sides))
            ]
        )
        changes = inputs != width or stride != 1
        self.shortcut = ConvNorm(inputs, width, 1, stride=stride, rngs=rngs) if changes else None

    def __call__(self, x: Float[Array, "B H W inputs"], tap: Tap) -> Float[Array, "B h w width"]:
        """States after the block."""
        activate = ACTIVATIONS[self.activation]
        inside = x
        for number, conv in enumerate(self.layer):
            inside = conv(inside)
            if number < len(self.layer) - 1:
                inside = tap(f"conv{number}", activate(inside))
        return activate(inside + (x if self.shortcut is None else self.shortcut(x)))


class Stage(nnx.Module):
    """Blocks of one width, of which the first may halve the sides."""

    def __init__(
        self,
        config: ResNetConfig,
        inputs: int,
        width: int,
        depth: int,
        *,
        stride: int,
        rngs: nnx.Rngs,
    ):
        first = Block(config, inputs, width, stride=stride, rngs=rngs)
        rest = [Block(config, width, width, stride=1, rngs=rngs) for _ in range(depth - 1)]
        self.layers = nnx.List([first, *rest])

    def __call__(self, x: Float[Array, "B H W inputs"], tap: Tap) -> Float[Array, "B h w width"]:
        """States after the last block."""
        for number, block in enumerate(self.layers):
            name = f"block{number}"
            x = tap(name, block(x, tap.within(name)))
        return x


class ResNet(TappedNetwork):
    """A classifier of images; see the module for its taps."""

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embedder = ConvNorm(3, config.stem, 7, stride=2, rngs=rngs)
        stages = []
        inputs = config.stem
        for number, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            stride = 2 if number or config.stride_stage0 else 1
            stages.append(Stage(config, inputs, width, depth, stride=stride, rngs=rngs))
            inputs = width
        self.stages = nnx.List(stages)
        self.classifier = nnx.Linear(inputs, config.classes, rngs=rngs)

    def run(self, images: Float[Array, "B H W 3"], tap: Tap) -> Float[Array, "B classes"]:
        """Logits."""
        x = ACTIVATIONS[self.config.activation](self.embedder(images))
        border: Any = ((1, 1), (1, 1))  # flax's type knows names of paddings alone
        x = tap("stem", nnx.max_pool(x, (3, 3), strides=(2, 2), padding=border))
        for number, stage in enumerate(self.stages):
            name = f"stage{number}"
            x = tap(name, stage(x, tap.within(name)))
        return self.classifier(tap(POOLED, x.mean(axis=(1, 2))))

    def state_dict(self) -> dict[str, np.ndarray]:
        """The parameters under Hugging Face's or torchvision's names and layouts."""
        arrays = convert.to_torch(self, _names(self.config))
        # BatchNorm's counters of training steps, which PyTorch wants and nothing reads.
        tail = "running_mean"
        names = [name.removesuffix(tail) for name in arrays if name.endswith(tail)]
        return arrays | {f"{name}num_batches_tracked": np.zeros((), np.int64) for name in names}

    def outgoing(self, layer: str) -> tuple[Slices, ...]:
        """The classifier's rows for `pooled`, the next convolution's inputs inside a block."""
        if layer == POOLED:
            return (Slices(("classifier", "kernel"), 0),)
        inside = re.fullmatch(r"stage(\d+)\.block(\d+)\.conv(\d+)", layer)
        if inside is None:
            return ()
        stage, block, conv = map(int, inside.groups())
        path = ("stages", stage, "layers", block, "layer", conv + 1, "convolution", "kernel")
        return (Slices(path, 2),)


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def from_hf_state_dict(arrays: convert.Arrays, config: ResNetConfig) -> ResNet:
    """The network in eval mode from arrays under Hugging Face's names.

    Raises:
      ValueError: names are missing or unknown, shapes disagree, or values are not finite.
    """
    return _fill(arrays, config)


def from_torchvision_state_dict(
    arrays: convert.Arrays, preprocess: Preprocess = TORCHVISION
) -> ResNet:
    """A torchvision `resnet18`, `34`, `50`, … in eval mode; depths and widths are read off.

    timm's have the same names, and a preprocessing of their own.

    Raises:
      ValueError: names are missing or unknown, shapes disagree, or values are not finite.
    """
    return _fill(arrays, _torchvision_config(arrays, preprocess))


def _fill(arrays: convert.Arrays, config: ResNetConfig) -> ResNet:
    model = convert.fill(ResNet, config, arrays, _names(config), ignore=_is_counter)
    model.eval()
    return model


def _names(config: ResNetConfig) -> convert.Names:
    return _torchvision_name if config.torchvision else _HF_NAMES


def _torchvision_name(path: convert.Path) -> str:
    """torchvision's name of a parameter."""
    parts = [str(part) for part in path]
    leaf = _HF_NAMES.get(parts[-1], parts[-1])
    if parts[0] == "classifier":
        return f"fc.{leaf}"
    is_conv = parts[-2] == "convolution"
    if parts[0] == "embedder":
        return f"{'conv' if is_conv else 'bn'}1.{leaf}"
    _, stage, _, block, kind, *rest = parts
    name = f"layer{int(stage) + 1}.{block}"
    if kind == "shortcut":
        return f"{name}.downsample.{0 if is_conv else 1}.{leaf}"
    return f"{name}.{'conv' if is_conv else 'bn'}{int(rest[0]) + 1}.{leaf}"


def _torchvision_config(arrays: convert.Arrays, preprocess: Preprocess) -> ResNetConfig:
    """The config whose network has arrays of these names and shapes."""
    try:
        is_bottleneck = "layer1.0.conv3.weight" in arrays
        last = "conv3" if is_bottleneck else "conv2"
        widths, depths = [], []
        for stage in count(1):
            if f"layer{stage}.0.{last}.weight" not in arrays:
                break
            widths.append(arrays[f"layer{stage}.0.{last}.weight"].shape[0])
            blocks = (f"layer{stage}.{block}.{last}.weight" for block in count())
            depths.append(next(i for i, name in enumerate(blocks) if name not in arrays))
        return ResNetConfig(
            stem=arrays["conv1.weight"].shape[0],
            widths=tuple(widths),
            depths=tuple(depths),
            block="bottleneck" if is_bottleneck else "basic",
            activation="relu",
            classes=arrays["fc.weight"].shape[0],
            preprocess=preprocess,
            torchvision=True,
        )
    except (KeyError, IndexError) as error:
        raise ValueError(f"this is not a torchvision ResNet: {error} is missing") from None
