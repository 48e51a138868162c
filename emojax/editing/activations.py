"""A layer's output before its bias, once per image, and what follows it: all that edits depend on.

A gain on a unit scales this output, and the network before the layer never sees it. So a sweep
(`editing/sweep.py`) starts from these activations and repeats only what follows them.
Shapes: I images, U units, C classes, T tile.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from emojax.brief import brief
from emojax.data.image_set import ImageSet
from emojax.data.map_images import map_images
from emojax.distributed.data_parallel import default_tile
from emojax.distributed.mesh import put_replicated, put_sharded
from emojax.distributed.processes import check_same_everywhere
from emojax.errors import InputError, did_you_mean
from emojax.models.classifier import Cuttable, Editable, feeds_logits
from emojax.models.tapped import TappedNetwork
from emojax.ops import gains as ops
from emojax.ops.gains import Gain
from emojax.probing.network import as_network
from emojax.store import cached, content_key
from emojax.training.evaluate import Protocol, labelled, same_classes, tencrop_views

Progress = Callable[[int, int], None]
After = Callable[[PyTree, jax.Array, Gain], jax.Array]

_FORMAT = 2  # of activations on disk; part of their key
_RESIDENT = 2**31  # bytes of activations that stay on the devices; more is sent in batches
_BATCH = 2**28  # bytes of activations sent at once


class Batch(NamedTuple):
    """Images of a labelled set on the devices; a label of −1 is padding.

    Attributes:
      values: the layer's output before its bias, a row per image.
      labels: [T].
    """

    values: jax.Array
    labels: jax.Array


def batch_size(images: int, image_bytes: int, mesh: Mesh, tile: int) -> int:
    """Images sent at once: at most `_BATCH` bytes, rounded up to whole tiles on every device."""
    grain = mesh.size * tile
    size = min(images, max(1, _BATCH // image_bytes))
    return -(-size // grain) * grain


class Head(NamedTuple):
    """What follows a dense layer that feeds the logits: `max(x + bias, floor) @ weight + offset`.

    Attributes:
      bias: [U], the edited layer's own.
      weight: [U, C], the last layer's.
      offset: [C], the last layer's bias.
      floor: 0 for a ReLU, −inf for none.
    """

    bias: jax.Array | np.ndarray
    weight: jax.Array | np.ndarray
    offset: jax.Array | np.ndarray
    floor: jax.Array | np.ndarray | float = 0.0


def unit_outputs(head: Head, values: Float[Array, "T U"], gain: Gain) -> Float[Array, "T U"]:
    """The units' outputs under a gain, from the layer's output before its bias."""
    return jnp.maximum(values * gain.weight + head.bias * gain.bias, head.floor)


def through_head(head: Head, values: Float[Array, "T U"], gain: Gain) -> Float[Array, "T C"]:
    """Logits under a gain, from the layer's output before its bias."""
    return unit_outputs(head, values, gain) @ head.weight + head.offset


@brief
@dataclass(frozen=True, eq=False)
class PreBiasActivations:
    """All that edits of one layer need to know of a network and a labelled set.

    Attributes:
      layer: the layer's name.
      values: its output before the bias, [I, U], or [I, H, W, U] for a convolution; with ten crops
        an axis of views follows the images; within a residual block the block's input is joined
        to the last axis (see `CompactNet.until`); float32. Of networks of other libraries, what
        `after` starts from: states before the layer's block, or the images.
      labels: [I] int32.
      classes: names of the classes.
      params: parameters of what follows; a `Head` when that is the logits themselves.
      weight_sums: Σ|W| of every unit [U].
      key: content key of network, images and layer.
      name: of the image set.
      after: (params, values [T, ..], gain) → logits [T, C].
    """

    layer: str
    values: Float[np.ndarray, "I *inner U"]
    labels: Int[np.ndarray, " I"]
    classes: tuple[str, ...]
    params: PyTree
    weight_sums: Float[np.ndarray, " U"]
    key: str
    name: str
    after: After = through_head

    @property
    def units(self) -> int:
        """Units of the layer."""
        return len(self.weight_sums)  # the values may be of what lies before the layer

    @property
    def feeds_logits(self) -> bool:
        """Whether a sweep's fast paths hold."""
        return isinstance(self.params, Head)

    @functools.cached_property
    def _placed(self) -> dict[tuple[Mesh, int], list[Batch]]:
        return {}

    @functools.cached_property
    def _placed_params(self) -> dict[Mesh, PyTree]:
        return {}

    def params_on(self, mesh: Mesh) -> PyTree:
        """The parameters of what follows, replicated; they stay there for the next call."""
        if mesh not in self._placed_params:
            self._placed_params.clear()
            self._placed_params[mesh] = put_replicated(mesh, self.params)
        return self._placed_params[mesh]

    def batches(self, mesh: Mesh, tile: int) -> Iterable[Batch]:
        """Values and labels on the devices, in batches of one shape padded with label −1.

        Sets that fit stay on the devices for the next call with the same mesh and tile.
        """
        if (mesh, tile) in self._placed:
            return self._placed[mesh, tile]
        if self.values.nbytes > _RESIDENT:
            return self._send(mesh, tile)
        self._placed.clear()
        self._placed[mesh, tile] = list(self._send(mesh, tile))
        return self._placed[mesh, tile]

    def _send(self, mesh: Mesh, tile: int) -> Iterator[Batch]:
        """Batches of at most `_BATCH` bytes, rounded up to whole tiles on every device."""
        total = len(self.labels)
        size = batch_size(total, self.values[:1].nbytes, mesh, tile)
        for start in range(0, total, size):
            values = self.values[start : start + size]
            labels = self.labels[start : start + size]
            pad = size - len(labels)
            if pad:
                values = np.pad(values, ((0, pad), *(((0, 0),) * (values.ndim - 1))))
                labels = np.pad(labels, (0, pad), constant_values=-1)
            yield Batch(*put_sharded(mesh, (np.asarray(values), labels)))


@functools.lru_cache(maxsize=32)
def _until(graphdef: nnx.GraphDef, layer: str, protocol: Protocol) -> Callable[..., jax.Array]:
    """(state, uint8 images) → the layer's output before its bias; one object compiles once."""

    def until(state: nnx.State, images: jax.Array) -> jax.Array:
        network = nnx.merge(graphdef, state)
        if protocol == "resize40":
            return network.until(network.preprocess(images), layer)
        views = network.normalize(tencrop_views(network.config.input_size)(images))
        values = network.until(views.reshape(-1, *views.shape[2:]), layer)
        return values.reshape(*views.shape[:2], *values.shape[1:])

    return until


@functools.lru_cache(maxsize=32)
def _after(graphdef: nnx.GraphDef, layer: str, protocol: Protocol) -> After:
    """The network's `after` as a function of the state; one object, so that it compiles once.

    With ten crops the views pass as images of their own, and an image's logits are their mean.
    """

    def after(state: nnx.State, values: jax.Array, gain: Gain) -> jax.Array:
        network = nnx.merge(graphdef, state)
        if protocol == "resize40":
            return network.after(values, layer, gain)
        logits = network.after(values.reshape(-1, *values.shape[2:]), layer, gain)
        return logits.reshape(*values.shape[:2], -1).mean(axis=1)

    return after


class _Cut(NamedTuple):
    """A network cut at a layer: what runs once for an image, and what follows at every gain."""

    until: Callable[[PyTree, jax.Array], jax.Array]
    params: PyTree  # of `after`; `until` takes the network's
    after: After
    weight_sums: np.ndarray  # Σ|W| of every unit [U]


def _cut_own(model: Cuttable, layer: str, protocol: Protocol) -> _Cut:
    graphdef, state = nnx.split(model)
    own = getattr(model, layer)
    sums = np.asarray(ops.weight_sums(own.kernel[...]))
    until = _until(graphdef, layer, protocol)
    # A layer with nothing but a ReLU and a product behind it is cheap to finish, and what follows
    # is affine in a mask of units; of ten crops the mean comes in between.
    if protocol == "resize40" and feeds_logits(model, layer):
        return _Cut(until, _head_of(model, layer), through_head, sums)
    return _Cut(until, state, _after(graphdef, layer, protocol), sums)


def _cut_tapped(model: TappedNetwork, layer: str, images: ImageSet) -> _Cut:
    """Gains on a tap of a network of other libraries: they scale what the layers behind it read.

    Where the states to start from are not known, or would take more than `_RESIDENT` bytes, the
    images themselves are what runs, from the start, at every gain.
    """
    graphdef, state = nnx.split(model)
    sums = np.zeros(model.config.units()[layer], np.float32)  # stays where no parameters tell
    leaves: dict[Any, Any] = dict(nnx.to_flat_state(state))
    for path, axis in model.outgoing(layer)[:1]:
        array = np.abs(np.asarray(leaves[path][...]))
        array = np.moveaxis(array, axis, 0)
        sums = array.reshape(len(sums), -1).sum(axis=1)
    if feeds_logits(model, layer):
        zeros = np.zeros(len(sums), np.float32)
        params = Head(zeros, *model.last_layer(), floor=-np.inf)
        return _Cut(_until_tap(graphdef, layer), params, through_head, sums)
    start = model.starts_at(layer)
    shapes = as_network(model).tap_shapes(images.images.shape[1:])
    if start is None or len(images) * int(np.prod(shapes[start])) * 4 > _RESIDENT:
        return _Cut(_pixels, state, _after_pixels(graphdef, layer), sums)
    size = model.config.preprocess.output_size(*images.images.shape[1:3])
    return _Cut(_until_tap(graphdef, start), state, _after_tap(graphdef, layer, start, size), sums)


@functools.lru_cache(maxsize=32)
def _until_tap(graphdef: nnx.GraphDef, tap: str) -> Callable[[PyTree, jax.Array], jax.Array]:
    """(state, uint8 images) → a tap."""

    def until(state: nnx.State, images: jax.Array) -> jax.Array:
        network = nnx.merge(graphdef, state)
        return network(network.preprocess(images))[1][tap]

    return until


@functools.lru_cache(maxsize=32)
def _after_tap(graphdef: nnx.GraphDef, layer: str, start: str, size: tuple[int, int]) -> After:
    """Logits from the tap `start`, under a gain on `layer`."""

    def after(state: nnx.State, values: jax.Array, gain: Gain) -> jax.Array:
        # The images are not looked at: all that depends on them alone is given.
        images = jnp.zeros((values.shape[0], *size, 3))
        network = nnx.merge(graphdef, state)
        return network(images, gains={layer: gain.weight}, given={start: values})[0]

    return after


def _pixels(_state: PyTree, images: jax.Array) -> jax.Array:
    return images


@functools.lru_cache(maxsize=32)
def _after_pixels(graphdef: nnx.GraphDef, layer: str) -> After:
    """Logits from uint8 images, under a gain on `layer`."""

    def after(state: nnx.State, images: jax.Array, gain: Gain) -> jax.Array:
        network = nnx.merge(graphdef, state)
        return network(network.preprocess(images), gains={layer: gain.weight})[0]

    return after


def pre_bias_activations(
    model: Editable,
    images: ImageSet,
    layer: str,
    *,
    protocol: Protocol = "resize40",
    batch: int = 256,
    tile: int | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> PreBiasActivations:
    """Runs the network up to a layer, once per image, or per view of it for `tencrop`.

    The result takes I × (outputs of the layer) × 4 bytes: 118 MB for lin2 and 2.9 GB for conv1a of
    the published network on 7,178 images, ten times that for ten crops. With `cache`, a folder, it
    is cached there and read instead of computed the next time.

    Raises:
      InputError: no such layer, or the set has no labels or other classes.
    """
    layers = list(model.config.units())
    if layer not in layers:
        raise InputError(f"no layer {layer!r}{did_you_mean(layer, layers)}")
    images = labelled(images, model)  # with a new key where the order of the classes is new
    tile = tile or default_tile()
    views = [] if protocol == "resize40" else [protocol]
    origin = [_FORMAT, as_network(model).key, images.key, layer, tile, jax.default_backend()]
    key = content_key(origin + views)
    if isinstance(model, TappedNetwork):
        cut = _cut_tapped(model, layer, images)
    else:
        cut = _cut_own(model, layer, protocol)

    def compute() -> dict[str, np.ndarray]:
        state = nnx.state(model)
        values = map_images(
            cut.until, state, images, batch=batch, tile=tile, progress=progress, keep=True
        )
        return {"values": values}

    check_same_everywhere(key, "images or weights")
    values = cached(cache, f"inputs-{key}", compute, mapped=True)["values"]
    return PreBiasActivations(
        layer=layer,
        values=values,
        labels=_labels_of(images),
        classes=images.classes,
        params=cut.params,
        weight_sums=cut.weight_sums,
        key=key,
        name=images.name,
        after=cut.after,
    )


def _head_of(model: Cuttable, layer: str) -> Head:
    own = getattr(model, layer)
    last_layer = list(model.config.units())[-1]
    if layer == last_layer:
        classes = model.config.classes
        identity = np.eye(classes, dtype=np.float32)
        return Head(own.bias[...], identity, np.zeros(classes, np.float32), floor=-np.inf)
    last = getattr(model, last_layer)
    return Head(own.bias[...], last.kernel[...], last.bias[...])


def _labels_of(images: ImageSet) -> Int[np.ndarray, " I"]:
    if images.labels is None:
        raise ValueError(f"{images.name} has no labels; `labelled` refuses such a set")
    return images.labels


def pool_activations(*sets: PreBiasActivations) -> PreBiasActivations:
    """The same layer's activations on several sets as one, as the paper pooled both test splits.

    Raises:
      InputError: the sets' classes differ, or stand in another order.
    """
    same_classes([activations.classes for activations in sets])
    first = sets[0]
    return replace(
        first,
        values=np.concatenate([activations.values for activations in sets]),
        labels=np.concatenate([activations.labels for activations in sets]),
        key=content_key([activations.key for activations in sets]),
        name=" + ".join(activations.name for activations in sets),
    )
