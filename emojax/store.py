"""Run folders, caches and content keys: what a run leaves behind, written whole or not at all.

A content key is the sha256 of what made a thing (array bytes, names, settings), so a changed pixel,
weight or concept is a different key whatever the file is called. `cached` is how every computation
that is worth keeping is looked up, verified, computed, broadcast and written.
"""

import contextlib
import csv
import datetime
import errno
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import re
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from emojax import outputs
from emojax.distributed.processes import broadcast_from_main, is_main_process
from emojax.errors import InputError
from emojax.outputs import MANIFEST
from emojax.section import user_path

_PACKAGES = (
    "emojax",
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "transformers",
    "tensorflow-datasets",
    "pillow",
)


def content_key(value: Any) -> str:
    """A hex key of nested dicts, lists, strings, numbers and arrays.

    Equal content has an equal key, on any machine.

    Raises:
      TypeError: a value is of another type.
    """
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: "hashlib._Hash", value: Any) -> None:
    match value:
        case None | bool() | int() | float() | str():
            digest.update(json.dumps(value).encode() + b";")
        case bytes():
            digest.update(f"bytes {len(value)};".encode() + value)
        case Mapping():
            digest.update(f"map {len(value)};".encode())
            for key in sorted(value, key=str):
                _feed(digest, str(key))
                _feed(digest, value[key])
        case list() | tuple():
            digest.update(f"list {len(value)};".encode())
            for item in value:
                _feed(digest, item)
        case _ if hasattr(value, "dtype") and hasattr(value, "shape"):
            array = np.ascontiguousarray(np.asarray(value))
            digest.update(f"array {array.dtype.name} {array.shape};".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
        case _:
            raise TypeError(f"no content key for {type(value).__name__}")


@contextlib.contextmanager
def atomic_folder(
    target: Path, check: Callable[[Path], None] = outputs.check_empty
) -> Iterator[Path]:
    """A fresh folder that is put at `target` when the block ends well, else removed.

    What lies at `target` is replaced, so `check` must refuse what may not go. It is called before
    the block and again after it, for what came in between; the new folder then stays under another
    name.

    Raises:
      InputError: `check` refuses what lies at `target`, or nothing can be written there.
    """
    target = Path(target)
    check(target)
    target = Path(os.path.realpath(target))
    with outputs.building_folder(target) as folder:
        yield folder
        try:
            check(target)
        except InputError as error:
            kept = outputs.set_aside(folder, target)
            raise InputError(f"{error}; what was to go there is in {kept}") from None
        outputs.place(folder, target)
    outputs.sweep(target)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    write_binary(path, lambda file: file.write(text.encode("utf-8")))


def write_binary(path: Path, write: Callable[[BinaryIO], Any], *, sweep: bool = True) -> None:
    """Writes what `write` puts into a file, whole or not at all; makes the folder.

    What processes that were killed left of files in that folder is removed, unless `sweep` is
    False: for who writes again and again into a folder that may hold many.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{outputs.PART}")
    try:
        with outputs.open_locked(temporary) as file:
            write(file)
            file.flush()
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if sweep:
        outputs.sweep_files(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Writes strict, indented JSON with sorted keys.

    Numbers that are not finite, which JSON does not have, become null; an object says under
    `not_finite` what they were, from which `restore_numbers` puts them back.
    """
    finite, lost = _finite(value)
    if lost and isinstance(finite, dict):
        finite |= {"not_finite": lost}
    write_text(path, json.dumps(finite, indent=2, sort_keys=True, allow_nan=False) + "\n")


def json_line(value: Mapping[str, Any]) -> str:
    """An object as one line of strict JSON, as `write_json` writes it."""
    finite, lost = _finite(value)
    if lost:
        finite |= {"not_finite": lost}
    return json.dumps(finite, allow_nan=False) + "\n"


def _finite(value: Any) -> tuple[Any, dict[str, str]]:
    """A copy with None for floats that are not finite, and these by their JSON pointers.

    Such as `{"/splits/test/nll": "inf"}`.
    """
    lost: dict[str, str] = {}

    def copy(value: Any, pointer: str) -> Any:
        if isinstance(value, float | np.floating) and not math.isfinite(value):
            lost[pointer] = str(float(value))
            return None
        if isinstance(value, Mapping):
            escaped = {key: str(key).replace("~", "~0").replace("/", "~1") for key in value}
            return {key: copy(each, f"{pointer}/{escaped[key]}") for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [copy(each, f"{pointer}/{index}") for index, each in enumerate(value)]
        return value

    return copy(value, ""), lost


def restore_numbers(value: dict[str, Any]) -> dict[str, Any]:
    """An object that `write_json` wrote, read back: puts in again what `not_finite` lists.

    Raises:
      ValueError: that list does not fit the object.
    """
    lost = value.pop("not_finite", {})
    try:
        for pointer, text in lost.items():
            *path, last = (
                key.replace("~1", "/").replace("~0", "~") for key in pointer.split("/")[1:]
            )
            holder: Any = value
            for key in path:
                holder = holder[int(key) if isinstance(holder, list) else key]
            last = int(last) if isinstance(holder, list) else last
            if holder[last] is not None:
                raise ValueError(f"{pointer} has a value")
            holder[last] = float(text)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"not_finite does not fit: {error}") from None
    return value


def save_arrays(
    arrays: Mapping[str, np.ndarray], path: Path | str, *, metadata: dict[str, str] | None = None
) -> None:
    """Writes safetensors.

    Raises:
      OSError: the file cannot be written.
    """
    from safetensors.numpy import save

    data = save(dict(arrays), metadata)
    # It writes the metadata in an order that changes from call to call; equal content has equal
    # bytes here. The header is its length in 8 bytes and JSON, which blanks fill.
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    # Its `save_file` makes a file for the owner alone, whatever the umask, and errors of its own.
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(memoryview(data)[end:])


def read_npy(path: Path | str, *, mapped: bool = False) -> np.ndarray:
    """The array of a `.npy` file, in memory or memory-mapped; nothing is unpickled.

    Raises:
      OSError: the file cannot be opened.
      ValueError: it holds no array, or a damaged or pickled one.
    """
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError):
        raise
    except Exception as error:  # NumPy lets its tokenizer's errors through
        raise ValueError(f"{Path(path).name} is no .npy file ({error})") from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{Path(path).name} is an archive, no .npy file")
    return array


# What a spreadsheet may take for a formula, which could ask programs or the network.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def guarded(text: str) -> str:
    """A cell of a csv that no spreadsheet takes for a formula: an apostrophe stands before it.

    Numbers stay as they are. `unguarded` gives the text back.
    """
    if not _FORMULA.match(text):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def unguarded(text: str) -> str:
    """The text of a cell that `guarded` gave."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def guarded_rows(rows: Iterable[Sequence[Any]]) -> Iterator[list[Any]]:
    """Rows for a csv, their texts guarded."""
    return ([guarded(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table: floats with seven digits, no text that a spreadsheet would compute."""

    def cell(value: Any) -> Any:
        return f"{value:.7g}" if isinstance(value, float | np.floating) else value

    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows(guarded_rows([header]))
        writer.writerows(guarded_rows([cell(value) for value in row] for row in rows))


class Run:
    """A run folder being written: results go to `folder`, the other attributes to its manifest."""

    def __init__(self, folder: Path, command: str, settings: Mapping[str, Any]):
        self.folder = folder
        self.inputs: dict[str, str] = {}
        self.timings: dict[str, float] = {}
        self.target: dict[str, Any] = {}
        self._command = command
        self._settings = settings
        self._started = datetime.datetime.now(datetime.UTC)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds of a block to the manifest's timings."""
        start = time.perf_counter()
        yield
        self.timings[name] = round(self.timings.get(name, 0.0) + time.perf_counter() - start, 3)

    def manifest(self) -> dict[str, Any]:
        """What made the run: settings, versions, devices, content keys, timings (s), its files."""
        import jax

        return {
            "format": outputs.FORMAT,
            "verb": self._command,  # the key since the first version
            "started": self._started.isoformat(timespec="seconds"),
            "settings": self._settings,
            "versions": versions(),
            "devices": [str(device.device_kind) for device in jax.devices()],
            "processes": jax.process_count(),
            "inputs": self.inputs,
            "target": self.target,
            "timings": self.timings,
            "files": outputs.list_files(self.folder),
        }


def versions() -> dict[str, str]:
    """Versions of emojax and of the packages that its numbers depend on."""
    installed = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return installed


@contextlib.contextmanager
def run_folder(
    out: Path, command: str, settings: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[Run]:
    """Opens a run folder for writing.

    It appears at `out`, with its manifest, only when the block ends well. A run that is there
    already is replaced when `overwrite` is given and nothing else lies in its folder. Of several
    processes the main one writes; what the others put into their folders is thrown away.

    Raises:
      InputError: `out` holds what may not be replaced, or cannot be written.
    """
    if not is_main_process():
        with tempfile.TemporaryDirectory(prefix="emojax-") as scratch:
            yield Run(Path(scratch), command, settings)
        return
    with atomic_folder(out, functools.partial(outputs.check_out, overwrite=overwrite)) as folder:
        run = Run(folder, command, settings)
        yield run
        write_json(folder / MANIFEST, run.manifest())


def list_again(folder: Path, names: Iterable[str], *, done: bool) -> None:
    """Lists files that are added to a finished run folder in its manifest.

    Called before they are written (not `done`) and after. In between, a killed process leaves them
    in any state, and they still count as the run's. Without a list, as in runs
    of older versions, nothing is written.
    """
    manifest = outputs.read_manifest(folder)
    if "files" in manifest:
        listed = {name: outputs.entry(folder / name) if done else None for name in names}
        write_json(folder / MANIFEST, manifest | {"files": manifest["files"] | listed})


def note(folder: Path, name: str, value: Any) -> None:
    """Puts an entry into the manifest of a finished run; nothing in runs of older versions."""
    manifest = outputs.read_manifest(folder)
    if "files" in manifest:
        write_json(folder / MANIFEST, manifest | {name: value})


# Caches. Whatever is cached lies in a folder with `checksums.json`: the key of the content and the
# CRC32 of every file. zlib's CRC32 is the fastest of what Python brings (4 GB/s and core, sha256
# 0.9); it finds damage of disks, copies and interrupted writes, not a forger.

CHECKSUMS = "checksums.json"
_CHECKSUMS_FORMAT = 1
_MOST_CHECKSUMS = 1 << 28  # bytes of the file
_PIECE = 1 << 22  # bytes of a file that have a checksum of their own, so that threads share a file
_log = logging.getLogger("emojax")


def cached(
    folder: Path | None,
    key: str,
    compute: Callable[[], Mapping[str, np.ndarray]],
    *,
    mapped: bool = False,
) -> dict[str, np.ndarray]:
    """Named arrays from the cache `folder`, or computed and cached there.

    Every process gets them; the main process alone reads and writes, and all of them call
    `compute`. An entry that fails verification is computed again and replaced, and the log says so.

    Args:
      folder: of entries by key; None computes without a cache.
      key: content key of all that shapes the arrays; the entry's name.
      compute: gives the arrays, whose names serve as file names.
      mapped: arrays found in the cache are memory-mapped.
    """
    if folder is None:
        return dict(compute())
    entry = user_path(folder) / key
    arrays = broadcast_from_main(lambda: read_entry(entry, key, mapped=mapped))
    if arrays is None:
        arrays = dict(compute())
        if is_main_process():
            write_entry(entry, key, arrays)
    return arrays


def read_entry(entry: Path, key: str, *, mapped: bool = False) -> dict[str, np.ndarray] | None:
    """The arrays that `write_entry` wrote; None where there is none, or it fails verification."""
    if not os.path.lexists(entry):
        return None
    reason = fault(entry, key)
    if reason is None:
        names = json.loads((entry / CHECKSUMS).read_text("utf-8"))["files"]
        return {Path(name).stem: read_npy(entry / name, mapped=mapped) for name in names}
    report_damage(entry, reason)
    return None


def write_entry(entry: Path, key: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a cache entry, whole or not at all; replaces one that failed verification."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with outputs.fresh_folder(entry.parent, f".{entry.name}.") as building:
        try:
            for name, array in arrays.items():
                np.save(building / f"{name}.npy", array)
            write_checksums(building, key)
            outputs.move_into_place(building, entry)
        except OSError as error:  # another process put the same entry there at the same moment
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
    outputs.sweep(entry)


def write_checksums(folder: Path, key: str | None, names: Iterable[str] | None = None) -> None:
    """Writes the key and the checksums of a folder's files: those named, or all of them."""
    if names is None:
        files = (path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in files]
    sums = {name: _checksums(folder / name) for name in names}
    write_json(folder / CHECKSUMS, {"format": _CHECKSUMS_FORMAT, "key": key, "files": sums})


def fault(folder: Path, key: str | None = None) -> str | None:
    """What is wrong with a folder of cached files, None if nothing: all bytes are read.

    With a `key`, the folder must be the one that was written for it.
    """
    try:
        checksums = _read_checksums(folder)
        if checksums["format"] != _CHECKSUMS_FORMAT:
            return f"its checksums are of format {checksums['format']}, not {_CHECKSUMS_FORMAT}"
        if key is not None and checksums["key"] != key:
            return "it was made for another key"
        for name, sums in checksums["files"].items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            same_size = (folder / name).stat().st_size == sums[0]
            if not same_size or _checksums(folder / name) != sums:
                return f"{name} is not as it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{CHECKSUMS}: {type(error).__name__}"
    return None


def _read_checksums(folder: Path) -> dict[str, Any]:
    """What `write_checksums` wrote.

    Raises:
      ValueError: it is no JSON, no regular file, such as a pipe, or larger than any.
    """
    path = folder / CHECKSUMS
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_CHECKSUMS:
        raise ValueError("no regular file, or too large")
    return json.loads(path.read_text("utf-8"))


def _checksums(path: Path) -> list[int]:
    """Size of a file and CRC32 of each piece of it."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        starts = range(0, size, _PIECE)

        def of_piece(start: int) -> int:
            return zlib.crc32(os.pread(file.fileno(), _PIECE, start))  # lets other threads run

        if len(starts) <= 1:
            return [size, *map(of_piece, starts)]
        with ThreadPoolExecutor(min(len(starts), os.cpu_count() or 1, 8)) as pool:
            return [size, *pool.map(of_piece, starts)]


def report_damage(path: Path, reason: str) -> None:
    """Logs that something in the cache cannot be used and is made again."""
    _log.warning("%s is not used and is made again: %s", path, reason)


def locked(folder: Path) -> BinaryIO:
    """Makes a folder and keeps other processes out until the file is closed, or the process ends.

    Raises:
      InputError: another process has locked it.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "wb")  # noqa: SIM115 - open until its user closes it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise InputError(
                f"another process is making {folder}; wait for it, or choose another --cache"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.ENOLCK):  # a network disk without locks
                file.close()
                raise
        # The process that had the lock may have removed the folder in between.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(folder / "lock")):
                return file
        file.close()
