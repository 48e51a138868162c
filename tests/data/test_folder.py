"""Folders of images."""

import numpy as np
import pytest
from PIL import Image

from emojax.data import folder
from emojax.data.opening import open_split
from emojax.errors import InputError


def test_folder_of_mixed_images(photos):
    images = open_split(photos, "all", size=32)
    assert images.images.shape == (7, 32, 32, 3)
    assert images.classes == ("calm", "joy")
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert images.ids[3] == "joy/0.png"
    pixels = images.images[0:7]
    assert pixels.shape == (7, 32, 32, 3)
    assert (pixels[6] == 128).all()
    assert open_split(photos, "all").images.shape[1] == folder.MIXED_SIZE


def test_folder_key_follows_the_bytes(photos):
    before = open_split(photos, "all", size=32).key
    assert open_split(photos, "all", size=32).key == before
    pixels = np.array(Image.open(photos / "calm" / "0.png"))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(photos / "calm" / "0.png")
    assert open_split(photos, "all", size=32).key != before


def test_folder_with_splits_and_gray_images(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "x" / split / "a").mkdir(parents=True)
        Image.new("L", (20, 20), 9).save(tmp_path / "x" / split / "a" / "1.png")
    assert open_split(tmp_path / "x", "test").images.shape == (1, 20, 20, 1)
    with pytest.raises(InputError, match="no split 'tset'; did you mean 'test'"):
        open_split(tmp_path / "x", "tset")
