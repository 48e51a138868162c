"""Image sets and the batches made of them: fixed shapes, the last one padded, the next ones read while one computes."""

import contextlib
import functools
import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from emojax.data import classes as class_names
from emojax.data.exclude import Excluded
from emojax.errors import InputError, did_you_mean
from emojax.ops.topk import EMPTY
from emojax.store import content_key

Kind = Literal["auto", "fer2013", "tfds", "folder", "faces"]


class Images(Protocol):
    """Anything with a uint8 shape [I, H, W, C] that gives images by slice: an array, files, a generator."""

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
            raise InputError(f"{name}: images are uint8 [I, H, W], [.., 1] or [.., 3], not {images.dtype} {images.shape}")
        if not len(images):
            raise InputError(f"{name}: no image in it")
        if labels is not None:
            labels = np.asarray(labels, np.int32)
            if labels.shape != images.shape[:1]:
                raise InputError(f"{name}: {len(images)} images but labels of shape {labels.shape}")
            if labels.min() < 0 or labels.max() >= len(classes):
                raise InputError(f"{name}: labels must lie in 0…{len(classes) - 1}, the indices of the class names")
        class_names.check(classes, name)
        ids = [f"{name}/{i}" for i in range(len(images))] if ids is None else ids
        return cls(images, labels, tuple(classes), ids, content_key([images, labels, list(classes)]), name)

    def __len__(self) -> int:
        return self.images.shape[0]

    def first(self, limit: int | None) -> "ImageSet":
        """The first `limit` images, all when None."""
        if limit is None or limit >= len(self):
            return self
        labels = None if self.labels is None else self.labels[:limit]
        key = content_key([self.key, limit])
        return replace(self, images=_First(self.images, limit), labels=labels, ids=self.ids[:limit], key=key)

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
    """A view of rising rows: a slice of them is cut from the stretch of images in which they lie."""

    def __init__(self, images: Images, rows: np.ndarray):
        self._images, self._rows, self.shape = images, rows, (len(rows), *images.shape[1:])

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        wanted = self._rows[rows]
        if not len(wanted):
            return self._images[:0]
        return self._images[wanted[0] : wanted[-1] + 1][wanted - wanted[0]]


class Batch(NamedTuple):
    """Images [B, H, W, C] uint8 and their indices [B] int32; EMPTY marks padding."""

    images: np.ndarray
    indices: np.ndarray


def batches(images: Images, size: int, *, start: int = 0, rows: slice | None = None) -> Iterator[Batch]:
    """Batches of one shape from image `start` on, or those `rows` of each.

    Grain reads on two threads, at most two batches ahead of the caller, and gives them in order. A batch depends on its
    first image only, so who stopped at image `start` goes on there with the same batches.
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
        return Batch(np.pad(chunk, ((0, pad), (0, 0), (0, 0), (0, 0))) if pad else np.asarray(chunk), indices)

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


def stream(images: Images, labels: np.ndarray, rows: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches (images [B, H, W, C], labels [B]) of the given rows [B] each, read ahead by Grain on several threads."""
    import grain

    rows = list(rows)
    if not rows:
        return iter(())
    source = grain.MapDataset.source(_Rows(images, labels, np.concatenate(rows))).batch(len(rows[0]))
    return iter(source.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)))


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


def resolve(path: Path | None, kind: Kind = "auto", *, raw: bool = False) -> tuple[str, Path | None]:
    """What a path is, `fer2013` (prepared), `folder`, `faces` or, where that will do, `raw`; and the path itself.

    Raises:
      InputError: the path is missing, or is raw FER2013 (with the command that prepares it) where that will not do.
    """
    from emojax.data import fer2013

    if kind == "faces":
        return kind, None
    if path is None:
        raise InputError("--data.path is needed: a prepared FER2013 or an image folder")
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"no data at {str(path)!r}; pass --data.path a prepared FER2013 or an image folder")
    if kind == "auto":
        if raw and (path.suffix == ".csv" or fer2013.looks_raw(path)):
            return "raw", path
        if path.is_file() or fer2013.looks_raw(path):
            raise InputError(
                f"{path} is raw FER2013; run `emojax prepare --source {path} --out DIR` and pass --data.path DIR"
                if path.is_dir() or path.suffix == ".csv"
                else f"{path} is a file; pass --data.path a prepared FER2013 or an image folder"
            )
        kind = "fer2013" if fer2013.is_prepared(path) else _tfds_or_folder(path)
    if kind == "fer2013" and not fer2013.is_prepared(path):
        raise InputError(f"{path} is not a prepared FER2013; run `emojax prepare --source {path} --out DIR`")
    return kind, path


def _tfds_or_folder(path: Path) -> Literal["tfds", "folder"]:
    """What a folder is: that a file is called dataset_info.json does not make it TFDS's. Says so, once a folder.

    Raises:
      InputError: why it is no data set of TFDS, if it is no image folder either.
    """
    from emojax.data import folder, tfds_set

    found = tfds_set.find(path)
    if found is None:
        return "folder"
    try:
        tfds_set.open_prepared(path)
    except InputError as error:
        try:
            folder.splits_of(path)
        except InputError:
            raise error from None
        _say_once(f"data: {path} is read as an image folder, {found} is not: {error}")
        return "folder"
    _say_once(f"data: {path} is read as the set that TFDS prepared in {found}; see --data.kind")
    return "tfds"


@functools.cache
def _say_once(line: str) -> None:
    """A line that splits opened one after another would repeat; the command line shows it."""
    logging.getLogger("emojax").info("%s", line)


def open_split(
    path: Path | None,
    split: str,
    *,
    kind: Kind = "auto",
    size: int | None = None,
    limit: int | None = None,
    exclude: Path | None = None,
) -> ImageSet:
    """Opens a split of a prepared FER2013, of any data set that TFDS prepared, or of an image folder; or renders one.

    `kind="faces"` renders and takes no path.
    `exclude` is a list of images to leave out, see `exclude.py`; `limit` counts those that are left, but for rendered
    faces, of which as many are rendered.

    Raises:
      InputError: see `resolve`; there is no such split, or the list does not fit.
    """
    from emojax.data import fer2013, folder, tfds_set
    from emojax.synthetic import faces

    kind, path = resolve(path, kind)
    excluded = None if exclude is None else Excluded.read(exclude)
    if kind == "faces":
        images = faces.split(split, limit).image_set(f"faces/{split}")
        return images.without(excluded, [f"faces/{name}/" for name in faces.SPLITS if name != split])
    if kind == "folder":
        return folder.load(path, split, size=size, excluded=excluded).first(limit)
    if kind == "tfds":
        return tfds_set.load(path, split).without(excluded, [f"{name}/" for name in tfds_set.splits(path)]).first(limit)
    if split not in fer2013.SPLITS:
        raise InputError(f"FER2013 has no split {split!r}{did_you_mean(split, fer2013.SPLITS)}")
    others = [f"{name}-" for name in fer2013.SPLITS if name != split]
    return fer2013.load(path, split).without(excluded, others).first(limit)
