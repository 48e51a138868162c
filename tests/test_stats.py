"""Statistics against scipy, statsmodels where it is installed, or plain float64 numpy."""

import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from emojax.ops import stats


@settings(max_examples=200, deadline=None)
@example(10, 1065)
@given(st.integers(0, 3000), st.integers(0, 3000))
def test_mcnemar_equals_exact_fractions(gained, lost):
    """And scipy, except where its own p-value underflows: 10 of 1,075 is 2.7e-300, and scipy says
    0.
    """
    trials, fewer = gained + lost, min(gained, lost)
    ways = itertools.accumulate(
        range(fewer), lambda ways, k: ways * (trials - k) // (k + 1), initial=1
    )  # C(trials, k)
    tail = Fraction(2 * sum(ways), 2**trials)
    found = stats.mcnemar_exact(gained, lost)
    assert found == pytest.approx(float(min(tail, 1)), rel=1e-9, abs=1e-305)
    if found > 1e-250:
        assert found == pytest.approx(
            scipy_stats.binomtest(gained, trials, 0.5).pvalue if trials else 1.0, rel=1e-9
        )


def test_mcnemar_equals_statsmodels():
    contingency = pytest.importorskip(
        "statsmodels.stats.contingency_tables", reason="statsmodels is not installed"
    )
    for gained, lost in ((48, 33), (3, 9), (0, 0), (120, 77)):
        want = contingency.mcnemar([[100, gained], [lost, 50]], exact=True).pvalue
        assert stats.mcnemar_exact(gained, lost) == pytest.approx(
            1.0 if gained == lost == 0 else want, rel=1e-10
        )


def test_mcnemar_of_the_paper():
    assert stats.mcnemar_exact(48, 33) == pytest.approx(0.119, abs=5e-4)


def plain_totals(columns, key, resamples):
    """The same draws, one resample at a time, in float64."""
    keys = jax.random.split(key, -(-resamples // 64) * 64)
    drawn = [
        np.asarray(jax.random.randint(k, (len(columns),), 0, len(columns)))
        for k in keys[:resamples]
    ]
    return np.stack([np.float64(columns)[rows].sum(0) for rows in drawn])


def test_bootstrap_equals_plain_resampling():
    columns = np.random.default_rng(0).standard_normal((201, 3)).astype(np.float32)
    got = stats.bootstrap_totals(jax.random.key(4), jnp.asarray(columns), 70)
    assert got.shape == (70, 3)
    np.testing.assert_allclose(
        got, plain_totals(columns, jax.random.key(4), 70), rtol=1e-5, atol=2e-5
    )
    np.testing.assert_array_equal(
        got, stats.bootstrap_totals(jax.random.key(4), jnp.asarray(columns), 70)
    )
    assert (got != stats.bootstrap_totals(jax.random.key(5), jnp.asarray(columns), 70)).all()
    counts = stats.bootstrap_totals(jax.random.key(4), jnp.ones((201, 1)), 70)
    assert (counts == 201).all()


def test_bootstrap_interval_is_scipys():
    """Percentile intervals of a mean, from other draws: equal up to five standard errors of 20,000
    resamples.

    A 2.5 % quantile of R normal draws has standard error sqrt(0.025 · 0.975 / R) / 0.0584 standard
    deviations.
    """
    values = np.random.default_rng(0).exponential(size=400)
    totals = stats.bootstrap_totals(
        jax.random.key(0), jnp.asarray(values[:, None], jnp.float32), 20_000
    )
    got = np.quantile(np.float64(totals[:, 0]) / 400, [0.025, 0.975])
    drawn = {"n_resamples": 20_000, "method": "percentile", "random_state": 1}
    want = scipy_stats.bootstrap((values,), np.mean, vectorized=True, **drawn).confidence_interval
    error = np.sqrt(2 * 0.025 * 0.975 / 20_000) / 0.0584 * values.std() / 20
    np.testing.assert_allclose(got, want, rtol=0, atol=5 * error)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_equals_a_plain_loop(bins):
    rng = np.random.default_rng(bins)
    confidence = rng.uniform(0.2, 1, 500).astype(np.float32)
    confidence[:3] = 1.0
    correct = rng.random(500) < confidence**2
    edges, want = np.linspace(0, 1, bins + 1), 0.0
    for low, high in itertools.pairwise(edges):
        mine = (confidence > np.float32(low)) & (confidence <= np.float32(high))
        if mine.any():
            want += mine.mean() * abs(correct[mine].mean() - np.float64(confidence[mine]).mean())
    assert float(
        stats.calibration_error(jnp.asarray(confidence), jnp.asarray(correct), bins)
    ) == pytest.approx(want, abs=1e-6)


def test_calibration_error_of_the_certain():
    assert float(stats.calibration_error(jnp.ones(10), jnp.ones(10, bool))) == 0
    assert float(stats.calibration_error(jnp.ones(10), jnp.zeros(10, bool))) == 1
