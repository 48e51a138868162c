"""Images for the tests of reading."""

import numpy as np
import pytest
from PIL import Image

from emojax.synthetic import faces


@pytest.fixture
def photos(tmp_path):
    root, rng = tmp_path / "photos", np.random.default_rng(0)
    for _label, name in enumerate(("calm", "joy")):
        (root / name).mkdir(parents=True)
        for i in range(3):
            size = (30 + 10 * i, 40)
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(
                root / name / f"{i}.png"
            )
    Image.new("L", (64, 50), 128).save(root / "joy" / "gray.png")
    return root


@pytest.fixture(scope="module")
def images():
    return faces.random_faces(64, 3).image_set("faces")
