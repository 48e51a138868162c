"""Units of two networks that go together, against numpy's correlations."""

import dataclasses

import numpy as np
import pytest
from conftest import some_record

from emojax.dissection import correspond as module
from emojax.dissection.correspond import correspond
from emojax.errors import InputError


def record_of(activations, layers):
    empty = some_record("0")
    return dataclasses.replace(empty, activations=np.float32(activations), layers=layers)


def test_a_shuffled_network_is_found_again():
    """Every unit finds itself behind shuffling, scaling and noise, and is found by it."""
    rng = np.random.default_rng(0)
    own = rng.normal(size=(40, 12))
    order = rng.permutation(12)
    other = (own * 3 + 1 + 0.1 * rng.normal(size=own.shape))[:, order]
    found = correspond(record_of(own, {"a": 5, "b": 7}), record_of(other, {"c": 12}))
    assert order[found.best].tolist() == list(range(12))
    assert found.mutual.all()
    assert found.columns()["other_unit"].tolist() == found.best.tolist()
    assert set(found.columns()["other_layer"]) == {"c"}


def test_all_numbers_are_those_of_plain_correlations(monkeypatch):
    monkeypatch.setattr(module, "_UNITS_AT_A_TIME", 4)
    rng = np.random.default_rng(1)
    own, other = rng.normal(size=(40, 9)), rng.normal(size=(40, 6))
    own[:, 3] = 2.0  # goes with nothing
    found = correspond(record_of(own, {"a": 2, "b": 7}), record_of(other, {"c": 4, "d": 2}))
    with np.errstate(invalid="ignore"):
        plain = np.corrcoef(np.float32(own).T, np.float32(other).T)[:9, 9:]
    plain = np.nan_to_num(plain)
    np.testing.assert_allclose(found.correlation, plain.max(axis=1), atol=1e-12)
    np.testing.assert_array_equal(found.best[plain.any(axis=1)], plain.argmax(1)[plain.any(1)])
    back = plain.argmax(axis=0)
    np.testing.assert_array_equal(found.mutual, back[found.best] == np.arange(9))
    parts = [
        [plain[a, b].max(axis=1).mean() for b in (slice(0, 4), slice(4, 6))]
        for a in (slice(0, 2), slice(2, 9))
    ]
    np.testing.assert_allclose(found.layers, parts, atol=1e-12)


def test_refusals():
    record = record_of(np.ones((40, 2)), {"a": 2})
    with pytest.raises(InputError, match=r"probe both networks with --probe\.keep-activations"):
        correspond(record, dataclasses.replace(record, activations=None))
    with pytest.raises(InputError, match="the records are of different images"):
        correspond(record, dataclasses.replace(record, ids=list("abc")))
