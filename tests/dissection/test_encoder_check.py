"""Whether an encoder sees the classes, by their names."""

import dataclasses

import numpy as np
import pytest
from conftest import some_record

import emojax
from emojax.data.clip_encoder import ClipEncoder
from emojax.dissection import encoder_check
from emojax.synthetic.shipped import ASSETS


class Axes(ClipEncoder):
    """An encoder whose text tower puts class c on axis c."""

    def embed_texts(self, texts):
        return np.eye(len(texts), 24, dtype=np.float32)


@pytest.fixture
def axes(tiny_clip):
    return Axes(tiny_clip.model, tiny_clip.preprocess, lambda texts: [t.split() for t in texts])


def record_of(guesses, labels, classes=("a", "b", "c")):
    """A record whose images look like the guessed classes."""
    images = len(guesses)
    empty = some_record("0")
    return dataclasses.replace(
        empty,
        embeddings=np.eye(24, dtype=np.float32)[guesses],
        labels=np.array(labels, np.int32),
        classes=classes,
        ids=list(map(str, range(images))),
    )


def test_counts_and_chance(axes):
    """Six of eight right; chance by the products of the shares of guesses and labels."""
    check = encoder_check.zero_shot(
        record_of([0, 0, 0, 1, 1, 1, 2, 0], [0, 0, 1, 1, 1, 1, 2, 1]), axes
    )
    assert check.images == 8
    assert check.accuracy == 6 / 8
    assert check.chance == pytest.approx((4 * 2 + 3 * 5 + 1 * 1) / 64)
    assert check.kappa == pytest.approx((0.75 - 0.375) / 0.625)
    assert not check.weak


def test_one_guess_for_all_is_weak(axes):
    """However often the commonest class is right by it."""
    check = encoder_check.zero_shot(record_of([1] * 80, [1] * 60 + [0, 2] * 10), axes)
    assert (check.accuracy, check.kappa, check.weak) == (0.75, 0.0, True)
    assert encoder_check.summary(axes, check)["zero_shot"]["weak"] is True
    few = encoder_check.zero_shot(record_of([1] * 8, [1] * 6 + [0, 2]), axes)
    assert (few.kappa, few.weak) == (0.0, False)  # which may be bad luck


def test_what_cannot_be_checked(axes):
    assert encoder_check.zero_shot(record_of([0, 1], [1, 1]), axes) is None  # one class
    long = record_of([0, 1], [0, 1], ("a", "b " * 41))
    assert encoder_check.zero_shot(long, axes) is None
    unlabelled = dataclasses.replace(long, labels=None)
    assert encoder_check.zero_shot(unlabelled, axes) is None
    assert encoder_check.summary(axes, None) == {"name": "clip", "trained_on": None}


def test_python_is_warned_too(axes, caplog):
    """Of an encoder that is not at home among the images; by the commands' own words there."""
    drawn = dataclasses.replace(axes, trained_on="drawings")
    unlabelled = dataclasses.replace(record_of([0, 1], [0, 1]), labels=None)
    cases = {
        0: (axes, record_of([0, 1, 2] * 20, [0, 1, 2] * 20)),
        1: (drawn, unlabelled),
        2: (drawn, record_of([1] * 80, [1] * 60 + [0, 2] * 10)),
    }
    for warnings, (encoder, of_images) in cases.items():
        caplog.clear()
        record = dataclasses.replace(of_images, clip_key=encoder.key)
        emojax.dissect(record, ["a", "b"], similarity="correlation", clip=encoder, trust=False)
        assert len(caplog.messages) == warnings
    assert "clip was trained on drawings alone" in caplog.messages[0]
    assert "puts 75.0% of 80 images into the right class" in caplog.messages[1]
    caplog.clear()
    texts = np.eye(2, 24, dtype=np.float32)
    emojax.dissect(record, ["a", "b"], similarity="correlation", text_embeddings=texts, trust=False)
    assert not caplog.messages
    at_home = encoder_check.ZeroShot(80, 0.9, 0.3)
    assert encoder_check.doubts(drawn, at_home) == []


def test_the_shipped_encoder_says_what_it_knows():
    from emojax.data.clip_folder import load_clip

    assert load_clip(ASSETS / "clip").trained_on == "rendered faces"
