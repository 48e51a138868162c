"""Deep-Emotion (Minaee and Abdolrashidi 2019, arXiv 1902.01019): a spatial transformer before a
small CNN, 48×48 faces.

Layers, sizes and parameter names are those of the widely used PyTorch version, class
`Deep_Emotion`. The transformer looks at the image, chooses an affine map and resamples the image by
it; the CNN sees the result. As with VGGNet, `logits, taps = model(images)`, where `taps[layer]` is
a layer's raw output. Shapes: B batch, C channels, U units.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emojax.models import convert
from emojax.ops import image

SIZE = 48
CONVS = ("conv1", "conv2", "conv3", "conv4")
LAYERS = (*CONVS, "fc1", "fc2")
WIDTH, HIDDEN = 10, 50
# PyTorch's default start: uniform within ±1/√(inputs of a unit).
_KERNEL = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclass(frozen=True)
class DeepEmotionConfig:
    """Channels of the images (1 gray, 3 RGB), classes, and the dropout rate before fc1.

    `class_names` as in `VggConfig`.

    Raises:
      ValueError: channels are neither 1 nor 3.
    """

    channels: int = 1
    classes: int = 7
    dropout: float = 0.5
    class_names: tuple[str, ...] | None = field(default=None, repr=False)
    input_size: ClassVar[int] = SIZE

    def __post_init__(self):
        if self.channels not in (1, 3):
            raise ValueError(
                f"Deep-Emotion takes images of 1 channel (gray) or 3 (RGB), not {self.channels}"
            )

    def units(self) -> dict[str, int]:
        """Units of every layer, in order."""
        return dict.fromkeys(CONVS, WIDTH) | {"fc1": HIDDEN, "fc2": self.classes}

    def probed(self) -> tuple[str, ...]:
        """Layers that are dissected when none are named: all, fc2 as well, as in the paper."""
        return LAYERS


class DeepEmotion(nnx.Module):
    """The network. Call `.eval()` before use and `.train()` before training (flax's modes)."""

    def __init__(self, config: DeepEmotionConfig, *, rngs: nnx.Rngs):
        self.config = config

        def conv(inputs: int, outputs: int, side: int = 3) -> nnx.Conv:
            return nnx.Conv(
                inputs, outputs, (side, side), padding="VALID", kernel_init=_KERNEL, rngs=rngs
            )

        def dense(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(inputs, outputs, kernel_init=_KERNEL, rngs=rngs)

        # Positions in the two sequences are PyTorch's, and so part of its parameter names
        # (`localization.3.weight`).
        self.localization = nnx.Sequential(
            conv(config.channels, 8, 7), _halve, nnx.relu, conv(8, 10, 5), _halve, nnx.relu
        )
        still = nnx.Linear(
            32, 6, kernel_init=nnx.initializers.zeros, bias_init=_identity, rngs=rngs
        )
        self.fc_loc = nnx.Sequential(dense(640, 32), nnx.relu, still)
        inputs = config.channels
        for name in CONVS:
            setattr(self, name, conv(inputs, WIDTH))
            inputs = WIDTH
        self.norm = nnx.BatchNorm(WIDTH, momentum=0.9, epsilon=1e-5, rngs=rngs)
        self.drop = nnx.Dropout(config.dropout)
        self.fc1 = dense(WIDTH * 9 * 9, HIDDEN)
        self.fc2 = dense(HIDDEN, config.classes)

    def preprocess(self, images: jax.Array) -> jax.Array:
        """uint8 faces [B, H, W, 1 or 3] → [B, 48, 48, C] in [-1, 1]; other sizes by bilinear, not
        antialiased.

        A gray network takes RGB by its luma, an RGB network takes gray as three equal channels.
        """
        if self.config.channels == 1:
            images = image.to_gray(images)
        unit = image.to_unit(images)
        if unit.shape[1:3] != (SIZE, SIZE):
            unit = image.resize_bilinear(unit, (SIZE, SIZE))
        return self.normalize(unit)

    def normalize(self, unit: jax.Array) -> jax.Array:
        """Views [B, 48, 48, 1 or C] in [0, 1] → the network's input [B, 48, 48, C] in [-1, 1]."""
        return (jnp.broadcast_to(unit, (*unit.shape[:-1], self.config.channels)) - 0.5) / 0.5

    def transform(self, images: jax.Array) -> jax.Array:
        """The affine map [B, 2, 3] that the transformer chooses for images [B, 48, 48, C] (see
        `image.affine_grid`).
        """
        return self.fc_loc(_flatten(self.localization(images))).reshape(-1, 2, 3)

    def __call__(
        self, images: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Images [B, 48, 48, C] in [-1, 1] → logits [B, classes] and every layer's raw output,
        convolutions NHWC.

        Raw is before pooling, BatchNorm and ReLU; fc2's tap is the logits. `rngs` feeds dropout
        while training. (The PyTorch version drops half of fc1's inputs in eval mode too, a slip
        that makes its predictions random.)
        """
        taps = {}
        x = image.grid_sample(images, image.affine_grid(self.transform(images), images.shape[1:3]))
        for name in LAYERS:
            taps[name] = getattr(self, name)(x)
            x = self._to_next(name, taps[name], rngs)
        return x, taps

    def _to_next(self, name: str, raw: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        if name == "fc2":
            return raw
        if name == "conv4":  # the only BatchNorm
            raw = self.norm(raw)
        if name in ("conv2", "conv4"):
            raw = _halve(raw)
        active = nnx.relu(raw)
        if name != "conv4":
            return active
        return _flatten(active) if rngs is None else self.drop(_flatten(active), rngs=rngs)


def _identity(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Bias of the transformer's last layer: it starts by leaving every image alone."""
    return jnp.eye(2, 3, dtype=dtype).reshape(shape)


def _halve(x: jax.Array) -> jax.Array:
    return nnx.max_pool(x, (2, 2), strides=(2, 2))


def _flatten(x: jax.Array) -> jax.Array:
    """[B, H, W, U] → [B, U·H·W], channel-major as PyTorch flattens, so dense layers keep PyTorch's
    column order.
    """
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


def _torch_name(path: convert.Path) -> str:
    *module, leaf = (
        str(part) for part in path if part != "layers"
    )  # `layers` is how flax's Sequential holds its parts
    return ".".join([*module, convert.LEAVES[leaf]])


def from_torch_state_dict(arrays: Mapping[str, np.ndarray]) -> DeepEmotion:
    """The network in eval mode from arrays under PyTorch's names; channels and classes are read off
    the shapes.

    Raises:
      ValueError: names are missing or unknown, shapes disagree, or values are not finite.
    """
    try:
        config = DeepEmotionConfig(arrays["conv1.weight"].shape[1], arrays["fc2.weight"].shape[0])
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"this is not a Deep-Emotion state dict: {error} is missing or has no shape"
        ) from None
    model = convert.fill(
        lambda: DeepEmotion(config, rngs=nnx.Rngs(0)),
        arrays,
        _torch_name,
        ignore=lambda name: name == "norm.num_batches_tracked",
    )
    model.eval()
    return model


def to_torch_state_dict(model: DeepEmotion) -> dict[str, np.ndarray]:
    """The parameters under PyTorch's names and layouts, loadable there with `strict=True`."""
    return convert.to_torch(model, _torch_name) | {
        "norm.num_batches_tracked": np.zeros((), np.int64)
    }
