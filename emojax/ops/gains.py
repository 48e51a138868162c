"""From scores to gains, and from gains to edited parameters. A gain scales a unit; 1 leaves it.

The paper edits a unit by scaling its row of weights and not its bias. That equals a gain on the
layer's output before the bias is added, which is how a sweep applies it without copying parameters.
Shapes: U units, C concepts.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Real

from emojax.ops.arrays import AnyArray

Scope = Literal["weights", "weights_and_bias"]
Scalar = float | int | np.number | Real[AnyArray, ""]  # a number, or one that is traced


class Gain(NamedTuple):
    """What multiplies a layer's weights [U] and what multiplies its bias [U]."""

    weight: Float[Array, "..."]
    bias: Float[Array, "..."]


def threshold(scores: Real[AnyArray, " U"], tau: Scalar, factor: Scalar) -> Float[Array, " U"]:
    """×factor where the unit's score exceeds tau, ÷factor elsewhere: the paper's edit.

    tau and factor may be traced. factor 1 gives exactly 1 for every unit.
    """
    return from_mask(jnp.asarray(scores) > tau, factor)


def from_mask(
    mask: Bool[AnyArray, "*settings U"] | list[bool], factor: Scalar
) -> Float[Array, "*settings U"]:
    """×factor for the units in a mask, ÷factor for the others."""
    up = jnp.asarray(factor, jnp.float32)
    return jnp.where(jnp.asarray(mask), up, 1.0 / up)


def continuous(scores: Real[AnyArray, " U"], factor: Scalar) -> Float[Array, " U"]:
    """factor·(s − min)/(max − min), the paper's continuous variant: gains between 0 and factor.

    Scores that are all equal say nothing, and every gain is 1.
    """
    scores = jnp.asarray(scores, jnp.float32)
    low = scores.min()
    high = scores.max()
    # The inner `where` keeps the division defined in the branch that the outer one leaves out.
    spread = jnp.where(high > low, high - low, 1.0)
    return jnp.where(high > low, factor * (scores - low) / spread, 1.0)


def top_fraction(scores: Real[AnyArray, " U"], fraction: float) -> Bool[Array, " U"]:
    """Mask of the round(fraction·U) units with the highest scores; ties to the lower unit."""
    scores = jnp.asarray(scores)
    rank = jnp.argsort(jnp.argsort(-scores, stable=True))
    return rank < round(fraction * scores.shape[0])


def weight_sums(kernel: Float[AnyArray, "*inputs U"]) -> Float[Array, " U"]:
    """Σ|W| of every unit's row of weights; `kernel` has its units last."""
    return jnp.abs(kernel).sum(axis=tuple(range(kernel.ndim - 1)))


def above_mean(values: Real[AnyArray, " U"]) -> Bool[Array, " U"]:
    """Mask of the units whose value exceeds the mean.

    With `weight_sums` it is the paper's weight-sum variant.
    """
    return jnp.asarray(values) > jnp.mean(values)


def with_scope(gains: Scalar | Real[AnyArray, "..."], scope: Scope | str = "weights") -> Gain:
    """Gains, mostly [U], on the weights only, as in the paper, or on weights and bias.

    Raises:
      ValueError: the scope is neither.
    """
    if scope not in ("weights", "weights_and_bias"):
        raise ValueError(f"scope is 'weights' or 'weights_and_bias', not {scope!r}")
    weight = jnp.asarray(gains, jnp.float32)
    return Gain(weight, weight if scope == "weights_and_bias" else jnp.ones_like(weight))


def scale_kernel(
    kernel: Float[Array, "*inputs U"], bias: Float[Array, " U"], gain: Gain
) -> tuple[Float[Array, "*inputs U"], Float[Array, " U"]]:
    """Edited parameters of one layer, dense or convolution, in the parameters' own dtype."""
    weight = jnp.broadcast_to(gain.weight.astype(kernel.dtype), kernel.shape)  # its units are last
    new_kernel = kernel * weight
    new_bias = bias * gain.bias.astype(bias.dtype)
    return new_kernel, new_bias
