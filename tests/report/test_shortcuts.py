"""The page of found shortcuts: the right images, nothing of it runs, nothing found said as such."""

import html
import re

import numpy as np
import pytest
from hostile_run import HOSTILE

from emojax.editing.shortcuts import UNFINDABLE, Side, Suspect
from emojax.errors import InputError
from emojax.report.shortcuts import Looked, render

CLASSES = ("calm", "<b>joy</b>")
FOUND = Suspect(HOSTILE[0], 1, 2, 1.5, 2.0, -0.25, 0.75, 0.001, 0.002)
OTHER = Suspect(HOSTILE[1], 0, 1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


@pytest.fixture(scope="module")
def looked():
    """Three units, two concepts; ten probe images, two test sets of four."""
    probe = Side(
        np.zeros((10, 3)),
        np.repeat([0, 1], 5),
        np.zeros(10, int),
        np.stack([np.arange(10.0), np.zeros(10)], axis=1),
    )
    features = np.array([[0, 0, 0], [1, 0, 0], [5, 0, 0], [9, 0, 9]] * 2, float)
    predictions = np.array([1, 1, 1, 0, 1, 1, 1, 1])
    held_out = Side(features, np.array([0, 0, 1, 0, 0, 0, 0, 1]), predictions, np.zeros((8, 2)))
    grey = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 6, 6, 1), np.uint8)
    images = [grey], [grey[:4] + 100, grey[:4] + 200]
    units = {HOSTILE[0]: np.array([True, False, True]), HOSTILE[1]: np.array([False, True, False])}
    weight = np.array([[0.0, 2.0], [1.0, 0.0], [0.5, 0.7]])
    return Looked("lin2", CLASSES, units, np.ones((3, 2)), weight, probe, held_out, images)


@pytest.fixture
def encoded(monkeypatch):
    """The grey level of every image that is shown, in order, instead of its file."""
    shown = []

    def address(images, number, side):
        shown.append(int(images[number][0, 0, 0]))
        return f"data:image/webp;base64,{len(shown)}"

    monkeypatch.setattr("emojax.report.sprites.address", address)
    return shown


def page(looked, *suspects, **options):
    command = {"command": lambda concept: ["emojax sweep", f"--edit.suppress {concept}"]}
    return render(suspects, looked, name="a <run>", version="1", **command | options)


def test_the_groups_are_the_extremes_and_the_misled(looked, encoded):
    text = page(looked, FOUND, OTHER)
    # Of class 1 (5 to 9) the most and the least like the concept; then images of other classes that
    # are called it, the most pushed first: of the second test set 2, 1, 0, of the first 1, 0.
    assert encoded[:4] == [9, 8, 5, 6]
    assert encoded[4:] == [202, 101, 201, 100, 200]
    captions = re.findall(r'<li><img src="[^"]*" alt="([^"]*)">', text)
    assert list(map(html.unescape, captions))[4:] == [CLASSES[0]] * 5
    assert "q = 0.002" in text
    assert ">+2.00<" in text
    assert ">−0.25<" in text
    rows = re.findall(r'<th scope="row">(\d)</th>', text)
    assert rows == ["0", "2"]  # its units, the larger weight first
    command = html.unescape(text.partition("<code>")[2].partition("</code>")[0])
    assert command == f"emojax sweep \\\n  --edit.suppress {HOSTILE[0]}"
    assert "faces of people" in text
    assert "faces of people" not in page(looked, FOUND, people=False)


def test_nothing_on_the_page_runs(looked):
    text = page(looked, FOUND, OTHER)
    for name in (*HOSTILE[:2], CLASSES[1], "a <run>"):
        assert name not in text
        assert html.escape(name, quote=False) in text.replace("&#34;", '"').replace("&#39;", "'")
    assert text.count("<script") == 1
    assert "onerror" not in text


def test_without_images_and_with_nothing_found(looked, encoded):
    text = page(looked._replace(images=None), FOUND)
    assert "<img" not in text
    assert "faces of people" not in text
    assert encoded == []
    text = page(looked, OTHER)
    assert "No shortcut was found" in text
    assert UNFINDABLE in text
    assert encoded == []


def test_the_page_keeps_its_bound(looked):
    with pytest.raises(InputError, match=r"give a larger --report\.size"):
        page(looked, FOUND, size=0.001)
