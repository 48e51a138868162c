"""The program of one batch: network and CLIP run side by side, and the running statistics grow.

Each device keeps a state of its own over its share of every batch; `merge_devices` makes one of
them at the end. Lists and sums are kept apart for even and odd images: merged they are those of all
images, and apart they tell whether a label holds on either half. Whatever else a record shall keep
of a batch is added to `State` and `update`. Shapes: B batch, T tile, U units of all layers side by
side, K top-k, D embedding.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int32, PyTree, UInt8

from emojax.data.clip_encoder import unit_rows
from emojax.distributed.data_parallel import data_parallel, in_tiles
from emojax.distributed.mesh import (
    AXIS,
    batch_sharded,
    host_readable,
    placed_shapes,
    put_sharded,
    replicated,
)
from emojax.ops import moments, topk
from emojax.ops.moments import Moments, Origin, Running
from emojax.ops.topk import EMPTY, TopK
from emojax.probing.network import PooledTaps
from emojax.probing.precision import PRODUCTS, Precision

_SUMMED = 256  # rows whose sums an accelerator makes together, where tiles are smaller


class State(NamedTuple):
    """What a device carries from batch to batch."""

    top: TopK  # [2, U, K]: lists of the even and of the odd images
    moments: Running  # [2, …]: sums over these, of differences from the origin
    origin: Origin  # activations and embedding of image 0, on every device


def empty_state(units: int, top_k: int, embedding: int) -> State:
    """The state of one device before its first image."""
    one_half = topk.init(units, top_k), moments.init(units, embedding)
    top, sums = jax.tree.map(lambda array: jnp.stack([array, array]), one_half)
    return State(top, sums, Origin(jnp.zeros(units), jnp.zeros(embedding)))


class Collected(NamedTuple):
    """Images together with activations that were made elsewhere."""

    images: UInt8[Array, "B H W channels"]
    activations: Float[Array, "B U"]


def bytes_per_unit(top_k: int, embedding: int) -> int:
    """What the state of one device holds for a unit: two lists, and sums with what they lost."""
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
    forward: Forward | EmbedOnly,
    tile: int,
    keep_activations: bool,
    mesh: Mesh,
    precision: Precision = "exact",
) -> Callable:
    """The jitted step over all devices: (params, state, images, indices) → (state, rows).

    Parameters are replicated; images, indices and state are sharded by device, and the new state
    takes the old one's memory. `rows` holds `embeddings` [B, D] and, if asked for, `activations`
    [B, U], readable by the host.
    """
    return data_parallel(
        functools.partial(update, forward, tile, sum_tile(tile, mesh), keep_activations),
        mesh,
        replicated=1,
        sharded=3,
        products=PRODUCTS[precision],
        out_shardings=(batch_sharded(mesh), host_readable(mesh)),
        donate=(1,),
    )


cached_step = functools.lru_cache(maxsize=4)(make_step)
PARTS = {
    "network": "network",
    "clip": "clip",
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
      empty: the state of one device.
      batch: images of a step.
      image: height, width and channels.
    """
    states = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((mesh.size, *leaf.shape), leaf.dtype), empty
    )
    images = jax.ShapeDtypeStruct((batch, *image), np.uint8)
    indices = jax.ShapeDtypeStruct((batch,), np.int32)
    split = batch_sharded(mesh)
    sharded = (placed_shapes(split, rows) for rows in (states, images, indices))
    return placed_shapes(replicated(mesh), params), *sharded


def sum_loops(batch: int, tile: int, mesh: Mesh) -> dict[str, int]:
    """Runs of the loop whose count a step's program does not tell, by the named scope around it."""
    return {"sums": batch // mesh.size // sum_tile(tile, mesh)}


def sum_tile(tile: int, mesh: Mesh) -> int:
    """Rows whose sums are made together: whole tiles, half of them of either half of the images.

    An accelerator reads and writes all sums for each, so there they are several small tiles.
    """
    even = tile if tile % 2 == 0 else 2 * tile
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return even if on_cpu else even * max(1, _SUMMED // even)


def update(
    forward: Forward | EmbedOnly,
    tile: int,
    summed: int,
    keep_activations: bool,
    params: PyTree,
    state: State,
    images: UInt8[Array, "B H W channels"] | Collected,
    indices: Int32[Array, " B"],
) -> tuple[State, dict[str, jax.Array]]:
    """One batch on one device; indices are the images' (EMPTY: padding), even and odd in turn.

    `tile` images run together, the sums of `summed` images are made together.
    """
    # The state's leading axis is the devices'; a device sees one row of it.
    state = jax.tree.map(lambda rows: rows[0], state)
    activations, embeddings = in_tiles(functools.partial(forward, params), tile, images)

    # A device's share starts at an even image, so every second row belongs to one half.
    halves = []
    with jax.named_scope("lists"):
        for half in (0, 1):
            lists = TopK(state.top.values[half], state.top.indices[half])
            halves.append(topk.update(lists, activations[half::2], indices[half::2]))
        top = TopK(*(jnp.stack(pair) for pair in zip(*halves, strict=True)))
    origin = _origin(state.origin, activations, embeddings, indices)
    with jax.named_scope("sums"):
        valid = indices != EMPTY
        sums = _add_tiles(state.moments, summed, origin, activations, embeddings, valid)

    rows = {"embeddings": embeddings}
    if keep_activations:
        rows["activations"] = activations
    return jax.tree.map(lambda row: row[None], State(top, sums, origin)), rows


def _origin(
    origin: Origin,
    activations: Float[Array, "B U"],
    embeddings: Float[Array, "B D"],
    indices: Int32[Array, " B"],
) -> Origin:
    """The origin on every device, from the device that has image 0; before that batch it is 0."""
    holds_image_0 = indices[0] == 0
    own = Origin(activations[0], embeddings[0])
    shared = jax.lax.psum(jax.tree.map(lambda row: jnp.where(holds_image_0, row, 0.0), own), AXIS)
    return jax.tree.map(jnp.add, origin, shared)


def _add_tiles(
    sums: Running,
    even: int,
    origin: Origin,
    activations: Float[Array, "B U"],
    embeddings: Float[Array, "B D"],
    valid: Bool[Array, " B"],
) -> Running:
    """Adds a batch to the sums of either half, a tile of `even` images at a time.

    A tile holds the same images whatever the batch, so its sums in float32 are the same bits, and
    the compensated sums of tiles are exact far beyond float32. So correlations depend neither on
    the batch nor on the devices.
    """
    # The compiler must not see through the loop: of a single tile it would compute embeddings anew
    # inside their differences, and round them otherwise than in a batch of many. So the number of
    # tiles is known at run time only, and a row more than a tile makes each slice depend on it.
    padded = [
        jnp.pad(rows, [(0, 1)] + [(0, 0)] * (rows.ndim - 1))
        for rows in (activations, embeddings, valid)
    ]

    def halves_of(rows: Array, number: Array) -> Array:
        own = jax.lax.dynamic_slice_in_dim(rows, number * even, even)
        return jnp.moveaxis(own.reshape(even // 2, 2, *rows.shape[1:]), 1, 0)  # [2, even / 2, …]

    def add(number: Array, running: Running) -> Running:
        a, e, known = (halves_of(rows, number) for rows in padded)
        differences = a - origin.activations, e - origin.embeddings
        return jax.vmap(moments.update)(running, *differences, known)

    # Padding comes last.
    return jax.lax.fori_loop(0, -(-valid.sum() // even), add, sums)


_merge_lists = jax.jit(jax.vmap(topk.merge))  # of either half: [2, devices, U, K] → [2, U, K]


def merge_devices(state: State, images: int) -> tuple[TopK, Moments]:
    """States of all devices [devices, …] on the host → lists and sums of either half of the images.

    Lists are [2, U, K]; sums [2, …] are float64.
    """
    origin = Origin(*(values[0] for values in state.origin))
    sums = _merge_sums(state.moments)
    halves = [
        moments.from_origin(Moments(*(array[half] for array in sums)), origin, size)
        for half, size in enumerate((images - images // 2, images // 2))
    ]
    return _merge_top(state.top), Moments(*map(np.stack, zip(*halves, strict=True)))


def _merge_top(top: TopK) -> TopK:
    by_half = TopK._make(np.moveaxis(np.asarray(array), 0, 1) for array in top)
    return TopK._make(map(np.asarray, _merge_lists(by_half)))


def _merge_sums(running: Running) -> Moments:
    """Sums over devices in float64, with what rounding took from them added back."""

    def total(sums: np.ndarray, lost: np.ndarray) -> np.ndarray:
        return (sums.astype(np.float64) - lost).sum(0)

    return jax.tree.map(total, running.sums, running.lost)


def to_leaves(state: State) -> dict[str, np.ndarray]:
    """A state on the host as named arrays, for a snapshot."""
    return {str(number): leaf for number, leaf in enumerate(jax.tree.leaves(state))}


def place(snapshot: dict[str, np.ndarray] | None, empty: State, mesh: Mesh) -> State:
    """The state [devices, …] to start from: the snapshot's, or an empty one on every device."""
    leaves, structure = jax.tree.flatten(empty)
    if snapshot is None:
        host = [np.broadcast_to(leaf, (mesh.size, *leaf.shape)) for leaf in leaves]
    else:
        host = [snapshot[str(number)] for number in range(len(leaves))]
        if len(host[0]) != mesh.size:  # the snapshot is of another number of devices
            host = _on_first_device(jax.tree.unflatten(structure, host), leaves, mesh.size)
    return put_sharded(mesh, jax.tree.unflatten(structure, host))


def _on_first_device(state: State, empty: list[jax.Array], devices: int) -> list[np.ndarray]:
    """Leaves of a state merged into the first device's; the others start empty, at the origin."""
    sums = _merge_sums(state.moments)
    # A float64 sum travels on as a float32 and what that rounding took.
    rounded = jax.tree.map(np.float32, sums)
    lost = jax.tree.map(lambda exact, near: np.float32(near - exact), sums, rounded)
    origin = jax.tree.map(lambda values: values[0], state.origin)
    merged = jax.tree.leaves(State(_merge_top(state.top), Running(rounded, lost), origin))
    # Every device needs the origin; all else starts empty on the others.
    others = [*empty[: -len(origin)], *origin]
    return [
        np.concatenate([leaf[None], np.broadcast_to(rest, (devices - 1, *leaf.shape))])
        for leaf, rest in zip(merged, others, strict=True)
    ]
