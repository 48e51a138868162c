"""Are labels true? Labels are compared with what units respond to, where images are known.

CLIP-Dissect could compare similarity functions only where a unit's concept was known in advance (a
network's last layer). On rendered faces the truth of any unit is measurable: how well its
activation tells faces with an attribute from faces without. Shapes: I images, U units, A attributes
(the concepts); presence is 1, 0 or −1 (unclear, left out).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from emojax.data.image_set import ImageSet
from emojax.data.map_images import map_images
from emojax.dissection.labels import Dissection
from emojax.ops.pooling import Pool
from emojax.probing.network import Network, pooled_taps


def activations(
    network: Network, images: ImageSet, layers: Sequence[str], pool: Pool = "avg"
) -> Float[np.ndarray, "I U"]:
    """Pooled activations of the layers, side by side, for every image."""
    forward = pooled_taps(network, layers, pool)
    return map_images(forward, network.params, images, batch=256, keep=network.reusable)


def prevalence(presence: Int[np.ndarray, "I A"]) -> Float[np.ndarray, " A"]:
    """Share of images with an attribute among those where it is clear; NaN where it never is."""
    present = (presence == 1).sum(axis=0)
    clear = (presence >= 0).sum(axis=0)
    return np.divide(present, clear, out=np.full(len(clear), np.nan), where=clear > 0)


def lift(
    auprc: Float[np.ndarray, "U A"], presence: Int[np.ndarray, "I A"]
) -> Float[np.ndarray, "U A"]:
    """Average precision over that of random activations, as a share of what is left to gain."""
    chance = prevalence(presence)
    return (auprc - chance) / (1.0 - chance)


def enrichment(
    responses: Float[np.ndarray, "I U"], presence: Int[np.ndarray, "I A"], top: int = 100
) -> Float[np.ndarray, "U A"]:
    """How much more often a unit's top images show an attribute than all images do.

    That is the share among the unit's `top` most activating images less the share among all, in
    standard deviations of a random draw; images where the attribute is unclear are left out. NaN
    for an attribute that is always or never present.
    """
    rows = np.argsort(-responses, axis=0, kind="stable")[:top].T
    shown = presence[rows]  # [U, top, A]
    clear = (shown >= 0).sum(axis=1)
    share = np.divide((shown == 1).sum(axis=1), clear, out=np.zeros(clear.shape), where=clear > 0)
    expected = prevalence(presence)
    spread = np.sqrt(expected * (1.0 - expected))
    usable = spread > 0
    gain = np.full(share.shape, np.nan)
    gain[:, usable] = ((share - expected) * np.sqrt(clear))[:, usable] / spread[usable]
    return gain


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


@dataclass(frozen=True)
class Labelled:
    """A point of the curve: if only so many units get a label, so many labels are right."""

    labelled: float
    right: float


@dataclass(frozen=True)
class LabelsRight:
    """Shares from 0 to 1 of labels that are right, over units that respond to something.

    Attributes:
      auroc: the label is the attribute that the unit tells best.
      enrichment: it is the one most enriched in the unit's top 100 images.
      among_three: it is one of the three that the unit tells best.
      certain_half: as `auroc`, of the half of these units with the largest margins.
    """

    auroc: float
    enrichment: float
    among_three: float
    certain_half: float


def certainty(margin: Float[np.ndarray, " U"], right: Bool[np.ndarray, " U"]) -> list[Labelled]:
    """Share labelled against share right, if the units with the largest margins get labels first.

    In steps of a twentieth of the units, as far as there are as many.
    """
    order = np.argsort(-margin, kind="stable")
    counts = np.unique(np.ceil(np.arange(1, 21) / 20 * len(order)).astype(int))
    running = np.cumsum(right[order])
    return [Labelled(float(n / len(order)), float(running[n - 1] / n)) for n in counts]


def labels_right(
    scores: Float[np.ndarray, "U A"],
    margin: Float[np.ndarray, " U"],
    auroc: Float[np.ndarray, "U A"],
    enriched: Float[np.ndarray, "U A"],
) -> LabelsRight:
    """How many labels are right, by two truths; of the units that respond to something.

    Raises:
      ValueError: as `agreement`.
    """
    by_auroc = agreement(scores, auroc)
    half = np.argsort(-margin, kind="stable")[: -(-len(margin) // 2)]
    return LabelsRight(
        auroc=by_auroc.best,
        enrichment=agreement(scores, enriched).best,
        among_three=by_auroc.among_three,
        certain_half=agreement(scores[half], auroc[half]).best,
    )


@dataclass(frozen=True)
class Comparison:
    """Labels by several functions beside the truth, and how far one function's can be trusted.

    Attributes:
      tables: `table` of all units, and of those that respond to something, by title.
      labels_right: of the one function's labels.
      certainty: its curve, from the units with the largest margins on.
      abstaining: its labels that stand; None where that is not known or none does.
    """

    tables: dict[str, dict[str, Agreement]]
    labels_right: LabelsRight
    certainty: list[Labelled]
    abstaining: Labelled | None


def compare(
    dissections: Mapping[str, Dissection],
    chosen: str,
    auroc: Float[np.ndarray, "U A"],
    enriched: Float[np.ndarray, "U A"],
    *,
    least: float,
) -> Comparison:
    """Dissections with the attributes as concepts against two truths.

    Args:
      dissections: by the name of their function.
      chosen: the name of the one that is looked at closely.
      auroc, enriched: the truths.
      least: AUROC from which a unit responds to something; all units count where none does.

    Raises:
      ValueError: as `agreement`.
    """
    scores = {name: dissection.ranked for name, dissection in dissections.items()}
    tables = {"units": table(scores, auroc)}
    best = np.nanmax(auroc, axis=1)
    responds = best >= least
    if responds.any():
        title = f"units that respond to something (AUROC ≥ {least})"
        tables[title] = table(scores, auroc, least=least)
    else:
        responds = np.ones(len(best), bool)
    own = dissections[chosen]
    margin = own.margin
    assert margin is not None  # there are as many labels as attributes
    right = (auroc[np.arange(len(best)), own.labels] == best)[responds]
    abstaining = None
    if own.trusted is not None and own.trusted[responds].any():
        stands = own.trusted[responds]
        abstaining = Labelled(float(stands.mean()), float(right[stands].mean()))
    return Comparison(
        tables,
        labels_right(own.scores[responds], margin[responds], auroc[responds], enriched[responds]),
        certainty(margin[responds], right),
        abstaining,
    )
