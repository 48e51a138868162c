"""What a probe leaves behind: enough to score any concept set later, without the images. Also on disk, by content key.

Shapes: I images, U units of all layers in a row, K top-k, D embedding.
"""

import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from emojax.data.clip_encoder import ClipEncoder
from emojax.data.image_set import ImageSet
from emojax.distributed.processes import broadcast_from_main, is_main_process
from emojax.errors import InputError
from emojax.ops import topk
from emojax.ops.moments import Moments
from emojax.ops.pooling import Pool
from emojax.ops.topk import TopK
from emojax.outputs import move_into_place
from emojax.probing.network import Network
from emojax.store import (
    atomic_folder,
    content_key,
    fault,
    locked,
    read_entry,
    read_npy,
    report_damage,
    save_arrays,
    write_checksums,
    write_entry,
    write_json,
)

_FORMAT = 2  # of a record on disk; part of its key
_READ = 1 << 22  # bytes of rows read at once


@dataclass
class ProbeRecord:
    """What a probe keeps; any concept set can be scored with it later, without the images.

    Attributes:
      layers: units of each layer, in order; U is their sum.
      top: lists of even and odd images, values and image indices [2, U, K].
      moments: sums over images: total [U], square [U], cross [U, D], gram [D, D]; float64.
      embeddings: unit image embeddings [I, D] float32.
      labels: class of each image [I] int32, or None; `classes` their names.
      ids: name of each image.
      key: content key of all that made the record, or None for a plain function.
      clip_key: content key of the CLIP that made the embeddings.
      activations: pooled activations [I, U] float32 when they were kept.
      clip: the encoder that made the embeddings, when in the same process.
      done_before: how many of the images an earlier process had probed; all of them when the record was read from disk.
    """

    layers: dict[str, int]
    top: TopK
    moments: Moments
    embeddings: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    ids: Sequence[str]
    key: str | None
    clip_key: str
    activations: np.ndarray | None = None
    clip: ClipEncoder | None = field(default=None, repr=False)
    done_before: int = 0

    @cached_property
    def segment_ids(self) -> np.ndarray:
        """Layer index of each unit [U] int32."""
        return np.repeat(np.arange(len(self.layers), dtype=np.int32), list(self.layers.values()))

    @cached_property
    def merged(self) -> TopK:
        """Lists over all images [U, K]."""
        size = self.top.values.shape[2]
        merged = jax.jit(topk.merge, static_argnums=1)(TopK(*map(jnp.asarray, self.top)), size)
        return TopK(*map(np.asarray, merged))

    @property
    def images(self) -> int:
        """Number of probe images."""
        return self.embeddings.shape[0]

    def top_k(self, k: int) -> TopK:
        """The k most activating images of every unit [U, k], ties to the lower index.

        Raises:
          InputError: the record holds fewer than k.
        """
        have = min(self.top.values.shape[2], self.images)
        if k > have:
            cure = f"--probe.top-k {k}" if k <= self.images else f"a probe set of at least {k} images"
            raise InputError(f"the top {k} images of each unit are needed, the record holds {have}; use {cure}")
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
) -> str | None:
    """Content key of a record, from all that its numbers depend on; None for a network without a key."""
    if network.key is None:
        return None
    settings = [list(layers), pool, top_k, tile, keep_activations, jax.default_backend()]
    return content_key([_FORMAT, network.key, images.key, clip.key, settings])


def in_every_process(make: Callable[[], ProbeRecord | None], blank: ProbeRecord) -> ProbeRecord | None:
    """The record that the first process alone makes, in every process; `blank` has what all of them know of it.

    What another process gets lies in its memory: I × D × 4 bytes of embeddings, and the activations if they were kept.
    """

    def arrays() -> dict[str, np.ndarray] | None:
        record = make()
        if record is None:
            return None
        rows = {name: getattr(record, name) for name in ("embeddings", "activations")}
        found = {**record.top._asdict(), **record.moments._asdict(), **rows, "done_before": np.int64(record.done_before)}
        return {name: array for name, array in found.items() if array is not None}

    got = broadcast_from_main(arrays)
    if got is None:
        return None
    top, moments = (kind(*(got.pop(name) for name in kind._fields)) for kind in (TopK, Moments))
    return replace(blank, top=top, moments=moments, done_before=int(got.pop("done_before")), **got)


def save(record: ProbeRecord, folder: Path) -> None:
    """Writes a record as a folder: `embeddings.npy`, `activations.npy`, `statistics.safetensors`,
    `ids.jsonl`, `record.json` and the checksums of these.

    Of several processes the first does.
    """
    if not is_main_process():
        return
    with atomic_folder(folder) as building:
        np.save(building / "embeddings.npy", record.embeddings)
        if record.activations is not None:
            np.save(building / "activations.npy", record.activations)
        _save_small(record, building)
        write_checksums(building, record.key)


def _save_small(record: ProbeRecord, folder: Path) -> None:
    """All of a record but its row files and checksums."""
    arrays = {"top_values": record.top.values, "top_indices": record.top.indices, **record.moments._asdict()}
    if record.labels is not None:
        arrays["labels"] = record.labels
    save_arrays({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "statistics.safetensors")
    with open(folder / "ids.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record.ids[i]) + "\n" for i in range(record.images))
    about = {"format": _FORMAT, "key": record.key, "clip_key": record.clip_key, "classes": record.classes}
    write_json(folder / "record.json", about | {"layers": [[k, v] for k, v in record.layers.items()]})


def find(folder: Path, key: str) -> ProbeRecord | None:
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
    from safetensors.numpy import load_file

    try:
        about = json.loads((folder / "record.json").read_text("utf-8"))
        if about["format"] != _FORMAT:
            raise InputError(f"{folder} is a probe record of format {about['format']}, not {_FORMAT}; probe again")
        wrong = fault(folder, key)
        if wrong is not None:
            raise ValueError(wrong)
        if key is not None and about["key"] != key:
            raise ValueError("record.json names another key")
        arrays = load_file(folder / "statistics.safetensors")
        kept = folder / "activations.npy"
        embeddings = read_npy(folder / "embeddings.npy", mapped=True)
        record = ProbeRecord(
            layers=dict(about["layers"]),
            top=TopK(arrays["top_values"], arrays["top_indices"]),
            moments=Moments(*(arrays[name] for name in Moments._fields)),
            embeddings=embeddings,
            labels=arrays.get("labels"),
            classes=tuple(about["classes"]),
            ids=[json.loads(line) for line in (folder / "ids.jsonl").read_text("utf-8").splitlines()],
            key=about["key"],
            clip_key=about["clip_key"],
            activations=read_npy(kept, mapped=True) if kept.exists() else None,
            done_before=len(embeddings),
        )
        _refuse_misfit(record)
        return record
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder}: not a readable probe record ({error}); delete it and probe again") from None


def _refuse_misfit(record: ProbeRecord) -> None:
    """Raises ValueError when parts of a record are not of the same images, units and classes."""
    (images, width), (_, units, _) = record.embeddings.shape, record.top.values.shape
    indices, labels, moments = record.top.indices, record.labels, record.moments
    fits = {
        "layers": sum(record.layers.values()) == units and min(record.layers.values(), default=0) > 0,
        "top images": indices.shape == record.top.values.shape
        and bool((((indices >= 0) & (indices < images)) | (indices == topk.EMPTY)).all()),
        "sums": [array.shape for array in moments] == [(units,), (units,), (units, width), (width, width)],
        "labels": labels is None
        or (labels.shape == (images,) and bool(((labels >= 0) & (labels < len(record.classes))).all())),
        "names": len(record.ids) == images,
        "activations": record.activations is None or record.activations.shape == (images, units),
    }
    for name, right in fits.items():
        if not right:
            raise ValueError(f"its {name} do not fit the rest")


class Rows:
    """Arrays [images, width] float32 that fill up batch by batch: in memory, or in `.npy` files that cost no memory.

    Files are written by position, not mapped: mapped pages would count as memory of the process.
    Rows come in order, so a running CRC32 covers all that was written so far.
    """

    def __init__(self, images: int, widths: Mapping[str, int], folder: Path | None = None):
        self._arrays, self._files, self._offsets = {}, {}, {}
        self._widths, self._sums = dict(widths), dict.fromkeys(widths, 0)
        self._lock = None if folder is None else locked(folder)
        for name, width in widths.items():
            if folder is None:
                self._arrays[name] = np.empty((images, width), np.float32)
                continue
            path = folder / f"{name}.npy"
            if not _is_table(path, (images, width)):
                np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(images, width))
            self._offsets[name] = read_npy(path, mapped=True).offset
            self._files[name] = open(path, "r+b")  # noqa: SIM115 - open until `close`

    def write(self, name: str, start: int, rows: np.ndarray) -> None:
        """Puts rows at image `start`."""
        if name in self._arrays:
            self._arrays[name][start : start + len(rows)] = rows
        else:
            file = self._files[name]
            data = np.ascontiguousarray(rows, np.float32).reshape(-1).view(np.uint8)
            file.seek(self._offsets[name] + start * rows.shape[1] * 4)
            file.write(data)
            self._sums[name] = zlib.crc32(data, self._sums[name])

    def checksums(self) -> dict[str, int]:
        """CRC32 of all the rows that were written, by name."""
        return dict(self._sums)

    def resume(self, done: int, sums: Mapping[str, int]) -> bool:
        """Goes on after `done` images if their rows in the files have these checksums."""
        for name, file in self._files.items():
            file.seek(self._offsets[name])
            left, found = done * self._widths[name] * 4, 0
            while left > 0 and (data := file.read(min(left, _READ))):
                left, found = left - len(data), zlib.crc32(data, found)
            if left or found != sums[name]:
                return False
        self._sums = dict(sums)
        return True

    def sync(self) -> None:
        """Makes what was written survive a crash of the machine."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays, those in files memory-mapped."""
        self.sync()
        mapped = {name: read_npy(file.name, mapped=True) for name, file in self._files.items()}
        return self._arrays | mapped

    def close(self) -> None:
        """Closes the files."""
        for file in (*self._files.values(), *([] if self._lock is None else [self._lock])):
            file.close()


def _is_table(path: Path, shape: tuple[int, int]) -> bool:
    """Whether a file is a whole `.npy` file of float32 of this shape."""
    try:
        array = read_npy(path, mapped=True)
    except (OSError, ValueError):
        return False
    return array.shape == shape and array.dtype == np.float32 and array.flags.c_contiguous


class Partial:
    """A record in the making, in a folder of its own: row files and snapshots of the running state.

    A probe that is killed and started again goes on from the newest snapshot that passes
    verification, together with all rows before it; rows written after it are written again.
    """

    def __init__(self, folder: Path, images: int, widths: Mapping[str, int]):
        self.folder = folder
        self.rows = Rows(images, widths, folder)

    def restore(self) -> dict[str, np.ndarray] | None:
        """The state's arrays at the last snapshot, and `images_done`; None when there is none."""
        for snapshot in reversed(self._snapshots()):
            state = read_entry(snapshot, self._key(snapshot))
            if state is not None:
                sums = json.loads(state.pop("row_checksums").tobytes())
                if self.rows.resume(int(state["images_done"]), sums):
                    return state
                report_damage(snapshot, "the rows before it are not as they were written")
            shutil.rmtree(snapshot)
        return None

    def save(self, done: int, state: dict[str, np.ndarray]) -> None:
        """Adds a snapshot, whole or not at all, once the rows before it are on the disk.

        The one before is kept as well, in case the machine fails before this one is on the disk.
        """
        self.rows.sync()
        sums = np.frombuffer(json.dumps(self.rows.checksums()).encode(), np.uint8)
        snapshot = self.folder / f"snapshot-{done}"
        arrays = state | {"images_done": np.asarray(done), "row_checksums": sums}
        write_entry(snapshot, self._key(snapshot), arrays)
        for old in self._snapshots()[:-2]:
            shutil.rmtree(old)

    def _snapshots(self) -> list[Path]:
        """Snapshots by the number of images done."""
        found = {path.name.partition("-")[2]: path for path in self.folder.glob("snapshot-*")}
        return [found[done] for done in sorted(filter(str.isdecimal, found), key=int)]

    def _key(self, snapshot: Path) -> str:
        return f"{self.folder.name}/{snapshot.name}"

    def finish(self, record: ProbeRecord, folder: Path) -> ProbeRecord:
        """Completes the record and moves it to its place; returns it with its arrays mapped from there."""
        _save_small(record, self.folder)
        rows = ["embeddings"] + (["activations"] if record.activations is not None else [])
        names = [f"{name}.npy" for name in rows]
        small = ["statistics.safetensors", "ids.jsonl", "record.json"]
        write_checksums(self.folder, record.key, names + small)
        for snapshot in self.folder.glob("*snapshot-*"):  # also what a kill left half-written
            shutil.rmtree(snapshot)
        (self.folder / "lock").unlink(missing_ok=True)
        move_into_place(self.folder, folder)
        self.rows.close()
        return replace(record, **{name: read_npy(folder / f"{name}.npy", mapped=True) for name in rows})
