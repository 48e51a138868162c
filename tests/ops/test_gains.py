"""Gains, against the paper's formulas by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from emojax.ops import gains


def test_threshold_gains():
    scores = jnp.array([-1.0, 0.0, 0.5, 2.0])
    np.testing.assert_array_equal(gains.threshold(scores, 0.0, 2.0), [0.5, 0.5, 2.0, 2.0])
    np.testing.assert_array_equal(gains.threshold(scores, 0.0, 1.0), np.ones(4))
    assert (gains.with_scope(np.full(4, 2.0)).bias == 1).all()
    assert (gains.with_scope(np.full(4, 2.0), "weights_and_bias").bias == 2).all()
    with pytest.raises(ValueError, match="scope is"):
        gains.with_scope(np.ones(4), "bias")


@pytest.mark.slow
def test_gains_from_scores_and_weights():
    scores = np.array([2.0, -1.0, 5.0, 2.0], np.float32)
    np.testing.assert_allclose(
        gains.continuous(scores, 3.0), 3 * (np.float64(scores) + 1) / 6, rtol=1e-6
    )
    np.testing.assert_array_equal(gains.continuous(np.full(4, 7.0), 3.0), np.ones(4))
    # The tie goes to the lower unit.
    np.testing.assert_array_equal(gains.top_fraction(scores, 0.5), [True, False, True, False])
    assert gains.top_fraction(scores, 1.0).all()
    np.testing.assert_array_equal(gains.from_mask([True, False], 4.0), [4, 0.25])
    kernel = np.random.default_rng(0).standard_normal((3, 3, 5, 6)).astype(np.float32)
    np.testing.assert_allclose(
        gains.weight_sums(jnp.asarray(kernel)), np.abs(kernel).sum((0, 1, 2)), rtol=1e-6
    )
    assert gains.above_mean(np.array([1.0, 2.0, 6.0])).tolist() == [False, False, True]
