"""The only reader of image files: a few formats, 8 bits, and one line for a damaged file.

All that opens an image (folders, raw FER2013, encoded images of TFDS, the audit) does it here.
"""

import contextlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageOps, TiffImagePlugin

from emojax.errors import InputError

_FORMATS = (
    "JPEG",
    "PNG",
    "BMP",
    "WEBP",
    "TIFF",
    "GIF",
)  # EPS and its like would start other programs
_CHANNELS = {"1": 1, "L": 1, "LA": 1, "P": 3, "PA": 3, "RGB": 3, "RGBA": 3, "CMYK": 3, "YCbCr": 3}
_MAY_TURN = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
_MAX_BYTES = 1 << 28  # of one image file
MOST_TEXT = 1 << 28  # bytes of a file of text that is read at once
MOST_PIXELS = 89_478_485  # of an image, whole or resized; Pillow's own bound
_SMALL = 1 << 14  # bytes of an image file that is read before another thread could take it
_LOCK = threading.Lock()  # catch_warnings is not for threads
_Used = TypeVar("_Used")


def _read(file: Path, data: bytes, use: Callable[[Image.Image], _Used]) -> _Used:
    """What `use` makes of an image whose pixels are not read yet; all that it raises is refused."""
    stream = io.BytesIO(data)
    try:
        with _LOCK, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(stream, formats=_FORMATS)
        if image.mode not in _CHANNELS:
            raise InputError(
                f"{file}: pixel mode {image.mode} is not 8-bit gray or colour; convert the file"
            )
        _check_depth(file, data, image)
        return use(image)
    except InputError:
        raise
    except Exception as error:  # decoders raise whatever a damaged file makes them stumble over
        # Without the content, and without the address of the stream, which changes from run to run.
        reason = str(error).replace(repr(data), "").replace(f" {stream!r}", "")
        raise InputError(f"{file}: not a readable image ({reason}); restore or remove it") from None


def _check_depth(file: Path, data: bytes, image: Image.Image) -> None:
    """Refuses what Pillow brings to 8 bits by cutting off the others, or by ignoring a sign.

    Raises:
      InputError: the file has more than 8 bits a channel, or numbers that do not count from 0.
    """
    bits = 8
    if image.format == "PNG":
        bits = data[24]  # of the header, which is the first chunk of every PNG
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
        if set(image.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT, (1,))) != {1}:
            raise InputError(f"{file}: its numbers do not count from 0; convert the file to 8 bits")
    if bits > 8:
        raise InputError(f"{file}: {bits} bits a channel, not 8; convert the file")


def entries(folder: Path) -> list[Path]:
    """What lies in a folder and is not hidden, by name.

    Raises:
      InputError: the folder cannot be read, or a name in it is not UTF-8, which no table could
        hold.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise _cannot_read(folder, error) from None
    for path in paths:
        try:
            path.name.encode()
        except UnicodeEncodeError:
            raise InputError(f"{path}: the name is not UTF-8; rename it") from None
    return paths


def check_regular(file: Path, *, limit: int | None = None, missing_ok: bool = False) -> None:
    """Refuses what is no regular file before it is opened: a pipe could make that last for ever.

    With `missing_ok`, whoever opens the file says that there is none.

    Raises:
      InputError: it is missing, a folder, a pipe, a socket or a device; or it is of more than
        `limit` bytes.
    """
    if missing_ok and not file.exists():
        return
    try:
        status = file.stat()
    except (OSError, ValueError) as error:
        raise _cannot_read(file, error) from None
    _check_status(file, status, limit)


def _cannot_read(path: Path, error: OSError | ValueError) -> InputError:
    """What the system says of a file or folder, in one line; ValueError is of its name."""
    reason = error.strerror if isinstance(error, OSError) else error
    return InputError(f"cannot read {path}: {reason}")


def _check_status(file: Path, status: os.stat_result, limit: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise InputError(
            f"cannot read {file}: it is {kind}, not a regular file; put the file itself there"
        )
    if limit is not None and status.st_size > limit:
        raise InputError(
            f"{file}: {status.st_size} bytes, more than the {limit} that such a file may have"
        )


def read_bytes(file: Path) -> bytes:
    """A file's content.

    Raises:
      InputError: it is no regular file or cannot be read.
    """
    # By these calls a small file takes half the time of `check_regular` and `Path.read_bytes`.
    try:
        opened = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe, too, at once
        try:
            status = os.fstat(opened)
            _check_status(file, status, _MAX_BYTES)
            data = os.read(opened, status.st_size + 1)
            while more := os.read(opened, 1 << 20):
                data += more
            return data
        finally:
            os.close(opened)
    except (OSError, ValueError) as error:
        check_regular(file)  # a socket cannot be opened; this says so
        raise _cannot_read(file, error) from None


def reading_threads(sizes: Sequence[int]) -> int:
    """How many threads should read images: one where most are small.

    Threads take turns at the interpreter; only within the decoding of a large image do they run
    side by side. Two or four take up to twice the CPU time of one for images of 48×48.

    Args:
      sizes: bytes of some of the encoded images.
    """
    return 1 if not sizes or sorted(sizes)[len(sizes) // 2] < _SMALL else 4


def some_sizes(names: Sequence[str], root: Path = Path()) -> list[int]:
    """Bytes of about 16 of the files below `root`, evenly spread; missing ones are left out."""
    sizes = []
    for name in names[:: max(1, len(names) // 16)]:
        with contextlib.suppress(OSError, ValueError):
            sizes.append((root / name).stat().st_size)
    return sizes


def read_header(file: Path, data: bytes) -> tuple[tuple[int, int], int]:
    """Width and height of the upright image, and its channels, 1 or 3; pixels are not read.

    Raises:
      InputError: it is damaged, of another format, of more than 8 bits, or of more pixels than
        Pillow deems safe.
    """
    return _read(file, data, _size_and_channels)


def _size_and_channels(image: Image.Image) -> tuple[tuple[int, int], int]:
    # EXIF's orientation, as cameras write it: from 5 on, the image lies on its side.
    sideways = image.getexif().get(0x0112, 1) >= 5
    width, height = image.size
    size = (height, width) if sideways else (width, height)
    return size, _CHANNELS[image.mode]


def read_image(file: Path) -> Image.Image:
    """An image, whole and upright, as gray (`L`) or `RGB`.

    Raises:
      InputError: see `read_header`; or its pixels are damaged.
    """
    return decode(file, read_bytes(file))


def decode(file: Path, data: bytes) -> Image.Image:
    """An image as `read_image` gives it, from its bytes; `file` is what messages name.

    Raises:
      InputError: see `read_image`.
    """
    return _read(file, data, _pixels)


def _pixels(image: Image.Image) -> Image.Image:
    mode = "L" if _CHANNELS[image.mode] == 1 else "RGB"
    image.load()  # a PNG may tell its orientation behind its pixels
    # Of a small image, to look for an orientation and to copy it are a quarter of the work.
    if image.format == "TIFF" or _MAY_TURN & image.info.keys():
        ImageOps.exif_transpose(image, in_place=True)
    return image if image.mode == mode else image.convert(mode)
