"""Any image folder as a probe set: one folder per class, optionally inside one folder per split.

Images may differ in size and be gray or colour: they are brought to one square size (short side
resized, centre cut out) and one colour mode, so that batches have one shape. Files are decoded when
a batch needs them.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from emojax.data.classes import check
from emojax.data.decode import (
    MOST_PIXELS,
    entries,
    read_bytes,
    read_header,
    read_image,
    reading_threads,
    some_sizes,
)
from emojax.data.draw import Draw
from emojax.data.exclude import Excluded
from emojax.data.image_set import ImageSet
from emojax.distributed.processes import map_in_shares
from emojax.errors import InputError, did_you_mean
from emojax.store import content_key

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
MIXED_SIZE = 224  # what CLIP sees; chosen when sizes differ and none was asked for
_CHUNK = 256  # files that are looked at together


class ImageFiles:
    """Image files as an array uint8 [I, size, size, channels], decoded slice by slice on threads.

    `names` are those of the files below `root`.
    """

    def __init__(self, root: Path, names: Sequence[str], size: int, channels: int):
        self._root = root
        self._names = names
        self.shape = (len(names), size, size, channels)
        self._threads = reading_threads(some_sizes(names, root))

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        names = self._names[rows]
        if not names:
            return np.empty((0, *self.shape[1:]), np.uint8)
        if self._threads == 1:
            return np.stack([self._read(name) for name in names])
        with ThreadPoolExecutor(self._threads) as pool:
            return np.stack(list(pool.map(self._read, names)))

    def _read(self, name: str) -> np.ndarray:
        return read_square(self._root / name, self.shape[1], self.shape[3])


def read_square(file: Path, size: int, channels: int) -> np.ndarray:
    """An image file as uint8 [size, size, channels]: short side resized, centre cut out.

    Raises:
      InputError: see `decode.read_image` and `to_square`.
    """
    return to_square(file, read_image(file), size, channels)


def to_square(file: Path, image: Image.Image, size: int, channels: int) -> np.ndarray:
    """An image as uint8 [size, size, channels]; `file` is what messages name.

    Raises:
      InputError: it is so long that it would become too large.
    """
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if image.size != (size, size):
        width, height = _resized(file, image.size, size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left = (width - size) // 2
        top = (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    # Pillow's array interface copies twice.
    return np.frombuffer(image.tobytes(), np.uint8).reshape(size, size, channels)


def _resized(file: Path, shape: Sequence[int], side: int) -> tuple[int, int]:
    """Width and height of an image whose short side is brought to `side`.

    Raises:
      InputError: that would have more pixels than Pillow deems safe.
    """
    width, height = shape
    scale = side / min(width, height)
    # Rounding down could make the short side one pixel shorter than the square.
    resized = max(side, int(width * scale)), max(side, int(height * scale))
    if resized[0] * resized[1] > MOST_PIXELS:
        raise InputError(
            f"{file}: {width}×{height} pixels would become {resized[0]}×{resized[1]}, more than "
            f"{MOST_PIXELS} in all; cut it to what it shows"
        )
    return resized


def _image_files(folder: Path) -> list[Path]:
    return [path for path in entries(folder) if path.suffix.lower() in EXTENSIONS]


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in entries(folder) if path.is_dir()]


def splits_of(path: Path) -> dict[str, Path]:
    """Splits and their folders; one split `all`, the folder itself, where there are none.

    Raises:
      InputError: no folder, or no images in it.
    """
    if not path.is_dir():
        raise InputError(f"{path} is not a folder")
    folders = _subfolders(path)
    if any(_image_files(folder) for folder in folders):
        return {"all": path}
    splits = {folder.name: folder for folder in folders if _subfolders(folder)}
    if not splits and _image_files(path):
        raise InputError(
            f"{path}: its images lie in no class folder; move them into one, "
            f"for instance {path}/all/"
        )
    if not splits:
        raise InputError(
            f"{path}: no images in it; expected <class>/<image> or <split>/<class>/<image>"
        )
    return splits


def files_of(split: Path) -> dict[str, list[Path]]:
    """Classes of a split and, for each, its images, in order."""
    return {folder.name: _image_files(folder) for folder in _subfolders(split)}


def _scan(file: Path) -> tuple[str, tuple[int, int], int]:
    """Content hash, size and channels of a file."""
    data = read_bytes(file)
    return hashlib.sha256(data).hexdigest(), *read_header(file, data)


def load(
    path: Path,
    split: str,
    *,
    size: int | None = None,
    draw: Draw | None = None,
    excluded: Excluded | None = None,
) -> ImageSet:
    """A split of an image folder.

    Args:
      path: the folder.
      split: its split; `all` for a folder of class folders without splits.
      size: side of the square that images are brought to; None is the common side when all images
        are squares of one size, else 224.
      draw: how many files to take, and which, of those that are not excluded; None takes all.
      excluded: files to leave out; neither they nor files that are not drawn are opened.

    Returns:
      The split. Classes are the folder names, in alphabetical order.

    Raises:
      InputError: no such split, no class folder, no image, two classes that mean the same, or a
        file that is not a readable 8-bit image, or is too long to be brought to a square.
    """
    splits = splits_of(path)
    _check_split(path, split, splits)
    set_name = f"{path.name} {split}"
    files = files_of(splits[split])
    classes = tuple(files)
    check(classes, str(splits[split]))
    labelled = [
        (file.relative_to(path).as_posix(), label)
        for label, class_files in enumerate(files.values())
        for file in class_files
    ]
    if excluded is not None:
        others = [f"{other}/" for other in splits if other != split]
        rows = excluded.rows_left([name for name, _ in labelled], others, set_name)
        labelled = [labelled[row] for row in rows]
    labels = np.asarray([label for _, label in labelled], np.int32)
    rows = None if draw is None else draw.rows(labels, len(labelled))
    if rows is not None:
        labelled = [labelled[row] for row in rows]
        labels = labels[rows]
    if not labelled:
        raise InputError(f"{set_name}: no images in its class folders")
    ids = [name for name, _ in labelled]
    hashes, sizes, channels = zip(*_scan_all(path, ids), strict=True)
    if size is None:
        size = _common_side(sizes)
    for name, shape in zip(ids, sizes, strict=True):
        _resized(path / name, shape, size)
    return ImageSet(
        images=ImageFiles(path, ids, size, max(channels)),
        labels=labels,
        classes=classes,
        ids=ids,
        key=content_key([list(hashes), labels, list(classes), size, max(channels)]),
        name=set_name,
    )


def _check_split(path: Path, split: str, splits: dict[str, Path]) -> None:
    if split in splits:
        return
    if splits == {"all": path}:
        raise InputError(
            f"{path} has class folders and no splits; pass the split 'all' instead of {split!r} "
            "(--data.probe-split all, --data.test-splits all)"
        )
    raise InputError(f"{path} has no split {split!r}{did_you_mean(split, splits)}")


def _scan_all(root: Path, names: Sequence[str]) -> list[tuple[str, tuple[int, int], int]]:
    """`_scan` of every file, on threads, and of several processes each does its share."""

    def scan(start: int) -> list[tuple[str, tuple[int, int], int]]:
        return list(pool.map(_scan, (root / name for name in names[start : start + _CHUNK])))

    with ThreadPoolExecutor(reading_threads(some_sizes(names, root))) as pool:
        chunks = map_in_shares(scan, range(0, len(names), _CHUNK))
    return [scanned for chunk in chunks for scanned in chunk]


def _common_side(sizes: Sequence[Sequence[int]]) -> int:
    """The side of the images where all are squares of one size."""
    shapes = {tuple(size) for size in sizes}  # those of other processes arrive as lists
    width, height = next(iter(shapes))
    return width if len(shapes) == 1 and width == height else MIXED_SIZE
