"""One pass over the images: network (every layer) and CLIP's image tower, reduced on the fly.

What scoring needs stays: per unit a running top-k of (value, image), sums, and the cross-moment
with the image embeddings; plus the embeddings themselves. Memory does not grow with images × units.
Shapes: I images, U units of all layers side by side, K top-k, D embedding, B batch.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from emojax.data.clip_encoder import ClipEncoder
from emojax.data.image_set import ImageSet
from emojax.data.loader import batches
from emojax.distributed.data_parallel import default_tile
from emojax.distributed.mesh import (
    local_rows,
    make_mesh,
    put_batch,
    put_replicated,
)
from emojax.distributed.processes import check_same_everywhere
from emojax.errors import InputError
from emojax.memory import check_fits
from emojax.models.transformer import TwoTowersConfig
from emojax.ops.pooling import Pool, Tokens
from emojax.probing import step as steps
from emojax.probing.network import (
    Network,
    ReturnsTaps,
    as_network,
    pooled_taps,
    resolve_layers,
)
from emojax.probing.partial import Recorder
from emojax.probing.precision import Precision, in_bfloat16
from emojax.probing.record import (
    ProbeRecord,
    find,
    in_every_process,
    join_layers,
    record_key,
    save,
)
from emojax.section import user_path

_Item = TypeVar("_Item")


def probe(
    model: ReturnsTaps | nnx.Module | Network,
    images: ImageSet | np.ndarray,
    clip: ClipEncoder,
    *,
    layers: Sequence[str] = ("*",),
    pool: Pool = "avg",
    tokens: Tokens = "cls",
    taps: str = "raw",
    antialias: bool = False,
    top_k: int = 100,
    batch: int = 256,
    tile: int | None = None,
    precision: Precision = "exact",
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    keep_activations: bool = False,
    memory: float | int | None = None,
    mesh: Mesh | None = None,
    cache: Path | None = None,
    save_every: float | int = 60.0,
    progress: Callable[[int, int], None] | None = None,
) -> ProbeRecord:
    """Runs the network and CLIP over the images and returns the record.

    A network of the same architecture, layers and shapes is not compiled again; a plain function,
    or a model with somebody's `preprocess`, is compiled at every call.

    Args:
      model: a VGGNet, any nnx module or function that returns `(logits, taps)`, or a `Network`.
      images: an image set, or uint8 images [I, H, W(, C)].
      clip: the encoder whose image tower runs beside the network.
      layers: names or patterns of taps.
      pool: how convolutions become one number per unit, `avg` or `max` over space.
      tokens: how a transformer's tokens become one number per unit: `cls` takes the first, the
        class token where a network has one; or their `mean` or `max`.
      taps: `raw` outputs, or `relu` for those after BatchNorm and ReLU (VGGNet).
      antialias: whether the model's own preprocessing resizes with antialiasing, as the paper's
        probe did (VGGNet, Deep-Emotion).
      top_k: length of the lists.
      batch: images per step; rounded up so that every device gets whole, even-sized tiles.
      tile: images computed together, see `in_tiles`; results depend on it in the last bits, not on
        `batch`.
      precision: what network and CLIP compute in: `exact`, float32 with products in full precision;
        `high`, float32 with products of three bfloat16 passes on a TPU and in TF32 on a GPU (the
        same as `exact` on a CPU); or `bfloat16`. Sums and lists are float32 in all.
      preprocess: uint8 images → the model's input, when `model` is a function or module.
      keep_activations: also keep the pooled activations [I, U], for `cos_similarity_cubed`.
      memory: bytes on a device that lists and sums of its units may take. Where they would take
        more, groups of layers that fit are probed one after another, each in a pass of its own, and
        joined; a layer that does not fit alone is a group. None: any number.
      mesh: devices to shard the batch over; all when None.
      cache: folder of records by content key. A record that is there is read instead of made; a new
        one grows there, and resumes from its last snapshot when an earlier process was stopped. Not
        for a plain function or with `preprocess`, whose content has no key.
      save_every: seconds between snapshots.
      progress: called with (images done, images in all) after every batch.

    Raises:
      InputError: no such layer, `antialias` where the model has no such choice, activations that
        are not finite, or another process is making the same record.
    """
    network = as_network(model, preprocess=preprocess, taps=taps, antialias=antialias)
    if not isinstance(images, ImageSet):
        images = ImageSet.from_arrays(images)
    mesh = mesh or make_mesh()
    tile = tile or probe_tile(mesh, clip.model.config)
    shapes = network.tap_shapes(images.images.shape[1:])
    names = resolve_layers(layers, list(shapes))
    sizes = {name: shapes[name][-1] for name in names}

    key = record_key(
        network, images, clip, names, pool, top_k, tile, keep_activations, tokens, precision
    )
    check_same_everywhere([key, images.key], "images, weights or settings")
    entry = None if cache is None or key is None else user_path(cache) / key
    ranks = {len(shapes[name]) for name in names}
    build_record = functools.partial(
        _record_builder(network, images, clip, sizes, key),
        pool=pool if 4 in ranks else None,
        tokens=tokens if 3 in ranks else None,
    )
    if entry is not None:
        cached = in_every_process(lambda: find(entry, key), build_record)
        if cached is not None:
            return cached

    total = len(images)
    units = sum(sizes.values())
    embedding = clip.model.config.embedding
    groups = _groups(sizes, steps.bytes_per_unit(top_k, embedding) / mesh.size, memory)
    most = max(sum(sizes[name] for name in group) for group in groups)
    _check_memory(mesh, tile, clip.model.config.image_size, top_k, most)
    if len(groups) > 1:
        parts = [
            probe(
                network,
                images,
                clip,
                layers=group,
                pool=pool,
                tokens=tokens,
                top_k=top_k,
                batch=batch,
                tile=tile,
                precision=precision,
                keep_activations=keep_activations,
                mesh=mesh,
                cache=cache,
                save_every=save_every,
                progress=progress,
            )
            for group in groups
        ]
        record = join_layers(parts, build_record)
        if entry is not None:
            save(record, entry)
        return record
    batch = whole_tiles(min(batch, total), tile, mesh)
    widths = {"embeddings": embedding} | ({"activations": units} if keep_activations else {})
    forward, params = _forward(network, clip, names, pool, tokens, precision)
    make_step = steps.cached_step if network.reusable else steps.make_step

    with Recorder(
        entry,
        total,
        widths,
        units=units,
        batch=batch,
        mesh=mesh,
        save_every=save_every,
        progress=progress,
    ) as recorder:
        step = make_step(forward, tile, keep_activations, mesh, precision)
        params = put_replicated(mesh, params)
        snapshot = recorder.restore()
        state = steps.place(snapshot, steps.empty_state(units, top_k, embedding), mesh)
        chunks = batches(images.images, batch, start=recorder.done, rows=local_rows(mesh, batch))
        waits = Waits()
        starts = range(recorder.done, total, batch)
        for start, chunk in zip(starts, waits.over(chunks), strict=True):
            state, rows = step(params, state, *put_batch(mesh, *chunk))
            recorder.take(start, rows)
            recorder.snapshot_if_due(start, state)
        recorder.flush()
        build_record = functools.partial(build_record, waited=waits.share())
        return finish_record(recorder, steps.to_host(mesh, state, units), total, build_record)


def _record_builder(
    network: Network,
    images: ImageSet,
    clip: ClipEncoder,
    layers: dict[str, int],
    key: str | None,
) -> functools.partial[ProbeRecord]:
    """Makes a record of its arrays: all else is known before the first batch."""
    return functools.partial(
        ProbeRecord,
        layers=layers,
        labels=images.labels,
        classes=images.classes,
        ids=images.ids,
        key=key,
        clip_key=clip.key,
        clip=clip,
        antialias=network.antialias,
        network=network.name,
        clip_name=clip.name,
    )


def _forward(
    network: Network,
    clip: ClipEncoder,
    layers: Sequence[str],
    pool: Pool,
    tokens: Tokens,
    precision: Precision,
) -> tuple[steps.Forward, tuple[PyTree, PyTree]]:
    """Network and CLIP's image tower as one function, and the parameters of both."""
    tower = clip.model
    if precision == "bfloat16":
        network, tower = network.in_bfloat16(), in_bfloat16(tower)
    clip_graph, clip_params = nnx.split(tower)
    taps = pooled_taps(network, layers, pool, tokens)
    return steps.Forward(taps, clip_graph, clip.preprocess), (network.params, clip_params)


class Waits:
    """Clocks how long a loop waits for its next item, from the second one on.

    The first is left out: with it come the start of the reader and, behind it, the compilation.
    """

    def __init__(self):
        self._began: float | None = None
        self._waited = 0.0

    def over(self, items: Iterator[_Item]) -> Iterator[_Item]:
        """The items; each is waited for when it is asked for."""
        for number in itertools.count():
            asked = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            if number:
                self._began = asked if self._began is None else self._began
                self._waited += time.perf_counter() - asked
            yield item

    def share(self) -> float | None:
        """Of the time until now; None with fewer than two items."""
        if self._began is None:
            return None
        return self._waited / (time.perf_counter() - self._began)


def finish_record(
    recorder: Recorder,
    state: steps.State | None,
    images: int,
    build_record: Callable[..., ProbeRecord],
) -> ProbeRecord:
    """The record in every process, from the main one's state (`to_host`) and the recorder's rows.

    Raises:
      InputError: activations or embeddings are not finite.
    """

    def finish() -> ProbeRecord:
        assert state is not None
        rows = recorder.rows()
        record = build_record(
            top=state.top,
            half_moments=steps.half_moments(state, images),
            embeddings=rows["embeddings"],
            activations=rows.get("activations"),
            done_before=recorder.done,
        )
        _refuse_not_finite(record)
        return recorder.finish(record)

    record = in_every_process(finish, build_record)
    assert record is not None
    return record


def _check_memory(mesh: Mesh, tile: int, side: int, top_k: int, units: int) -> None:
    """Refuses what the devices of a CPU cannot hold. Others have a memory of their own.

    Args:
      mesh: the devices.
      tile: images that CLIP computes together, squares of `side` pixels.
      top_k: length of the lists of `units` units.

    Raises:
      InputError: the largest number that fits is in the message.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return
    devices = len(mesh.local_devices)
    pixels = f"images of {side}×{side} pixels at once"
    check_fits(tile, devices * side**2 * 3 * 4, pixels, "lower --probe.tile")
    # A list is a float32 and an int32 for each image, and each half of the images has one.
    own_units = -(-units * devices // mesh.size)
    check_fits(top_k, own_units * 16, f"images for {units} units", "lower --probe.top-k")


def _groups(
    layers: Mapping[str, int], bytes_per_unit: float, memory: float | int | None
) -> list[list[str]]:
    """Layers, in order, in as few groups as fit into the memory."""
    groups: list[list[str]] = []
    left = 0.0
    for name, units in layers.items():
        needed = units * bytes_per_unit
        if groups and (memory is None or needed <= left):
            groups[-1].append(name)
        else:
            groups.append([name])
            left = 0.0 if memory is None else memory
        left -= needed
    return groups


def probe_tile(mesh: Mesh, clip: TwoTowersConfig) -> int:
    """Images computed together where the settings name no tile.

    On a TPU what a tower's blocks take least time with by its compiler's count for v5e
    (docs/scale.md): the larger the tiles, the more of attention's arrays leave the fast memory.
    """
    if mesh.devices.flat[0].platform != "tpu":
        return default_tile(mesh)
    tokens = (clip.image_size // clip.patch_size) ** 2 + 1
    if tokens <= 64:  # ViT-B/32 has 50
        return 128
    return 16 if tokens <= 224 else 8  # ViT-B/16 has 197, ViT-L/14 257


def whole_tiles(batch: int, tile: int, mesh: Mesh) -> int:
    """The batch, rounded up so that every device has whole tiles, and whole tiles of sums."""
    grain = mesh.size * steps.sum_tile(tile, mesh)
    return -(-batch // grain) * grain


def _refuse_not_finite(record: ProbeRecord) -> None:
    bad = ~np.isfinite(record.moments.square)
    if bad.any():
        layer = list(record.layers)[record.segment_ids[np.argmax(bad)]]
        raise InputError(
            f"{bad.sum()} units, first in layer {layer}, have activations that are not finite; "
            "check the weights"
        )
    if not np.isfinite(record.moments.gram).all():
        raise InputError("CLIP gave image embeddings that are not finite; check its weights")
