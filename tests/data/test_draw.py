"""Which images a limit leaves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from emojax.data.draw import Draw
from emojax.data.image_set import ImageSet
from emojax.data.opening import open_split
from emojax.errors import InputError


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 70), st.integers(0, 9))
def test_a_balanced_draw(labels, limit, seed):
    """Rising rows, as many as asked for; no class has two more than another that has some left."""
    labels = np.asarray(labels, np.int32)
    rows = Draw(limit, seed=seed).rows(labels, len(labels))
    if limit >= len(labels):
        assert rows is None
        return
    assert len(rows) == limit
    assert (np.diff(rows) > 0).all()
    taken = np.bincount(labels[rows], minlength=5)
    unfilled = taken < np.bincount(labels, minlength=5)
    assert not unfilled.any() or taken.max() <= taken[unfilled].min() + 1
    np.testing.assert_array_equal(rows, Draw(limit, seed=seed).rows(labels, len(labels)))


def test_other_draws():
    labels = np.zeros(50, np.int32)
    assert Draw(3, "first").rows(labels, 50).tolist() == [0, 1, 2]
    assert Draw().rows(labels, 50) is None
    assert len(Draw(7).rows(None, 50)) == 7
    assert Draw(7, seed=1).rows(None, 50).tolist() != Draw(7, seed=2).rows(None, 50).tolist()


@pytest.fixture
def photos(tmp_path):
    """80 files of the class a, 4 of b; a file's pixels are its number."""
    for name, count in (("a", 80), ("b", 4)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(count):
            image = Image.new("L", (8, 8), number)
            image.save(tmp_path / "photos" / name / f"{number:02}.png")
    return tmp_path / "photos"


def test_a_limit_of_a_folder_takes_all_classes(photos):
    """And opens no file that it does not take."""
    drawn = open_split(photos, "all", limit=20)
    assert np.bincount(drawn.labels).tolist() == [16, 4]
    numbers = [int(name[2:4]) for name in drawn.ids]
    assert drawn.images[0:20][:, 0, 0, 0].tolist() == numbers
    assert np.bincount(open_split(photos, "all", limit=20, draw="first").labels).tolist() == [20]
    other = open_split(photos, "all", limit=20, seed=1)
    assert other.key != drawn.key
    files = sorted((photos / "a").iterdir())
    spared = next(path for path in files if f"a/{path.name}" not in drawn.ids)
    spared.write_bytes(b"damaged")
    assert open_split(photos, "all", limit=20).key == drawn.key


def test_rows_far_apart_are_read_as_they_stand():
    images = np.arange(200, dtype=np.uint8)[:, None, None, None]
    labels = np.arange(200, dtype=np.int32) % 2
    drawn = ImageSet.from_arrays(images, labels, ("x", "y")).drawn(Draw(9, seed=3))
    rows = Draw(9, seed=3).rows(labels, 200)
    np.testing.assert_array_equal(drawn.images[0:9][:, 0, 0, 0], rows)
    np.testing.assert_array_equal(drawn.images[2:5][:, 0, 0, 0], rows[2:5])
    assert drawn.images[4:4].shape == (0, 1, 1, 1)
    np.testing.assert_array_equal(drawn.labels, labels[rows])


def test_classes_by_other_names(photos):
    images = open_split(photos, "all", class_map={"A": "happy", "b": "sad"})
    assert images.classes == ("happy", "sad")
    assert images.key != open_split(photos, "all").key
    merged = open_split(photos, "all", class_map={"b": "a"})
    assert merged.classes == ("a",)
    assert not merged.labels.any()
    with pytest.raises(InputError, match=r"--data\.class-map: photos all has no class 'c'"):
        open_split(photos, "all", class_map={"c": "sad"})
    with pytest.raises(InputError, match="'happy' and 'joy' mean the same"):
        open_split(photos, "all", class_map={"a": "happy", "b": "joy"})


def test_a_folder_without_class_folders_is_told_so(photos):
    with pytest.raises(InputError, match="its images lie in no class folder; move them into one"):
        open_split(photos / "a", "all")
