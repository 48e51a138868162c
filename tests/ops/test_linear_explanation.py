import jax
import numpy as np
import pytest
import reference

from emojax.ops import linear_explanation
from emojax.ops.linear_explanation import NONE

greedy = jax.jit(linear_explanation.greedy, static_argnames=("most", "tolerance"))


def mixtures(images, units, concepts, seed):
    """Correlated concept values, and activations that are noisy mixtures of a few."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(images, concepts)) + rng.normal(size=(images, 1))
    weights = np.zeros((concepts, units))
    for unit in range(units):
        weights[rng.choice(concepts, 1 + unit % 5, replace=False), unit] = rng.normal(
            size=1 + unit % 5
        )
    return values, values @ weights + 0.5 * rng.normal(size=(images, units))


def choose(acts, values, **options):
    correlation = np.corrcoef(acts.T, values.T)
    units = acts.shape[1]
    correlations = np.float32(correlation[:units, units:]), np.float32(correlation[units:, units:])
    return jax.tree.map(np.asarray, greedy(*correlations, **options))


@pytest.mark.slow
def test_equals_least_squares_greedy():
    """50 units; gains of continuous data differ by far more than float32's rounding."""
    values, acts = mixtures(400, 50, 40, seed=0)
    choice = choose(acts, values, most=10, tolerance=0.02)
    for unit in range(50):
        want, _, _, reached = reference.linear_explanation(acts[:, unit], values)
        got = [c for c in np.asarray(choice.concepts[unit]) if c != NONE]
        assert got == want
        assert abs(float(choice.correlations[unit, -1]) - reached) < 1e-5


@pytest.mark.slow
def test_blocks_and_limits():
    """Units are independent of each other, and of how many are worked on together."""
    values, acts = mixtures(300, 12, 30, seed=1)
    whole = choose(acts, values, most=3, tolerance=0.0)
    alone = choose(acts[:, 4:5], values, most=3, tolerance=0.0)
    np.testing.assert_array_equal(whole.concepts[4], alone.concepts[0])
    assert (np.asarray(whole.concepts) != NONE).all()  # any gain is enough
    assert choose(acts, values, most=10, tolerance=2.0).concepts[:, 1].max() == NONE
    long = choose(acts, values, most=10, tolerance=0.0)
    np.testing.assert_array_equal(long.concepts[:, :3], whole.concepts)


@pytest.mark.slow
def test_copies_and_constants():
    """A copy of a chosen concept adds nothing; a unit that correlates with none has none."""
    values, acts = mixtures(300, 3, 10, seed=2)
    values = np.column_stack([values, values])
    choice = choose(acts, values, most=20, tolerance=0.0)
    for row in np.asarray(choice.concepts):
        chosen = [c % 10 for c in row if c != NONE]
        assert len(set(chosen)) == len(chosen) == 10
    nothing = linear_explanation.greedy(
        np.zeros((2, 10), np.float32), np.eye(10, dtype=np.float32), most=4, tolerance=0.02
    )
    assert (np.asarray(nothing.concepts) == NONE).all()
    assert not np.asarray(nothing.correlations).any()
