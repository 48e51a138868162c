"""From scores to gains, and from gains to edited parameters. A gain scales a unit; 1 leaves it alone.

The paper edits a unit by scaling its row of weights and not its bias. That equals a gain on the layer's output before
the bias is added, which is how a sweep applies it without copying parameters. Shapes: U units, C concepts.
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
    """×factor where the unit's score exceeds tau, ÷factor elsewhere: the paper's edit. `scores` [U] → gains [U].

    tau and factor may be traced. factor 1 gives exactly 1 for every unit.
    """
    factor = jnp.asarray(factor, jnp.float32)
    return jnp.where(jnp.asarray(scores) > tau, factor, 1.0 / factor)


def with_scope(gains: jax.Array, scope: Scope = "weights") -> Gain:
    """Gains [U] on the weights only, as in the paper, or on weights and bias."""
    if scope not in ("weights", "weights_and_bias"):
        raise ValueError(f"scope is 'weights' or 'weights_and_bias', not {scope!r}")
    gains = jnp.asarray(gains, jnp.float32)
    return Gain(gains, gains if scope == "weights_and_bias" else jnp.ones_like(gains))


def scale_kernel(kernel: jax.Array, bias: jax.Array, gain: Gain) -> tuple[jax.Array, jax.Array]:
    """Edited parameters of one layer: `kernel` [..., U] (units last, dense or convolution) and `bias` [U]."""
    return kernel * gain.weight.astype(kernel.dtype), bias * gain.bias.astype(bias.dtype)
