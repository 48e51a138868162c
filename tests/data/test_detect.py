"""Faces that a detector finds, cut out before an image becomes a square."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emojax.data.detect import Look
from emojax.errors import InputError

FILE = Path("photo.png")
PIXELS = np.random.default_rng(0).integers(0, 256, (30, 60, 3), np.uint8)


def look(found):
    seen = []

    def detector(pixels):
        seen.append(pixels)
        return found() if callable(found) else found

    square = Look(10, 3, detector).square(FILE, Image.fromarray(PIXELS))
    np.testing.assert_array_equal(seen, [PIXELS])
    return square


@pytest.mark.parametrize(
    ("boxes", "rows", "columns"),
    [
        ([[20, 5, 10, 10]], slice(5, 15), slice(20, 30)),
        # The largest; what follows a box, such as YuNet's landmarks and score, is not read.
        ([[0, 0, 4, 4, 9, 9], [20, 5, 10, 10, 9, 9]], slice(5, 15), slice(20, 30)),
        ([[22, 5, 6, 10]], slice(5, 15), slice(20, 30)),  # made square about its centre
        ([[-4, 25, 10, 10]], slice(20, 30), slice(0, 10)),  # moved into the image
    ],
)
def test_the_largest_face_is_cut_out_as_a_square(boxes, rows, columns):
    np.testing.assert_array_equal(look(np.float32(boxes)), PIXELS[rows, columns])


def test_a_face_is_at_most_as_large_as_the_image():
    whole = Image.fromarray(PIXELS[:, 15:45]).resize((10, 10), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(look([[10, -5, 40, 40]]), np.asarray(whole))


def fail():
    raise RuntimeError("no model")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "no face found"),
        ([], "no face found"),
        (np.zeros((0, 15)), "no face found"),
        ([[1, 2, 3]], "the detector gave no boxes"),
        ([1, 2, 3, 4], "the detector gave no boxes"),
        ([[1, 2, 3, 0]], "the detector gave no boxes"),
        ([[1, np.nan, 3, 4]], "the detector gave no boxes"),
        ("face", "the detector gave no boxes"),
        (fail, r"the detector failed \(RuntimeError: no model\)"),
    ],
)
def test_what_is_no_face_is_a_reason(found, message):
    with pytest.raises(InputError, match=f"photo.png: {message}"):
        look(found)
