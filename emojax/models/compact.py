"""A compact residual network for faces: ten convolutions in three stages, one hidden dense layer.

Small enough to be trained on a CPU and to be shipped. As with VGGNet, `logits, taps =
model(images)`, where `taps[layer]` is a layer's raw output, and the network can be cut at a layer:
`until` runs up to its output before the bias, `after` finishes from there with any gain. It works
on images of any side that divides by 8: training sees crops of 40×40, `preprocess` gives the whole
face at the same scale. Shapes: B batch, H height, W width, U units of a layer, S channels that a
residual block adds to its output.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from emojax.models import convert, vgg
from emojax.ops import image
from emojax.ops.arrays import AnyArray
from emojax.ops.gains import Gain

FACE = 48
CONVS = (
    "stem",
    *("conv1", "res1a", "res1b"),
    *("conv2", "res2a", "res2b"),
    *("conv3", "res3a", "res3b"),
)
POOLED = ("res1b", "res2b")  # followed by a maximum over 2×2
LAYERS = (*CONVS, "hidden", "logits")


@dataclass(frozen=True)
class CompactConfig:
    """Widths of the stem and the three stages, of the hidden layer, classes, side of the crops.

    `dropout` is the rate before the logits; `class_names` as in `VggConfig`.
    """

    widths: tuple[int, int, int, int] = (32, 32, 96, 192)
    hidden: int = 256
    classes: int = 7
    input_size: int = 40
    dropout: float = 0.2
    class_names: tuple[str, ...] | None = field(default=None, repr=False)
    channels: ClassVar[int] = 1

    @classmethod
    def small(cls) -> "CompactConfig":
        """The same layers in 0.04 M parameters, for tests."""
        return cls(widths=(8, 12, 16, 24), hidden=32)

    def units(self) -> dict[str, int]:
        """Units of every layer, in order."""
        stem, *stages = self.widths
        convs = (stem, *(width for width in stages for _ in range(3)))
        return dict(zip(LAYERS, (*convs, self.hidden, self.classes), strict=True))

    def probed(self) -> tuple[str, ...]:
        """Layers that are dissected when none are named: all but the logits."""
        return LAYERS[:-1]


class Stem(nnx.Module):
    """5×5 convolution of one channel, stride 2, padding 2, whose bias is added apart."""

    def __init__(self, outputs: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), (5, 5, 1, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: Float[Array, "B H W 1"]) -> Float[Array, "B H//2 W//2 U"]:
        """The output without the bias, as one matrix product: see `vgg.Conv`."""
        kernel = self.kernel[...]
        height, width = x.shape[1:3]
        padded = jnp.pad(x.astype(kernel.dtype), ((0, 0), (2, 2), (2, 2), (0, 0)))
        shifted = [
            padded[:, i : i + height : 2, j : j + width : 2] for i in range(5) for j in range(5)
        ]
        return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(25, -1)


class CompactNet(nnx.Module):
    """The network. Call `.eval()` before use and `.train()` before training (flax's modes)."""

    def __init__(self, config: CompactConfig, *, rngs: nnx.Rngs):
        self.config = config
        widths = config.units()
        self.stem = Stem(widths["stem"], rngs=rngs)
        inputs = widths["stem"]
        for name in LAYERS[1:]:
            layer = vgg.Conv if name in CONVS else vgg.Linear
            setattr(self, name, layer(inputs, widths[name], rngs=rngs))
            inputs = widths[name]
        for name in CONVS:
            norm = nnx.BatchNorm(widths[name], momentum=0.9, epsilon=1e-5, rngs=rngs)
            setattr(self, _norm(name), norm)
        self.drop = nnx.Dropout(config.dropout)

    def preprocess(self, images: UInt8[AnyArray, "B H W C"]) -> Float[Array, "B 48 48 1"]:
        """The whole face in gray, normalized; other sizes by bilinear, not antialiased."""
        unit = image.to_unit(image.to_gray(images))
        if unit.shape[1:3] != (FACE, FACE):
            unit = image.resize_bilinear(unit, (FACE, FACE))
        return self.normalize(unit)

    def normalize(self, unit: Float[AnyArray, "*B H W 1"]) -> Float[Array, "*B H W 1"]:
        """Gray views in [0, 1] → the network's input: each with mean 0 and deviation about 1.

        How bright a photograph is, and how strong its contrast, says nothing of the expression.
        """
        unit = jnp.asarray(unit)
        mean = unit.mean(axis=(-3, -2, -1), keepdims=True)
        variance = jnp.square(unit - mean).mean(axis=(-3, -2, -1), keepdims=True)
        return (unit - mean) / (jnp.sqrt(variance) + 0.02)  # a blank view stays zero

    def __call__(
        self,
        images: Float[AnyArray, "B H W 1"],
        *,
        gains: Mapping[str, Gain] | None = None,
        taps: vgg.Taps = "raw",
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "B classes"], dict[str, Array]]:
        """Normalized images → logits and every layer's output.

        `taps="raw"` gives outputs before BatchNorm and ReLU, `"relu"` after both and after the
        block's sum; the tap of `logits` is the logits. `gains` scale layers' weights and biases;
        `rngs` feeds dropout while training.
        """
        outputs: dict[str, Array] = {}
        x = jnp.asarray(images)
        skip = None
        for name in LAYERS:
            raw = self._with_bias(name, getattr(self, name)(x), (gains or {}).get(name))
            active = self._activate(name, raw, skip)
            outputs[name] = raw if taps == "raw" else active
            skip = active if name.startswith("conv") else skip
            x = self._to_next(name, active, rngs)
        return x, outputs

    def until(self, images: Float[AnyArray, "B H W 1"], layer: str) -> Float[Array, "B *inner U"]:
        """The layer's output before its bias: all that does not depend on its gain.

        Within a residual block the block's input is joined to it, [B, H, W, U + S]: `after` needs
        it for the sum.

        Raises:
          ValueError: there is no such layer.
        """
        x = jnp.asarray(images)
        skip = None
        for name in LAYERS:
            before_bias = getattr(self, name)(x)
            if name == layer:
                if skip is None or not name.startswith("res"):
                    return before_bias
                return jnp.concatenate([before_bias, skip], axis=-1)
            active = self._activate(name, self._with_bias(name, before_bias, None), skip)
            skip = active if name.startswith("conv") else skip
            x = self._to_next(name, active, None)
        raise ValueError(f"no layer {layer!r}; layers: {', '.join(LAYERS)}")

    def after(
        self, before_bias: Float[AnyArray, "B *inner U"], layer: str, gain: Gain | None = None
    ) -> Float[Array, "B classes"]:
        """Logits from `until`'s output, with a gain on that layer."""
        units = self.config.units()[layer]
        before_bias = jnp.asarray(before_bias)
        x = before_bias[..., :units]
        skip = before_bias[..., units:]
        for name in LAYERS[LAYERS.index(layer) :]:
            if name != layer:
                x = getattr(self, name)(x)
            raw = self._with_bias(name, x, gain if name == layer else None)
            active = self._activate(name, raw, skip)
            skip = active if name.startswith("conv") else skip
            x = self._to_next(name, active, None)
        return x

    def _with_bias(self, name: str, before_bias: Array, gain: Gain | None) -> Array:
        bias = getattr(self, name).bias[...]
        if name in CONVS:
            # The BatchNorm behind it takes the bias away again: in training its gradient is zero
            # but for rounding, and would cost a pass over the largest arrays.
            bias = jax.lax.stop_gradient(bias)
        if gain is None:
            return before_bias + bias
        return before_bias * gain.weight + bias * gain.bias

    def _activate(self, name: str, raw: Array, skip: Array | None) -> Array:
        """BatchNorm after a convolution, the sum at the end of a block, then ReLU."""
        if name in CONVS:
            raw = getattr(self, _norm(name))(raw)
        if name.endswith("b") and skip is not None:  # the last of a block, which has begun
            raw = raw + skip
        return raw if name == "logits" else nnx.relu(raw)

    def _to_next(self, name: str, active: Array, rngs: nnx.Rngs | None) -> Array:
        """From a layer's activation to the next layer's input: pooling, dropout."""
        if name in POOLED:
            return image.halve_by_maximum(active)
        if name == CONVS[-1]:
            return active.mean(axis=(1, 2))
        return self.drop(active, rngs=rngs) if name == "hidden" and rngs is not None else active


def _norm(conv: str) -> str:
    """The name of a convolution's BatchNorm."""
    return f"{conv}_norm"


def from_torch_state_dict(arrays: convert.Arrays) -> CompactNet:
    """The network in eval mode from arrays under PyTorch's names; sizes are read off the shapes.

    Raises:
      ValueError: names are missing or unknown, shapes disagree, or values are not finite.
    """
    wrong = "this is not a compact network's state dict"
    try:
        stem, *stages = (arrays[f"{name}.weight"] for name in ("stem", "conv1", "conv2", "conv3"))
        dense = (arrays["hidden.weight"], arrays["logits.weight"])
        widths = (stem.shape[0], stages[0].shape[0], stages[1].shape[0], stages[2].shape[0])
        hidden, classes = (array.shape[0] for array in dense)
    except (KeyError, IndexError) as error:
        raise ValueError(f"{wrong}: {error} is missing or has no shape") from None
    if not all((*widths, hidden, classes)):
        raise ValueError(f"{wrong}: a layer has no units")
    config = CompactConfig(widths, hidden, classes)
    model = convert.fill(
        CompactNet,
        config,
        arrays,
        convert.LEAVES,
        ignore=lambda name: name.endswith("_norm.num_batches_tracked"),
    )
    model.eval()
    return model


def to_torch_state_dict(model: CompactNet) -> dict[str, np.ndarray]:
    """The parameters under PyTorch's names and layouts."""
    arrays = convert.to_torch(model, convert.LEAVES)
    for name in CONVS:
        arrays[f"{_norm(name)}.num_batches_tracked"] = np.zeros((), np.int64)
    return arrays
