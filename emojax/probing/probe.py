"""One pass over the images: the network (every layer) and CLIP's image tower, reduced on the fly to what scoring needs.

Per unit a running top-k of (value, image), sums, and the cross-moment with the image embeddings; plus the embeddings
themselves. Memory does not grow with images × units. The top-k is kept apart for even and odd images: merged it is the
top-k of all, and apart it tells whether a label holds on either half. Shapes: I images, U units of all layers in a row,
K top-k, D embedding, B batch.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from emojax.data.clip_encoder import ClipEncoder, unit_rows
from emojax.data.image_set import ImageSet
from emojax.data.loader import batches
from emojax.distributed.data_parallel import data_parallel, default_tile, in_tiles
from emojax.distributed.mesh import (
    batch_sharded,
    fetch_to_main,
    host_readable,
    local_rows,
    make_mesh,
    put_batch,
    put_replicated,
    put_sharded,
)
from emojax.distributed.processes import broadcast_from_main, check_same_everywhere, is_main_process
from emojax.errors import InputError
from emojax.ops import moments as moments_op
from emojax.ops import pooling, topk
from emojax.ops.pooling import Pool
from emojax.ops.topk import EMPTY, TopK
from emojax.probing.network import Network, ReturnsTaps, as_network, resolve_layers
from emojax.probing.record import Partial, ProbeRecord, Rows, find, in_every_process, record_key


class _State(NamedTuple):
    """What one device carries from batch to batch."""

    top: TopK  # [2, U, K]: even and odd images
    moments: moments_op.Running


def _forward(
    network: Network, clip_graph: Any, preprocess: Callable, layers: Sequence[str], how: Pool
) -> Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]:
    """(params, uint8 images [T, H, W, C]) → pooled activations of all layers [T, U] and unit embeddings [T, D]."""

    def forward(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        target_params, clip_params = params
        _, taps = network.apply(target_params, network.preprocess(images))
        activations = jnp.concatenate([pooling.pool(taps[name], how).astype(jnp.float32) for name in layers], axis=1)
        features = nnx.merge(clip_graph, clip_params).image_features(preprocess(images))
        return activations, unit_rows(features)

    return forward


def _local_step(
    forward: Callable, tile: int, keep: bool, params: Any, state: _State, images: jax.Array, indices: jax.Array
) -> tuple[_State, dict[str, jax.Array]]:
    """One batch on one device: images [B, H, W, C], indices [B], both with even and odd image numbers taking turns."""
    state = jax.tree.map(lambda x: x[0], state)
    activations, embeddings = in_tiles(functools.partial(forward, params), tile, images)
    halves = [topk.update(TopK(state.top.values[h], state.top.indices[h]), activations[h::2], indices[h::2]) for h in (0, 1)]
    top = TopK(*(jnp.stack(pair) for pair in zip(*halves, strict=True)))
    state = _State(top, moments_op.update(state.moments, activations, embeddings, indices != EMPTY))
    kept = {"embeddings": embeddings} | ({"activations": activations} if keep else {})
    return jax.tree.map(lambda x: x[None], state), kept


def probe(
    model: ReturnsTaps | nnx.Module | Network,
    images: ImageSet | np.ndarray,
    clip: ClipEncoder,
    *,
    layers: Sequence[str] = ("*",),
    pool: Pool = "avg",
    taps: str = "raw",
    top_k: int = 100,
    batch: int = 256,
    tile: int | None = None,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    keep_activations: bool = False,
    mesh: Mesh | None = None,
    cache: Path | None = None,
    save_every: float = 60.0,
    progress: Callable[[int, int], None] | None = None,
) -> ProbeRecord:
    """Runs the network and CLIP over the images and returns the record.

    Args:
      model: a VGGNet, any nnx module or function that returns `(logits, taps)`, or a `Network`.
      images: an image set, or uint8 images [I, H, W(, C)].
      clip: the encoder whose image tower runs beside the network.
      layers: names or patterns of taps.
      pool: how convolutions become one number per unit, `avg` or `max` over space.
      taps: `raw` outputs, or `relu` for those after BatchNorm and ReLU (VGGNet).
      top_k: length of the lists.
      batch: images per step; rounded up so that every device gets whole, even-sized tiles.
      tile: images computed together, see `in_tiles`; results depend on it in the last bits, not on `batch`.
      preprocess: uint8 images → the model's input, when `model` is a function or module.
      keep_activations: also keep the pooled activations [I, U], for `cos_similarity_cubed`.
      mesh: devices to split the batch over; all when None.
      cache: folder of records by content key. A record that is there is read instead of made; a new one grows there,
        and goes on from its last snapshot when an earlier process was stopped. Not for a
        plain function or with `preprocess`, whose content has no key.
      save_every: seconds between snapshots.
      progress: called with (images done, images in all) after every batch.

    Raises:
      InputError: no such layer, or activations that are not finite.
    """
    network = model if isinstance(model, Network) else as_network(model, preprocess=preprocess, taps=taps)
    images = images if isinstance(images, ImageSet) else ImageSet.from_arrays(images)
    mesh = mesh or make_mesh()
    tile = tile or default_tile()
    shapes = network.tap_shapes(images.images.shape[1:])
    names = resolve_layers(layers, list(shapes))
    sizes = {name: shapes[name][-1] for name in names}
    units, dimension, total = sum(sizes.values()), clip.model.config.embedding, len(images)

    key = record_key(network, images, clip, names, pool, top_k, tile, keep_activations)
    check_same_everywhere([key, images.key], "images, weights or settings")
    kept_at = None if cache is None or key is None or not is_main_process() else Path(cache).expanduser() / key
    blank = ProbeRecord(sizes, None, None, None, images.labels, images.classes, images.ids, key, clip.key, clip=clip)
    found = in_every_process(lambda: None if kept_at is None else find(kept_at, key), blank)
    if found is not None:
        return found
    widths = {"embeddings": dimension} | ({"activations": units} if keep_activations else {})
    partial = None if kept_at is None else Partial(kept_at.with_name(f"{key}.partial"), total, widths)
    rows = partial.rows if partial is not None else Rows(total, widths) if is_main_process() else None

    grain = mesh.size * (tile if tile % 2 == 0 else 2 * tile)
    batch = -(-min(batch, total) // grain) * grain
    clip_graph, clip_params = nnx.split(clip.model)
    step = _compile_step(_forward(network, clip_graph, clip.preprocess, names, pool), tile, keep_activations, mesh)
    params = put_replicated(mesh, (network.params, clip_params))
    with contextlib.closing(rows) if rows is not None else contextlib.nullcontext():
        done, state = _start(broadcast_from_main(lambda: partial and partial.restore()), units, top_k, dimension, mesh)
        keeps = None if cache is None or key is None else save_every
        state = _stream(step, params, state, images, batch, done, rows, mesh, partial, keeps, progress)
        host = fetch_to_main(mesh, state)

        def finish() -> ProbeRecord:
            top, sums = _finish(host)
            record = replace(blank, top=top, moments=sums, done_before=done, **rows.arrays())
            _refuse_not_finite(record)
            return record if partial is None else partial.finish(record, kept_at)

        return in_every_process(finish, blank)


def _stream(
    step: Callable,
    params: Any,
    state: _State,
    images: ImageSet,
    batch: int,
    first: int,
    rows: Rows | None,
    mesh: Mesh,
    partial: Partial | None,
    save_every: float | None,
    progress: Callable[[int, int], None] | None,
) -> _State:
    """All batches from image `first` on. A step's rows are fetched only once the next is on its way: no device waits.

    Only the first process has rows and a `partial` to put things into; all of them know when to save.
    """
    total, waiting, mine = len(images), None, local_rows(mesh, batch)
    due = _Due(save_every)

    def take(start: int, outputs: dict[str, jax.Array]) -> int:
        for name, values in jax.tree.map(np.asarray, outputs).items():
            if rows is not None:
                rows.write(name, start, values[: total - start])
        done = min(start + batch, total)
        if progress is not None:
            progress(done, total)
        return done

    chunks = batches(images.images, batch, start=first, rows=mine)
    for start, chunk in zip(range(first, total, batch), chunks, strict=True):
        state, outputs = step(params, state, *put_batch(mesh, *chunk))
        if waiting is not None:
            take(*waiting)
        waiting = (start, outputs)
        if due.after_a_batch() and start + batch < total:
            done, waiting, host = take(*waiting), None, fetch_to_main(mesh, state)
            if partial is not None:
                partial.save(done, {str(number): leaf for number, leaf in enumerate(jax.tree.leaves(host))})
    if waiting is not None:
        take(*waiting)
    return state


class _Due:
    """When to save: every so many seconds, or never.

    Processes must agree on the batch, and their clocks do not. So after each snapshot the first of them says, by the pace
    so far, how many batches the next one is away; the first two snapshots come after a batch each.
    """

    def __init__(self, seconds: float | None):
        self._seconds, self._away, self._batches, self._since = seconds, 1, 0, None

    def after_a_batch(self) -> bool:
        """Whether to save now."""
        if self._seconds is None:
            return False
        self._batches += 1
        if self._batches < self._away:
            return False
        now = time.monotonic()
        if self._since is not None:
            pace = (now - self._since) / self._batches
            agreed = broadcast_from_main(lambda: {"away": np.int32(np.clip(self._seconds / max(pace, 1e-9), 1, 2**30))})
            self._away = int(agreed["away"])
        self._since, self._batches = now, 0
        return True


def _compile_step(forward: Callable, tile: int, keep_activations: bool, mesh: Mesh) -> Callable:
    """The jitted step: images and state sharded by device, parameters replicated, the state's memory reused."""
    return data_parallel(
        functools.partial(_local_step, forward, tile, keep_activations),
        mesh,
        replicated=1,
        sharded=3,
        out_shardings=(batch_sharded(mesh), host_readable(mesh)),
        donate=(1,),
    )


def _start(restored: dict[str, np.ndarray] | None, units: int, top_k: int, dimension: int, mesh: Mesh) -> tuple[int, _State]:
    """Images done and the state [devices, …] to go on from; a snapshot of another number of devices is merged first."""
    empty = _State(TopK(*(jnp.stack([x, x]) for x in topk.init(units, top_k))), moments_op.init(units, dimension))
    leaves, structure = jax.tree.flatten(empty)
    if restored is None:
        done, host = 0, [np.broadcast_to(leaf, (mesh.size, *leaf.shape)) for leaf in leaves]
    else:
        done, host = int(restored["images_done"]), [restored[str(number)] for number in range(len(leaves))]
        if len(host[0]) != mesh.size:
            top, sums = _finish(jax.tree.unflatten(structure, host))
            rounded = jax.tree.map(np.float32, sums)
            lost = jax.tree.map(lambda exact, near: np.float32(near - exact), sums, rounded)
            merged = jax.tree.leaves(_State(top, moments_op.Running(rounded, lost)))
            others = [np.broadcast_to(leaf, (mesh.size - 1, *leaf.shape)) for leaf in leaves]
            host = [np.concatenate([one[None], rest]) for one, rest in zip(merged, others, strict=True)]
    return done, put_sharded(mesh, jax.tree.unflatten(structure, host))


def _finish(state: _State) -> tuple[TopK, moments_op.Moments]:
    """States of all devices [devices, …] → lists of either half [2, U, K] and sums in float64."""
    top = TopK(*(np.moveaxis(x, 0, 1) for x in state.top))
    merged = jax.jit(jax.vmap(topk.merge))(top)
    sums = jax.tree.map(lambda s, lost: (s.astype(np.float64) - lost).sum(0), state.moments.sums, state.moments.lost)
    return TopK(*map(np.asarray, merged)), sums


def _refuse_not_finite(record: ProbeRecord) -> None:
    bad = ~np.isfinite(record.moments.square)
    if bad.any():
        layer = list(record.layers)[record.segment_ids[np.argmax(bad)]]
        raise InputError(
            f"{bad.sum()} units, first in layer {layer}, have activations that are not finite; check the weights"
        )
    if not np.isfinite(record.moments.gram).all():
        raise InputError("CLIP gave image embeddings that are not finite; check its weights")
