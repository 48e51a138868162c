"""Thumbnails fit into a page of bounded size."""

import numpy as np
import pytest

from emojax.data.image_set import ImageSet
from emojax.errors import InputError
from emojax.report import sprites


@pytest.mark.long
def test_size_bounds_the_page():
    """Noise is the hardest to pack; pages shrink by showing fewer and smaller images, and never
    exceed their bound.
    """
    rng = np.random.default_rng(0)
    images = ImageSet.from_arrays(rng.integers(0, 256, (600, 48, 48), dtype=np.uint8))
    top = rng.integers(0, 600, (300, 16)).astype(np.int32)
    bottom = rng.integers(0, 600, (300, 8)).astype(np.int32)
    looks = []
    for budget in (2_000_000, 400_000, 120_000):
        packed = sprites.pack(images, np.arange(600), top, bottom, budget)
        assert sum(map(len, packed.sheets)) <= budget
        shown = {*top[:, : packed.per_unit].ravel(), *bottom[:, : packed.per_unit // 2].ravel()}
        assert shown == set(packed.images.tolist())
        first = dict.fromkeys(top[:, : min(3, packed.per_unit)].ravel())  # in the rows' order
        assert packed.images[: len(first)].tolist() == list(first)
        looks.append((packed.per_unit, packed.side))
    assert looks == sorted(looks, reverse=True)
    assert looks[0][0] == 16
    with pytest.raises(InputError, match=r"give a larger --report\.size"):
        sprites.pack(images, np.arange(600), top, bottom, 2_000)
