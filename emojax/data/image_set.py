"""The image set: uint8 images with labels, names and a content key, whatever form of data set they
are from.

The readers of this package make image sets; `loader` feeds them to the devices in batches.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from emojax.data import classes as class_names
from emojax.data.exclude import Excluded
from emojax.errors import InputError
from emojax.store import content_key


class Images(Protocol):
    """Anything with a uint8 shape [I, H, W, C] that gives images by slice: an array, files, a
    generator.
    """

    shape: tuple[int, ...]

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


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
    labels: np.ndarray | None
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
                f"{name}: images are uint8 [I, H, W], [.., 1] or [.., 3], not {images.dtype} "
                f"{images.shape}"
            )
        if not len(images):
            raise InputError(f"{name}: no image in it")
        if labels is not None:
            labels = np.asarray(labels, np.int32)
            if labels.shape != images.shape[:1]:
                raise InputError(f"{name}: {len(images)} images but labels of shape {labels.shape}")
            if labels.min() < 0 or labels.max() >= len(classes):
                raise InputError(
                    f"{name}: labels must lie in 0…{len(classes) - 1}, the indices of the class "
                    "names"
                )
        class_names.check(classes, name)
        ids = [f"{name}/{i}" for i in range(len(images))] if ids is None else ids
        return cls(
            images, labels, tuple(classes), ids, content_key([images, labels, list(classes)]), name
        )

    def __len__(self) -> int:
        return self.images.shape[0]

    def first(self, limit: int | None) -> "ImageSet":
        """The first `limit` images, all when None."""
        if limit is None or limit >= len(self):
            return self
        labels = None if self.labels is None else self.labels[:limit]
        key = content_key([self.key, limit])
        return replace(
            self, images=_First(self.images, limit), labels=labels, ids=self.ids[:limit], key=key
        )

    def in_order(self, classes: Sequence[str], *, of: str = "the network") -> "ImageSet":
        """The same images with their classes matched by name to those of `of`, in that order.

        Raises:
          InputError: the names do not match one to one.
        """
        if tuple(classes) == self.classes:
            return self
        new = class_names.positions(self.classes, classes)
        if new is None:
            raise InputError(
                f"{self.name} has the classes {class_names.listed(self.classes)}, "
                f"{of} {class_names.listed(classes)}; rename the classes so that they match"
            )
        labels = None if self.labels is None else new[self.labels]
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
        if len(rows) == len(self):
            return self
        labels = None if self.labels is None else self.labels[rows]
        ids, key = [self.ids[row] for row in rows], content_key([self.key, rows])
        return replace(self, images=_Some(self.images, rows), labels=labels, ids=ids, key=key)


class _First:
    """A view of the first rows, without reading them."""

    def __init__(self, images: Images, limit: int):
        self._images, self.shape = images, (limit, *images.shape[1:])

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        return self._images[start:stop]


class _Some:
    """A view of rising rows: a slice is cut from the stretch of images in which they lie."""

    def __init__(self, images: Images, rows: np.ndarray):
        self._images, self._rows, self.shape = images, rows, (len(rows), *images.shape[1:])

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        wanted = self._rows[rows]
        if not len(wanted):
            return self._images[:0]
        return self._images[wanted[0] : wanted[-1] + 1][wanted - wanted[0]]


def pixel_digest(image: np.ndarray) -> bytes:
    """What only an image of equal shape and pixels has, too."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).data).digest()


def copies(images: Images, of: Images, *, chunk: int = 1024) -> np.ndarray:
    """Which images [I] bool also occur in another set, pixel for pixel; read a chunk at a time."""

    def digests(each: Images) -> Iterator[bytes]:
        for at in range(0, each.shape[0], chunk):
            for image in each[at : at + chunk]:
                yield pixel_digest(image)

    known = set(digests(of))
    return np.asarray([digest in known for digest in digests(images)])
