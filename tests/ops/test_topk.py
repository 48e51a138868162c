"""The running top-k and its merge, against a stable sort."""

import jax
import numpy as np
import pytest

from emojax.ops import topk

update = jax.jit(topk.update)


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
        state = update(state, rows, np.int32(numbers))
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
    merged = jax.jit(topk.merge)(topk.TopK(*(np.stack(x) for x in zip(*parts, strict=True))))
    values, order = expected_lists(activations, 20)
    np.testing.assert_array_equal(merged.values, values)
    np.testing.assert_array_equal(merged.indices, order)


def test_fewer_images_than_k_leave_empty_slots(activations):
    state = stream(activations[:5], 20, 4)
    assert (np.asarray(state.indices)[:, 5:] == topk.EMPTY).all()
    assert np.isneginf(np.asarray(state.values)[:, 5:]).all()
