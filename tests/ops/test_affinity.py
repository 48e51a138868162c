"""How well units tell attributes, against plain loops and scipy."""

import numpy as np
import pytest
from scipy import stats

from emojax.ops.affinity import affinity


@pytest.fixture(scope="module")
def example():
    rng = np.random.default_rng(0)
    responses = np.round(rng.standard_normal((300, 6)), 1).astype(np.float32)  # with ties
    presence = rng.choice([-1, 0, 1], (300, 4), p=[0.2, 0.5, 0.3]).astype(np.int8)
    responses[:, 0] += 2 * (presence[:, 1] == 1)
    responses[:, 5] = 3.0  # a dead unit
    return responses, presence, affinity(responses, presence)


@pytest.mark.slow
def test_affinity_equals_plain_references(example):
    responses, presence, found = example
    for unit in range(6):
        for at in range(4):
            known = presence[:, at] >= 0
            values, shown = np.float64(responses[known, unit]), presence[known, at] == 1
            u = stats.mannwhitneyu(values[shown], values[~shown]).statistic
            np.testing.assert_allclose(
                found.auroc[unit, at], u / (shown.sum() * (~shown).sum()), atol=2e-6
            )
            precision = [shown[values >= value].mean() for value in values[shown]]
            np.testing.assert_allclose(found.auprc[unit, at], np.mean(precision), atol=2e-6)
            want = 0.0 if unit == 5 else stats.pearsonr(values, shown).statistic
            np.testing.assert_allclose(found.correlation[unit, at], want, atol=2e-6)
    assert found.auroc[0].argmax() == 1


def test_affinity_of_an_attribute_that_is_always_there_is_unknown():
    responses = np.random.default_rng(0).standard_normal((10, 2))
    found = affinity(responses, np.ones((10, 1), np.int8))
    assert all(np.isnan(field).all() for field in found)
    with pytest.raises(ValueError, match="not of the same images"):
        affinity(responses, np.ones((9, 1), np.int8))


def test_affinity_is_that_of_units_in_any_order_and_place(example):
    responses, presence, found = example
    order = [3, 0, 5, 1, 4, 2]
    moved = affinity(responses[:, order] * 2, presence)  # ranks and correlation do not care
    for a, b in zip(moved, found, strict=True):
        np.testing.assert_allclose(a, b[order], atol=1e-4)
