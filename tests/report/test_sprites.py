"""Thumbnails fit into a page of bounded size."""

import numpy as np
import pytest

from emojax.data.image_set import ImageSet
from emojax.errors import InputError
from emojax.report import sprites


@pytest.mark.slow
def test_size_bounds_the_page():
    """Noise is the hardest to pack; pages shrink by showing fewer and smaller images, and never
    exceed their bound.
    """
    rng = np.random.default_rng(0)
    images = ImageSet.from_arrays(rng.integers(0, 256, (600, 48, 48), dtype=np.uint8))
    top = rng.integers(0, 600, (300, 16)).astype(np.int32)
    looks = []
    for budget in (2_000_000, 400_000, 120_000):
        packed = sprites.pack(images, np.arange(600), top, budget)
        assert sum(map(len, packed.sheets)) <= budget
        assert set(np.unique(top[:, : packed.per_unit])) == set(packed.images.tolist())
        looks.append((packed.per_unit, packed.side))
    assert looks == sorted(looks, reverse=True)
    assert looks[0][0] == 16
    with pytest.raises(InputError, match=r"give a larger --report\.size"):
        sprites.pack(images, np.arange(600), top, 2_000)
