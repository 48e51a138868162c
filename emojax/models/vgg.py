"""VGGNet for FER2013 (Khaireddin and Chen 2021, arXiv 2105.03588): eight convolutions, three dense layers.

`logits, taps = model(images)`, where `taps[layer]` is a layer's output: activations are plain outputs, and jit drops
those that nobody reads. For sweeps the network can be cut at a layer: `until` runs up to its output before the bias,
`after` finishes from there with any gain. Shapes: B batch, U units of a layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emojax.models import convert
from emojax.ops import image
from emojax.ops.gains import Gain, scale_kernel

CONVS = ("conv1a", "conv1b", "conv2a", "conv2b", "conv3a", "conv3b", "conv4a", "conv4b")
HIDDEN = ("lin1", "lin2")
LAYERS = (*CONVS, *HIDDEN, "lin3")
Taps = Literal["raw", "relu"]


@dataclass(frozen=True)
class VggConfig:
    """Widths of the eight convolutions and the two hidden dense layers, classes, input side and dropout rate."""

    widths: tuple[int, ...] = (64, 64, 128, 128, 256, 256, 512, 512)
    hidden: tuple[int, int] = (4096, 4096)
    classes: int = 7
    input_size: int = 40
    dropout: float = 0.2
    channels: ClassVar[int] = 1

    @classmethod
    def paper(cls) -> "VggConfig":
        """The published network: 29.89 M parameters."""
        return cls()

    @classmethod
    def small(cls) -> "VggConfig":
        """The same ten layer names in 0.2 M parameters, for laptops and tests."""
        return cls(widths=(16, 16, 24, 24, 32, 32, 48, 48), hidden=(128, 128))

    def units(self) -> dict[str, int]:
        """Units of every layer, in order."""
        return dict(zip(LAYERS, (*self.widths, *self.hidden, self.classes), strict=True))

    def probed(self) -> tuple[str, ...]:
        """Layers that are dissected when none are named: all but the logits, as in the paper."""
        return LAYERS[:-1]


class Conv(nnx.Module):
    """3×3 convolution, padding 1, whose bias is added apart, so that a gain can come between."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), (3, 3, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, inputs] → [B, H, W, U] without the bias."""
        kernel = self.kernel[...]
        x = x.astype(kernel.dtype)  # trained in bfloat16, BatchNorm still hands on float32
        if kernel.shape[2] == 1:  # nine shifted copies and one matrix product: several times faster than a thin conv
            padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            height, width = x.shape[1:3]
            shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
            return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(9, -1)
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


class Linear(nnx.Module):
    """Dense layer whose bias is added apart."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, inputs] → [B, U] without the bias."""
        kernel = self.kernel[...]
        return x.astype(kernel.dtype) @ kernel


class VggNet(nnx.Module):
    """The network. Call `.eval()` before use and `.train()` before training (flax's modes)."""

    def __init__(self, config: VggConfig, *, rngs: nnx.Rngs):
        self.config = config
        inputs = 1
        for name, width in zip(CONVS, config.widths, strict=True):
            setattr(self, name, Conv(inputs, width, rngs=rngs))
            setattr(self, _norm(name), nnx.BatchNorm(width, momentum=0.9, epsilon=1e-5, rngs=rngs))
            inputs = width
        inputs *= (config.input_size // 16) ** 2
        for name, width in zip((*HIDDEN, "lin3"), (*config.hidden, config.classes), strict=True):
            setattr(self, name, Linear(inputs, width, rngs=rngs))
            inputs = width
        self.drop = nnx.Dropout(config.dropout)

    def preprocess(self, images: jax.Array) -> jax.Array:
        """uint8 faces [B, H, W, C] → [B, 40, 40, 1] in [0, 1]: gray, then bilinear, not antialiased (`resize40`)."""
        size = (self.config.input_size, self.config.input_size)
        return image.resize_bilinear(image.to_unit(image.to_gray(images)), size)

    def normalize(self, unit: jax.Array) -> jax.Array:
        """Gray views [B, 40, 40, 1] in [0, 1] → the network's input: as they are."""
        return unit

    def __call__(
        self,
        images: jax.Array,
        *,
        gains: Mapping[str, Gain] | None = None,
        taps: Taps = "raw",
        rngs: nnx.Rngs | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Images [B, 40, 40, 1] in [0, 1] → logits [B, classes] and every layer's output.

        `taps="raw"` gives outputs before BatchNorm and ReLU, as CLIP-Dissect hooks them, `"relu"` after both; lin3's
        tap is the logits. `gains` scale layers' weights and biases; `rngs` feeds dropout while training.
        """
        outputs, x = {}, images
        for name in LAYERS:
            raw = self._with_bias(name, getattr(self, name)(x), gains)
            active = self._activate(name, raw)
            outputs[name] = raw if taps == "raw" else active
            x = self._to_next(name, active, rngs)
        return x, outputs

    def until(self, images: jax.Array, layer: str) -> jax.Array:
        """The layer's output before its bias, [B, H, W, U] or [B, U]: all that does not depend on its gain."""
        x = images
        for name in LAYERS:
            before_bias = getattr(self, name)(x)
            if name == layer:
                return before_bias
            x = self._to_next(name, self._activate(name, self._with_bias(name, before_bias, None)), None)
        raise ValueError(f"no layer {layer!r}; layers: {', '.join(LAYERS)}")

    def after(self, before_bias: jax.Array, layer: str, gain: Gain | None = None) -> jax.Array:
        """Logits [B, classes] from `until`'s output, with a gain on that layer."""
        gains = None if gain is None else {layer: gain}
        x = self._to_next(layer, self._activate(layer, self._with_bias(layer, before_bias, gains)), None)
        for name in LAYERS[LAYERS.index(layer) + 1 :]:
            x = self._to_next(name, self._activate(name, self._with_bias(name, getattr(self, name)(x), None)), None)
        return x

    def _with_bias(self, name: str, before_bias: jax.Array, gains: Mapping[str, Gain] | None) -> jax.Array:
        bias = getattr(self, name).bias[...]
        if gains is not None and name in gains:
            return before_bias * gains[name].weight + bias * gains[name].bias
        return before_bias + bias

    def _activate(self, name: str, raw: jax.Array) -> jax.Array:
        if name in CONVS:
            raw = getattr(self, _norm(name))(raw)
        return raw if name == "lin3" else nnx.relu(raw)

    def _to_next(self, name: str, active: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        if name in HIDDEN:
            # In the reference dropout comes before the ReLU; the two commute.
            return active if rngs is None else self.drop(active, rngs=rngs)
        if name.endswith("b"):
            active = nnx.max_pool(active, (2, 2), strides=(2, 2))
        if name == CONVS[-1]:  # channel-major, as PyTorch flattens, so lin1 keeps PyTorch's column order
            active = active.transpose(0, 3, 1, 2).reshape(active.shape[0], -1)
        return active


def _norm(conv: str) -> str:
    return conv.replace("conv", "bn")


def _torch_name(path: convert.Path) -> str:
    layer, leaf = path
    return f"{layer}.{convert.LEAVES[leaf]}"


def from_torch_state_dict(arrays: Mapping[str, np.ndarray], *, input_size: int | None = None) -> VggNet:
    """The network in eval mode from arrays under PyTorch's names; widths and head are read off the shapes.

    `input_size` is 40 unless lin1's shape rules it out (then the smallest side that fits).

    Raises:
      ValueError: names are missing or unknown, shapes disagree, or values are not finite.
    """
    arrays = {name: array for name, array in arrays.items() if not name.endswith("num_batches_tracked")}
    try:
        widths = tuple(arrays[f"{name}.weight"].shape[0] for name in CONVS)
        lin1, lin2, lin3 = (arrays[f"{name}.weight"].shape for name in (*HIDDEN, "lin3"))
        side = round((lin1[1] / widths[-1]) ** 0.5)
    except KeyError as error:
        raise ValueError(f"this is not a VGGNet state dict: {error} is missing") from None
    except (IndexError, ZeroDivisionError):
        raise ValueError("this is not a VGGNet state dict: a weight has no units or too few axes") from None
    if not all((*widths, *lin1, *lin2, *lin3)):
        raise ValueError("this is not a VGGNet state dict: a layer has no units")
    if input_size is None:
        input_size = 40 if side == 2 else 16 * side
    config = VggConfig(widths, (lin1[0], lin2[0]), lin3[0], input_size)
    model = convert.fill(lambda: VggNet(config, rngs=nnx.Rngs(0)), arrays, _torch_name)
    model.eval()
    return model


def to_torch_state_dict(model: VggNet) -> dict[str, np.ndarray]:
    """The parameters under PyTorch's names and layouts, loadable there with `strict=True`."""
    arrays = convert.to_torch(model, _torch_name)
    for name in CONVS:
        arrays[f"{_norm(name)}.num_batches_tracked"] = np.zeros((), np.int64)
    return arrays


def with_gains(model: convert.Model, gains: Mapping[str, Gain]) -> convert.Model:
    """A copy of the network whose parameters carry the gains; the model itself is left alone.

    Any module will do whose layers hold a `kernel` and a `bias`. A convolution's gain scales its kernel (and bias); the
    BatchNorm behind it keeps its statistics, as in the paper.
    """
    graphdef, state = nnx.split(model)
    leaves = dict(nnx.to_flat_state(state))
    layers = [path[0] for path in leaves if path[-1] == "kernel"]
    for layer, gain in gains.items():
        if layer not in layers:
            raise ValueError(f"no layer {layer!r}; layers: {', '.join(layers)}")
        kernel, bias = leaves[layer, "kernel"], leaves[layer, "bias"]
        if gain.weight.shape != bias.shape:
            raise ValueError(f"layer {layer} has {bias.shape[0]} units, not {gain.weight.shape[0]}")
        new_kernel, new_bias = scale_kernel(kernel[...], bias[...], gain)
        leaves[layer, "kernel"], leaves[layer, "bias"] = kernel.replace(new_kernel), bias.replace(new_bias)
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))
