"""A record in the making: the rows that batches leave behind, and snapshots to resume from.

`probe` talks to one object, the `Recorder`, which every process has; in the main process alone it
holds `Rows` and, with a cache, a `Partial` folder.
"""

import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from emojax.distributed.processes import broadcast_from_main, is_main_process
from emojax.outputs import move_into_place
from emojax.probing.record import ProbeRecord, save_statistics
from emojax.probing.step import State, to_host, to_leaves
from emojax.store import (
    locked,
    read_entry,
    read_npy,
    report_damage,
    write_checksums,
    write_entry,
)

_FORMAT = 2  # of a snapshot; part of its key
_READ = 1 << 22  # bytes of rows read at once


class Rows:
    """Arrays [images, width] float32 that fill up batch by batch: in memory, or in `.npy` files.

    Files are written by position, not mapped: mapped pages would count as memory of the process.
    Rows come in order, so a running CRC32 covers all that was written so far.
    """

    def __init__(self, images: int, widths: Mapping[str, int], folder: Path | None = None):
        self._widths = dict(widths)
        self._arrays = {}
        self._files = {}
        self._offsets = {}
        self._sums = dict.fromkeys(widths, 0)
        self._lock = None if folder is None else locked(folder)
        for name, width in widths.items():
            if folder is None:
                self._arrays[name] = np.empty((images, width), np.float32)
                continue
            path = folder / f"{name}.npy"
            if not _is_table(path, (images, width)):
                np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(images, width))
            mapped = read_npy(path, mapped=True)
            assert isinstance(mapped, np.memmap)
            self._offsets[name] = mapped.offset
            self._files[name] = open(path, "r+b")  # noqa: SIM115 - open until `close`

    def write(self, name: str, start: int, rows: np.ndarray) -> None:
        """Puts rows at image `start`."""
        if name in self._arrays:
            self._arrays[name][start : start + len(rows)] = rows
            return
        file = self._files[name]
        data = np.ascontiguousarray(rows, np.float32).data.cast("B")
        file.seek(self._offsets[name] + start * rows.shape[1] * 4)
        file.write(data)
        self._sums[name] = zlib.crc32(data, self._sums[name])

    def checksums(self) -> dict[str, int]:
        """CRC32 of all the rows that were written, by name."""
        return dict(self._sums)

    def resume(self, done: int, sums: Mapping[str, int]) -> bool:
        """Whether the files' rows of the first `done` images have these checksums.

        If so, the next rows are those after them.
        """
        for name, file in self._files.items():
            file.seek(self._offsets[name])
            left = done * self._widths[name] * 4
            checksum = 0
            while left > 0 and (data := file.read(min(left, _READ))):
                left -= len(data)
                checksum = zlib.crc32(data, checksum)
            if left or checksum != sums[name]:
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
        mapped = {
            name: read_npy(Path(file.name), mapped=True) for name, file in self._files.items()
        }
        return self._arrays | mapped

    def close(self) -> None:
        """Closes the files and gives up the lock."""
        for file in self._files.values():
            file.close()
        if self._lock is not None:
            self._lock.close()


def _is_table(path: Path, shape: tuple[int, int]) -> bool:
    """Whether a file is a whole `.npy` file of float32 of this shape."""
    try:
        array = read_npy(path, mapped=True)
    except (OSError, ValueError):
        return False
    return array.shape == shape and array.dtype == np.float32 and array.flags.c_contiguous


class Partial:
    """A record in the making, in a folder of its own: row files and snapshots of the state.

    A probe that is killed and started again resumes from the newest snapshot that passes
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

    def save(self, done: int, state: Mapping[str, np.ndarray]) -> None:
        """Adds a snapshot, whole or not at all, once the rows before it are on the disk.

        The one before stays as well, in case the machine fails before this one is on the disk.
        """
        self.rows.sync()
        sums = np.frombuffer(json.dumps(self.rows.checksums()).encode(), np.uint8)
        snapshot = self.folder / f"snapshot-{done}"
        progress = {"images_done": np.asarray(done), "row_checksums": sums}
        write_entry(snapshot, self._key(snapshot), {**state, **progress})
        for old in self._snapshots()[:-2]:
            shutil.rmtree(old)

    def finish(self, record: ProbeRecord, folder: Path) -> ProbeRecord:
        """Completes the record and moves it to its place; returns it, rows mapped from there."""
        rows = ["embeddings"]
        if record.activations is not None:
            rows.append("activations")
        small = save_statistics(record, self.folder)
        write_checksums(self.folder, record.key, [f"{name}.npy" for name in rows] + small)
        for snapshot in self.folder.glob("*snapshot-*"):  # also what a kill left half-written
            shutil.rmtree(snapshot)
        (self.folder / "lock").unlink(missing_ok=True)
        move_into_place(self.folder, folder)
        self.rows.close()
        mapped = {name: read_npy(folder / f"{name}.npy", mapped=True) for name in rows}
        return replace(record, **mapped)

    def _snapshots(self) -> list[Path]:
        """Snapshots by the number of images done."""
        by_done = {path.name.partition("-")[2]: path for path in self.folder.glob("snapshot-*")}
        return [by_done[done] for done in sorted(filter(str.isdecimal, by_done), key=int)]

    def _key(self, snapshot: Path) -> str:
        return f"{self.folder.name}/{snapshot.name}/{_FORMAT}"


class Recorder:
    """Takes what the steps give: rows batch by batch and, when it is time, a snapshot of the state.

    Every process has one and makes the same calls, since all of them must agree on when to save;
    the main process alone holds the rows and writes.

    Attributes:
      done: images that an earlier process had probed, once `restore` was called.
    """

    def __init__(
        self,
        entry: Path | None,
        images: int,
        widths: Mapping[str, int],
        *,
        units: int,
        batch: int,
        mesh: Mesh,
        save_every: float | int,
        progress: Callable[[int, int], None] | None,
    ):
        """`entry` is the record's place in the cache, None for a record in memory only; it has
        rows of these widths for each image, and so many units.

        Raises:
          InputError: another process is making this record.
        """
        self.done = 0
        self._entry = entry
        self._images = images
        self._units = units
        self._batch = batch
        self._mesh = mesh
        self._progress = progress
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._due = _Due(None if entry is None else save_every)
        self._partial: Partial | None = None
        self._rows: Rows | None = None
        if is_main_process() and entry is not None:
            self._partial = Partial(entry.with_name(f"{entry.name}.partial"), images, widths)
            self._rows = self._partial.rows
        elif is_main_process():
            self._rows = Rows(images, widths)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        if self._rows is not None:
            self._rows.close()

    def restore(self) -> dict[str, np.ndarray] | None:
        """The arrays of the last snapshot, in every process; None to start from the first image."""
        snapshot = broadcast_from_main(lambda: self._partial and self._partial.restore())
        if snapshot is not None:
            self.done = int(snapshot["images_done"])
        return snapshot

    def take(self, start: int, rows: dict[str, jax.Array]) -> None:
        """Accepts the rows of the batch at image `start`; writes those of the batch before it.

        They are fetched only now that the next step is on its way, so that no device waits.
        """
        self.flush()
        self._pending = (start, rows)

    def flush(self) -> None:
        """Fetches and writes the rows that were accepted last."""
        if self._pending is None:
            return
        start, rows = self._pending
        self._pending = None
        if self._rows is None:
            jax.block_until_ready(rows)  # processes keep pace
        else:
            for name, values in jax.tree.map(np.asarray, rows).items():
                self._rows.write(name, start, values[: self._images - start])
        if self._progress is not None:
            self._progress(min(start + self._batch, self._images), self._images)

    def snapshot_if_due(self, start: int, state: State) -> None:
        """Saves the state after the batch at image `start`, if it is time and images are left."""
        done = start + self._batch
        if not self._due.after_a_batch() or done >= self._images:
            return
        self.flush()
        host = to_host(self._mesh, state, self._units)
        if self._partial is not None and host is not None:
            self._partial.save(done, to_leaves(host))

    def rows(self) -> dict[str, np.ndarray]:
        """All rows by name; for the main process."""
        assert self._rows is not None
        return self._rows.arrays()

    def finish(self, record: ProbeRecord) -> ProbeRecord:
        """Moves the completed record to its place in the cache; for the main process."""
        if self._partial is None or self._entry is None:
            return record
        return self._partial.finish(record, self._entry)


class _Due:
    """When to save: every so many seconds, or never.

    Processes must agree on the batch, and their clocks do not. So after each snapshot the main one
    says, by the pace so far, how many batches the next one is away; the first two snapshots come
    after a batch each.
    """

    def __init__(self, seconds: float | int | None):
        self._seconds = seconds
        self._away = 1
        self._batches = 0
        self._since: float | None = None

    def after_a_batch(self) -> bool:
        """Whether to save now."""
        if self._seconds is None:
            return False
        self._batches += 1
        if self._batches < self._away:
            return False
        now = time.monotonic()
        if self._since is not None:
            pace = max((now - self._since) / self._batches, 1e-9)
            away = np.int32(np.clip(self._seconds / pace, 1, 2**30))
            agreed = broadcast_from_main(lambda: {"away": np.asarray(away)})
            assert agreed is not None
            self._away = int(agreed["away"])
        self._since = now
        self._batches = 0
        return True
