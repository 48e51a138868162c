"""The program of one batch: network and CLIP run side by side, and the running statistics grow.

Each device computes its share of a batch, and keeps lists and sums of its share of the units, over
all images: activations travel to the devices of their units, embeddings to all. So the state is the
same on however many devices, and as large. Lists and sums are kept apart for even and odd images:
merged they are those of all images, and apart they tell whether a label holds on either half.
Whatever else a record shall keep of a batch is added to `State` and `update`. Shapes: B batch, S
the device's share of it, T tile, U units of all layers side by side, N the device's share of them,
K top-k, D embedding.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int32, PyTree, UInt8

from emojax.data.clip_encoder import unit_rows
from emojax.distributed.data_parallel import data_parallel, in_tiles
from emojax.distributed.mesh import (
    AXIS,
    batch_sharded,
    fetch_to_main,
    host_readable,
    placed_shapes,
    put,
    replicated,
)
from emojax.ops import moments, topk
from emojax.ops.moments import (
    EmbeddingSums,
    Moments,
    Origin,
    RunningEmbeddings,
    RunningUnits,
    UnitSums,
)
from emojax.ops.topk import EMPTY, TopK
from emojax.probing.network import PooledTaps
from emojax.probing.precision import PRODUCTS, Precision

_SUMMED = 256  # rows whose sums an accelerator makes together, where tiles are smaller
_BLOCK = 32  # units whose sums a CPU makes together


class State(NamedTuple):
    """What is carried from batch to batch; of units, each device has its share."""

    top: TopK  # [2, U, K]: lists of the even and of the odd images
    units: RunningUnits  # [2, U, …]: sums over these, of differences from the origin
    embeddings: RunningEmbeddings  # [2, …]: likewise, the same on every device
    origin: Origin  # activations and embedding of image 0


# Any, for they stand where a state has arrays.
_WHOLE: Any = PartitionSpec()
_ROWS: Any = PartitionSpec(AXIS)
_BY_UNIT: Any = PartitionSpec(None, AXIS)
_UNIT_SUMS = UnitSums(_BY_UNIT, _BY_UNIT, _BY_UNIT)
_EMBEDDING_SUMS = EmbeddingSums(_WHOLE, _WHOLE)
_SPECS = State(  # how a state lies on the devices
    TopK(_BY_UNIT, _BY_UNIT),
    RunningUnits(_UNIT_SUMS, _UNIT_SUMS),
    RunningEmbeddings(_EMBEDDING_SUMS, _EMBEDDING_SUMS),
    Origin(_ROWS, _WHOLE),
)


def empty_state(units: int, top_k: int, embedding: int) -> State:
    """The state before the first image."""
    sums = moments.init_units(units, embedding), moments.init_embeddings(embedding)
    one_half = topk.init(units, top_k), *sums
    top, by_unit, whole = jax.tree.map(lambda array: jnp.stack([array, array]), one_half)
    return State(top, by_unit, whole, Origin(jnp.zeros(units), jnp.zeros(embedding)))


class Collected(NamedTuple):
    """Images together with activations that were made elsewhere."""

    images: UInt8[Array, "B H W channels"]
    activations: Float[Array, "B U"]


def bytes_per_unit(top_k: int, embedding: int) -> int:
    """What a state holds for a unit: two lists, and sums with what they lost."""
    one = empty_state(1, top_k, embedding)
    two = empty_state(2, top_k, embedding)
    return sum(leaf.nbytes for leaf in jax.tree.leaves(two)) - sum(
        leaf.nbytes for leaf in jax.tree.leaves(one)
    )


@dataclass(frozen=True)
class EmbedOnly:
    """CLIP's image tower beside activations that are given; a key of compiled programs."""

    clip_graph: nnx.GraphDef
    clip_preprocess: Callable[[jax.Array], jax.Array]

    def __call__(
        self, clip_params: PyTree, batch: Collected
    ) -> tuple[Float[Array, "T U"], Float[Array, "T D"]]:
        """The activations as they are, and unit image embeddings."""
        clip = nnx.merge(self.clip_graph, clip_params)
        embeddings = clip.image_features(self.clip_preprocess(batch.images))
        return batch.activations, unit_rows(embeddings)


@dataclass(frozen=True)
class Forward:
    """Network and CLIP's image tower as one pure function; a key of compiled programs."""

    taps: PooledTaps
    clip_graph: nnx.GraphDef
    clip_preprocess: Callable[[jax.Array], jax.Array]

    def __call__(
        self, params: tuple[PyTree, PyTree], images: UInt8[Array, "T H W channels"]
    ) -> tuple[Float[Array, "T U"], Float[Array, "T D"]]:
        """Pooled activations of all layers and unit image embeddings."""
        network_params, clip_params = params
        with jax.named_scope("network"):
            activations = self.taps(network_params, images)
        with jax.named_scope("clip"):
            clip = nnx.merge(self.clip_graph, clip_params)
            return activations, unit_rows(clip.image_features(self.clip_preprocess(images)))


def make_step(
    forward: Callable[[Any, Any], tuple[Array, Array]],
    tile: int,
    keep_activations: bool,
    mesh: Mesh,
    precision: Precision = "exact",
) -> Callable:
    """The jitted step over all devices: (params, state, images, indices) → (state, rows).

    `forward` is a `Forward` or an `EmbedOnly`, or makes activations and embeddings as they do.
    Parameters are replicated; images and indices are sharded along the batch, the state by unit,
    and the new state takes the old one's memory. `rows` holds `embeddings` [B, D] and, if asked
    for, `activations` [B, U], readable by the host.
    """
    row_specs, readable = {"embeddings": _WHOLE}, {"embeddings": replicated(mesh)}
    if keep_activations:
        row_specs["activations"], readable["activations"] = _ROWS, host_readable(mesh)
    blocks = tile, sum_tile(tile, mesh), _unit_block(mesh)
    return data_parallel(
        functools.partial(update, forward, blocks, keep_activations),
        mesh,
        in_specs=(_WHOLE, _SPECS, _ROWS, _ROWS),
        out_specs=(_SPECS, row_specs),
        products=PRODUCTS[precision],
        out_shardings=(_shardings(mesh), readable),
        donate=(1,),
    )


cached_step = functools.lru_cache(maxsize=4)(make_step)
PARTS = {
    "network": "network",
    "clip": "clip",
    "exchange": "exchange",
    "lists": "lists",
    "sums": "sums",
}  # the named scopes of a step's work


def shapes(
    mesh: Mesh, params: PyTree, empty: State, batch: int, image: Sequence[int]
) -> tuple[PyTree, ...]:
    """A step's arguments as shapes with shardings, to compile it without arrays.

    Args:
      mesh: the devices, which need not be there.
      params: parameters of network and CLIP, or their shapes.
      empty: the state, or its shapes.
      batch: images of a step.
      image: height, width and channels.
    """

    def shape(leaf: Any, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        filling = _filling(leaf.shape, spec, mesh)
        sides = tuple(side + after for side, (_, after) in zip(leaf.shape, filling, strict=True))
        return jax.ShapeDtypeStruct(sides, leaf.dtype, sharding=NamedSharding(mesh, spec))

    state = jax.tree.map(shape, empty, _SPECS)
    images = jax.ShapeDtypeStruct((batch, *image), np.uint8)
    indices = jax.ShapeDtypeStruct((batch,), np.int32)
    split = batch_sharded(mesh)
    sharded = placed_shapes(split, images), placed_shapes(split, indices)
    return placed_shapes(replicated(mesh), params), state, *sharded


def sum_loops(batch: int, tile: int, mesh: Mesh) -> dict[str, int]:
    """Runs of the loop whose count a step's program does not tell, by the named scope around it."""
    return {"sums": batch // sum_tile(tile, mesh)}


def sum_tile(tile: int, mesh: Mesh) -> int:
    """Rows whose sums are made together: whole tiles, half of them of either half of the images.

    An accelerator reads and writes all sums for each, so there they are several small tiles.
    """
    even = tile if tile % 2 == 0 else 2 * tile
    return even if _on_cpu(mesh) else even * max(1, _SUMMED // even)


def _unit_block(mesh: Mesh) -> int | None:
    """Units whose sums are made together; None for all that a device has.

    A CPU's product rounds otherwise for another number of units, which depends on the devices.
    """
    return _BLOCK if _on_cpu(mesh) else None


def _on_cpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"


def _shardings(mesh: Mesh) -> State:
    """Of a state's arrays."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), _SPECS)


def _filling(shape: Sequence[int], spec: PartitionSpec, mesh: Mesh) -> list[tuple[int, int]]:
    """By axis, what `np.pad` adds to a state's array to give every device whole blocks of units."""
    grain = mesh.size * (_unit_block(mesh) or 1)
    names = (*spec, *[None] * len(shape))  # a spec leaves out the last axes
    return [
        (0, -side % grain if name == AXIS else 0) for side, name in zip(shape, names, strict=False)
    ]


def update(
    forward: Callable[[Any, Any], tuple[Array, Array]],
    blocks: tuple[int, int, int | None],
    keep_activations: bool,
    params: PyTree,
    state: State,
    images: UInt8[Array, "S H W channels"] | Collected,
    indices: Int32[Array, " S"],
) -> tuple[State, dict[str, jax.Array]]:
    """One batch on one device; indices are the images' (EMPTY: padding), even and odd in turn.

    Args:
      forward: network and CLIP.
      blocks: how many images run together, of how many the sums are made together, and of how many
        units (None: of all).
      keep_activations: whether `rows` has them.
      params: of `forward`.
      state: before the batch.
      images: the device's share.
      indices: theirs.
    """
    tile, summed, block = blocks
    activations, embeddings = in_tiles(functools.partial(forward, params), tile, images)
    rows = {"activations": activations} if keep_activations else {}

    # From here on a device sees all images of the batch in order, but its own units alone.
    with jax.named_scope("exchange"):
        units = state.top.values.shape[1] * jax.lax.axis_size(AXIS)
        padded = jnp.pad(activations, ((0, 0), (0, units - activations.shape[1])))
        own = jax.lax.all_to_all(padded, AXIS, split_axis=1, concat_axis=0, tiled=True)
        embeddings, indices = jax.lax.all_gather((embeddings, indices), AXIS, tiled=True)
    rows["embeddings"] = embeddings
    # A batch starts at an even image, so every second row belongs to one half.
    by_half = Batch(*(_halves(array) for array in (own, embeddings, indices)))

    # Half by half: of arrays with a further axis the compilers sort all rows to find the largest.
    with jax.named_scope("lists"):
        halves = []
        for half in (0, 1):
            lists = TopK(state.top.values[half], state.top.indices[half])
            batch = by_half.activations[half], by_half.indices[half]
            halves.append(topk.update(lists, *batch))
        top = TopK(*(jnp.stack(pair) for pair in zip(*halves, strict=True)))
    first = Origin(own[0], embeddings[0])
    origin = jax.tree.map(
        lambda row, before: jnp.where(indices[0] == 0, row, before), first, state.origin
    )
    with jax.named_scope("sums"):
        tiles = _Tiles(summed, by_half, origin)
        sums = _add_units(state.units, tiles, block), _add_embeddings(state.embeddings, tiles)
    return State(top, *sums, origin), rows


class Batch(NamedTuple):
    """Either half of a batch, as the devices see it."""

    activations: Float[Array, "2 half N"]
    embeddings: Float[Array, "2 half D"]
    indices: Int32[Array, "2 half"]


def _halves(rows: Array) -> Array:
    """Rows of the even and of the odd images: [B, …] → [2, B / 2, …]."""
    return jnp.moveaxis(rows.reshape(-1, 2, *rows.shape[1:]), 1, 0)


class _Tiles:
    """A batch, read as tiles of so many images, half of them of either half.

    A tile holds the same images whatever the batch, so its sums in float32 are the same bits. So
    correlations depend neither on the batch nor on the devices.
    """

    def __init__(self, size: int, batch: Batch, origin: Origin):
        # The compiler must not see through the loops over tiles: of a single tile it would compute
        # embeddings anew inside their differences, and round them otherwise than in a batch of
        # many. So the number of tiles is known at run time only, and a row more than a single tile
        # makes its slice depend on it.
        self._half = size // 2
        single = batch.indices.shape[1] == self._half
        self._batch = jax.tree.map(
            lambda rows: jnp.pad(rows, [(0, 0), (0, int(single))] + [(0, 0)] * (rows.ndim - 2)),
            batch,
        )
        self._origin = origin
        self.count = -(-(batch.indices != EMPTY).sum() // size)  # padding comes last

    def units(self, number: Array, start: Array | int, units: int) -> Float[Array, "2 tile N"]:
        """Differences of so many units' activations from the origin."""
        sides = 2, self._half, units
        rows = jax.lax.dynamic_slice(
            self._batch.activations, (0, number * self._half, start), sides
        )
        return rows - jax.lax.dynamic_slice_in_dim(self._origin.activations, start, units)

    def embeddings(self, number: Array) -> tuple[Float[Array, "2 tile D"], Bool[Array, "2 tile"]]:
        """Differences of embeddings from the origin, and which are no padding."""
        rows, indices = (
            jax.lax.dynamic_slice_in_dim(array, number * self._half, self._half, axis=1)
            for array in (self._batch.embeddings, self._batch.indices)
        )
        return rows - self._origin.embeddings, indices != EMPTY


def _add_units(running: RunningUnits, tiles: _Tiles, block: int | None) -> RunningUnits:
    """Adds a batch to the sums of the device's units, some units and a tile of images at a time."""
    units = running.sums.total.shape[1]
    size = block or units

    def add_block(number: Array, running: RunningUnits) -> RunningUnits:
        start = number * size

        def add(tile: Array, own: RunningUnits) -> RunningUnits:
            embeddings, valid = tiles.embeddings(tile)
            activations = tiles.units(tile, start, size)
            return jax.vmap(moments.update_units)(own, activations, embeddings, valid)

        own = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size, axis=1), running
        )
        own = jax.lax.fori_loop(0, tiles.count, add, own)
        return jax.tree.map(
            lambda leaf, part: jax.lax.dynamic_update_slice_in_dim(leaf, part, start, axis=1),
            running,
            own,
        )

    return jax.lax.fori_loop(0, units // size, add_block, running)


def _add_embeddings(running: RunningEmbeddings, tiles: _Tiles) -> RunningEmbeddings:
    """Adds a batch to the sums of the embeddings."""

    def add(tile: Array, running: RunningEmbeddings) -> RunningEmbeddings:
        return jax.vmap(moments.update_embeddings)(running, *tiles.embeddings(tile))

    return jax.lax.fori_loop(0, tiles.count, add, running)


def to_host(mesh: Mesh, state: State, units: int) -> State | None:
    """The state of so many units on the host, in the main process; None in others."""
    host = fetch_to_main(mesh, state)
    if host is None:
        return None

    def trimmed(leaf: np.ndarray, spec: PartitionSpec) -> np.ndarray:
        return leaf[tuple(slice(units if name == AXIS else None) for name in spec)]

    return jax.tree.map(trimmed, host, _SPECS)


def snapshot_bytes(state: State, hosts: int) -> tuple[int, int]:
    """What process 0 of so many writes at a snapshot of a state (or of its shapes), and how much of
    that comes to it from the others' devices.
    """

    def size(tree: PyTree) -> int:
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    by_unit = size((state.top, state.units, state.origin.activations))
    return size(state), by_unit * (hosts - 1) // hosts


def half_moments(state: State, images: int) -> Moments:
    """Sums [2, …] over either half of the images in float64, from a state on the host."""

    def exact(sums: np.ndarray, lost: np.ndarray) -> np.ndarray:
        return sums.astype(np.float64) - lost

    by_unit, of_embeddings = (
        jax.tree.map(exact, *running) for running in (state.units, state.embeddings)
    )
    differences = Moments(*by_unit, *of_embeddings)
    halves = [
        moments.from_origin(Moments(*(array[half] for array in differences)), state.origin, size)
        for half, size in enumerate((images - images // 2, images // 2))
    ]
    return Moments(*map(np.stack, zip(*halves, strict=True)))


def to_leaves(state: State) -> dict[str, np.ndarray]:
    """A state on the host as named arrays, for a snapshot."""
    return {str(number): leaf for number, leaf in enumerate(jax.tree.leaves(state))}


def place(snapshot: dict[str, np.ndarray] | None, empty: State, mesh: Mesh) -> State:
    """The state to start from, on the devices: a snapshot's, of any number of them, or `empty`."""
    leaves, structure = jax.tree.flatten(empty)
    if snapshot is not None:
        leaves = [snapshot[str(number)] for number in range(len(leaves))]
    padded = [
        np.pad(leaf, _filling(leaf.shape, spec, mesh))
        for leaf, spec in zip(leaves, jax.tree.leaves(_SPECS), strict=True)
    ]
    return put(mesh, jax.tree.unflatten(structure, padded), _shardings(mesh))
