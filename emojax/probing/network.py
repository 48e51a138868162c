"""The network under study, whoever wrote it: a pure function of parameters and images that returns `(logits, taps)`.

Shapes: B batch, T tile.
"""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx

from emojax.errors import InputError, did_you_mean
from emojax.models.vgg import VggNet
from emojax.ops.image import to_unit
from emojax.store import content_key


class ReturnsTaps(Protocol):
    """`logits, taps = model(images)`: taps maps layer names to outputs [B, U], [B, L, U] or [B, H, W, U]."""

    def __call__(self, images: jax.Array, /) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """Preprocessed images [B, …] → logits [B, classes] and taps."""


@dataclass(frozen=True)
class Network:
    """A network ready to run.

    Attributes:
      apply: (params, preprocessed images) → (logits [B, classes], taps).
      params: pytree of arrays.
      preprocess: uint8 images [B, H, W, C] → the network's input, on the device.
      key: content key of parameters and settings, or None where it cannot be known (a plain function, or
        a module with somebody's `preprocess`).
    """

    apply: Callable[[Any, jax.Array], tuple[jax.Array, Mapping[str, jax.Array]]]
    params: Any
    preprocess: Callable[[jax.Array], jax.Array]
    key: str | None

    def tap_shapes(self, image_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Shape of every tap for one image of this uint8 shape [H, W, C], in the network's order; nothing is computed."""
        order = []

        def taps(params: Any, image: jax.Array) -> Mapping[str, jax.Array]:
            found = self.apply(params, self.preprocess(image))[1]
            order.extend(found)  # the network's own order: jax would sort the names
            return found

        shapes = jax.eval_shape(
            taps, self.params, jax.ShapeDtypeStruct((1, *image_shape), np.uint8)
        )
        return {name: shapes[name].shape for name in order}


def as_network(
    model: ReturnsTaps | nnx.Module,
    *,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    taps: str = "raw",
) -> Network:
    """Wraps a flax.nnx module or any function that returns `(logits, taps)`.

    `preprocess` turns uint8 images into the model's input; None takes the model's own `preprocess`, or division by 255.
    `taps="relu"` asks a VGGNet for outputs after BatchNorm and ReLU.
    """
    chosen = preprocess or getattr(model, "preprocess", to_unit)
    if not isinstance(model, nnx.Module):
        return Network(lambda params, images: model(images), {}, chosen, None)
    graphdef, state = nnx.split(model)
    options = {"taps": taps} if isinstance(model, VggNet) else {}
    key = None
    if preprocess is None:  # what somebody's function does to the images cannot be known
        key = content_key(
            [type(model).__name__, repr(getattr(model, "config", "")), taps, parameters(state)]
        )
    return Network(
        lambda params, images: nnx.merge(graphdef, params)(images, **options), state, chosen, key
    )


def parameters(state: nnx.State) -> dict[str, jax.Array]:
    """The arrays of a state under `a/b/c` names."""
    return {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def resolve_layers(patterns: Sequence[str], available: Sequence[str]) -> tuple[str, ...]:
    """Layers that match the names or patterns (`conv*`), in the network's order.

    Raises:
      InputError: a pattern matches nothing; the message names the closest layers.
    """
    chosen = set()
    for pattern in patterns:
        matched = fnmatch.filter(available, pattern)
        if not matched:
            raise InputError(f"no layer {pattern!r}{did_you_mean(pattern, available)}")
        chosen.update(matched)
    return tuple(name for name in available if name in chosen)
