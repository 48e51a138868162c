"""Prepared FER2013, weights and a CLIP folder for the commands."""

import numpy as np
import pytest
from conftest import write_fer_csv

from emojax import cli
from emojax.data.weights import save_vgg


@pytest.fixture
def sources(tmp_path, fer_rows, tiny_vgg, clip_folder):
    """Prepared FER2013 with 120 training images, weights and a CLIP folder: the flags that name
    them.
    """
    rng = np.random.default_rng(1)
    rows = fer_rows + [(i % 7, rng.integers(0, 256, 2304), "Training") for i in range(106)]
    source = write_fer_csv(tmp_path / "fer2013.csv", rows)
    assert cli.main(["prepare", "--source", str(source), "--out", str(tmp_path / "fer")]) == 0
    save_vgg(tiny_vgg, tmp_path / "vgg.safetensors")
    flags = ["--data.path", tmp_path / "fer", "--target.weights", tmp_path / "vgg.safetensors"]
    return [str(f) for f in flags], [
        "--clip.path",
        str(clip_folder),
        "--cache",
        str(tmp_path / "cache"),
    ]
