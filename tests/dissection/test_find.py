"""Units found by a text, and laid out by what they answer to; against plain float64."""

import dataclasses

import numpy as np
import pytest
from conftest import half_moments, some_record

from emojax.data.clip_encoder import ClipEncoder
from emojax.dissection import find
from emojax.errors import InputError

TEXTS = np.float32(np.random.default_rng(5).normal(size=(4, 24)))
TEXTS /= np.linalg.norm(TEXTS, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def known():
    """A record of known activations, the last unit constant, and its correlations [U, T]."""
    record = some_record("0")
    activations = np.random.default_rng(6).normal(size=(40, 20))
    activations[:, -1] = 0.5
    sums = half_moments(activations, record.embeddings)
    record = dataclasses.replace(record, half_moments=sums, layers={"a": 15, "b": 5})
    cosines = np.float64(record.embeddings) @ np.float64(TEXTS).T
    with np.errstate(invalid="ignore"):
        every = np.corrcoef(activations.T, cosines.T)[:20, 20:]
    return record, np.nan_to_num(every)


def test_profiles_are_correlations(known):
    record, want = known
    got = find.profiles(record, ["w", "x", "y", "z"], TEXTS)
    assert got.texts == ("w", "x", "y", "z")
    np.testing.assert_allclose(got.correlation, want, atol=1e-5)


def test_units_are_found_by_a_text(known, tiny_clip):
    class Encoder(ClipEncoder):
        key = "0"

        def embed_texts(self, texts):
            return TEXTS[[int(text) for text in texts]]

    record, want = known
    encoder = Encoder(tiny_clip.model, tiny_clip.preprocess, tiny_clip.tokenizer)
    found = find.find_units(record, "2", encoder)
    order = np.argsort(-want[:, 2])
    units = [("a", u) if u < 15 else ("b", u - 15) for u in order]
    assert list(zip(found.layer, found.unit, strict=True)) == units
    np.testing.assert_allclose(found.columns()["correlation"], want[order, 2], atol=1e-5)
    with pytest.raises(InputError, match="an empty text finds no unit"):
        find.find_units(record, " ", encoder)


def test_places_are_principal_components():
    """Of centred profiles, by their singular vectors; the largest coordinate is 1."""
    values = np.random.default_rng(0).normal(size=(50, 6)) * np.array([5, 3, 1, 1, 1, 1])
    left, sizes, _ = np.linalg.svd(values - values.mean(axis=0))
    want = left[:, :2] * sizes[:2]
    got = find.places(np.float32(values))
    assert np.abs(got).max() == 1
    for axis in (0, 1):
        aligned = want[:, axis] * np.sign(want[:, axis] @ got[:, axis])
        np.testing.assert_allclose(got[:, axis], aligned / np.abs(want).max(), atol=1e-5)
    assert (find.places(np.ones((3, 1), np.float32)) == 0).all()
