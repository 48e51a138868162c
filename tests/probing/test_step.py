"""The state of units shared out among devices, against lists and sums that numpy makes."""

import jax
import numpy as np
import pytest

from emojax.distributed.mesh import make_mesh, put_batch
from emojax.ops.topk import EMPTY
from emojax.probing import step as steps

UNITS, WIDTH, TOP_K, BATCH, IMAGES = 45, 8, 7, 32, 90
# Whole numbers, which all sums hold exactly, and few of them, so that lists are full of ties.
ROWS = np.random.default_rng(0).integers(0, 6, (96, 1, UNITS + WIDTH, 1), np.uint8)


def forward(_, images):
    rows = images.reshape(len(images), -1).astype(np.float32)
    return rows[:, :UNITS], rows[:, UNITS:]


def run(mesh, batches, snapshot=None):
    """The state on the host after these batches, and their embeddings."""
    step = steps.make_step(forward, 2, False, mesh)
    state = steps.place(snapshot, steps.empty_state(UNITS, TOP_K, WIDTH), mesh)
    embeddings = []
    for number in batches:
        indices = np.arange(number * BATCH, (number + 1) * BATCH, dtype=np.int32)
        indices[indices >= IMAGES] = EMPTY
        pixels = ROWS[number * BATCH : (number + 1) * BATCH]
        state, rows = step({}, state, *put_batch(mesh, pixels, indices))
        embeddings.append(np.asarray(rows["embeddings"]))
    return steps.to_host(mesh, state, UNITS), np.concatenate(embeddings)


def merged_lists(half, devices):
    """Lists [U, K] of one half, merged on the host from those of so many devices."""
    a = ROWS[:IMAGES].reshape(IMAGES, -1)[:, :UNITS].astype(np.float32)
    of_half = np.arange(half, IMAGES, 2)
    values, indices = [], []
    for device in range(devices):
        own = of_half[of_half % BATCH // (BATCH // devices) == device]
        order = own[np.argsort(-a[own], axis=0, kind="stable")][:TOP_K]
        indices.append(order)
        values.append(np.take_along_axis(a, order, axis=0))
    values, indices = np.concatenate(values), np.concatenate(indices)
    order = np.lexsort((indices, -values), axis=0)[:TOP_K]
    return (np.take_along_axis(array, order, axis=0).T for array in (values, indices))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_lists_and_sums_are_those_that_a_host_merges(devices):
    host, embeddings = run(make_mesh(devices), range(3))
    assert host.top.values.shape == (2, UNITS, TOP_K)
    for half in (0, 1):
        values, indices = merged_lists(half, devices)
        np.testing.assert_array_equal(host.top.values[half], values)
        np.testing.assert_array_equal(host.top.indices[half], indices)
    a, e = np.split(np.float64(ROWS.reshape(96, -1)), [UNITS], axis=1)
    np.testing.assert_array_equal(embeddings, e)
    sums = steps.half_moments(host, IMAGES)
    for half in (0, 1):
        own_a, own_e = a[half:IMAGES:2], e[half:IMAGES:2]
        np.testing.assert_array_equal(sums.total[half], own_a.sum(0))
        np.testing.assert_array_equal(sums.square[half], (own_a**2).sum(0))
        np.testing.assert_array_equal(sums.cross[half], own_a.T @ own_e)
        np.testing.assert_array_equal(sums.gram[half], own_e.T @ own_e)
        np.testing.assert_array_equal(sums.embedding[half], own_e.sum(0))


@pytest.mark.slow
def test_a_snapshot_serves_any_number_of_devices():
    want, _ = run(make_mesh(1), range(3))
    before, _ = run(make_mesh(8), [0])
    got, _ = run(make_mesh(1), [1, 2], steps.to_leaves(before))
    for ours, theirs in zip(
        steps.to_leaves(got).values(), steps.to_leaves(want).values(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_snapshot_does_not_grow_with_the_devices():
    state = jax.eval_shape(lambda: steps.empty_state(6, 5, 4))
    lists, sums, origin = 16 * 6 * 5, 16 * (2 * 6 + 6 * 4 + 4 * 4 + 4), 4 * (6 + 4)
    size = lists + sums + origin
    assert steps.snapshot_bytes(state, 1) == (size, 0)
    of_units = lists + 16 * (2 * 6 + 6 * 4) + 4 * 6
    assert steps.snapshot_bytes(state, 4) == (size, of_units * 3 // 4)
