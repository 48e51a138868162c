"""Batches of images in fixed shapes, the last one padded, the next ones read while one computes."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from emojax.data.image_set import Images
from emojax.ops.topk import EMPTY


class Batch(NamedTuple):
    """Images [B, H, W, C] uint8 and their indices [B] int32; EMPTY marks padding."""

    images: np.ndarray
    indices: np.ndarray


def batches(
    images: Images, size: int, *, start: int = 0, rows: slice | None = None
) -> Iterator[Batch]:
    """Batches of one shape from image `start` on, or those `rows` of each.

    Grain reads on two threads, at most two batches ahead of the caller, and gives them in order. A
    batch depends on its first image only, so who stopped at image `start` goes on there with the
    same batches.
    """
    import grain

    total = images.shape[0]
    low, high, _ = (rows or slice(None)).indices(size)

    def read(at: int) -> Batch:
        first, last = min(at + low, total), min(at + high, total)
        chunk = images[first:last]
        pad = high - low - len(chunk)
        indices = np.full(high - low, EMPTY, np.int32)
        indices[: len(chunk)] = np.arange(first, last, dtype=np.int32)
        return Batch(
            np.pad(chunk, ((0, pad), (0, 0), (0, 0), (0, 0))) if pad else np.asarray(chunk), indices
        )

    if start < total:
        ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
        reader = iter(grain.MapDataset.range(start, total, size).map(read).to_iter_dataset(ahead))
        with contextlib.closing(reader):
            yield from reader


class _Rows:
    """Images with their labels by position in an epoch's order: a source for Grain."""

    def __init__(self, images: Images, labels: np.ndarray, order: np.ndarray):
        self._images, self._labels, self._order = images, labels, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, at: int, /) -> tuple[np.ndarray, np.int32]:
        row = int(self._order[at])
        return self._images[row : row + 1][0], self._labels[row]


def stream(
    images: Images, labels: np.ndarray, rows: Iterable[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches (images [B, H, W, C], labels [B]) of the given rows [B] each, read ahead by Grain on
    several threads.
    """
    import grain

    rows = list(rows)
    if not rows:
        return iter(())
    source = grain.MapDataset.source(_Rows(images, labels, np.concatenate(rows))).batch(
        len(rows[0])
    )
    return iter(source.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)))
