"""The program of one batch: network and CLIP run side by side, and the running statistics grow.

Each device keeps a state of its own over its share of every batch; `merge_devices` makes one of
them at the end. Lists are kept apart for even and odd images: merged they are the top k of all, and
apart they tell whether a label holds on either half. Whatever else a record shall keep of a batch
(another sum, sums per half) is added to `State` and `update`. Shapes: B batch, T tile, U units of
all layers side by side, K top-k, D embedding.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, PyTree, UInt8

from emojax.data.clip_encoder import unit_rows
from emojax.distributed.data_parallel import data_parallel, in_tiles
from emojax.distributed.mesh import batch_sharded, host_readable, put_sharded
from emojax.ops import moments, topk
from emojax.ops.moments import Moments, Running
from emojax.ops.topk import EMPTY, TopK
from emojax.probing.network import PooledTaps


class State(NamedTuple):
    """What a device carries from batch to batch."""

    top: TopK  # [2, U, K]: lists of the even and of the odd images
    moments: Running


def empty_state(units: int, top_k: int, embedding: int) -> State:
    """The state of one device before its first image."""
    one_half = topk.init(units, top_k)
    top = TopK(*(jnp.stack([array, array]) for array in one_half))
    return State(top, moments.init(units, embedding))


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
        activations = self.taps(network_params, images)
        clip = nnx.merge(self.clip_graph, clip_params)
        return activations, unit_rows(clip.image_features(self.clip_preprocess(images)))


def make_step(forward: Forward, tile: int, keep_activations: bool, mesh: Mesh) -> Callable:
    """The jitted step over all devices: (params, state, images, indices) → (state, rows).

    Parameters are replicated; images, indices and state are sharded by device, and the new state
    takes the old one's memory. `rows` holds `embeddings` [B, D] and, if asked for, `activations`
    [B, U], readable by the host.
    """
    return data_parallel(
        functools.partial(update, forward, tile, keep_activations),
        mesh,
        replicated=1,
        sharded=3,
        out_shardings=(batch_sharded(mesh), host_readable(mesh)),
        donate=(1,),
    )


cached_step = functools.lru_cache(maxsize=4)(make_step)


def update(
    forward: Forward,
    tile: int,
    keep_activations: bool,
    params: tuple[PyTree, PyTree],
    state: State,
    images: UInt8[Array, "B H W channels"],
    indices: Int32[Array, " B"],
) -> tuple[State, dict[str, jax.Array]]:
    """One batch on one device; indices are the images' (EMPTY: padding), even and odd in turn."""
    # The state's leading axis is the devices'; a device sees one row of it.
    state = jax.tree.map(lambda rows: rows[0], state)
    activations, embeddings = in_tiles(functools.partial(forward, params), tile, images)

    # A device's share starts at an even image, so every second row belongs to one half.
    halves = []
    for half in (0, 1):
        lists = TopK(state.top.values[half], state.top.indices[half])
        halves.append(topk.update(lists, activations[half::2], indices[half::2]))
    top = TopK(*(jnp.stack(pair) for pair in zip(*halves, strict=True)))
    sums = moments.update(state.moments, activations, embeddings, indices != EMPTY)

    rows = {"embeddings": embeddings}
    if keep_activations:
        rows["activations"] = activations
    return jax.tree.map(lambda row: row[None], State(top, sums)), rows


_merge_lists = jax.jit(jax.vmap(topk.merge))  # of either half: [2, devices, U, K] → [2, U, K]


def merge_devices(state: State) -> tuple[TopK, Moments]:
    """States of all devices [devices, …] on the host → lists of either half [2, U, K] and sums.

    Sums are float64, with what rounding took from them added back.
    """
    by_half = TopK._make(np.moveaxis(np.asarray(array), 0, 1) for array in state.top)
    top = TopK._make(map(np.asarray, _merge_lists(by_half)))

    def total(sums: np.ndarray, lost: np.ndarray) -> np.ndarray:
        return (sums.astype(np.float64) - lost).sum(0)

    return top, jax.tree.map(total, state.moments.sums, state.moments.lost)


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
    """Leaves of a state merged into the first device's; the other devices start empty."""
    top, sums = merge_devices(state)
    # A float64 sum travels on as a float32 and what that rounding took.
    rounded = jax.tree.map(np.float32, sums)
    lost = jax.tree.map(lambda exact, near: np.float32(near - exact), sums, rounded)
    merged = jax.tree.leaves(State(top, Running(rounded, lost)))
    others = [np.broadcast_to(leaf, (devices - 1, *leaf.shape)) for leaf in empty]
    return [np.concatenate([leaf[None], rest]) for leaf, rest in zip(merged, others, strict=True)]
