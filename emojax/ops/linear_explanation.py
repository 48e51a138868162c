"""Greedy choice of the concepts whose weighted sum explains a unit, for all units at once.

Forward selection from correlations alone, without the images: each step takes the concept that
adds most to the multiple correlation. It is `explain`'s kernel; the weights are solved for
afterwards, in float64, from the same moments. Shapes: U units, C concepts, K concepts at most.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from emojax.ops.arrays import AnyArray

NONE = -1
# A concept whose variance the chosen ones explain but for this share is not told from a mixture of
# them: what is left of it in float32 is rounding.
_OWN_VARIANCE = 1e-4
_CELLS = 2**19  # units × concepts worked on together: what they carry stays in some 20 MB


class Choice(NamedTuple):
    """Concepts in the order chosen, NONE behind the last; the multiple correlation after each."""

    concepts: Int32[Array, "U K"]
    correlations: Float[Array, "U K"]


def greedy(
    correlations: Float[AnyArray, "U C"],
    gram: Float[AnyArray, "C C"],
    *,
    most: int,
    tolerance: float,
) -> Choice:
    """Chooses up to `most` concepts for every unit.

    A first concept is always chosen, unless the unit correlates with none; another one while it
    adds at least `tolerance` to the correlation. Ties go to the earlier concept.

    Args:
      correlations: of each unit's activation with each concept; 0 for a constant one.
      gram: correlations of the concepts with each other.
      most: the largest number of concepts.
      tolerance: least gain in correlation.
    """
    concepts = correlations.shape[1]
    products = jnp.asarray(gram)

    def explain(unit: Float[Array, " C"]) -> tuple[Int32[Array, " K"], Float[Array, " K"]]:
        def step(state: tuple, number: Int32[Array, ""]) -> tuple:
            # `left` is the correlation of what is unexplained of the unit with each concept, `own`
            # the concept's variance that the chosen ones do not explain, and `basis` the chosen
            # concepts made orthogonal, by their products with all concepts (Gram-Schmidt).
            left, own, basis, explained, going = state
            gains = jnp.where(own > _OWN_VARIANCE, left**2 / own, 0.0)
            best = jnp.argmax(gains)
            before = jnp.sqrt(explained)
            after = jnp.sqrt(explained + gains[best])
            enough = (number == 0) | (after - before >= tolerance)
            going = going & enough & (gains[best] > 0)
            length = jnp.sqrt(jnp.maximum(own[best], _OWN_VARIANCE))
            direction = (products[best] - basis[:, best] @ basis) / length
            new_left = left - left[best] / length * direction
            new_own = (own - direction**2).at[best].set(0.0)
            chosen = jnp.where(going, best.astype(jnp.int32), NONE)
            state = (
                jnp.where(going, new_left, left),
                jnp.where(going, new_own, own),
                jnp.where(going, basis.at[number].set(direction), basis),
                jnp.where(going, explained + gains[best], explained),
                going,
            )
            return state, (chosen, jnp.where(going, after, before))

        zero = jnp.zeros((), unit.dtype)
        start = (unit, jnp.ones_like(unit), jnp.zeros((most, concepts), unit.dtype), zero, True)
        return jax.lax.scan(step, start, jnp.arange(most))[1]

    with jax.default_matmul_precision("highest"):
        batch = max(1, _CELLS // concepts)
        return Choice(*jax.lax.map(explain, jnp.asarray(correlations), batch_size=batch))
