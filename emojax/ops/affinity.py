"""How units respond to attributes that images have or lack: AUROC, average precision, correlation.

It measures labels against the truth (`dissection.truth`) and a small CLIP's training
(`training.contrastive`). Shapes: I images, U units, A attributes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer


class Affinity(NamedTuple):
    """How each unit responds to each attribute, float32 [U, A].

    NaN where an attribute is never present or never absent.

    Attributes:
      auroc: the probability that an image with the attribute activates the unit more than one
        without; equal activations count half.
      auprc: average precision of finding the images with the attribute by activation.
      correlation: Pearson's, of activation and presence.
    """

    auroc: Float[np.ndarray, "U A"]
    auprc: Float[np.ndarray, "U A"]
    correlation: Float[np.ndarray, "U A"]


def affinity(
    responses: Float[Array, "I U"] | Float[np.ndarray, "I U"],
    presence: Integer[Array, "I2 A"] | Integer[np.ndarray, "I2 A"],
) -> Affinity:
    """Affinities of responses with what the images show.

    Args:
      responses: usually activations.
      presence: of the same images: 1 present, 0 absent, −1 unclear; unclear images are left out,
        per attribute.

    Raises:
      ValueError: the shapes do not fit.
    """
    if responses.ndim != 2 or presence.ndim != 2 or len(responses) != len(presence):
        raise ValueError(
            f"responses {responses.shape} and presence {presence.shape} are not of the same images"
        )
    present = jnp.asarray(presence == 1, jnp.float32)
    absent = jnp.asarray(presence == 0, jnp.float32)
    results = _affinity(jnp.asarray(responses, jnp.float32), present, absent)
    return Affinity(*map(np.asarray, results))


@jax.jit
def _affinity(
    responses: Float[Array, "I U"], present: Float[Array, "I A"], absent: Float[Array, "I A"]
) -> tuple[Float[Array, "U A"], Float[Array, "U A"], Float[Array, "U A"]]:
    # Counts are [1, A], because they meet a row for each image or unit.
    positives = present.sum(axis=0, keepdims=True)
    negatives = absent.sum(axis=0, keepdims=True)

    def rank_measures(values: Float[Array, " I"]) -> tuple[Float[Array, " A"], Float[Array, " A"]]:
        """AUROC and average precision of one unit, for every attribute."""
        order = jnp.argsort(values)
        sorted_values = values[order]
        yes = present[order]
        no = absent[order]
        # Equal values form a group, of which none is ranked before another: `first` and `last`
        # bound the group of each image.
        first = jnp.searchsorted(sorted_values, sorted_values, side="left")
        last = jnp.searchsorted(sorted_values, sorted_values, side="right")
        yes_before = jnp.pad(yes.cumsum(axis=0), ((1, 0), (0, 0)))
        no_before = jnp.pad(no.cumsum(axis=0), ((1, 0), (0, 0)))
        # Mann and Whitney: how many absent images each present one beats, ties counting half.
        beaten = (no_before[first] + no_before[last]) / 2
        auroc = (yes * beaten).sum(axis=0, keepdims=True) / (positives * negatives)
        # Each present image's value as a threshold: what is found at it or above, and what of
        # that is wrong. The mean of these precisions is the average precision.
        true_positives = positives - yes_before[first]
        false_positives = negatives - no_before[first]
        precision = true_positives / jnp.maximum(true_positives + false_positives, 1.0)
        auprc = (yes * precision).sum(axis=0, keepdims=True) / positives
        return auroc[0], auprc[0]

    # One unit at a time: the sorted presences of all units at once would be [U, I, A].
    auroc, auprc = jax.lax.map(rank_measures, responses.T)
    known = present + absent
    count = positives + negatives

    def product(x: Float[Array, "I M"], y: Float[Array, "I N"]) -> Float[Array, "M N"]:
        return jnp.matmul(x.T, y, precision=jax.lax.Precision.HIGHEST)

    # Moments over the known images of each attribute. Responses are centred first: float32 keeps
    # the variance of what is centred, where E[x²] − E[x]² would lose it.
    centred = responses - responses.mean(axis=0, keepdims=True)
    mean = product(centred, known) / count
    mean_yes = positives / count
    covariance = product(centred, present) / count - mean * mean_yes
    variance = product(centred**2, known) / count - mean**2
    spread = jnp.sqrt(variance * (mean_yes * (1 - mean_yes)))
    correlation = jnp.where(spread > 0, covariance / spread, 0.0)
    usable = (positives > 0) & (negatives > 0)
    return (
        jnp.where(usable, auroc, jnp.nan),
        jnp.where(usable, auprc, jnp.nan),
        jnp.where(usable, correlation, jnp.nan),
    )
