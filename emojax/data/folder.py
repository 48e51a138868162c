"""Any image folder as a probe set: one folder per class, optionally inside one folder per split.

Images may differ in size and be gray or colour: they are brought to one square size (short side resized, centre cut
out) and one colour mode, so that batches have one shape. Files are decoded when a batch needs them.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from emojax.data.loader import ImageSet
from emojax.errors import InputError, did_you_mean
from emojax.hosts import in_shares
from emojax.store import content_key

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
MIXED_SIZE = 224  # what CLIP sees; chosen when sizes differ and none was asked for
_CHUNK = 256  # files that are looked at together
_MODES = {"1": 1, "L": 1, "LA": 1, "P": 3, "PA": 3, "RGB": 3, "RGBA": 3, "CMYK": 3, "YCbCr": 3}


class ImageFiles:
    """Image files as an array uint8 [I, size, size, channels], decoded slice by slice on a few threads.

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
        try:
            with Image.open(file) as stored:
                image = ImageOps.exif_transpose(stored).convert(self._mode)
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"{file}: not a readable image ({error}); restore or remove it") from None
        if image.size != (size, size):
            scale = size / min(image.size)
            wanted = (max(size, int(image.width * scale)), max(size, int(image.height * scale)))
            image = image.resize(wanted, Image.Resampling.BICUBIC)
            left, top = (image.width - size) // 2, (image.height - size) // 2
            image = image.crop((left, top, left + size, top + size))
        return np.asarray(image, np.uint8).reshape(self.shape[1:])


def _image_files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in EXTENSIONS and not f.name.startswith("."))


def _subfolders(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def _scan(file: Path) -> tuple[str, tuple[int, int], str]:
    """Content hash, size and mode of a file."""
    try:
        data = file.read_bytes()
        with Image.open(file) as image:
            size, mode = image.size, image.mode
            if image.getexif().get(0x0112, 1) >= 5:  # stored lying on its side
                size = size[::-1]
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{file}: not a readable image ({error}); restore or remove it") from None
    if mode not in _MODES:
        raise InputError(f"{file}: pixel mode {mode} is not 8-bit gray or colour; convert the file")
    return hashlib.sha256(data).hexdigest(), size, mode


def load(path: Path, split: str, *, size: int | None = None) -> ImageSet:
    """A split of an image folder; `split="all"` for a folder of class folders without splits.

    `size` is the side of the square that images are brought to: the common side when None and all images are squares
    of one size, else 224. Classes are the folder names, in alphabetical order.

    Raises:
      InputError: no such split, no class folder, no image, or a file that is not a readable 8-bit image.
    """
    if not path.is_dir():
        raise InputError(f"{path} is not a folder")
    folders = _subfolders(path)
    if any(_image_files(folder) for folder in folders):
        if split != "all":
            raise InputError(f"{path} has class folders and no splits; pass the split 'all' instead of {split!r}")
        root = path
    else:
        splits = [folder.name for folder in folders if _subfolders(folder)]
        if not splits:
            raise InputError(f"{path}: no images in it; expected <class>/<image> or <split>/<class>/<image>")
        if split not in splits:
            raise InputError(f"{path} has no split {split!r}{did_you_mean(split, splits)}")
        root = path / split
    classes = _subfolders(root)
    by_class = [[file.relative_to(path).as_posix() for file in _image_files(folder)] for folder in classes]
    ids = [name for names in by_class for name in names]
    if not ids:
        raise InputError(f"{root}: no images in its class folders")
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(names) for names in by_class])

    def scan(at: int) -> list[tuple[str, tuple[int, int], str]]:
        return list(pool.map(_scan, (path / name for name in ids[at : at + _CHUNK])))

    with ThreadPoolExecutor(4) as pool:
        scanned = [one for chunk in in_shares(scan, range(0, len(ids), _CHUNK)) for one in chunk]
    hashes, modes = [one[0] for one in scanned], {one[2] for one in scanned}
    sizes = {tuple(one[1]) for one in scanned}
    if size is None:
        width, height = next(iter(sizes))
        size = width if len(sizes) == 1 and width == height else MIXED_SIZE
    channels = max(_MODES[mode] for mode in modes)
    names = tuple(folder.name for folder in classes)
    return ImageSet(
        images=ImageFiles(path, ids, size, channels),
        labels=labels,
        classes=names,
        ids=ids,
        key=content_key([hashes, labels, list(names), size, channels]),
        name=f"{path.name} {split}",
    )
