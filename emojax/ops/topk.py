"""Running top-k per unit over a stream of image batches, and its merge across streams.

An entry is a pair (value, image index). Lists are ordered by value, largest first, ties by the
lower image index; an empty slot is (-inf, EMPTY). Shapes: U units, K list length, B batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

EMPTY = jnp.iinfo(jnp.int32).max


class TopK(NamedTuple):
    """Lists of the largest values: `values` [..., U, K] float32 and `indices` [..., U, K] int32."""

    values: jax.Array
    indices: jax.Array


def init(units: int, k: int) -> TopK:
    """Empty lists [U, K]."""
    return TopK(jnp.full((units, k), -jnp.inf, jnp.float32), jnp.full((units, k), EMPTY, jnp.int32))


def update(state: TopK, activations: jax.Array, indices: jax.Array) -> TopK:
    """Takes a batch in: `activations` [B, U], `indices` [B] int32 (EMPTY marks padding).

    Image indices must grow from batch to batch and inside one: `lax.top_k` is stable, so earlier
    entries win ties.
    """
    values = jnp.where(indices[None, :] == EMPTY, -jnp.inf, activations.T.astype(jnp.float32))
    all_values = jnp.concatenate([state.values, values], axis=1)
    all_indices = jnp.concatenate(
        [state.indices, jnp.broadcast_to(indices[None, :], values.shape)], axis=1
    )
    best, where = jax.lax.top_k(all_values, state.values.shape[1])
    return TopK(best, jnp.take_along_axis(all_indices, where, axis=1))


def merge(state: TopK, k: int | None = None) -> TopK:
    """Merges lists [S, U, K] of S streams (devices, halves of the images) into one [U, k], whatever
    their order.
    """
    streams, units, size = state.values.shape
    flat = [jnp.moveaxis(x, 0, 1).reshape(units, streams * size) for x in state]
    values, indices = jax.lax.sort((-flat[0], flat[1]), dimension=1, num_keys=2)
    return TopK(-values[:, : k or size], indices[:, : k or size])
