"""Rendered shortcuts: the nuisance goes with one emotion as often as asked, and is drawn."""

import numpy as np
import pytest

from emojax.data.fer2013 import CLASSES
from emojax.errors import InputError
from emojax.synthetic import shortcut
from emojax.synthetic.faces import ATTRIBUTES, random_faces


@pytest.mark.parametrize("nuisance", shortcut.NUISANCES)
def test_shares_are_those_asked_for(nuisance):
    asked = shortcut.Shortcut(nuisance, "sad", 0.9)
    faces = shortcut.planted(7000, 1, asked)
    shown, sad = shortcut.shows(faces, asked), faces.emotions == CLASSES.index("sad")
    assert shown[sad].mean() == pytest.approx(0.9, abs=0.04)
    assert shown[~sad].mean() == pytest.approx(0.1, abs=0.02)
    alike = shortcut.shows(shortcut.without_shortcut(7000, 1, asked), asked)
    assert alike.mean() == pytest.approx(asked.everywhere, abs=0.02)
    assert alike[sad].mean() == pytest.approx(asked.everywhere, abs=0.05)
    assert shortcut.shows(shortcut.fair(7000, 1, asked), asked).mean() == pytest.approx(
        0.5, abs=0.03
    )
    # The rules of `faces` agree on what is there.
    column = faces.attributes[:, ATTRIBUTES.index(nuisance)]
    np.testing.assert_array_equal(column == 1, shown)


def test_only_the_nuisance_is_another():
    asked = shortcut.Shortcut()
    faces, plain = shortcut.planted(50, 3, asked), random_faces(50, 3)
    np.testing.assert_array_equal(faces.emotions, plain.emotions)
    for name, values in plain.numbers.items():
        if name != "glasses":
            np.testing.assert_array_equal(faces.numbers[name], values)
    assert faces.key == shortcut.planted(50, 3, asked).key != plain.key


def test_groups_are_classes_with_and_without():
    asked = shortcut.Shortcut()
    faces = shortcut.fair(300, 4, asked)
    groups = shortcut.groups(faces, asked)
    np.testing.assert_array_equal(groups // 2, faces.emotions)
    np.testing.assert_array_equal(groups % 2 == 1, shortcut.shows(faces, asked))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nuisance": "Glases"}, "'Glasses'"),
        ({"emotion": "hapy"}, "'happy'"),
        ({"share": 0.4}, "share is 0.4"),
    ],
)
def test_refusals(values, message):
    with pytest.raises(InputError, match=message):
        shortcut.Shortcut(**values)
