"""`ImageSet`, the type in which every data set reaches the rest of emojax, and its views.

The readers of the formats (`fer2013`, `folder`, `tfds_set`) make image sets, `opening` says which
reader a path needs, and `loader` turns image sets into batches for the devices. Shapes: I images.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from emojax.brief import brief
from emojax.data import classes as class_names
from emojax.data.draw import Draw
from emojax.data.exclude import Excluded
from emojax.errors import InputError
from emojax.store import content_key


class Images(Protocol):
    """Anything with a uint8 shape [I, H, W, C] that gives images by slice.

    An array, files that are decoded when they are asked for, or a generator.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Images, height, width, channels."""
        ...

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


@brief
@dataclass(frozen=True)
class ImageSet:
    """A split of a data set.

    Attributes:
      images: uint8 [I, H, W, C], C 1 or 3, sliceable.
      labels: class index of each image, int32 [I], or None.
      classes: class names by index.
      ids: one stable name per image.
      key: content key of images, labels and classes.
      name: for messages and reports.
    """

    images: Images
    labels: Int32[np.ndarray, " I"] | None
    classes: tuple[str, ...]
    ids: Sequence[str]
    key: str
    name: str

    @classmethod
    def from_arrays(
        cls,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        classes: Sequence[str] = (),
        *,
        ids: Sequence[str] | None = None,
        name: str = "images",
    ) -> "ImageSet":
        """From uint8 images [I, H, W], [I, H, W, 1] or [I, H, W, 3] in memory.

        Raises:
          InputError: the shape or type is wrong, labels do not fit, two classes mean the same, or
            there is no image.
        """
        images = np.asarray(images)
        if images.ndim == 3:
            images = images[..., None]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise InputError(
                f"{name}: images are uint8 [I, H, W], [.., 1] or [.., 3], "
                f"not {images.dtype} {images.shape}"
            )
        if not len(images):
            raise InputError(f"{name}: no image in it")
        if labels is not None:
            labels = np.asarray(labels, np.int32)
            if labels.shape != images.shape[:1]:
                raise InputError(f"{name}: {len(images)} images but labels of shape {labels.shape}")
            if labels.min() < 0 or labels.max() >= len(classes):
                raise InputError(
                    f"{name}: labels must lie in 0…{len(classes) - 1}, "
                    "the indices of the class names"
                )
        class_names.check(classes, name)
        if ids is None:
            ids = [f"{name}/{row}" for row in range(len(images))]
        key = content_key([images, labels, list(classes)])
        return cls(images, labels, tuple(classes), ids, key, name)

    def __len__(self) -> int:
        return self.images.shape[0]

    def first(self, limit: int | None) -> "ImageSet":
        """The first `limit` images, all when None."""
        if limit is None or limit >= len(self):
            return self
        return replace(
            self,
            images=_First(self.images, limit),
            labels=None if self.labels is None else self.labels[:limit],
            ids=self.ids[:limit],
            key=content_key([self.key, limit]),
        )

    def drawn(self, draw: Draw) -> "ImageSet":
        """The images that a draw takes."""
        if draw.how == "first":
            return self.first(draw.limit)
        rows = draw.rows(self.labels, len(self))
        return self if rows is None else self._some(rows)

    def renamed(self, names: Mapping[str, str]) -> "ImageSet":
        """The same images with classes under other names; classes of one new name become one.

        Names are matched as `classes.meaning` has it.

        Raises:
          InputError: a name is of no class.
        """
        if not names:
            return self
        wanted = class_names.renamed(self.classes, names, self.name)
        classes = tuple(dict.fromkeys(wanted))
        class_names.check(classes, self.name)
        labels = self.labels
        if labels is not None:
            index = np.asarray([classes.index(name) for name in wanted], np.int32)
            labels = index[labels]
        key = content_key([self.key, list(wanted)])
        return replace(self, labels=labels, classes=classes, key=key)

    def in_order(self, classes: Sequence[str], *, of: str = "the network") -> "ImageSet":
        """The same images with their classes matched by name to those of `of`, in that order.

        Raises:
          InputError: the names do not match one to one.
        """
        if tuple(classes) == self.classes:
            return self
        new_index = class_names.positions(self.classes, classes)
        if new_index is None:
            raise InputError(
                f"{self.name} has the classes {class_names.listed(self.classes)}, "
                f"{of} {class_names.listed(classes)}; rename the classes so that they match"
            )
        labels = None if self.labels is None else new_index[self.labels]
        key = content_key([self.key, list(classes)])
        return replace(self, labels=labels, classes=tuple(classes), key=key)

    def without(self, excluded: Excluded | None, others: Sequence[str]) -> "ImageSet":
        """The images that are not excluded; `others` are what the ids of other splits begin with.

        Raises:
          InputError: an excluded id is of no split, or nothing is left.
        """
        if excluded is None:
            return self
        rows = excluded.rows_left(self.ids, others, self.name)
        return self if len(rows) == len(self) else self._some(rows)

    def _some(self, rows: np.ndarray) -> "ImageSet":
        """The images of some rows [rows], which rise."""
        return replace(
            self,
            images=_Some(self.images, rows),
            labels=None if self.labels is None else self.labels[rows],
            ids=[self.ids[row] for row in rows],
            key=content_key([self.key, rows]),
        )


class _First:
    """A view of the first rows, without reading them."""

    def __init__(self, images: Images, limit: int):
        self._images = images
        self.shape = (limit, *images.shape[1:])

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        return self._images[start:stop]


class _Some:
    """A view of rising rows, read in runs: over a short gap it is quicker to read on than to ask
    again.
    """

    _GAP = 16  # rows that may be read and dropped

    def __init__(self, images: Images, rows: np.ndarray):
        self._images = images
        self._rows = rows
        self.shape = (len(rows), *images.shape[1:])

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        wanted = self._rows[rows]
        if not len(wanted):
            return self._images[:0]
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > self._GAP) + 1)
        return np.concatenate([self._images[run[0] : run[-1] + 1][run - run[0]] for run in runs])


def pixel_digest(image: UInt8[np.ndarray, "..."]) -> bytes:
    """A sha256 that two images share only if their shapes and pixels are equal."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).data).digest()


def duplicates(images: Images, of: Images, *, chunk: int = 1024) -> Bool[np.ndarray, " I"]:
    """Which images also occur in another set, pixel for pixel; read `chunk` images at a time."""

    def digests(source: Images) -> Iterator[bytes]:
        for start in range(0, source.shape[0], chunk):
            for image in source[start : start + chunk]:
                yield pixel_digest(image)

    known = set(digests(of))
    return np.asarray([digest in known for digest in digests(images)])
