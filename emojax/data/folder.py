"""Any image folder as a probe set: one folder per class, optionally inside one folder per split.

Images may differ in size and be gray or colour: they are brought to one square size (short side resized, centre cut
out) and one colour mode, so that batches have one shape. Files are decoded when a batch needs them.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from emojax.data.decode import entries, read_bytes, read_header, read_image
from emojax.data.exclude import Excluded
from emojax.data.loader import ImageSet
from emojax.errors import InputError, did_you_mean
from emojax.store import content_key

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
MIXED_SIZE = 224  # what CLIP sees; chosen when sizes differ and none was asked for


class ImageFiles:
    """Image files as an array uint8 [I, size, size, channels], decoded slice by slice on a few threads."""

    def __init__(self, files: Sequence[Path], size: int, channels: int):
        self._files, self._mode = files, "L" if channels == 1 else "RGB"
        self.shape = (len(files), size, size, channels)

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        files = self._files[rows]
        with ThreadPoolExecutor(4) as pool:
            return np.stack(list(pool.map(self._read, files)))

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
        raise InputError(f"{path}: no images in it; expected <class>/<image> or <split>/<class>/<image>")
    return splits


def files_of(split: Path) -> dict[str, list[Path]]:
    """Classes of a split and, for each, its images, in order."""
    return {folder.name: _image_files(folder) for folder in _subfolders(split)}


def _scan(file: Path) -> tuple[str, tuple[int, int], int]:
    """Content hash, size and channels of a file."""
    data = read_bytes(file)
    return hashlib.sha256(data).hexdigest(), *read_header(file, data)


def load(path: Path, split: str, *, size: int | None = None, excluded: Excluded | None = None) -> ImageSet:
    """A split of an image folder; `split="all"` for a folder of class folders without splits.

    `size` is the side of the square that images are brought to: the common side when None and all images are squares
    of one size, else 224. Classes are the folder names, in alphabetical order. Files that are `excluded` are not opened.

    Raises:
      InputError: no such split, no class folder, no image, or a file that is not a readable 8-bit image.
    """
    splits = splits_of(path)
    if split not in splits:
        if splits == {"all": path}:
            raise InputError(f"{path} has class folders and no splits; pass the split 'all' instead of {split!r}")
        raise InputError(f"{path} has no split {split!r}{did_you_mean(split, splits)}")
    classes, name = files_of(splits[split]), f"{path.name} {split}"
    found = [(file, label) for label, files in enumerate(classes.values()) for file in files]
    ids = [file.relative_to(path).as_posix() for file, _ in found]
    if excluded is not None:
        others = [f"{other}/" for other in splits if other != split]
        rows = excluded.rows_left(ids, others, name)
        found, ids = [found[row] for row in rows], [ids[row] for row in rows]
    if not found:
        raise InputError(f"{name}: no images in its class folders")
    files = [file for file, _ in found]
    labels = np.asarray([label for _, label in found], np.int32)

    with ThreadPoolExecutor(4) as pool:
        hashes, sizes, channels = zip(*pool.map(_scan, files), strict=True)
    if size is None:
        square = len(set(sizes)) == 1 and sizes[0][0] == sizes[0][1]
        size = sizes[0][0] if square else MIXED_SIZE
    names = tuple(classes)
    return ImageSet(
        images=ImageFiles(files, size, max(channels)),
        labels=labels,
        classes=names,
        ids=ids,
        key=content_key([list(hashes), labels, list(names), size, max(channels)]),
        name=name,
    )
