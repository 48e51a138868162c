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
from emojax.data.decode import entries, read_bytes, read_header, read_image
from emojax.data.exclude import Excluded
from emojax.data.image_set import ImageSet
from emojax.distributed.processes import map_in_shares
from emojax.errors import InputError, did_you_mean
from emojax.store import content_key

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
MIXED_SIZE = 224  # what CLIP sees; chosen when sizes differ and none was asked for
_CHUNK = 256  # files that are looked at together


class ImageFiles:
    """Image files as an array uint8 [I, size, size, channels], decoded slice by slice on a few
    threads.

    `names` are those of the files below `root`.
    """

    def __init__(self, root: Path, names: Sequence[str], size: int, channels: int):
        self._root, self._names, self._mode = root, names, "L" if channels == 1 else "RGB"
        self.shape = (len(names), size, size, channels)

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        names = self._names[rows]
        if not names:
            return np.empty((0, *self.shape[1:]), np.uint8)
        with ThreadPoolExecutor(4) as pool:
            return np.stack(list(pool.map(lambda name: self._read(self._root / name), names)))

    def _read(self, file: Path) -> np.ndarray:
        size = self.shape[1]
        image = read_image(file).convert(self._mode)
        if image.size != (size, size):
            scale = size / min(image.size)
            wanted = (max(size, int(image.width * scale)), max(size, int(image.height * scale)))
            image = image.resize(wanted, Image.Resampling.BICUBIC)
            left, top = (image.width - size) // 2, (image.height - size) // 2
            image = image.crop((left, top, left + size, top + size))
        return np.asarray(image, np.uint8).reshape(self.shape[1:])


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
    path: Path, split: str, *, size: int | None = None, excluded: Excluded | None = None
) -> ImageSet:
    """A split of an image folder; `split="all"` for a folder of class folders without splits.

    `size` is the side of the square that images are brought to: the common side when None and all
    images are squares of one size, else 224. Classes are the folder names, in alphabetical order.
    Files that are `excluded` are not opened.

    Raises:
      InputError: no such split, no class folder, no image, two classes that mean the same, or a
        file that is not a readable 8-bit image.
    """
    splits = splits_of(path)
    if split not in splits:
        if splits == {"all": path}:
            raise InputError(
                f"{path} has class folders and no splits; pass the split 'all' instead of {split!r}"
            )
        raise InputError(f"{path} has no split {split!r}{did_you_mean(split, splits)}")
    classes, name = files_of(splits[split]), f"{path.name} {split}"
    check(tuple(classes), str(splits[split]))
    found = [
        (file.relative_to(path).as_posix(), label)
        for label, files in enumerate(classes.values())
        for file in files
    ]
    if excluded is not None:
        others = [f"{other}/" for other in splits if other != split]
        found = [
            found[row] for row in excluded.rows_left([each for each, _ in found], others, name)
        ]
    if not found:
        raise InputError(f"{name}: no images in its class folders")
    ids, labels = [each for each, _ in found], np.asarray([label for _, label in found], np.int32)

    def scan(at: int) -> list[tuple[str, tuple[int, int], int]]:
        return list(pool.map(_scan, (path / each for each in ids[at : at + _CHUNK])))

    with ThreadPoolExecutor(4) as pool:
        scanned = [
            one for chunk in map_in_shares(scan, range(0, len(ids), _CHUNK)) for one in chunk
        ]
    hashes, sizes, channels = zip(*scanned, strict=True)
    if size is None:
        squares = {tuple(each) for each in sizes}
        width, height = next(iter(squares))
        size = width if len(squares) == 1 and width == height else MIXED_SIZE
    names = tuple(classes)
    return ImageSet(
        images=ImageFiles(path, ids, size, max(channels)),
        labels=labels,
        classes=names,
        ids=ids,
        key=content_key([list(hashes), labels, list(names), size, max(channels)]),
        name=name,
    )
