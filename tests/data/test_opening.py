"""Opening a split in whatever form it is."""

import numpy as np
import pytest
from conftest import write_fer_csv

from emojax.data import fer2013
from emojax.data.opening import open_split
from emojax.errors import InputError


def test_open_refusals(photos, tmp_path, fer_folder):
    for path, split, message in (
        (tmp_path / "none", "all", "no data at"),
        (photos, "training", "pass the split 'all' instead of 'training'"),
        (fer_folder, "training", "raw FER2013; run `emojax prepare --source"),
    ):
        with pytest.raises(InputError, match=message):
            open_split(path, split)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images in it"):
        open_split(tmp_path / "empty", "all")
    (photos / "joy" / "bad.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match=r"bad.png: not a readable image"):
        open_split(photos, "all")


def test_any_prepared_set_is_read_by_index(tmp_path, fer_rows):
    """FER2013 as just one of the sets that TFDS prepared: the same images, in the same order, not
    held in memory.
    """
    fer2013.prepare(
        fer2013.read_csv(write_fer_csv(tmp_path / "fer2013.csv", fer_rows)), tmp_path / "fer"
    )
    known = open_split(tmp_path / "fer", "training")
    found = open_split(tmp_path / "fer", "training", kind="tfds")
    assert (found.ids, found.classes, found.images.shape) == (
        known.ids,
        known.classes,
        known.images.shape,
    )
    np.testing.assert_array_equal(found.labels, known.labels)
    for start in (0, 3, 13, 14):
        np.testing.assert_array_equal(
            found.images[start : start + 5], known.images[start : start + 5]
        )
    assert (
        found.key == open_split(tmp_path / "fer" / "fer2013" / "1.0.0", "training", kind="tfds").key
    )
    with pytest.raises(InputError, match="no split 'train'; did you mean 'training'"):
        open_split(tmp_path / "fer", "train", kind="tfds")
    with pytest.raises(InputError, match="holds no data set that TFDS prepared"):
        open_split(tmp_path, "training", kind="tfds")
