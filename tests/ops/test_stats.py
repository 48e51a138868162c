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
    """And binomtest, except where it underflows: 10 of 1,075 is 2.7e-300, and it says 0."""
    trials = gained + lost
    fewer = min(gained, lost)
    next_binomial = lambda ways, k: ways * (trials - k) // (k + 1)  # C(trials, k + 1)
    ways = itertools.accumulate(range(fewer), next_binomial, initial=1)
    tail = Fraction(2 * sum(ways), 2**trials)
    p_value = stats.mcnemar_exact(gained, lost)
    assert p_value == pytest.approx(float(min(tail, 1)), rel=1e-9, abs=1e-305)
    if p_value > 1e-250:
        want = scipy_stats.binomtest(gained, trials, 0.5).pvalue if trials else 1.0
        assert p_value == pytest.approx(want, rel=1e-9)


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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_benjamini_hochberg_equals_the_definition(dtype):
    """The smallest of p·U/rank over the p-values that are no smaller; in the dtype that came."""
    p = np.round(np.random.default_rng(0).uniform(0, 1, 300) ** 3, 3).astype(dtype)
    p[:2] = 0, 1
    rank = np.argsort(np.argsort(p, kind="stable"), kind="stable") + 1
    scaled = np.float64(p) * len(p) / rank
    want = [min(1.0, scaled[rank >= r].min()) for r in rank]
    got = stats.benjamini_hochberg(p)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, want, rtol=2 * np.finfo(dtype).eps)
    if dtype == np.float32:  # arrays on the device give the same
        np.testing.assert_array_equal(stats.benjamini_hochberg(jnp.asarray(p)), got)
    np.testing.assert_array_equal(stats.benjamini_hochberg(p[:1]), p[:1])
    with pytest.raises(ValueError, match="between 0 and 1"):
        stats.benjamini_hochberg(np.array([0.5, np.nan], dtype))


def test_permutation_p_values_count_the_draws_that_reach():
    rng = np.random.default_rng(0)
    observed = rng.integers(0, 9, 40).astype(np.float32)
    null = rng.integers(0, 9, 99).astype(np.float32)
    want = [(1 + (null >= value).sum()) / 100 for value in observed]
    got = stats.permutation_p_values(jnp.asarray(observed), jnp.asarray(null))
    np.testing.assert_allclose(got, want, rtol=1e-6)


def plain_totals(columns, key, resamples):
    """The same draws, one resample at a time, in float64."""
    keys = jax.random.split(key, -(-resamples // 64) * 64)
    draw = jax.jit(jax.vmap(lambda key: jax.random.randint(key, (len(columns),), 0, len(columns))))
    drawn = np.asarray(draw(keys))[:resamples]
    return np.stack([np.float64(columns)[rows].sum(0) for rows in drawn])


@pytest.mark.slow
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


@pytest.mark.slow
def test_bootstrap_interval_is_scipys():
    """Percentile intervals of a mean, from other draws: equal up to five standard errors.

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


@pytest.mark.slow
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


@pytest.mark.slow
def test_calibration_error_of_the_certain():
    assert float(stats.calibration_error(jnp.ones(10), jnp.ones(10, bool))) == 0
    assert float(stats.calibration_error(jnp.ones(10), jnp.zeros(10, bool))) == 1
