"""Running sums over images: per unit, and crossed with the image embeddings.

The probe keeps them in place of the activations; they are enough for the cosine similarity. Sums
are compensated (Kahan 1965): a million images leave no more rounding behind than a few.
Shapes: U units, D embedding, B batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Moments(NamedTuple):
    """Sums over images of a (`total`), a² (`square`), a·e (`cross`) and e·e (`gram`), float32."""

    total: Float[Array, " U"]
    square: Float[Array, " U"]
    cross: Float[Array, "U D"]
    gram: Float[Array, "D D"]


class Running(NamedTuple):
    """Sums so far, and how much too large rounding made them: the exact sums are `sums - lost`."""

    sums: Moments
    lost: Moments


def init(units: int, embedding: int) -> Running:
    """All zero, float32."""

    def zeros() -> Moments:
        return Moments(
            total=jnp.zeros(units, jnp.float32),
            square=jnp.zeros(units, jnp.float32),
            cross=jnp.zeros((units, embedding), jnp.float32),
            gram=jnp.zeros((embedding, embedding), jnp.float32),
        )

    return Running(zeros(), zeros())


def update(
    state: Running,
    activations: Float[Array, "B U"],
    embeddings: Float[Array, "B D"],
    valid: Bool[Array, " B"],
) -> Running:
    """Adds a batch; `valid` is False for padding, which may hold anything, NaN included."""
    a = jnp.where(valid[:, None], activations.astype(jnp.float32), 0.0)
    e = jnp.where(valid[:, None], embeddings.astype(jnp.float32), 0.0)
    batch = Moments(
        total=a.sum(0),
        square=jnp.square(a).sum(0),
        cross=jnp.matmul(a.T, e, precision=jax.lax.Precision.HIGHEST),
        gram=jnp.matmul(e.T, e, precision=jax.lax.Precision.HIGHEST),
    )

    # Kahan's step. A batch's sum is small beside the running one, so adding it drops its last
    # digits. They come back as (now - before) - new, and are taken off the next batch.
    sums = jax.tree.map(
        lambda before, lost, new: before + (new - lost), state.sums, state.lost, batch
    )
    lost = jax.tree.map(
        lambda now, before, lost, new: (now - before) - (new - lost),
        sums,
        state.sums,
        state.lost,
        batch,
    )
    return Running(sums, lost)
