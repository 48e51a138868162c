"""Compensated sums, against float64."""

import jax
import jax.numpy as jnp
import numpy as np

from emojax.ops import moments


@jax.jit
def update(state, activations, embeddings, valid):
    units, own = state
    units = moments.update_units(units, activations, embeddings, valid)
    return units, moments.update_embeddings(own, embeddings, valid)


def init(units, embedding):
    return moments.init_units(units, embedding), moments.init_embeddings(embedding)


def joined(state):
    """Sums of units and of embeddings, and what they lost."""
    units, own = state
    return moments.Moments(*units.sums, *own.sums), moments.Moments(*units.lost, *own.lost)


def test_moments_equal_float64_sums():
    rng = np.random.default_rng(1)
    activations = np.maximum(rng.standard_normal((97, 12)), 0).astype(np.float32)
    embeddings = rng.standard_normal((97, 9)).astype(np.float32)
    state = init(12, 9)
    for start in range(0, 97, 16):
        rows, e = activations[start : start + 16], embeddings[start : start + 16]
        pad, valid = 16 - len(rows), np.arange(16) < len(rows)
        rows, e = (np.pad(x, ((0, pad), (0, 0)), constant_values=np.nan) for x in (rows, e))
        state = update(state, rows, e, valid)
    a, e = np.float64(activations), np.float64(embeddings)
    for got, lost, want in zip(
        *joined(state), (a.sum(0), (a**2).sum(0), a.T @ e, e.T @ e, e.sum(0)), strict=True
    ):
        np.testing.assert_allclose(np.float64(got) - lost, want, rtol=2e-6, atol=2e-5)


def test_sums_from_an_origin_are_the_sums():
    """A unit with a deviation of 1e-4 of its mean: its variance survives float32."""
    rng = np.random.default_rng(2)
    activations = (5 + 5e-4 * rng.standard_normal((64, 3))).astype(np.float32)
    activations[:, 2] = 0.3
    embeddings = (1 + 0.01 * rng.standard_normal((64, 4))).astype(np.float32)
    origin = moments.Origin(jnp.asarray(activations[0]), jnp.asarray(embeddings[0]))
    state = update(
        init(3, 4),
        activations - activations[0],
        embeddings - embeddings[0],
        np.ones(64, bool),
    )
    got = moments.from_origin(joined(state)[0], origin, 64)
    a, e = np.float64(activations), np.float64(embeddings)
    for sums, want in zip(got, (a.sum(0), (a**2).sum(0), a.T @ e, e.T @ e, e.sum(0)), strict=True):
        # 64 float32 additions of differences that are a hundredth of the values: 64 · 2⁻²⁴ / 100.
        np.testing.assert_allclose(sums, want, rtol=5e-8)
    variance = got.square / 64 - (got.total / 64) ** 2
    np.testing.assert_allclose(variance[:2], a.var(axis=0)[:2], rtol=1e-5)
    assert variance[2] <= 1e-15


def test_compensated_sums_do_not_drift():
    """100,000 additions of 0.1 to a large sum: plain float32 is off in the fourth digit."""
    ones = jnp.ones((1, 1))
    add = moments.update_units
    start = add(moments.init_units(1, 1), ones * 4096.0, ones, jnp.array([True]))
    step = lambda s, _: (add(s, ones * 0.1, ones, jnp.array([True])), None)
    state = jax.lax.scan(step, start, None, length=100_000)[0]
    total = float(state.sums.total[0]) - float(state.lost.total[0])
    assert abs(total - (4096 + 100_000 * float(np.float32(0.1)))) < 1e-2
