"""Batches of images for the devices: one shape, the last padded, read ahead by Grain.

`batches` gives a whole set in order (probe, evaluation, activations); `stream` gives labelled rows
in the order of a training epoch. Shapes: I images, B batch.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from emojax.data.image_set import Images
from emojax.memory import check_fits
from emojax.ops.topk import EMPTY


class Batch(NamedTuple):
    """Images and their indices in the set; EMPTY marks padding."""

    images: UInt8[np.ndarray, "B H W C"]
    indices: Int32[np.ndarray, " B"]


def check_batch(size: int, shape: Sequence[int]) -> None:
    """Refuses batches of images of this shape that do not fit into memory.

    Raises:
      InputError: the message has the largest batch that does.
    """
    height, width, channels = shape
    what = f"images of {width}×{height} pixels at once"
    # Both the images of a batch and the batch that they are put together to are there for a while.
    check_fits(size, 2 * height * width * channels, what, "take a smaller batch, tile or size")


def batches(
    images: Images, size: int, *, start: int = 0, rows: slice | None = None
) -> Iterator[Batch]:
    """Batches of one shape, in order.

    Grain reads on two threads, at most two batches ahead of the caller. A batch depends on nothing
    but its first image, so a reader that stopped resumes at image `start` with the same batches.

    Args:
      images: the source.
      size: images in a batch.
      start: the first image to read.
      rows: which rows of every batch to give: a process reads only those of its own devices.

    Raises:
      InputError: a batch does not fit into memory.
    """
    import grain

    total = images.shape[0]
    low, high, _ = (rows or slice(None)).indices(size)
    check_batch(high - low, images.shape[1:])

    def read(batch_start: int) -> Batch:
        first = min(batch_start + low, total)
        last = min(batch_start + high, total)
        chunk = images[first:last]
        padding = high - low - len(chunk)
        indices = np.full(high - low, EMPTY, np.int32)
        indices[: len(chunk)] = np.arange(first, last, dtype=np.int32)
        if padding:
            chunk = np.pad(chunk, ((0, padding), (0, 0), (0, 0), (0, 0)))
        return Batch(np.asarray(chunk), indices)

    if start < total:
        ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
        starts = grain.MapDataset.range(start, total, size)
        reader = iter(starts.map(read).to_iter_dataset(ahead))
        # A caller that stops early must not leave Grain's threads reading.
        with contextlib.closing(reader):
            yield from reader


class _Rows:
    """Images with their labels by position in an epoch's order: a source for Grain."""

    def __init__(self, images: Images, labels: np.ndarray, order: np.ndarray):
        self._images = images
        self._labels = labels
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.int32]:
        row = int(self._order[index])
        return self._images[row : row + 1][0], self._labels[row]


def stream(
    images: Images, labels: np.ndarray, rows: Iterable[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches (images [B, H, W, C], labels [B]), read ahead by Grain on several threads.

    Args:
      images: the source.
      labels: of the source's images.
      rows: for each batch, the rows [B] of the source that it holds.
    """
    import grain

    rows = list(rows)
    if not rows:
        return iter(())
    examples = _Rows(images, labels, np.concatenate(rows))
    source = grain.MapDataset.source(examples).batch(len(rows[0]))
    return iter(source.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)))
