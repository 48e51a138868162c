"""Deep-Emotion (Minaee and Abdolrashidi 2019, arXiv 1902.01019): spatial transformer, small CNN.

The second classifier that can be probed and trained. Layers, sizes and parameter names are those of
the widely used PyTorch version, class `Deep_Emotion`. The transformer looks at the image, chooses
an affine map and resamples the image by it; the CNN sees the result. As with VGGNet,
`logits, taps = model(images)`, where `taps[layer]` is a layer's raw output.
Shapes: B batch, H height, W width, C channels, U units; faces are 48×48.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, UInt8

from emojax.models import convert
from emojax.ops import image
from emojax.ops.arrays import AnyArray

SIZE = 48
CONVS = ("conv1", "conv2", "conv3", "conv4")
LAYERS = (*CONVS, "fc1", "fc2")
WIDTH = 10
HIDDEN = 50
# PyTorch's default start: uniform within ±1/√(inputs of a unit).
_KERNEL = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_TORCH_NAMES: convert.Table = {
    "layers": None,  # flax's Sequential holds its members under this name, PyTorch's directly
    **convert.LEAVES,
}


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
        """Layers that are dissected when none are named: all, with fc2, as the paper did."""
        return LAYERS


class DeepEmotion(nnx.Module):
    """The network. Call `.eval()` before use and `.train()` before training (flax's modes)."""

    def __init__(self, config: DeepEmotionConfig, *, rngs: nnx.Rngs):
        self.config = config

        def conv(inputs: int, outputs: int, side: int = 3) -> nnx.Conv:
            size = (side, side)
            return nnx.Conv(inputs, outputs, size, padding="VALID", kernel_init=_KERNEL, rngs=rngs)

        def dense(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(inputs, outputs, kernel_init=_KERNEL, rngs=rngs)

        # Positions in the two sequences are PyTorch's, and so part of its parameter names
        # (`localization.3.weight`).
        self.localization = nnx.Sequential(
            conv(config.channels, 8, 7), _halve, nnx.relu, conv(8, 10, 5), _halve, nnx.relu
        )
        zeros = nnx.initializers.zeros
        to_map = nnx.Linear(32, 6, kernel_init=zeros, bias_init=_identity_map, rngs=rngs)
        self.fc_loc = nnx.Sequential(dense(640, 32), nnx.relu, to_map)
        inputs = config.channels
        for name in CONVS:
            setattr(self, name, conv(inputs, WIDTH))
            inputs = WIDTH
        self.norm = nnx.BatchNorm(WIDTH, momentum=0.9, epsilon=1e-5, rngs=rngs)
        self.drop = nnx.Dropout(config.dropout)
        self.fc1 = dense(WIDTH * 9 * 9, HIDDEN)
        self.fc2 = dense(HIDDEN, config.classes)

    def preprocess(
        self, images: UInt8[AnyArray, "B H W channels"], *, antialias: bool = False
    ) -> Float[AnyArray, "B {self.config.input_size} {self.config.input_size} C"]:
        """Faces, gray or RGB → [B, 48, 48, C] in [-1, 1]; other sizes by bilinear.

        A gray network takes RGB by its luma, an RGB network takes gray as three equal channels.
        """
        if self.config.channels == 1:
            images = image.to_gray(images)
        unit = image.to_unit(images)
        if unit.shape[1:3] != (SIZE, SIZE):
            unit = image.resize_bilinear(unit, (SIZE, SIZE), antialias=antialias)
        return self.normalize(unit)

    def normalize(self, unit: Float[AnyArray, "B H W channels"]) -> Float[Array, "B H W C"]:
        """Views [B, 48, 48, 1 or C] in [0, 1] → the network's input [B, 48, 48, C] in [-1, 1]."""
        shape = (*unit.shape[:-1], self.config.channels)
        return (jnp.broadcast_to(unit, shape) - 0.5) / 0.5

    def transform(self, images: Float[AnyArray, "B H W C"]) -> Float[Array, "B 2 3"]:
        """The affine map that the transformer chooses for each image (see `image.affine_grid`)."""
        return self.fc_loc(_flatten(self.localization(images))).reshape(-1, 2, 3)

    def __call__(
        self, images: Float[AnyArray, "B H W C"], *, rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "B classes"], dict[str, Array]]:
        """Images [B, 48, 48, C] in [-1, 1] → logits and every layer's raw output, NHWC.

        Raw is before pooling, BatchNorm and ReLU; fc2's tap is the logits. `rngs` feeds dropout
        while training. (The PyTorch version drops half of fc1's inputs in eval mode too, a slip
        that makes its predictions random.)
        """
        height, width = images.shape[1:3]
        taps = {}
        x = image.grid_sample(images, image.affine_grid(self.transform(images), (height, width)))
        for name in LAYERS:
            taps[name] = getattr(self, name)(x)
            x = self._to_next(name, taps[name], rngs)
        return x, taps

    def _to_next(self, name: str, raw: Array, rngs: nnx.Rngs | None) -> Array:
        """From a layer's raw output to the next layer's input."""
        if name == "fc2":
            return raw
        if name == "conv4":  # the only BatchNorm
            raw = self.norm(raw)
        if name in ("conv2", "conv4"):
            raw = _halve(raw)
        active = nnx.relu(raw)
        if name != "conv4":
            return active
        flat = _flatten(active)
        return flat if rngs is None else self.drop(flat, rngs=rngs)


def _identity_map(
    key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike | None
) -> Float[Array, "..."]:
    """Bias of the transformer's last layer: it starts by leaving every image alone."""
    return jnp.eye(2, 3, dtype=dtype).reshape(shape)


def _halve(x: Float[Array, "B H W U"]) -> Float[Array, "B h w U"]:
    return nnx.max_pool(x, (2, 2), strides=(2, 2))


def _flatten(x: Float[Array, "B H W U"]) -> Float[Array, "B columns"]:
    """Channel-major as PyTorch flattens, so dense layers keep PyTorch's column order."""
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


def from_torch_state_dict(arrays: convert.Arrays) -> DeepEmotion:
    """The network in eval mode from arrays under PyTorch's names.

    Channels and classes are read off the shapes.

    Raises:
      ValueError: names are missing or unknown, shapes disagree, or values are not finite.
    """
    try:
        channels = arrays["conv1.weight"].shape[1]
        classes = arrays["fc2.weight"].shape[0]
        config = DeepEmotionConfig(channels, classes)
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"this is not a Deep-Emotion state dict: {error} is missing or has no shape"
        ) from None
    model = convert.fill(
        DeepEmotion,
        config,
        arrays,
        _TORCH_NAMES,
        ignore=lambda name: name == "norm.num_batches_tracked",
    )
    model.eval()
    return model


def to_torch_state_dict(model: DeepEmotion) -> dict[str, np.ndarray]:
    """The parameters under PyTorch's names and layouts, loadable there with `strict=True`."""
    arrays = convert.to_torch(model, _TORCH_NAMES)
    return arrays | {"norm.num_batches_tracked": np.zeros((), np.int64)}
