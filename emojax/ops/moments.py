"""Running sums over images: per unit, and crossed with the image embeddings. Enough for the cosine
similarity.

Sums are compensated (Kahan): a million images leave no more rounding behind than a few. Shapes: U
units, D embedding, B batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Moments(NamedTuple):
    """Sums over images of a [U] (`total`), a² [U] (`square`), a·e [U, D] (`cross`) and e·e [D, D]
    (`gram`).
    """

    total: jax.Array
    square: jax.Array
    cross: jax.Array
    gram: jax.Array


class Running(NamedTuple):
    """Sums so far and what rounding took from them."""

    sums: Moments
    lost: Moments


def init(units: int, embedding: int) -> Running:
    """All zero, float32."""
    shapes = ((units,), (units,), (units, embedding), (embedding, embedding))
    return Running(
        *(Moments(*(jnp.zeros(shape, jnp.float32) for shape in shapes)) for _ in range(2))
    )


def update(
    state: Running, activations: jax.Array, embeddings: jax.Array, valid: jax.Array
) -> Running:
    """Adds a batch: `activations` [B, U], `embeddings` [B, D], `valid` [B] bool (False marks
    padding).
    """
    a = jnp.where(valid[:, None], activations.astype(jnp.float32), 0.0)
    e = jnp.where(valid[:, None], embeddings.astype(jnp.float32), 0.0)
    cross = jnp.matmul(a.T, e, precision=jax.lax.Precision.HIGHEST)
    gram = jnp.matmul(e.T, e, precision=jax.lax.Precision.HIGHEST)
    batch = Moments(a.sum(0), jnp.square(a).sum(0), cross, gram)

    sums = jax.tree.map(lambda s, lost, new: s + (new - lost), state.sums, state.lost, batch)
    lost = jax.tree.map(
        lambda now, s, lost, new: (now - s) - (new - lost), sums, state.sums, state.lost, batch
    )
    return Running(sums, lost)
