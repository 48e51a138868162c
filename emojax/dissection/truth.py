"""Are labels true? Where it is known what every image shows, labels are compared with what each unit responds to.

CLIP-Dissect could compare similarity functions only where a unit's concept was known in advance (a network's last
layer). On rendered faces the truth of any unit is measurable: how well its activation tells faces with an attribute
from faces without. Shapes: I images, U units, A attributes (the concepts), presence 1, 0 or −1 (unclear, left out).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emojax.data.image_set import ImageSet
from emojax.data.map_images import map_images
from emojax.ops.pooling import Pool, pool
from emojax.probing.network import Network


class Affinity(NamedTuple):
    """How each unit responds to each attribute, float32 [U, A]; NaN where an attribute is never present or never absent.

    `auroc`: the chance that a face with the attribute activates the unit more than one without (ties half).
    `auprc`: average precision of finding the faces with the attribute by activation.
    `correlation`: Pearson's, of activation and presence.
    """

    auroc: np.ndarray
    auprc: np.ndarray
    correlation: np.ndarray


def activations(network: Network, images: ImageSet, layers: Sequence[str], how: Pool = "avg") -> np.ndarray:
    """Pooled activations [I, U] of the layers, in a row, for every image."""

    def forward(params: Any, chunk: jax.Array) -> jax.Array:
        taps = network.apply(params, network.preprocess(chunk))[1]
        return jnp.concatenate([pool(taps[name], how) for name in layers], axis=1)

    return map_images(forward, network.params, images, batch=256)


def affinity(responses: np.ndarray, presence: np.ndarray) -> Affinity:
    """Affinities [U, A] of responses, usually activations, [I, U] with what the images show, presence [I, A] in {1, 0, −1}.

    Raises:
      ValueError: the shapes do not fit.
    """
    if responses.ndim != 2 or presence.ndim != 2 or len(responses) != len(presence):
        raise ValueError(f"responses {responses.shape} and presence {presence.shape} are not of the same images")
    present, absent = (jnp.asarray(presence == value, jnp.float32) for value in (1, 0))
    return Affinity(*map(np.asarray, _affinity(jnp.asarray(responses, jnp.float32), present, absent)))


@jax.jit
def _affinity(responses: jax.Array, present: jax.Array, absent: jax.Array) -> tuple[jax.Array, ...]:
    positives, negatives = present.sum(axis=0), absent.sum(axis=0)

    def unit(values: jax.Array) -> tuple[jax.Array, jax.Array]:
        order = jnp.argsort(values)
        sorted_values, yes, no = values[order], present[order], absent[order]
        first = jnp.searchsorted(sorted_values, sorted_values, side="left")  # equal values make a group
        last = jnp.searchsorted(sorted_values, sorted_values, side="right")
        yes_before, no_before = (jnp.pad(x.cumsum(axis=0), ((1, 0), (0, 0))) for x in (yes, no))
        beaten = (no_before[first] + no_before[last]) / 2
        auroc = (yes * beaten).sum(axis=0) / (positives * negatives)
        found, wrong = positives - yes_before[first], negatives - no_before[first]  # at this threshold or above
        precision = found / jnp.maximum(found + wrong, 1.0)
        return auroc, (yes * precision).sum(axis=0) / positives

    auroc, auprc = jax.lax.map(unit, responses.T)
    known, count = present + absent, positives + negatives
    product = lambda x, y: jnp.matmul(x.T, y, precision=jax.lax.Precision.HIGHEST)  # noqa: E731
    centred = responses - responses.mean(axis=0)  # float32 keeps the variance of what is centred
    mean, mean_yes = product(centred, known) / count, positives / count
    covariance = product(centred, present) / count - mean * mean_yes
    spread = jnp.sqrt((product(centred**2, known) / count - mean**2) * (mean_yes * (1 - mean_yes)))
    usable = (positives > 0) & (negatives > 0)
    auroc, auprc, correlation = (
        jnp.where(usable, x, jnp.nan) for x in (auroc, auprc, jnp.where(spread > 0, covariance / spread, 0.0))
    )
    return auroc, auprc, correlation


@dataclass(frozen=True)
class Agreement:
    """How a similarity function's labels compare with the truth, over units.

    Attributes:
      units: how many were compared.
      best: share of labels that are the attribute the unit responds to most (by AUROC).
      among_three: share of labels among its three most.
      auroc_of_label: mean AUROC of the label; auroc_of_best, of the best label there is; auroc_of_random, of any.
      rank_correlation: Spearman's, of a unit's scores and AUROCs over the attributes; mean over units.
      attributes: how many labels there are to choose from: chance is 1/attributes for `best`, 3/attributes for the next.
    """

    units: int
    best: float
    among_three: float
    auroc_of_label: float
    auroc_of_best: float
    auroc_of_random: float
    rank_correlation: float
    attributes: int


def agreement(scores: np.ndarray, auroc: np.ndarray, *, least: float = 0.0) -> Agreement:
    """Compares scores [U, A] with AUROCs [U, A], over units whose best AUROC is at least `least`.

    Attributes without a known AUROC are left out of both, and units that respond to all alike, which have no best.

    Raises:
      ValueError: the shapes differ, or no unit or fewer than three attributes remain.
    """
    if scores.shape != auroc.shape:
        raise ValueError(f"scores {scores.shape} and AUROCs {auroc.shape} differ in shape")
    known = np.isfinite(auroc).all(axis=0)
    scores, auroc = scores[:, known], auroc[:, known]
    if auroc.shape[1] < 3:
        raise ValueError(f"only {auroc.shape[1]} attributes are present in some images and absent in others")
    chosen = (auroc.max(axis=1) >= least) & (auroc.max(axis=1) > auroc.min(axis=1))
    if not chosen.any():
        raise ValueError(f"no unit has an AUROC of {least} with any attribute")
    scores, auroc = scores[chosen], auroc[chosen]
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
        attributes=auroc.shape[1],
    )


def _spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of the rows of two arrays [U, A] → [U]; equal values share their mean rank."""
    from scipy.stats import rankdata  # comes with jax

    a, b = (rankdata(x, axis=1) - (x.shape[1] + 1) / 2 for x in (first, second))
    spread = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), spread, out=np.zeros(len(a)), where=spread > 0)


def table(scores: Mapping[str, np.ndarray], auroc: np.ndarray, *, least: float = 0.0) -> dict[str, Agreement]:
    """`agreement` of several similarity functions on the same units, by name."""
    return {name: agreement(each, auroc, least=least) for name, each in scores.items()}
