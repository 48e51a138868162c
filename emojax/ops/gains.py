"""From scores to gains, and from gains to edited parameters. A gain scales a unit; 1 leaves it
alone.

The paper edits a unit by scaling its row of weights and not its bias. That equals a gain on the
layer's output before the bias is added, which is how a sweep applies it without copying parameters.
Shapes: U units, C concepts.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

Scope = Literal["weights", "weights_and_bias"]


class Gain(NamedTuple):
    """What multiplies a layer's weights [U] and what multiplies its bias [U]."""

    weight: jax.Array
    bias: jax.Array


def threshold(scores: jax.Array, tau: jax.Array | float, factor: jax.Array | float) -> jax.Array:
    """×factor where the unit's score exceeds tau, ÷factor elsewhere: the paper's edit. `scores` [U]
    → gains [U].

    tau and factor may be traced. factor 1 gives exactly 1 for every unit.
    """
    return from_mask(jnp.asarray(scores) > tau, factor)


def from_mask(mask: jax.Array, factor: jax.Array | float) -> jax.Array:
    """×factor for the units in a mask, ÷factor for the others: `mask` [.., U] of booleans → gains
    [.., U].
    """
    factor = jnp.asarray(factor, jnp.float32)
    return jnp.where(jnp.asarray(mask), factor, 1.0 / factor)


def continuous(scores: jax.Array, factor: jax.Array | float) -> jax.Array:
    """factor·(s − min)/(max − min), the paper's continuous variant: `scores` [U] → gains [U]
    between 0 and factor.

    Scores that are all equal say nothing, and every gain is 1.
    """
    scores = jnp.asarray(scores, jnp.float32)
    low, high = scores.min(), scores.max()
    return jnp.where(
        high > low, factor * (scores - low) / jnp.where(high > low, high - low, 1.0), 1.0
    )


def top_fraction(scores: jax.Array, fraction: float) -> jax.Array:
    """Mask [U] of the units with the highest scores, round(fraction·U) of them; ties to the lower
    unit.
    """
    scores = jnp.asarray(scores)
    rank = jnp.argsort(jnp.argsort(-scores, stable=True))
    return rank < round(fraction * scores.shape[0])


def weight_sums(kernel: jax.Array) -> jax.Array:
    """Σ|W| of every unit's row of weights: `kernel` [.., U], units last → [U]."""
    return jnp.abs(kernel).sum(axis=tuple(range(kernel.ndim - 1)))


def above_mean(values: jax.Array) -> jax.Array:
    """Mask [U] of the units whose value exceeds the mean: with `weight_sums`, the paper's
    weight-sum variant.
    """
    return jnp.asarray(values) > jnp.mean(values)


def with_scope(gains: jax.Array, scope: Scope = "weights") -> Gain:
    """Gains [U] on the weights only, as in the paper, or on weights and bias."""
    if scope not in ("weights", "weights_and_bias"):
        raise ValueError(f"scope is 'weights' or 'weights_and_bias', not {scope!r}")
    gains = jnp.asarray(gains, jnp.float32)
    return Gain(gains, gains if scope == "weights_and_bias" else jnp.ones_like(gains))


def scale_kernel(kernel: jax.Array, bias: jax.Array, gain: Gain) -> tuple[jax.Array, jax.Array]:
    """Edited parameters of one layer: `kernel` [..., U] (units last, dense or convolution) and
    `bias` [U].
    """
    return kernel * gain.weight.astype(kernel.dtype), bias * gain.bias.astype(bias.dtype)
