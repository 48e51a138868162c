"""VGG (Simonyan and Zisserman 2015, arXiv 1409.1556) as torchvision has it, with BatchNorm or not.

Taps: `conv0` … (each convolution after its activation, before pooling), `dense0` and `dense1`
(after theirs). Shapes: B batch, H height, W width.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from emojax.models import convert
from emojax.models.preprocess import TORCHVISION
from emojax.models.tapped import NetworkConfig, TappedNetwork
from emojax.models.taps import Slices, Tap

# Convolutions of each of the five stages, which end in a pooling, by their number in all: VGG 11,
# 13, 16 and 19.
_STAGES = {8: (1, 1, 2, 2, 2), 10: (2,) * 5, 13: (2, 2, 3, 3, 3), 16: (2, 2, 4, 4, 4)}
_SIDE = 7  # that the last convolution's output is pooled to


@dataclass(frozen=True, kw_only=True)
class Vgg16Config(NetworkConfig):
    """Widths of the convolutions and of the two hidden dense layers; BatchNorm or not."""

    widths: tuple[int, ...]
    hidden: tuple[int, int]
    batch_norm: bool

    def ends(self) -> set[int]:
        """Convolutions with a pooling behind them."""
        return {int(end) - 1 for end in np.cumsum(_STAGES[len(self.widths)])}

    def units(self) -> dict[str, int]:
        """Units of every tap."""
        convs = {f"conv{number}": width for number, width in enumerate(self.widths)}
        return convs | {"dense0": self.hidden[0], "dense1": self.hidden[1]}

    def probed(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(self.units())


class Vgg16(TappedNetwork):
    """A classifier of images; see the module for its taps."""

    def __init__(self, config: Vgg16Config, *, rngs: nnx.Rngs):
        self.config = config
        inputs = (3, *config.widths)
        self.convs = nnx.List(
            [
                nnx.Conv(inputs[i], width, (3, 3), padding=1, rngs=rngs)
                for i, width in enumerate(config.widths)
            ]
        )
        norms = config.widths if config.batch_norm else ()
        self.norms = nnx.List(
            [nnx.BatchNorm(width, momentum=0.9, epsilon=1e-5, rngs=rngs) for width in norms]
        )
        widths = (config.widths[-1] * _SIDE**2, *config.hidden, config.classes)
        self.dense = nnx.List([nnx.Linear(widths[i], widths[i + 1], rngs=rngs) for i in range(3)])

    def run(self, images: Float[Array, "B H W 3"], tap: Tap) -> Float[Array, "B classes"]:
        """Logits."""
        x = images
        ends = self.config.ends()
        for number, conv in enumerate(self.convs):
            x = conv(x)
            if self.config.batch_norm:
                x = self.norms[number](x)
            x = tap(f"conv{number}", jax.nn.relu(x))
            if number in ends:
                x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        # Channel-major, as PyTorch flattens.
        x = _pool_to(x, _SIDE).transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        for number in range(2):
            x = tap(f"dense{number}", jax.nn.relu(self.dense[number](x)))
        return self.dense[2](x)

    def state_dict(self) -> dict[str, np.ndarray]:
        """The parameters under torchvision's names, loadable there with `strict=True`."""
        config = self.config
        arrays = convert.to_torch(self, lambda path: _torchvision_name(path, config))
        if config.batch_norm:
            for number in range(len(config.widths)):
                name = f"features.{_position(number, config) + 1}.num_batches_tracked"
                arrays[name] = np.zeros((), np.int64)
        return arrays

    def last_hidden(self) -> str:
        """The dense layer before the last."""
        return "dense1"

    def last_layer(self) -> tuple[Array, Array]:
        """The last dense layer's kernel and bias."""
        last: Any = self.dense[2]
        return last.kernel[...], last.bias[...]

    def outgoing(self, layer: str) -> tuple[Slices, ...]:
        """The next layer's inputs."""
        number = int(layer[-1] if layer.startswith("dense") else layer.removeprefix("conv"))
        if layer.startswith("dense"):
            return (Slices(("dense", number + 1, "kernel"), 0),)
        if number + 1 < len(self.convs):
            return (Slices(("convs", number + 1, "kernel"), 2),)
        return (Slices(("dense", 0, "kernel"), 0),)


def _pool_to(x: Float[Array, "B H W U"], side: int) -> Float[Array, "B side side U"]:
    """torch's adaptive average pooling: cell i averages the pixels from ⌊iH/n⌋ to ⌈(i+1)H/n⌉."""
    for axis in (1, 2):
        length = x.shape[axis]
        if length != side:
            weights = np.zeros((side, length), np.float32)
            for cell in range(side):
                low = cell * length // side
                high = -(-(cell + 1) * length // side)
                weights[cell, low:high] = 1 / (high - low)
            moved = jnp.tensordot(x, jnp.asarray(weights), axes=(axis, 1))
            x = jnp.moveaxis(moved, -1, axis)
    return x


def from_torchvision_state_dict(arrays: convert.Arrays) -> Vgg16:
    """A torchvision `vgg16`, `vgg16_bn`, … in eval mode; depth and widths are read off.

    Raises:
      ValueError: names are missing or unknown, shapes disagree, or values are not finite.
    """
    config = _config_of(arrays)
    model = convert.fill(
        Vgg16,
        config,
        arrays,
        lambda path: _torchvision_name(path, config),
        ignore=lambda name: name.endswith("num_batches_tracked"),
    )
    model.eval()
    return model


def _position(conv: int, config: Vgg16Config) -> int:
    """Where a convolution stands among the features: ReLU, BatchNorm and pooling count too."""
    poolings = sum(end < conv for end in config.ends())
    return conv * (3 if config.batch_norm else 2) + poolings


def _torchvision_name(path: convert.Path, config: Vgg16Config) -> str:
    """torchvision's name of a parameter."""
    kind, number, leaf = (str(part) for part in path)
    leaf = convert.LEAVES.get(leaf, leaf)
    if kind == "dense":
        return f"classifier.{3 * int(number)}.{leaf}"  # ReLU and dropout stand between
    return f"features.{_position(int(number), config) + (kind == 'norms')}.{leaf}"


def _config_of(arrays: convert.Arrays) -> Vgg16Config:
    """The config whose network has arrays of these names and shapes."""
    kernels = [
        array
        for name, array in arrays.items()
        if name.startswith("features.") and name.endswith("weight") and array.ndim == 4
    ]
    if len(kernels) not in _STAGES:
        known = ", ".join(map(str, _STAGES))
        raise ValueError(f"this is not a torchvision VGG: {len(kernels)} convolutions, not {known}")
    order = sorted(
        (int(name.split(".")[1]), array.shape[0])
        for name, array in arrays.items()
        if name.startswith("features.") and name.endswith("weight") and array.ndim == 4
    )
    try:
        hidden = (arrays["classifier.0.weight"].shape[0], arrays["classifier.3.weight"].shape[0])
        classes = arrays["classifier.6.weight"].shape[0]
    except KeyError as error:
        raise ValueError(f"this is not a torchvision VGG: {error} is missing") from None
    return Vgg16Config(
        widths=tuple(width for _, width in order),
        hidden=hidden,
        batch_norm=any(name.endswith("running_mean") for name in arrays),
        classes=classes,
        preprocess=TORCHVISION,
    )
