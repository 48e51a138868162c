"""A compact residual network for faces of 48×48 pixels: ten convolutions in three stages, one hidden dense layer.

Small enough to be trained on a CPU and to be shipped. As with VGGNet, `logits, taps = model(images)`, where `taps[layer]`
is a layer's raw output, and the network can be cut at a layer: `until` runs up to its output before the bias, `after`
finishes from there with any gain. The convolutions work on maps of any size that divides by 8: training sees crops of
40×40, `preprocess` gives the whole face at the same scale. Shapes: B batch, U units of a layer, S channels that a
residual block adds to its output.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emojax.models import convert, vgg
from emojax.ops import image
from emojax.ops.gains import Gain

FACE = 48
CONVS = ("stem", "conv1", "res1a", "res1b", "conv2", "res2a", "res2b", "conv3", "res3a", "res3b")
POOLED = ("stem", "res1b", "res2b")  # followed by a maximum over 2×2
LAYERS = (*CONVS, "hidden", "logits")


@dataclass(frozen=True)
class CompactConfig:
    """Widths of the stem, the three stages and the hidden layer, classes, side of the crops, dropout rate."""

    widths: tuple[int, int, int, int] = (32, 48, 128, 224)
    hidden: int = 256
    classes: int = 7
    input_size: int = 40
    dropout: float = 0.2
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


class CompactNet(nnx.Module):
    """The network. Call `.eval()` before use and `.train()` before training (flax's modes)."""

    def __init__(self, config: CompactConfig, *, rngs: nnx.Rngs):
        self.config = config
        inputs = 1
        for name, width in config.units().items():
            setattr(self, name, (vgg.Conv if name in CONVS else vgg.Linear)(inputs, width, rngs=rngs))
            if name in CONVS:
                setattr(self, _norm(name), nnx.BatchNorm(width, momentum=0.9, epsilon=1e-5, rngs=rngs))
            inputs = width
        self.drop = nnx.Dropout(config.dropout)

    def preprocess(self, images: jax.Array) -> jax.Array:
        """uint8 faces [B, H, W, C] → the whole face in gray, [B, 48, 48, 1]; other sizes by bilinear, not antialiased."""
        unit = image.to_unit(image.to_gray(images))
        if unit.shape[1:3] != (FACE, FACE):
            unit = image.resize_bilinear(unit, (FACE, FACE))
        return self.normalize(unit)

    def normalize(self, unit: jax.Array) -> jax.Array:
        """Gray views [B, H, W, 1] in [0, 1] → the network's input in [-2, 2]."""
        return (unit - 0.5) / 0.25

    def __call__(
        self,
        images: jax.Array,
        *,
        gains: Mapping[str, Gain] | None = None,
        taps: vgg.Taps = "raw",
        rngs: nnx.Rngs | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Normalized images [B, H, W, 1] → logits [B, classes] and every layer's output.

        `taps="raw"` gives outputs before BatchNorm and ReLU, `"relu"` after both and after the block's sum; the tap of
        `logits` is the logits. `gains` scale layers' weights and biases; `rngs` feeds dropout while training.
        """
        outputs: dict[str, jax.Array] = {}
        x, skip = images, None
        for name in LAYERS:
            raw = self._with_bias(name, getattr(self, name)(x), (gains or {}).get(name))
            active = self._activate(name, raw, skip)
            outputs[name] = raw if taps == "raw" else active
            skip = active if name.startswith("conv") else skip
            x = self._to_next(name, active, rngs)
        return x, outputs

    def until(self, images: jax.Array, layer: str) -> jax.Array:
        """The layer's output before its bias, [B, H, W, U] or [B, U]: all that does not depend on its gain.

        Within a residual block the block's input is joined to it, [B, H, W, U + S]: `after` needs it for the sum.
        """
        x, skip = images, None
        for name in LAYERS:
            before_bias = getattr(self, name)(x)
            if name == layer:
                return jnp.concatenate([before_bias, skip], axis=-1) if name.startswith("res") else before_bias
            active = self._activate(name, self._with_bias(name, before_bias, None), skip)
            skip = active if name.startswith("conv") else skip
            x = self._to_next(name, active, None)
        raise ValueError(f"no layer {layer!r}; layers: {', '.join(LAYERS)}")

    def after(self, before_bias: jax.Array, layer: str, gain: Gain | None = None) -> jax.Array:
        """Logits [B, classes] from `until`'s output, with a gain on that layer."""
        units = self.config.units()[layer]
        x, skip = before_bias[..., :units], before_bias[..., units:]
        for name in LAYERS[LAYERS.index(layer) :]:
            x = x if name == layer else getattr(self, name)(x)
            active = self._activate(name, self._with_bias(name, x, gain if name == layer else None), skip)
            skip = active if name.startswith("conv") else skip
            x = self._to_next(name, active, None)
        return x

    def _with_bias(self, name: str, before_bias: jax.Array, gain: Gain | None) -> jax.Array:
        bias = getattr(self, name).bias[...]
        return before_bias + bias if gain is None else before_bias * gain.weight + bias * gain.bias

    def _activate(self, name: str, raw: jax.Array, skip: jax.Array | None) -> jax.Array:
        if name in CONVS:
            raw = getattr(self, _norm(name))(raw)
        if name.endswith("b"):
            raw = raw + skip
        return raw if name == "logits" else nnx.relu(raw)

    def _to_next(self, name: str, active: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        if name in POOLED:
            return _halve(active)
        if name == CONVS[-1]:
            return active.mean(axis=(1, 2))
        return self.drop(active, rngs=rngs) if name == "hidden" and rngs is not None else active


Editable = vgg.VggNet | CompactNet  # networks that can be cut at a layer, edited there, and tested by ten crops


def _halve(x: jax.Array) -> jax.Array:
    """Maximum over 2×2 pixels, as a maximum of four slices: its gradient is several times faster on a CPU."""
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


def _norm(conv: str) -> str:
    return f"{conv}_norm"


def _torch_name(path: convert.Path) -> str:
    layer, leaf = path
    return f"{layer}.{convert.LEAVES[leaf]}"


def from_torch_state_dict(arrays: Mapping[str, np.ndarray]) -> CompactNet:
    """The network in eval mode from arrays under PyTorch's names; widths and head are read off the shapes.

    Raises:
      ValueError: names are missing or unknown, shapes disagree, or values are not finite.
    """
    try:
        widths = tuple(arrays[f"{name}.weight"].shape[0] for name in ("stem", "conv1", "conv2", "conv3"))
        hidden, classes = (arrays[f"{name}.weight"].shape[0] for name in ("hidden", "logits"))
    except (KeyError, IndexError) as error:
        raise ValueError(f"this is not a compact network's state dict: {error} is missing or has no shape") from None
    if not all((*widths, hidden, classes)):
        raise ValueError("this is not a compact network's state dict: a layer has no units")
    config = CompactConfig(widths, hidden, classes)
    model = convert.fill(
        lambda: CompactNet(config, rngs=nnx.Rngs(0)),
        arrays,
        _torch_name,
        ignore=lambda name: name.endswith("_norm.num_batches_tracked"),
    )
    model.eval()
    return model


def to_torch_state_dict(model: CompactNet) -> dict[str, np.ndarray]:
    """The parameters under PyTorch's names and layouts."""
    arrays = convert.to_torch(model, _torch_name)
    return arrays | {f"{_norm(name)}.num_batches_tracked": np.zeros((), np.int64) for name in CONVS}
