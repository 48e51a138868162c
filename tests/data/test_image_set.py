"""The image set: its checks, and images that repeat another set's."""

import numpy as np
import pytest

from emojax.data.image_set import ImageSet, duplicates
from emojax.errors import InputError


def test_image_set_checks():
    images = np.zeros((3, 8, 8), np.uint8)
    for args, message in (
        ((images.astype(np.float32),), "images are uint8"),
        ((images[:0],), "no image in it"),
        ((images, [0, 1], ("a", "b")), "3 images but labels of shape"),
        ((images, [0, 1, 2], ("a", "b")), "labels must lie in 0…1"),
    ):
        with pytest.raises(InputError, match=message):
            ImageSet.from_arrays(*args)
    assert ImageSet.from_arrays(images).first(2).images.shape == (2, 8, 8, 1)


@pytest.mark.slow
def test_copies(images):
    pixels = images.images
    mixed = np.concatenate([pixels[5:7], 255 - pixels[:3], pixels[:1]])
    np.testing.assert_array_equal(
        duplicates(mixed, pixels, chunk=4), [True, True, False, False, False, True]
    )
