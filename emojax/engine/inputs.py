"""What edits of one layer need to know of a network: the layer's output before its bias, once per image, and what follows.

Shapes: I images, U units, C classes, T tile.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from emojax.data.loader import ImageSet
from emojax.engine.evaluate import labelled
from emojax.engine.network import as_network, default_tile, map_images
from emojax.errors import InputError, did_you_mean
from emojax.hosts import check_same, from_first, is_first
from emojax.mesh import put_split
from emojax.models.compact import Editable
from emojax.ops import gains as ops
from emojax.ops.gains import Gain
from emojax.store import content_key, read_npy, write_binary

Progress = Callable[[int, int], None]
After = Callable[[Any, jax.Array, Gain], jax.Array]

_FORMAT = 1  # of inputs on disk; part of their key
_RESIDENT = 2**31  # bytes of inputs that stay on the devices between calls; more is sent in batches
_BATCH = 2**28  # bytes of inputs sent at once


class Head(NamedTuple):
    """What follows a dense layer that feeds the logits: `max(x + bias, floor) @ weight + offset`.

    Attributes:
      bias: [U], the edited layer's own.
      weight: [U, C] and `offset` [C]: the last layer's.
      floor: 0 for a ReLU, −inf for none.
    """

    bias: jax.Array | np.ndarray
    weight: jax.Array | np.ndarray
    offset: jax.Array | np.ndarray
    floor: jax.Array | np.ndarray | float = 0.0


def active(head: Head, values: jax.Array, gain: Gain) -> jax.Array:
    """The units' outputs [T, U] under a gain, from the layer's output before its bias [T, U]."""
    return jnp.maximum(values * gain.weight + head.bias * gain.bias, head.floor)


def _through(head: Head, values: jax.Array, gain: Gain) -> jax.Array:
    return active(head, values, gain) @ head.weight + head.offset


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """All that edits of one layer need to know of a network and a labelled set.

    Attributes:
      layer: the layer's name.
      values: its output before the bias, [I, U], or [I, H, W, U] for a convolution; float32. Within a residual block,
        what the block adds later is joined to it as further channels (see `CompactNet.until`).
      labels: [I] int32, and `classes` their names.
      params: parameters of what follows; a `Head` when that is the logits themselves.
      after: (params, values [T, ..], gain) → logits [T, C].
      weight_sums: Σ|W| of every unit [U].
      key: content key of network, images and layer.
      name: of the image set.
    """

    layer: str
    values: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    params: Any
    weight_sums: np.ndarray
    key: str
    name: str
    after: After = _through

    @property
    def units(self) -> int:
        """Units of the layer."""
        return len(self.weight_sums)

    @property
    def feeds_logits(self) -> bool:
        """Whether the fast paths hold."""
        return isinstance(self.params, Head)

    @functools.cached_property
    def _placed(self) -> dict[Any, list[tuple[jax.Array, jax.Array]]]:
        return {}

    def batches(self, mesh: Mesh, tile: int) -> Iterable[tuple[jax.Array, jax.Array]]:
        """Values and labels on the devices, in batches of one shape padded with label −1; kept there if they fit."""
        if (mesh, tile) in self._placed:
            return self._placed[mesh, tile]
        grain, total = mesh.size * tile, len(self.labels)
        size = min(total, max(1, _BATCH // self.values[:1].nbytes))
        size = -(-size // grain) * grain

        def sent() -> Iterable[tuple[jax.Array, jax.Array]]:
            for start in range(0, total, size):
                values, labels = self.values[start : start + size], self.labels[start : start + size]
                pad = size - len(labels)
                values = np.pad(values, ((0, pad), *(((0, 0),) * (values.ndim - 1)))) if pad else values
                yield put_split(mesh, (np.asarray(values), np.pad(labels, (0, pad), constant_values=-1)))

        if self.values.nbytes > _RESIDENT:
            return sent()
        self._placed.clear()
        self._placed[mesh, tile] = list(sent())
        return self._placed[mesh, tile]


@functools.lru_cache(maxsize=32)
def _rest_of(graphdef: Any, layer: str) -> After:
    """The network's `after` as a function of the state; one object per architecture and layer, so that it compiles once."""
    return lambda state, values, gain: nnx.merge(graphdef, state).after(values, layer, gain)


def layer_inputs(
    model: Editable,
    images: ImageSet,
    layer: str,
    *,
    batch: int = 256,
    tile: int | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> LayerInputs:
    """Runs the network up to a layer, once per image.

    The result takes I × (outputs of the layer) × 4 bytes: 118 MB for lin2 and 2.9 GB for conv1a of the published network
    on 7,178 images. With `cache`, a folder, it is kept there and read instead of computed the next time.

    Raises:
      InputError: no such layer, or the set has no labels or other classes.
    """
    layers = list(model.config.units())
    if layer not in layers:
        raise InputError(f"no layer {layer!r}{did_you_mean(layer, layers)}")
    labels = labelled(images, model.config.classes)
    tile = tile or default_tile()
    key = content_key([_FORMAT, as_network(model).key, images.key, layer, tile, jax.default_backend()])
    graphdef, state = nnx.split(model)

    def forward(params: Any, chunk: jax.Array) -> jax.Array:
        network = nnx.merge(graphdef, params)
        return network.until(network.preprocess(chunk), layer)

    kept = None if cache is None else Path(cache).expanduser() / f"inputs-{key}.npy"
    check_same(key, "images or weights")
    found = from_first(lambda: _read(kept))
    if found is None:
        values = map_images(forward, state, images, batch=batch, tile=tile, progress=progress)
        if kept is not None and is_first():
            write_binary(kept, lambda file: np.save(file, values))
    else:
        values = found["values"]
    own, last, classes = getattr(model, layer), getattr(model, layers[-1]), model.config.classes
    params, after = state, _rest_of(graphdef, layer)
    if layer == layers[-2]:  # the dense layer before the logits, in either network
        params, after = Head(own.bias[...], last.kernel[...], last.bias[...]), _through
    elif layer == layers[-1]:
        identity, nothing = np.eye(classes, dtype=np.float32), np.zeros(classes, np.float32)
        params, after = Head(own.bias[...], identity, nothing, floor=-np.inf), _through
    sums = np.asarray(ops.weight_sums(own.kernel[...]))
    return LayerInputs(layer, values, labels, images.classes, params, sums, key, images.name, after)


def _read(kept: Path | None) -> dict[str, np.ndarray] | None:
    with contextlib.suppress(OSError, ValueError):  # missing, or damaged: made again
        return None if kept is None else {"values": read_npy(kept, mapped=True)}
    return None


def join_inputs(*parts: LayerInputs) -> LayerInputs:
    """The same layer's inputs on several sets as one, as the paper pooled both test splits."""
    first = parts[0]
    return replace(
        first,
        values=np.concatenate([part.values for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        key=content_key([part.key for part in parts]),
        name=" + ".join(part.name for part in parts),
    )
