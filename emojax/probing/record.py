"""What a probe leaves behind: enough to score any concept set later, without the images.

A record is made by `probe`, read by `dissection`, and kept on disk as a folder, in the cache by
content key. Shapes: I images, U units of all layers side by side, K top-k, D embedding.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int32

from emojax import strict
from emojax.brief import brief
from emojax.data.clip_encoder import ClipEncoder
from emojax.data.decode import MOST_TEXT, check_regular
from emojax.data.image_set import ImageSet
from emojax.distributed.processes import broadcast_from_main, is_main_process
from emojax.errors import InputError
from emojax.ops import topk
from emojax.ops.moments import Covariances, Moments, covariances, variances
from emojax.ops.pooling import Pool, Tokens
from emojax.ops.topk import TopK
from emojax.probing.network import Network
from emojax.probing.precision import Precision
from emojax.store import (
    atomic_folder,
    content_key,
    fault,
    read_npy,
    report_damage,
    save_arrays,
    write_checksums,
    write_json,
)

_FORMAT = 3  # of a record on disk; part of its key
_merge = jax.jit(topk.merge, static_argnums=1)


@brief
@dataclass
class ProbeRecord:
    """What a probe keeps; any concept set can be scored with it later, without the images.

    Attributes:
      layers: units of each layer, in order; U is their sum.
      top: lists of even and odd images, values and image indices [2, U, K].
      half_moments: sums over even and odd images: total [2, U], square [2, U], cross [2, U, D],
        gram [2, D, D], embedding [2, D]; float64.
      embeddings: unit image embeddings [I, D].
      labels: class of each image [I], or None; `classes` are their names.
      ids: name of each image.
      key: content key of all that made the record, or None for a plain function.
      clip_key: content key of the CLIP that made the embeddings.
      activations: pooled activations [I, U], when they were asked for.
      clip: the encoder that made the embeddings, when in the same process.
      antialias: whether the network's input was resized with antialiasing; None where the network
        has no such choice, or the record does not say.
      pool: how convolutions became one number per unit, `avg` or `max`, and `tokens`: how tokens
        did, `cls` (the first), `mean` or `max`. None where no layer has places or tokens, or the
        record does not say.
      network: what the network is called, for reports; `clip_name` likewise. None where the record
        does not say.
      done_before: images that an earlier process had probed; all of them in a record from disk.
      waited: share of the probe's time that this process waited for images to be read, from the
        second batch on; None where it was not measured.
    """

    layers: dict[str, int]
    top: TopK
    half_moments: Moments
    embeddings: Float32[np.ndarray, "I D"]
    labels: Int32[np.ndarray, " I"] | None
    classes: tuple[str, ...]
    ids: Sequence[str]
    key: str | None
    clip_key: str
    activations: Float32[np.ndarray, "I U"] | None = None
    clip: ClipEncoder | None = field(default=None, repr=False)
    antialias: bool | None = None
    pool: Pool | None = None
    tokens: Tokens | None = None
    network: str | None = None
    clip_name: str | None = None
    done_before: int = 0
    waited: float | None = None

    @cached_property
    def segment_ids(self) -> Int32[np.ndarray, " U"]:
        """Layer index of each unit."""
        return np.repeat(np.arange(len(self.layers), dtype=np.int32), list(self.layers.values()))

    def by_layer(self, of_units: np.ndarray) -> dict[str, np.ndarray]:
        """Something of every unit [U], taken apart by layer."""
        starts = np.cumsum(list(self.layers.values()))[:-1]
        return dict(zip(self.layers, np.split(of_units, starts), strict=True))

    @cached_property
    def merged(self) -> TopK:
        """Lists over all images [U, K]."""
        merged = _merge(TopK(*map(jnp.asarray, self.top)), self.top.values.shape[2])
        return TopK._make(map(np.asarray, merged))

    @cached_property
    def moments(self) -> Moments:
        """Sums over all images: total [U], square [U], cross [U, D], gram [D, D], embedding [D]."""
        return Moments(*(array.sum(axis=0) for array in self.half_moments))

    @property
    def images(self) -> int:
        """Number of probe images."""
        return self.embeddings.shape[0]

    @property
    def halves(self) -> list[Moments]:
        """Sums over the even images, and over the odd ones."""
        return [Moments(*(array[half] for array in self.half_moments)) for half in (0, 1)]

    @cached_property
    def covariances(self) -> Covariances:
        """Covariances over all images.

        Raises:
          InputError: there is a single image.
        """
        if self.images < 2:
            raise InputError("correlation needs at least two images, the record has one")
        return covariances(self.moments, self.images)

    @cached_property
    def half_covariances(self) -> list[Covariances]:
        """Covariances over the even images, and over the odd ones; each half has two at least."""
        halves = zip(self.halves, self.half_sizes, strict=True)
        return [covariances(sums, images) for sums, images in halves]

    @cached_property
    def constant(self) -> Bool[np.ndarray, " U"]:
        """Units whose activation is the same for all images: they respond to nothing."""
        return variances(self.moments, self.images) == 0.0

    @property
    def half_sizes(self) -> tuple[int, int]:
        """Numbers of even and of odd images."""
        return self.images - self.images // 2, self.images // 2

    def top_k(self, k: int) -> TopK:
        """The k most activating images of every unit [U, k], ties to the lower index.

        Raises:
          InputError: the record holds fewer than k.
        """
        available = min(self.top.values.shape[2], self.images)
        if k > available:
            fewer = f"--dissect.top-k {available} (top_k= in Python) or less"
            cure = f"--probe.top-k {k}" if k <= self.images else f"{fewer}, or {k} images or more"
            raise InputError(
                f"the top {k} images of each unit are needed, the record holds {available}; "
                f"use {cure}"
            )
        return TopK(self.merged.values[:, :k], self.merged.indices[:, :k])


def record_key(
    network: Network,
    images: ImageSet,
    clip: ClipEncoder,
    layers: Sequence[str],
    pool: Pool,
    top_k: int,
    tile: int,
    keep_activations: bool,
    tokens: Tokens = "cls",
    precision: Precision = "exact",
) -> str | None:
    """Content key of a record, from all that its numbers depend on.

    None for a network without a key.
    """
    if network.key is None:
        return None
    settings: list[object] = [list(layers), pool, top_k, tile, keep_activations]
    if tokens != "cls":  # left out otherwise, so that keys of records made before it hold
        settings.append(tokens)
    if precision != "exact":  # left out there, so that keys of older records hold
        settings.append(precision)
    return activations_key(network.key, images.key, clip, settings)


def activations_key(
    network_key: str, images_key: str | None, clip: ClipEncoder, settings: Sequence[object]
) -> str:
    """Content key of a record whose activations come from anywhere under this key."""
    own = [*settings, jax.default_backend()]
    return content_key([_FORMAT, network_key, images_key, clip.key, own])


def join_layers(records: Sequence[ProbeRecord], build: Callable[..., ProbeRecord]) -> ProbeRecord:
    """One record of records of the same images and CLIP, whose layers follow one another."""
    first = records[0]

    def joined(arrays: Sequence[np.ndarray], axis: int) -> np.ndarray:
        return np.concatenate(arrays, axis=axis)

    by_unit = ("total", "square", "cross")
    sums = {
        name: joined([getattr(record.half_moments, name) for record in records], 1)
        for name in by_unit
    }
    activations = None
    if first.activations is not None:
        activations = joined([np.asarray(record.activations) for record in records], 1)
    return build(
        top=TopK._make(
            joined(lists, 1) for lists in zip(*(record.top for record in records), strict=True)
        ),
        half_moments=first.half_moments._replace(**sums),
        embeddings=first.embeddings,
        activations=activations,
        done_before=min(record.done_before for record in records),
    )


def in_every_process(
    make: Callable[[], ProbeRecord | None], build: Callable[..., ProbeRecord]
) -> ProbeRecord | None:
    """The record that the main process alone makes, in every process.

    What another process gets lies in its memory: I × D × 4 bytes of embeddings, and the activations
    if they were kept.

    Args:
      make: called in the main process; None stays None.
      build: makes a record of the arrays that travel and what every process knows by itself.
    """

    def arrays() -> dict[str, np.ndarray] | None:
        record = make()
        if record is None:
            return None
        rows = {"embeddings": record.embeddings, "activations": record.activations}
        done = {"done_before": np.asarray(record.done_before)}
        named = {**record.top._asdict(), **record.half_moments._asdict(), **rows, **done}
        return {name: array for name, array in named.items() if array is not None}

    named = broadcast_from_main(arrays)
    if named is None:
        return None
    top = TopK._make(named.pop(name) for name in TopK._fields)
    half_moments = Moments._make(named.pop(name) for name in Moments._fields)
    done_before = int(named.pop("done_before"))
    return build(top=top, half_moments=half_moments, done_before=done_before, **named)


def save(record: ProbeRecord, folder: Path) -> None:
    """Writes a record as a folder; of several processes the main one does.

    The files are `embeddings.npy`, `activations.npy`, `statistics.safetensors`, `ids.jsonl`,
    `record.json` and the checksums of these.
    """
    if not is_main_process():
        return
    with atomic_folder(folder) as building:
        np.save(building / "embeddings.npy", record.embeddings)
        if record.activations is not None:
            np.save(building / "activations.npy", record.activations)
        save_statistics(record, building)
        write_checksums(building, record.key)


def save_statistics(record: ProbeRecord, folder: Path) -> list[str]:
    """Writes all of a record but its rows and checksums; returns the names of the files."""
    lists = {"top_values": record.top.values, "top_indices": record.top.indices}
    arrays = {**lists, **record.half_moments._asdict()}
    if record.labels is not None:
        arrays["labels"] = record.labels
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_arrays(contiguous, folder / "statistics.safetensors")
    with open(folder / "ids.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record.ids[i]) + "\n" for i in range(record.images))
    header = {
        "format": _FORMAT,
        "key": record.key,
        "clip_key": record.clip_key,
        "classes": record.classes,
        "layers": [[name, units] for name, units in record.layers.items()],
        "antialias": record.antialias,
        "pool": record.pool,
        "tokens": record.tokens,
        "network": record.network,
        "clip_name": record.clip_name,
    }
    write_json(folder / "record.json", header)
    return ["statistics.safetensors", "ids.jsonl", "record.json"]


def find(folder: Path, key: str | None) -> ProbeRecord | None:
    """The cached record with this content key; None where there is none that can be used."""
    if not os.path.lexists(folder):
        return None
    try:
        return load(folder, key)
    except InputError as error:
        report_damage(folder, str(error))
        return None


def load(folder: Path, key: str | None = None) -> ProbeRecord:
    """Reads and verifies what `save` wrote; embeddings and activations are memory-mapped.

    Raises:
      InputError: the folder is no record, is damaged, is of another version, or has another key
        than the one asked for.
    """
    from safetensors import SafetensorError

    try:
        return _read(folder, key)
    except InputError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        EOFError,
        SafetensorError,
    ) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{folder}: not a readable probe record ({reason}); delete it and probe again"
        ) from None


def _read(folder: Path, key: str | None) -> ProbeRecord:
    """`load`, whose errors are still those of files and formats."""
    from safetensors.numpy import load_file

    check_regular(folder / "record.json", limit=MOST_TEXT, missing_ok=True)
    header = strict.read_json((folder / "record.json").read_text("utf-8"))
    if header["format"] != _FORMAT:
        raise InputError(
            f"{folder} is a probe record of format {header['format']}, not {_FORMAT}; probe again"
        )
    reason = fault(folder, key)
    if reason is not None:
        raise ValueError(reason)
    if key is not None and header["key"] != key:
        raise ValueError("record.json names another key")
    arrays = load_file(folder / "statistics.safetensors")
    activations = folder / "activations.npy"
    embeddings = read_npy(folder / "embeddings.npy", mapped=True)
    ids = (folder / "ids.jsonl").read_text("utf-8").splitlines()
    record = ProbeRecord(
        layers=dict(header["layers"]),
        top=TopK._make([arrays["top_values"], arrays["top_indices"]]),
        half_moments=Moments._make(arrays[name] for name in Moments._fields),
        embeddings=embeddings,
        labels=arrays.get("labels"),
        classes=tuple(header["classes"]),
        ids=[json.loads(line) for line in ids],
        key=header["key"],
        clip_key=header["clip_key"],
        activations=read_npy(activations, mapped=True) if activations.exists() else None,
        antialias=header.get("antialias"),
        pool=header.get("pool"),
        tokens=header.get("tokens"),
        network=header.get("network"),
        clip_name=header.get("clip_name"),
        done_before=len(embeddings),
    )
    _refuse_misfit(record)
    return record


def _refuse_misfit(record: ProbeRecord) -> None:
    """Raises ValueError when parts of a record are not of the same images, units and classes."""
    images, width = record.embeddings.shape
    _, units, _ = record.top.values.shape
    indices = record.top.indices
    labels = record.labels
    is_image = (indices >= 0) & (indices < images)
    shapes = {
        "total": (2, units),
        "square": (2, units),
        "cross": (2, units, width),
        "gram": (2, width, width),
        "embedding": (2, width),
    }
    fits = {
        "layers": sum(record.layers.values()) == units
        and min(record.layers.values(), default=0) > 0,
        "top images": indices.shape == record.top.values.shape
        and bool((is_image | (indices == topk.EMPTY)).all()),
        "sums": {name: sums.shape for name, sums in record.half_moments._asdict().items()}
        == shapes,
        "labels": labels is None
        or (
            labels.shape == (images,)
            and bool(((labels >= 0) & (labels < len(record.classes))).all())
        ),
        "names": len(record.ids) == images,
        "activations": record.activations is None or record.activations.shape == (images, units),
    }
    for name, fit in fits.items():
        if not fit:
            raise ValueError(f"its {name} do not fit the rest")
