"""Run folders and content keys: what a run leaves behind, written whole or not at all.

A content key is the sha256 of what made a thing (array bytes, names, settings), so a changed pixel, weight or concept
is a different key whatever the file is called.
"""

import contextlib
import csv
import datetime
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from emojax import outputs
from emojax.distributed.processes import is_main_process
from emojax.errors import InputError
from emojax.outputs import MANIFEST

_PACKAGES = ("emojax", "jax", "jaxlib", "flax", "numpy", "transformers", "tensorflow-datasets", "pillow")


def content_key(value: Any) -> str:
    """A hex key of nested dicts, lists, strings, numbers and arrays; equal content, equal key, on any machine."""
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
def atomic_folder(target: Path, check: Callable[[Path], None] = outputs.check_empty) -> Iterator[Path]:
    """A fresh folder that is put at `target` when the block ends well, and vanishes when it does not.

    What lies at `target` is replaced, so `check` must refuse what may not go, with an InputError. It is called before the
    block and again after it, for what came in between; the new folder then stays under another name.
    """
    target = Path(target)
    check(target)
    target = Path(os.path.realpath(target))
    building = outputs.new_building(target)
    try:
        yield building
        try:
            check(target)
        except InputError as error:
            kept = outputs.set_aside(building, target)
            raise InputError(f"{error}; what was to go there is in {kept}") from None
        outputs.place(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    write_binary(path, lambda file: file.write(text.encode("utf-8")))


def write_binary(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes what `write` puts into a file, whole or not at all; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            write(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes strict, indented JSON with sorted keys.

    Numbers that are not finite, which JSON does not have, become null; an object says under `not_finite` what they were,
    from which `restore_numbers` puts them back.
    """
    finite, lost = _finite(value)
    if lost and isinstance(finite, dict):
        finite |= {"not_finite": lost}
    write_text(path, json.dumps(finite, indent=2, sort_keys=True, allow_nan=False) + "\n")


def json_line(value: Mapping[str, Any]) -> str:
    """An object as one line of strict JSON, as `write_json` writes it."""
    finite, lost = _finite(value)
    return json.dumps(finite | ({"not_finite": lost} if lost else {}), allow_nan=False) + "\n"


def _finite(value: Any) -> tuple[Any, dict[str, str]]:
    """A copy with None for floats that are not finite, and these by their JSON pointers: `{"/splits/test/nll": "inf"}`."""
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
            *path, last = (key.replace("~1", "/").replace("~0", "~") for key in pointer.split("/")[1:])
            holder = value
            for key in path:
                holder = holder[int(key) if isinstance(holder, list) else key]
            last = int(last) if isinstance(holder, list) else last
            if holder[last] is not None:
                raise ValueError(f"{pointer} has a value")
            holder[last] = float(text)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"not_finite does not fit: {error}") from None
    return value


def save_arrays(arrays: Mapping[str, np.ndarray], path: Path | str, *, metadata: dict[str, str] | None = None) -> None:
    """Writes safetensors; an error of the disk is an OSError like any other.

    Raises:
      OSError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(dict(arrays), path, metadata)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from None


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


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table; floats with seven digits."""

    def cell(value: Any) -> Any:
        return f"{value:.7g}" if isinstance(value, float | np.floating) else value

    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([cell(value) for value in row] for row in rows)


class Run:
    """A run folder being written: results go to `folder`, the other attributes to its manifest."""

    def __init__(self, folder: Path, verb: str, settings: Mapping[str, Any]):
        self.folder = folder
        self.inputs: dict[str, str] = {}
        self.timings: dict[str, float] = {}
        self.target: dict[str, Any] = {}
        self._verb, self._settings = verb, settings
        self._started = datetime.datetime.now(datetime.UTC)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds of a block to the manifest's timings."""
        start = time.perf_counter()
        yield
        self.timings[name] = round(self.timings.get(name, 0.0) + time.perf_counter() - start, 3)

    def manifest(self) -> dict[str, Any]:
        """Settings, versions, devices, content keys of the inputs, timings in seconds, and the files that were written."""
        import jax

        return {
            "format": outputs.FORMAT,
            "verb": self._verb,
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
    found = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


@contextlib.contextmanager
def run_folder(out: Path, verb: str, settings: Mapping[str, Any], *, overwrite: bool = False) -> Iterator[Run]:
    """Opens a run folder for writing; it appears at `out`, with its manifest, only when the block ends well.

    A run that is there already is replaced when `overwrite` is given and nothing else lies in its folder. Of several
    processes the first writes; what the others put into their folders is thrown away.
    """
    if not is_main_process():
        with tempfile.TemporaryDirectory(prefix="emojax-") as scratch:
            yield Run(Path(scratch), verb, settings)
        return
    with atomic_folder(out, functools.partial(outputs.check_out, overwrite=overwrite)) as folder:
        run = Run(folder, verb, settings)
        yield run
        write_json(folder / MANIFEST, run.manifest())


def list_again(folder: Path, names: Iterable[str], *, done: bool) -> None:
    """Puts files that are written into a whole run folder on its manifest's list: before (not `done`) and after.

    In between, a killed process leaves them in any state, and they still count as the run's. Without a list, as in runs
    of older versions, nothing is written.
    """
    manifest = outputs.read_manifest(folder)
    if "files" in manifest:
        listed = {name: outputs.entry(folder / name) if done else None for name in names}
        write_json(folder / MANIFEST, manifest | {"files": manifest["files"] | listed})
