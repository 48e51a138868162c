"""Top-k, moments, pooling and gains."""

import jax.numpy as jnp
import numpy as np
import pytest

from emojax.ops import gains, moments, pooling, topk


@pytest.fixture(scope="module")
def activations():
    rng = np.random.default_rng(0)
    return np.round(np.maximum(rng.standard_normal((97, 12)), 0), 1).astype(
        np.float32
    )  # full of ties


def expected_lists(activations, k):
    order = np.argsort(-activations, axis=0, kind="stable")[:k].T
    return np.take_along_axis(activations.T, order, axis=1), order


def stream(activations, k, batch, indices=None):
    indices = np.arange(len(activations)) if indices is None else indices
    state = topk.init(activations.shape[1], k)
    for start in range(0, len(activations), batch):
        rows, numbers = activations[start : start + batch], indices[start : start + batch]
        pad = batch - len(rows)
        rows = np.pad(rows, ((0, pad), (0, 0)), constant_values=99.0)  # padding must never win
        numbers = np.pad(numbers, (0, pad), constant_values=topk.EMPTY)
        state = topk.update(state, jnp.asarray(rows), jnp.asarray(numbers, jnp.int32))
    return state


@pytest.mark.parametrize("batch", [1, 7, 64, 200])
def test_running_topk_equals_a_stable_sort(activations, batch):
    values, order = expected_lists(activations, 20)
    state = stream(activations, 20, batch)
    np.testing.assert_array_equal(state.values, values)
    np.testing.assert_array_equal(state.indices, order)


def test_merged_streams_equal_one_stream(activations):
    numbers = np.arange(len(activations))
    parts = [stream(activations[d::3], 20, 8, numbers[d::3]) for d in (2, 0, 1)]
    merged = topk.merge(topk.TopK(*(jnp.stack(x) for x in zip(*parts, strict=True))))
    values, order = expected_lists(activations, 20)
    np.testing.assert_array_equal(merged.values, values)
    np.testing.assert_array_equal(merged.indices, order)


def test_fewer_images_than_k_leave_empty_slots(activations):
    state = stream(activations[:5], 20, 4)
    assert (np.asarray(state.indices)[:, 5:] == topk.EMPTY).all()
    assert np.isneginf(np.asarray(state.values)[:, 5:]).all()


def test_moments_equal_float64_sums(activations):
    rng = np.random.default_rng(1)
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
    import jax

    ones = jnp.ones((1, 1))
    start = moments.update(moments.init(1, 1), ones * 4096.0, ones, jnp.array([True]))
    step = lambda s, _: (moments.update(s, ones * 0.1, ones, jnp.array([True])), None)
    state = jax.lax.scan(step, start, None, length=100_000)[0]
    total = float(state.sums.total[0]) - float(state.lost.total[0])
    assert abs(total - (4096 + 100_000 * float(np.float32(0.1)))) < 1e-2


@pytest.mark.parametrize("how", ["avg", "max"])
def test_pooling(how):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(
        pooling.pool(jnp.asarray(x), how),
        getattr(x, {"avg": "mean", "max": "max"}[how])((1, 2)),
        rtol=1e-5,
    )
    np.testing.assert_array_equal(pooling.pool(jnp.asarray(x[:, 0]), how), x[:, 0, 0])
    np.testing.assert_array_equal(pooling.pool(jnp.asarray(x[:, 0, 0]), how), x[:, 0, 0])
    with pytest.raises(ValueError, match="2, 3 or 4 axes"):
        pooling.pool(jnp.ones(3), how)


def test_threshold_gains():
    scores = jnp.array([-1.0, 0.0, 0.5, 2.0])
    np.testing.assert_array_equal(gains.threshold(scores, 0.0, 2.0), [0.5, 0.5, 2.0, 2.0])
    np.testing.assert_array_equal(gains.threshold(scores, 0.0, 1.0), np.ones(4))
    assert (gains.with_scope(np.full(4, 2.0)).bias == 1).all()
    assert (gains.with_scope(np.full(4, 2.0), "weights_and_bias").bias == 2).all()
    with pytest.raises(ValueError, match="scope is"):
        gains.with_scope(np.ones(4), "bias")
