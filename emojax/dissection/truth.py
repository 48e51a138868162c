"""Are labels true? Labels are compared with what units respond to, where images are known.

CLIP-Dissect could compare similarity functions only where a unit's concept was known in advance (a
network's last layer). On rendered faces the truth of any unit is measurable: how well its
activation tells faces with an attribute from faces without. Shapes: I images, U units, A attributes
(the concepts); presence is 1, 0 or −1 (unclear, left out).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from emojax.data.image_set import ImageSet
from emojax.data.map_images import map_images
from emojax.ops.pooling import Pool
from emojax.probing.network import Network, pooled_taps


class Affinity(NamedTuple):
    """How each unit responds to each attribute, float32 [U, A].

    NaN where an attribute is never present or never absent.

    `auroc`: the chance that a face with the attribute activates the unit more than one without
    (ties half). `auprc`: average precision of finding the faces with the attribute by activation.
    `correlation`: Pearson's, of activation and presence.
    """

    auroc: np.ndarray
    auprc: np.ndarray
    correlation: np.ndarray


def activations(
    network: Network, images: ImageSet, layers: Sequence[str], pool: Pool = "avg"
) -> Float[np.ndarray, "I U"]:
    """Pooled activations of the layers, side by side, for every image."""
    forward = pooled_taps(network, layers, pool)
    return map_images(forward, network.params, images, batch=256, keep=network.reusable)


def affinity(responses: Float[np.ndarray, "..."], presence: Int[np.ndarray, "..."]) -> Affinity:
    """Affinities [U, A] of responses, usually activations, [I, U] with presence [I, A].

    Raises:
      ValueError: the shapes do not fit.
    """
    if responses.ndim != 2 or presence.ndim != 2 or len(responses) != len(presence):
        raise ValueError(
            f"responses {responses.shape} and presence {presence.shape} are not of the same images"
        )
    values = jnp.asarray(responses, jnp.float32)
    present = jnp.asarray(presence == 1, jnp.float32)
    absent = jnp.asarray(presence == 0, jnp.float32)
    return Affinity(*map(np.asarray, _affinity(values, present, absent)))


@jax.jit
def _affinity(
    responses: Float[Array, "I U"], present: Float[Array, "I A"], absent: Float[Array, "I A"]
) -> tuple[Float[Array, "U A"], Float[Array, "U A"], Float[Array, "U A"]]:
    # A unit at a time: its sorted order is shared by all attributes.
    auroc, auprc = jax.lax.map(
        lambda values: _ranking_quality(values, present, absent), responses.T
    )
    correlation = _correlation(responses, present, absent)
    usable = (present.sum(axis=0) > 0) & (absent.sum(axis=0) > 0)
    known = [jnp.where(usable, value, jnp.nan) for value in (auroc, auprc, correlation)]
    return known[0], known[1], known[2]


def _ranking_quality(
    values: Float[Array, " I"], present: Float[Array, "I A"], absent: Float[Array, "I A"]
) -> tuple[Float[Array, " A"], Float[Array, " A"]]:
    """AUROC and average precision of one unit's activations for every attribute."""
    positives = present.sum(axis=0)
    negatives = absent.sum(axis=0)
    order = jnp.argsort(values)
    ascending = values[order]
    yes = present[order]
    no = absent[order]
    # Equal values make a group, from its first place up to the one after its last.
    first = jnp.searchsorted(ascending, ascending, side="left")
    last = jnp.searchsorted(ascending, ascending, side="right")
    yes_before = jnp.pad(yes.cumsum(axis=0), ((1, 0), (0, 0)))
    no_before = jnp.pad(no.cumsum(axis=0), ((1, 0), (0, 0)))

    # Mann–Whitney: a positive beats the negatives before its group and half of those in it.
    beaten = (no_before[first] + no_before[last]) / 2
    auroc = (yes * beaten).sum(axis=0) / (positives * negatives)

    # Precision at each positive's threshold: all images of its value or above are called positive.
    true = positives - yes_before[first]
    false = negatives - no_before[first]
    precision = true / jnp.maximum(true + false, 1.0)
    return auroc, (yes * precision).sum(axis=0) / positives


def _correlation(
    responses: Float[Array, "I U"], present: Float[Array, "I A"], absent: Float[Array, "I A"]
) -> Float[Array, "U A"]:
    """Pearson's correlation over the images where presence is known; 0 for a constant unit."""
    known = present + absent
    positives = present.sum(axis=0)
    count = positives + absent.sum(axis=0)

    def product(left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.matmul(left.T, right, precision=jax.lax.Precision.HIGHEST)

    centred = responses - responses.mean(axis=0)  # float32 keeps the variance of what is centred
    mean = product(centred, known) / count
    mean_yes = positives / count
    covariance = product(centred, present) / count - mean * mean_yes
    variance = product(centred**2, known) / count - mean**2
    spread = jnp.sqrt(variance * (mean_yes * (1 - mean_yes)))
    return jnp.where(spread > 0, covariance / spread, 0.0)


@dataclass(frozen=True)
class Agreement:
    """How a similarity function's labels compare with the truth, over units.

    Attributes:
      units: how many were compared.
      best: share of labels that are the attribute the unit responds to most (by AUROC).
      among_three: share of labels among its three most.
      auroc_of_label: mean AUROC of the label; auroc_of_best, of the best label there is;
        auroc_of_random, of any.
      rank_correlation: Spearman's, of a unit's scores and AUROCs over the attributes; mean over
        units.
      attributes: how many labels there are to choose from: chance is 1/attributes for `best`,
        3/attributes for the next.
    """

    units: int
    best: float
    among_three: float
    auroc_of_label: float
    auroc_of_best: float
    auroc_of_random: float
    rank_correlation: float
    attributes: int


def agreement(
    scores: Float[np.ndarray, "..."], auroc: Float[np.ndarray, "..."], *, least: float = 0.0
) -> Agreement:
    """Compares scores [U, A] with AUROCs [U, A], over units whose best AUROC is at least `least`.

    Attributes without a known AUROC are left out of both, and units that respond to all alike,
    which have no best.

    Raises:
      ValueError: the shapes differ, or no unit or fewer than three attributes remain.
    """
    if scores.shape != auroc.shape:
        raise ValueError(f"scores {scores.shape} and AUROCs {auroc.shape} differ in shape")
    known = np.isfinite(auroc).all(axis=0)
    scores = scores[:, known]
    auroc = auroc[:, known]
    attributes = auroc.shape[1]
    if attributes < 3:
        raise ValueError(
            f"only {attributes} attributes are present in some images and absent in others"
        )
    highest = auroc.max(axis=1)
    compared = (highest >= least) & (highest > auroc.min(axis=1))
    if not compared.any():
        raise ValueError(f"no unit has an AUROC of {least} with any attribute")
    scores = scores[compared]
    auroc = auroc[compared]
    of_label = np.take_along_axis(auroc, scores.argmax(axis=1)[:, None], axis=1)
    better = (auroc > of_label).sum(axis=1)
    return Agreement(
        units=len(scores),
        best=float((better == 0).mean()),
        among_three=float((better < 3).mean()),
        auroc_of_label=float(of_label.mean()),
        auroc_of_best=float(auroc.max(axis=1).mean()),
        auroc_of_random=float(auroc.mean()),
        rank_correlation=float(np.mean(_spearman(scores, auroc))),
        attributes=attributes,
    )


def _spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of the rows of two arrays [U, A] → [U].

    Equal values share their mean rank.
    """
    from scipy.stats import rankdata

    middle = (first.shape[1] + 1) / 2
    a = rankdata(first, axis=1) - middle
    b = rankdata(second, axis=1) - middle
    spread = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), spread, out=np.zeros(len(a)), where=spread > 0)


def table(
    scores: Mapping[str, np.ndarray], auroc: Float[np.ndarray, "U A"], *, least: float = 0.0
) -> dict[str, Agreement]:
    """`agreement` of several similarity functions on the same units, by name."""
    return {name: agreement(values, auroc, least=least) for name, values in scores.items()}
