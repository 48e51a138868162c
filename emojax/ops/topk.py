"""Running top-k per unit over a stream of image batches, and its merge across streams.

The probe keeps these lists, and every label is made from them. An entry is a pair (value, image
index). Lists are ordered by value, largest first, ties by the lower image index; an empty slot is
(-inf, EMPTY). Shapes: U units, K list length, B batch, S streams.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

EMPTY = jnp.iinfo(jnp.int32).max


class TopK(NamedTuple):
    """Lists of the largest values and the images that gave them."""

    values: Float[Array, "... U K"]
    indices: Int32[Array, "... U K"]


def init(units: int, k: int) -> TopK:
    """Empty lists [U, K]."""
    values = jnp.full((units, k), -jnp.inf, jnp.float32)
    return TopK(values, jnp.full((units, k), EMPTY, jnp.int32))


def update(state: TopK, activations: Float[Array, "B U"], indices: Int32[Array, " B"]) -> TopK:
    """Lists [U, K] of all images so far and this batch's; index EMPTY marks padding.

    Image indices must grow from batch to batch and inside one.
    """
    values = jnp.where(indices[None, :] == EMPTY, -jnp.inf, activations.T.astype(jnp.float32))
    # Earlier images stand first. `lax.top_k` is stable, so they win ties without a second key.
    all_values = jnp.concatenate([state.values, values], axis=1)
    batch_indices = jnp.broadcast_to(indices[None, :], values.shape)
    all_indices = jnp.concatenate([state.indices, batch_indices], axis=1)
    best, places = jax.lax.top_k(all_values, state.values.shape[1])
    return TopK(best, jnp.take_along_axis(all_indices, places, axis=1))


def merge(state: TopK, k: int | None = None) -> TopK:
    """Merges lists [S, U, K] of S streams (devices, split halves) into one [U, k].

    The result does not depend on the order of the streams: both keys are sorted.
    """
    streams, units, size = state.values.shape
    values, indices = (jnp.moveaxis(x, 0, 1).reshape(units, streams * size) for x in state)
    negated, indices = jax.lax.sort((-values, indices), dimension=1, num_keys=2)
    return TopK(-negated[:, : k or size], indices[:, : k or size])
