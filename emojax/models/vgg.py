"""VGGNet for FER2013 (Khaireddin and Chen 2021, arXiv 2105.03588): eight convolutions, three dense.

The network that the paper dissects and edits. `logits, taps = model(images)`, where `taps[layer]`
is a layer's output: activations are plain outputs, and jit drops those that nobody reads. For
sweeps the network can be cut at a layer: `until` runs up to its output before the bias, `after`
finishes from there with any gain. Shapes: B batch, H height, W width, U units of a layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from emojax.models import convert
from emojax.ops import image
from emojax.ops.arrays import AnyArray
from emojax.ops.conv import conv3x3
from emojax.ops.gains import Gain, scale_kernel

CONVS = ("conv1a", "conv1b", "conv2a", "conv2b", "conv3a", "conv3b", "conv4a", "conv4b")
HIDDEN = ("lin1", "lin2")
LAYERS = (*CONVS, *HIDDEN, "lin3")
Taps = Literal["raw", "relu"]


@dataclass(frozen=True)
class VggConfig:
    """Widths of the convolutions and the hidden dense layers, classes, input side, dropout rate.

    `class_names` are those of the outputs in order, None where they are not known. They change no
    output, so they are no part of the repr, from which content keys are made.
    """

    widths: tuple[int, ...] = (64, 64, 128, 128, 256, 256, 512, 512)
    hidden: tuple[int, int] = (4096, 4096)
    classes: int = 7
    input_size: int = 40
    dropout: float = 0.2
    class_names: tuple[str, ...] | None = field(default=None, repr=False)
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
        shape = (3, 3, inputs, outputs)
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: Float[Array, "B H W inputs"]) -> Float[Array, "B H W U"]:
        """The output without the bias."""
        kernel = self.kernel[...]
        x = x.astype(kernel.dtype)  # trained in bfloat16, BatchNorm still hands on float32
        if kernel.shape[2] > 1:
            return conv3x3(x, kernel)
        # With one input channel there is too little to do per pixel for the backend's convolution.
        # Nine shifted images, one for each place in the 3×3 kernel, and one matrix product give the
        # same several times faster.
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        height, width = x.shape[1:3]
        shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(9, -1)


class Linear(nnx.Module):
    """Dense layer whose bias is added apart."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: Float[Array, "B inputs"]) -> Float[Array, "B U"]:
        """The output without the bias."""
        kernel = self.kernel[...]
        # Sums of bfloat16 products stay float32: what is tapped here ranks images.
        wide = jnp.promote_types(kernel.dtype, jnp.float32)
        return jnp.matmul(x.astype(kernel.dtype), kernel, preferred_element_type=wide)


class VggNet(nnx.Module):
    """The network. Call `.eval()` before use and `.train()` before training (flax's modes)."""

    def __init__(self, config: VggConfig, *, rngs: nnx.Rngs):
        self.config = config
        inputs = 1
        for name, width in zip(CONVS, config.widths, strict=True):
            setattr(self, name, Conv(inputs, width, rngs=rngs))
            norm = nnx.BatchNorm(width, momentum=0.9, epsilon=1e-5, rngs=rngs)
            setattr(self, _norm(name), norm)
            inputs = width
        inputs *= (config.input_size // 16) ** 2  # four times pooled by two
        dense_widths = (*config.hidden, config.classes)
        for name, width in zip((*HIDDEN, "lin3"), dense_widths, strict=True):
            setattr(self, name, Linear(inputs, width, rngs=rngs))
            inputs = width
        self.drop = nnx.Dropout(config.dropout)

    def preprocess(
        self, images: UInt8[AnyArray, "B H W C"], *, antialias: bool = False
    ) -> Float[Array, "B side side 1"]:
        """Faces → [B, 40, 40, 1] in [0, 1]: gray, then bilinear.

        Without `antialias` it is what the network is tested with (`resize40`), with it what the
        paper probed with; torchvision's `Resize` of tensors has both.
        """
        size = (self.config.input_size, self.config.input_size)
        unit = image.to_unit(image.to_gray(images))
        return image.resize_bilinear(unit, size, antialias=antialias)

    def normalize(self, unit: Float[AnyArray, "*B H W 1"]) -> Float[AnyArray, "*B H W 1"]:
        """Gray views [B, 40, 40, 1] in [0, 1] → the network's input: as they are."""
        return unit

    def __call__(
        self,
        images: Float[AnyArray, "B H W 1"],
        *,
        gains: Mapping[str, Gain] | None = None,
        taps: Taps = "raw",
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "B classes"], dict[str, Array]]:
        """Images [B, 40, 40, 1] in [0, 1] → logits and every layer's output.

        `taps="raw"` gives outputs before BatchNorm and ReLU, as CLIP-Dissect hooks them, `"relu"`
        after both; lin3's tap is the logits. `gains` scale layers' weights and biases; `rngs` feeds
        dropout while training.
        """
        outputs = {}
        x = jnp.asarray(images)
        for name in LAYERS:
            raw = self._with_bias(name, getattr(self, name)(x), gains)
            active = self._activate(name, raw)
            outputs[name] = raw if taps == "raw" else active
            x = self._to_next(name, active, rngs)
        return x, outputs

    def until(self, images: Float[AnyArray, "B H W 1"], layer: str) -> Float[Array, "B *inner U"]:
        """The layer's output before its bias: all that does not depend on its gain.

        Raises:
          ValueError: there is no such layer.
        """
        x = jnp.asarray(images)
        for name in LAYERS:
            before_bias = getattr(self, name)(x)
            if name == layer:
                return before_bias
            x = self._finish_layer(name, before_bias)
        raise ValueError(f"no layer {layer!r}; layers: {', '.join(LAYERS)}")

    def after(
        self, before_bias: Float[AnyArray, "B *inner U"], layer: str, gain: Gain | None = None
    ) -> Float[Array, "B classes"]:
        """Logits from `until`'s output, with a gain on that layer."""
        gains = None if gain is None else {layer: gain}
        x = self._finish_layer(layer, jnp.asarray(before_bias), gains)
        for name in LAYERS[LAYERS.index(layer) + 1 :]:
            x = self._finish_layer(name, getattr(self, name)(x))
        return x

    def _finish_layer(
        self, name: str, before_bias: Array, gains: Mapping[str, Gain] | None = None
    ) -> Array:
        """From a layer's output before the bias to the next layer's input, without dropout."""
        raw = self._with_bias(name, before_bias, gains)
        return self._to_next(name, self._activate(name, raw), None)

    def _with_bias(self, name: str, before_bias: Array, gains: Mapping[str, Gain] | None) -> Array:
        bias = getattr(self, name).bias[...]
        if name in CONVS:
            # The BatchNorm behind it takes the bias away again: in training its gradient is zero
            # but for rounding, and would cost a pass over the largest arrays.
            bias = jax.lax.stop_gradient(bias)
        if gains is not None and name in gains:
            # The layer is linear before its bias: scaling this output scales the row of weights.
            return before_bias * gains[name].weight + bias * gains[name].bias
        return before_bias + bias

    def _activate(self, name: str, raw: Array) -> Array:
        """BatchNorm after a convolution, then ReLU; the logits pass."""
        if name in CONVS:
            raw = getattr(self, _norm(name))(raw)
        return raw if name == "lin3" else nnx.relu(raw)

    def _to_next(self, name: str, active: Array, rngs: nnx.Rngs | None) -> Array:
        """From a layer's activation to the next layer's input: dropout, pooling, flattening."""
        if name in HIDDEN:
            # In the reference dropout comes before the ReLU; the two commute.
            return active if rngs is None else self.drop(active, rngs=rngs)
        if name.endswith("b"):
            active = image.halve_by_maximum(active)
        if name == CONVS[-1]:
            # Channel-major, as PyTorch flattens, so lin1 keeps PyTorch's column order.
            active = active.transpose(0, 3, 1, 2).reshape(active.shape[0], -1)
        return active


def _norm(conv: str) -> str:
    """The name of a convolution's BatchNorm."""
    return conv.replace("conv", "bn")


def from_torch_state_dict(arrays: convert.Arrays, *, input_size: int | None = None) -> VggNet:
    """The network in eval mode from arrays under PyTorch's names.

    Widths and classes are read off the shapes; `input_size` is 40 unless lin1's shape rules it out
    (then the smallest side that fits).

    Raises:
      ValueError: names are missing or unknown, shapes disagree, or values are not finite.
    """
    config = _config_of(arrays, input_size)
    model = convert.fill(
        VggNet,
        config,
        arrays,
        convert.LEAVES,
        ignore=lambda name: name.endswith("num_batches_tracked"),
    )
    model.eval()
    return model


def _config_of(arrays: convert.Arrays, input_size: int | None) -> VggConfig:
    """The config whose network has arrays of these shapes."""
    try:
        widths = tuple(arrays[f"{name}.weight"].shape[0] for name in CONVS)
        lin1, lin2, lin3 = (arrays[f"{name}.weight"].shape for name in (*HIDDEN, "lin3"))
        side = round((lin1[1] / widths[-1]) ** 0.5)  # of what the last convolution leaves
    except KeyError as error:
        raise ValueError(f"this is not a VGGNet state dict: {error} is missing") from None
    except (IndexError, ZeroDivisionError):
        raise ValueError(
            "this is not a VGGNet state dict: a weight has no units or too few axes"
        ) from None
    if not all((*widths, *lin1, *lin2, *lin3)):
        raise ValueError("this is not a VGGNet state dict: a layer has no units")
    smallest = 40 if side == 2 else 16 * side
    side_in = smallest if input_size is None else input_size
    return VggConfig(widths, (lin1[0], lin2[0]), lin3[0], side_in)


def to_torch_state_dict(model: VggNet) -> dict[str, np.ndarray]:
    """The parameters under PyTorch's names and layouts, loadable there with `strict=True`."""
    arrays = convert.to_torch(model, convert.LEAVES)
    for name in CONVS:
        arrays[f"{_norm(name)}.num_batches_tracked"] = np.zeros((), np.int64)
    return arrays


def with_gains(model: convert.Model, gains: Mapping[str, Gain]) -> convert.Model:
    """A network whose parameters carry the gains; the model itself is left alone.

    Any module will do whose layers hold a `kernel` and a `bias`. A convolution's gain scales its
    kernel (and bias); the BatchNorm behind it keeps its statistics,
    as in the paper.

    Raises:
      ValueError: there is no such layer, or it has another number of units.
    """
    graphdef, state = nnx.split(model)
    leaves = dict(nnx.to_flat_state(state))
    layers = [str(path[0]) for path in leaves if path[-1] == "kernel"]
    for layer, gain in gains.items():
        if layer not in layers:
            raise ValueError(f"no layer {layer!r}; layers: {', '.join(layers)}")
        kernel = leaves[layer, "kernel"]
        bias = leaves[layer, "bias"]
        if gain.weight.shape != bias.shape:
            raise ValueError(f"layer {layer} has {bias.shape[0]} units, not {gain.weight.shape[0]}")
        new_kernel, new_bias = scale_kernel(kernel[...], bias[...], gain)
        leaves[layer, "kernel"] = kernel.replace(new_kernel)
        leaves[layer, "bias"] = bias.replace(new_bias)
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))
