"""Compensated sums, against float64."""

import jax
import jax.numpy as jnp
import numpy as np

from emojax.ops import moments


def test_moments_equal_float64_sums():
    rng = np.random.default_rng(1)
    activations = np.maximum(rng.standard_normal((97, 12)), 0).astype(np.float32)
    embeddings = rng.standard_normal((97, 9)).astype(np.float32)
    state = moments.init(12, 9)
    for start in range(0, 97, 16):
        rows, e = activations[start : start + 16], embeddings[start : start + 16]
        pad, valid = 16 - len(rows), np.arange(16) < len(rows)
        rows, e = (np.pad(x, ((0, pad), (0, 0)), constant_values=np.nan) for x in (rows, e))
        state = moments.update(state, jnp.asarray(rows), jnp.asarray(e), jnp.asarray(valid))
    a, e = np.float64(activations), np.float64(embeddings)
    for got, lost, want in zip(*state, (a.sum(0), (a**2).sum(0), a.T @ e, e.T @ e), strict=True):
        np.testing.assert_allclose(np.float64(got) - lost, want, rtol=2e-6, atol=2e-5)


def test_compensated_sums_do_not_drift():
    """100,000 additions of 0.1 to a large sum: plain float32 is off in the fourth digit."""
    ones = jnp.ones((1, 1))
    start = moments.update(moments.init(1, 1), ones * 4096.0, ones, jnp.array([True]))
    step = lambda s, _: (moments.update(s, ones * 0.1, ones, jnp.array([True])), None)
    state = jax.lax.scan(step, start, None, length=100_000)[0]
    total = float(state.sums.total[0]) - float(state.lost.total[0])
    assert abs(total - (4096 + 100_000 * float(np.float32(0.1)))) < 1e-2
