"""Images to predict: files, folders, patterns, Arrow tables and prepared sets, read in batches
ahead of the network.

Unlike the readers of data sets, which refuse a set for one damaged file, these give a reason in
place of an image, so that a long job ends well.
"""

import contextlib
import glob
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from emojax.data import arrow_set, fer2013, folder, tfds_set
from emojax.data.decode import decode, read_image, reading_threads, some_sizes
from emojax.data.detect import Detector, Look
from emojax.data.loader import check_batch
from emojax.data.opening import open_split, resolve
from emojax.errors import InputError, one_line

_AHEAD = 2  # batches that are read while the network computes
_PARQUET = ".parquet"
_RUN = 32  # images that a thread reads in one go


class Source(NamedTuple):
    """Images of one size.

    Attributes:
      names: of the images, in order.
      shape: height, width, channels.
      read: the image of a position, uint8 of that shape.
      threads: that should read.
    """

    names: Sequence[str]
    shape: tuple[int, ...]
    read: Callable[[int], np.ndarray]
    threads: int = 1


class Read(NamedTuple):
    """A batch: images uint8 [B, H, W, C], zeros where one could not be read, and why not."""

    names: Sequence[str]
    images: UInt8[np.ndarray, "B H W C"]
    reasons: Sequence[str]  # "" for an image that was read


def open_sources(
    paths: Sequence[str], size: int, channels: int, detector: Detector | None = None
) -> list[Source]:
    """What the paths name, in order: files that follow one another are one source.

    A folder stands for the images in it and below, by name, or where there are none for the
    parquet files; a pattern (`*.png`, `**`) for what it matches; what Hugging Face `datasets`
    saved, a prepared FER2013 or set of TFDS for all of its splits.

    Args:
      paths: as a user gives them.
      size: side of the square that files are brought to, as `folder.read_square` does.
      channels: 1 for gray, 3 for colour.
      detector: finds the face in an image, which then is cut out; None takes images as they are.

    Raises:
      InputError: a pattern or folder holds no image, a table or prepared set is damaged, or a
        detector is to look at a prepared set, which holds faces.
    """
    look = Look(size, channels, detector)
    sources: list[Source] = []
    files: list[str] = []
    for path in paths:
        splits = _splits(Path(path))
        if splits is not None and detector is not None:
            raise InputError(f"{path}: a prepared set is of faces; predict it without a detector")
        if splits is not None:
            from_path = [_of_split(Path(path), split) for split in splits]
        elif arrow_set.is_saved(Path(path)):
            from_path = [_of_table(table, look) for table in arrow_set.open_saved(Path(path))]
        else:
            named = _files(path)
            from_path = [
                _of_table(arrow_set.open_parquet(Path(name)), look)
                for name in named
                if name.endswith(_PARQUET)
            ]
            files += [name for name in named if not name.endswith(_PARQUET)]
        if files and from_path:
            sources.append(_of_files(files, look))
            files = []
        sources += from_path
    if files:
        sources.append(_of_files(files, look))
    return sources


def _splits(path: Path) -> Sequence[str] | None:
    """The splits of a prepared set; None for any other path."""
    if not path.is_dir() or arrow_set.is_saved(path):
        return None
    kind = resolve(path, raw=True)[0]
    if kind == "fer2013":
        return fer2013.SPLITS
    return tfds_set.splits(path) if kind == "tfds" else None


def _files(path: str) -> list[str]:
    if os.path.isdir(path):
        names = [
            os.path.join(parent, name)
            for parent, folders, files in os.walk(path)
            for name in files
            if not name.startswith(".")
        ]
        images = [name for name in names if Path(name).suffix.lower() in folder.EXTENSIONS]
        tables = [name for name in names if name.endswith(_PARQUET)]
        if not images and not tables:
            raise InputError(f"{path}: no images in it or below; name the files themselves")
        return sorted(images or tables)
    if not os.path.lexists(path) and glob.has_magic(path):
        names = sorted(name for name in glob.glob(path, recursive=True) if not os.path.isdir(name))
        if not names:
            raise InputError(f"no file matches {path}")
        return names
    # A file of a list that has gone meanwhile is a row with its reason; this is a mistyped name.
    if not os.path.lexists(path) and Path(path).suffix.lower() not in folder.EXTENSIONS:
        raise InputError(f"{path}: there is no such file or folder")
    return [path]


def _of_files(names: Sequence[str], look: Look) -> Source:
    def read(position: int) -> np.ndarray:
        file = Path(names[position])
        return look.square(file, read_image(file))

    threads = reading_threads(some_sizes(names))
    return Source(names, look.shape, read, threads)


def _of_table(table: arrow_set.EncodedImages, look: Look) -> Source:
    """The images of a table; each is named by its row, as its own name need not be the only one."""
    names = [f"{table.place}#{row}" for row in range(table.rows)]

    def read(position: int) -> np.ndarray:
        file = Path(names[position])
        data = table.read(position)
        if data is None:
            raise InputError(f"{file}: the row holds no image, or only a path")
        return look.square(file, decode(file, data))

    sizes = []
    with contextlib.suppress(InputError):  # said of the row when it is read
        sizes = [len(table.read(row) or b"") for row in range(min(table.rows, 4))]
    return Source(names, look.shape, read, reading_threads(sizes))


def _of_split(path: Path, split: str) -> Source:
    images = open_split(path, split)

    def read(position: int) -> np.ndarray:
        return images.images[position : position + 1][0]

    return Source(images.ids, images.images.shape[1:], read)


def read_batches(source: Source, size: int, start: int = 0) -> Iterator[Read]:
    """Batches of `size` images from position `start` on, read on threads ahead of the caller.

    Memory does not grow with the number of images.

    Raises:
      InputError: a batch does not fit into it.
    """

    check_batch(size, source.shape)

    def read(position: int) -> tuple[np.ndarray | None, str]:
        try:
            return source.read(position), ""
        except InputError as error:
            # The row names the file already.
            return None, one_line(error).removeprefix(f"{source.names[position]}: ")

    def read_run(positions: range) -> list[tuple[np.ndarray | None, str]]:
        return [read(position) for position in positions]

    with ThreadPoolExecutor(source.threads) as pool:
        waiting: deque[tuple[int, Iterator[list[tuple[np.ndarray | None, str]]]]] = deque()
        for first in range(start, len(source.names), size):
            last = min(first + size, len(source.names))
            # In runs: to hand a thread a single small image takes about as long as to read it.
            runs = [range(run, min(run + _RUN, last)) for run in range(first, last, _RUN)]
            waiting.append((first, pool.map(read_run, runs)))
            if len(waiting) > _AHEAD:
                yield _batch(source, *waiting.popleft())
        while waiting:
            yield _batch(source, *waiting.popleft())


def _batch(source: Source, first: int, runs: Iterator[list[tuple[np.ndarray | None, str]]]) -> Read:
    images, reasons = zip(*(image for run in runs for image in run), strict=True)
    blank = np.zeros(source.shape, np.uint8)
    stacked = np.stack([blank if image is None else image for image in images])
    return Read(source.names[first : first + len(images)], stacked, reasons)
