"""Thumbnails packed into a few sheets, so that thousands of images make a page of bounded size.

Thumbnails lie row by row in square sheets of `SIDE` by `SIDE`; thumbnail n is number n % SIDE² of
sheet n // SIDE².
"""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from emojax.data.image_set import Images, ImageSet
from emojax.errors import InputError

SIDE = 24
IN_ROWS = 3  # images of each unit that the table of units shows
# Images shown per unit, side in pixels and WebP quality, from the best look to the smallest page.
LOOKS = (
    (16, 48, 80),
    (16, 48, 55),
    (12, 48, 45),
    (12, 40, 40),
    (9, 40, 35),
    (9, 32, 30),
    (6, 32, 25),
    (4, 28, 20),
    (2, 24, 15),
)


@dataclass(frozen=True)
class Sprites:
    """Packed thumbnails.

    Attributes:
      sheets: WebP files in base64.
      side: of a thumbnail, in pixels.
      images: which images they are, in order: positions in the list that was packed.
      per_unit: images shown of each unit; of the least activating ones at most half as many.
    """

    sheets: list[str]
    side: int
    images: np.ndarray
    per_unit: int


def pack(
    images: ImageSet, numbers: np.ndarray, top: np.ndarray, bottom: np.ndarray, budget: int
) -> Sprites:
    """The best-looking sheets that stay within `budget` bytes of text.

    What the first units' rows show lies in the first sheets, so that a page opens with few of them.

    Args:
      images: the probe set.
      numbers: image numbers in it [I].
      top: each unit's images [U, S], positions in `numbers`; the units in the page's order.
      bottom: each unit's least activating images [U, B]; B may be 0.
      budget: bytes that all sheets together may take, in base64.

    Raises:
      InputError: nothing fits.
    """
    for shown, side, quality in LOOKS:
        wanted = _in_order(top[:, :shown], bottom[:, : shown // 2])
        sample = wanted[:: max(1, len(wanted) // SIDE**2)][: SIDE**2]
        # Encoding everything at every look would take minutes, so a look is first judged by as many
        # evenly spaced images as fill one sheet, and given up where they promise too much by far.
        guess = (
            sum(map(len, _encode(images.images, numbers[sample], side, quality)))
            * len(wanted)
            / max(len(sample), 1)
        )
        if guess > 1.1 * budget:
            continue
        sheets = list(_encode(images.images, numbers[wanted], side, quality))
        if sum(map(len, sheets)) <= budget:
            return Sprites(sheets, side, wanted, shown)
    raise InputError(
        f"thumbnails of {len(np.unique(top[:, : LOOKS[-1][0]]))} images do not fit a page of this "
        "size; "
        "give a larger --report.size or --report.images none"
    )


def _in_order(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """The images of the lists, each once, in the order in which a reader meets them."""
    parts = (top[:, :IN_ROWS], top[:, IN_ROWS:], bottom)
    met = np.concatenate([part.ravel() for part in parts]).astype(np.int64)
    _, first = np.unique(met, return_index=True)
    return met[np.sort(first)]


def _encode(images: Images, numbers: np.ndarray, side: int, quality: int) -> Iterator[str]:
    """Sheets of the numbered images, as base64 text."""
    for start in range(0, len(numbers), SIDE**2):
        of_sheet = numbers[start : start + SIDE**2]
        high = -(-len(of_sheet) // SIDE)
        sheet = Image.new("L" if images.shape[-1] == 1 else "RGB", (SIDE * side, high * side))
        for place, number in enumerate(of_sheet):
            face = _thumbnail(images, int(number), side)
            sheet.paste(face, (place % SIDE * side, place // SIDE * side))
        yield _webp(sheet, quality)


def _thumbnail(images: Images, number: int, side: int) -> Image.Image:
    pixels = np.asarray(images[number : number + 1])[0]
    face = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return face.resize((side, side), Image.Resampling.LANCZOS)


def _webp(picture: Image.Image, quality: int) -> str:
    """The picture as a file in base64."""
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=quality, method=4)
    return base64.b64encode(file.getvalue()).decode("ascii")


def address(images: Images, number: int, side: int) -> str:
    """A thumbnail of one image as an address that holds it whole."""
    return f"data:image/webp;base64,{_webp(_thumbnail(images, number, side), LOOKS[0][2])}"
