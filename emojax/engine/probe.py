"""One pass over the images: the network (every layer) and CLIP's image tower, reduced on the fly to what scoring needs.

Per unit a running top-k of (value, image), sums, and the cross-moment with the image embeddings; plus the embeddings
themselves. Memory does not grow with images × units. The top-k is kept apart for even and odd images: merged it is the
top-k of all, and apart it tells whether a label holds on either half. Shapes: I images, U units of all layers in a row,
K top-k, D embedding, B batch.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from emojax.data.loader import ImageSet, batches
from emojax.data.weights import ClipEncoder, unit_rows
from emojax.engine.network import Network, ReturnsTaps, as_network, default_tile, in_tiles, resolve_layers
from emojax.engine.record import ProbeRecord, record_key
from emojax.errors import InputError
from emojax.mesh import AXIS, make_mesh, put_batch, put_copy, split
from emojax.ops import moments as moments_op
from emojax.ops import pooling, topk
from emojax.ops.pooling import Pool
from emojax.ops.topk import EMPTY, TopK


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
        with jax.default_matmul_precision("highest"):
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
    progress: Callable[[int, int], None] | None = None,
) -> ProbeRecord:
    """Runs the network and CLIP over the images and returns the record.

    Args:
      model: a VGGNet, any nnx module or function that returns `(logits, taps)`, or a `Network`.
      images: an image set, or uint8 images [I, H, W(, C)].
      layers: names or patterns of taps.
      pool: how convolutions become one number per unit, `avg` or `max` over space.
      taps: `raw` outputs, or `relu` for those after BatchNorm and ReLU (VGGNet).
      top_k: length of the lists.
      batch: images per step; rounded up so that every device gets whole, even-sized tiles.
      tile: images computed together, see `in_tiles`; results depend on it in the last bits, not on `batch`.
      keep_activations: also keep the pooled activations [I, U], for `cos_similarity_cubed`.
      mesh: devices to split the batch over; all when None.
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

    grain = mesh.size * (tile if tile % 2 == 0 else 2 * tile)
    batch = -(-min(batch, total) // grain) * grain
    clip_graph, clip_params = nnx.split(clip.model)
    forward = _forward(network, clip_graph, clip.preprocess, names, pool)
    parts, whole = PartitionSpec(AXIS), PartitionSpec()
    step = jax.jit(
        jax.shard_map(
            functools.partial(_local_step, forward, tile, keep_activations),
            mesh=mesh,
            in_specs=(whole, parts, parts, parts),
            out_specs=(parts, parts),
            check_vma=False,  # lax.map carries no varying-axis types through flax modules
        ),
        donate_argnums=1,
    )

    params = put_copy(mesh, (network.params, clip_params))
    empty = _State(TopK(*(jnp.stack([x, x]) for x in topk.init(units, top_k))), moments_op.init(units, dimension))
    state = jax.jit(
        lambda s: jax.tree.map(lambda x: jnp.broadcast_to(x, (mesh.size, *x.shape)), s), out_shardings=split(mesh)
    )(empty)
    outputs = {"embeddings": np.empty((total, dimension), np.float32)}
    if keep_activations:
        outputs["activations"] = np.empty((total, units), np.float32)

    def take(start: int, kept: dict[str, jax.Array]) -> None:
        for name, rows in kept.items():
            outputs[name][start : start + batch] = np.asarray(rows)[: total - start]
        if progress is not None:
            progress(min(start + batch, total), total)

    waiting = None
    for start, chunk in zip(range(0, total, batch), batches(images.images, batch), strict=True):
        state, kept = step(params, state, *put_batch(mesh, *chunk))
        if waiting is not None:  # fetched only after the next step is on its way: the device never waits
            take(*waiting)
        waiting = (start, kept)
    take(*waiting)

    device = jax.tree.map(np.asarray, state)
    top = TopK(*(np.moveaxis(x, 0, 1) for x in device.top))  # [2, devices, U, K]
    top = TopK(*map(np.asarray, jax.jit(jax.vmap(topk.merge))(top)))
    sums = jax.tree.map(lambda s, lost: (s.astype(np.float64) - lost).sum(0), device.moments.sums, device.moments.lost)
    record = ProbeRecord(
        layers=sizes,
        top=top,
        moments=sums,
        labels=images.labels,
        classes=images.classes,
        ids=images.ids,
        key=record_key(network, images, clip, names, pool, top_k, tile, keep_activations),
        clip=clip,
        **outputs,
    )
    _refuse_not_finite(record)
    return record


def _refuse_not_finite(record: ProbeRecord) -> None:
    bad = ~np.isfinite(record.moments.square)
    if bad.any():
        layer = list(record.layers)[record.segment_ids[np.argmax(bad)]]
        raise InputError(
            f"{bad.sum()} units, first in layer {layer}, have activations that are not finite; check the weights"
        )
    if not np.isfinite(record.moments.gram).all():
        raise InputError("CLIP gave image embeddings that are not finite; check its weights")
