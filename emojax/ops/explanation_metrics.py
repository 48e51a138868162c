"""Measures of an explanation: how well a concept's presence matches a unit's activation.

Five are sound by the tests of "Evaluating Neuron Explanations" (Oikarinen, Yan and Weng, ICML 2025,
arXiv 2506.05774): `correlation`, `cosine`, `auprc`, `f1` and `iou` notice when labels of a concept
go missing and when wrong ones are added. The others of that paper are here for comparison only.
The judge scores explanations with all of them. Each takes activations [I, U] and concept
probabilities [I, C] and gives [U, C]; `of_pairs` gives one value for each unit's own explanation.

Those with `alpha` call a unit active on the ⌈alpha · I⌉ images of its largest activations and on
all that tie with the last of them. A concept is present where its probability is at least
`PRESENT`. `comoments` and `counts` of parts of the images merge, so that `correlation` and
`cosine`, and with a cutoff known from before `f1` and `iou`, stream over images.
Shapes: I images, U units, C concepts, B images of a part.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from emojax.ops.arrays import AnyArray

PRESENT = 0.5
_LEAST = 1e-9  # of a norm or a standard deviation that is divided by
_LEAST_PROBABILITY = 1e-8  # that a logarithm is taken of
_TOP_SHARE = 0.002  # of the images that the top-and-random measures draw their top ones from
_DRAWN = 25  # images that they draw of the top, and of all

Measure = Callable[[Float[AnyArray, "I U"], Float[AnyArray, "I C"]], Float[Array, "U C"]]


class Comoments(NamedTuple):
    """Means of both sides, and sums over images of their centred squares and products."""

    images: Float[Array, ""]
    unit_mean: Float[Array, " U"]
    concept_mean: Float[Array, " C"]
    unit_square: Float[Array, " U"]
    concept_square: Float[Array, " C"]
    product: Float[Array, "U C"]


class Counts(NamedTuple):
    """Numbers of images: in all, active, with the concept present, and both."""

    images: Float[Array, ""]
    active: Float[Array, "U 1"]
    present: Float[Array, "1 C"]
    both: Float[Array, "U C"]


def comoments(activations: Float[AnyArray, "B U"], concepts: Float[AnyArray, "B C"]) -> Comoments:
    """The comoments of some images."""
    # Less the first image, a column that does not vary is exactly 0, however its mean is rounded.
    activations, concepts = jnp.asarray(activations), jnp.asarray(concepts)
    units = activations - activations[:1]
    values = concepts - concepts[:1]
    unit_step = units.mean(axis=0)
    concept_step = values.mean(axis=0)
    units = units - unit_step[None, :]
    values = values - concept_step[None, :]
    return Comoments(
        images=jnp.asarray(activations.shape[0], jnp.float32),
        unit_mean=activations[0] + unit_step,
        concept_mean=concepts[0] + concept_step,
        unit_square=jnp.square(units).sum(axis=0),
        concept_square=jnp.square(values).sum(axis=0),
        product=_cross(units, values),
    )


def merge(first: Comoments, second: Comoments) -> Comoments:
    """The comoments of two parts of the images together.

    By the update of Chan, Golub and LeVeque (1983): sums stay centred, so that a mean far from
    zero costs no digits.
    """
    images = first.images + second.images
    share = second.images / images
    unit_step = second.unit_mean - first.unit_mean
    concept_step = second.concept_mean - first.concept_mean
    weight = first.images * share
    return Comoments(
        images=images,
        unit_mean=first.unit_mean + share * unit_step,
        concept_mean=first.concept_mean + share * concept_step,
        unit_square=first.unit_square + second.unit_square + weight * unit_step**2,
        concept_square=first.concept_square + second.concept_square + weight * concept_step**2,
        product=first.product
        + second.product
        + weight * unit_step[:, None] * concept_step[None, :],
    )


def correlation_of(sums: Comoments) -> Float[Array, "U C"]:
    """Population covariance over the product of *sample* standard deviations.

    As published: Pearson's correlation times (I − 1) / I.
    """
    return correlation_of_sums(
        sums.images, sums.product, sums.unit_square[:, None], sums.concept_square[None, :]
    )


def correlation_of_sums(
    images: Float[Array, ""] | int,
    product: Float[Array, "..."],
    unit_square: Float[Array, "..."],
    concept_square: Float[Array, "..."],
) -> Float[Array, "..."]:
    """`correlation_of` from sums over images of centred products and squares."""
    freedom = jnp.maximum(images - 1, 1)
    unit_std = jnp.maximum(jnp.sqrt(jnp.maximum(unit_square, 0.0) / freedom), _LEAST)
    concept_std = jnp.maximum(jnp.sqrt(jnp.maximum(concept_square, 0.0) / freedom), _LEAST)
    return product / images / unit_std / concept_std


def cosine_of(sums: Comoments) -> Float[Array, "U C"]:
    """Cosine over images, not centred."""
    product = sums.product + sums.images * jnp.outer(sums.unit_mean, sums.concept_mean)
    unit_norm = jnp.sqrt(sums.unit_square + sums.images * sums.unit_mean**2)
    concept_norm = jnp.sqrt(sums.concept_square + sums.images * sums.concept_mean**2)
    lengths = jnp.maximum(unit_norm, _LEAST)[:, None] * jnp.maximum(concept_norm, _LEAST)[None, :]
    return product / lengths


def cutoffs(activations: Float[AnyArray, "I U"], alpha: float) -> Float[Array, " U"]:
    """The least activation of each unit that counts as active: its ⌈alpha · I⌉-th largest."""
    k = math.ceil(alpha * activations.shape[0])
    return jax.lax.top_k(jnp.asarray(activations).T, k)[0][:, -1]


def counts(active: Bool[AnyArray, "B U"], present: Bool[AnyArray, "B C"]) -> Counts:
    """The counts of some images; those of parts of the images add up."""
    units = jnp.asarray(active, jnp.float32)
    concepts = jnp.asarray(present, jnp.float32)
    return Counts(
        images=jnp.asarray(active.shape[0], jnp.float32),
        active=units.sum(axis=0)[:, None],
        present=concepts.sum(axis=0)[None, :],
        both=_cross(units, concepts),  # whole numbers below 2^24: exact
    )


def f1_of(n: Counts) -> Float[Array, "U C"]:
    """Twice the images with both, over those active and those present."""
    return 2 * n.both / (n.active + n.present)


def iou_of(n: Counts) -> Float[Array, "U C"]:
    """Images with both over images with either."""
    return n.both / (n.active + n.present - n.both)


# The sound ones


def correlation(
    activations: Float[AnyArray, "I U"], concept_probs: Float[AnyArray, "I C"]
) -> Float[Array, "U C"]:
    """See `correlation_of`; 0 where either is constant."""
    return correlation_of(comoments(activations, concept_probs))


def cosine(
    activations: Float[AnyArray, "I U"], concept_probs: Float[AnyArray, "I C"]
) -> Float[Array, "U C"]:
    """Cosine over images, not centred; 0 where either is zero throughout."""
    units = jnp.maximum(jnp.linalg.norm(activations, axis=0), _LEAST)[:, None]
    concepts = jnp.maximum(jnp.linalg.norm(concept_probs, axis=0), _LEAST)[None, :]
    return _cross(activations, concept_probs) / (units * concepts)


def auprc(
    activations: Float[AnyArray, "I U"], concept_probs: Float[AnyArray, "I C"], alpha: float
) -> Float[Array, "U C"]:
    """Area under the precision-recall curve of the probability that finds the active images."""
    return _average_precision(concept_probs, _active(activations, alpha)).T


def f1(
    activations: Float[AnyArray, "I U"], concept_probs: Float[AnyArray, "I C"], alpha: float
) -> Float[Array, "U C"]:
    """F1 of active and present."""
    return f1_of(_counts(activations, concept_probs, alpha))


def iou(
    activations: Float[AnyArray, "I U"], concept_probs: Float[AnyArray, "I C"], alpha: float
) -> Float[Array, "U C"]:
    """Intersection of active and present over their union."""
    return iou_of(_counts(activations, concept_probs, alpha))


# For comparison only


def recall(
    activations: Float[AnyArray, "I U"], concept_probs: Float[AnyArray, "I C"], alpha: float
) -> Float[Array, "U C"]:
    """Share of the active images where the concept is present."""
    n = _counts(activations, concept_probs, alpha)
    return n.both / n.active


def precision(
    activations: Float[AnyArray, "I U"], concept_probs: Float[AnyArray, "I C"], alpha: float
) -> Float[Array, "U C"]:
    """Share of the concept's images where the unit is active; 0 for a concept of no image."""
    n = _counts(activations, concept_probs, alpha)
    return n.both / jnp.maximum(n.present, 1)


def accuracy(
    activations: Float[AnyArray, "I U"], concept_probs: Float[AnyArray, "I C"], alpha: float
) -> Float[Array, "U C"]:
    """Share of images with both or neither."""
    n = _counts(activations, concept_probs, alpha)
    return (n.both + _neither(n)) / n.images


def balanced_accuracy(
    activations: Float[AnyArray, "I U"], concept_probs: Float[AnyArray, "I C"], alpha: float
) -> Float[Array, "U C"]:
    """Mean of the shares of active images with and of other images without the concept."""
    n = _counts(activations, concept_probs, alpha)
    of_active = n.both / jnp.maximum(n.active, 1)
    of_others = _neither(n) / jnp.maximum(n.images - n.active, 1)
    return (of_active + of_others) / 2


def inverse_balanced_accuracy(
    activations: Float[AnyArray, "I U"], concept_probs: Float[AnyArray, "I C"], alpha: float
) -> Float[Array, "U C"]:
    """As `balanced_accuracy`, with unit and concept changing places."""
    n = _counts(activations, concept_probs, alpha)
    of_present = n.both / jnp.maximum(n.present, 1)
    of_others = _neither(n) / jnp.maximum(n.images - n.present, 1)
    return (of_present + of_others) / 2


def auc(
    activations: Float[AnyArray, "I U"], concept_probs: Float[AnyArray, "I C"], alpha: float
) -> Float[Array, "U C"]:
    """Area under the ROC curve of the probability that finds the active images; ties count half."""
    return _area(concept_probs, _active(activations, alpha)).T


def inverse_auc(
    activations: Float[AnyArray, "I U"], concept_probs: Float[AnyArray, "I C"]
) -> Float[Array, "U C"]:
    """Area under the ROC curve of the activation that finds the concept's images."""
    return _area(activations, concept_probs >= PRESENT)


def inverse_auprc(
    activations: Float[AnyArray, "I U"], concept_probs: Float[AnyArray, "I C"]
) -> Float[Array, "U C"]:
    """Area under the precision-recall curve of the activation that finds the concept's images."""
    return _average_precision(activations, concept_probs >= PRESENT)


def mad(
    activations: Float[AnyArray, "I U"], concept_probs: Float[AnyArray, "I C"]
) -> Float[Array, "U C"]:
    """Mean activation with the concept less that without; a mean of no image is 0."""
    present = jnp.asarray(concept_probs >= PRESENT, jnp.float32)
    number = present.sum(axis=0)[None, :]
    others = activations.shape[0] - number
    # Centred sums, so that a mean far from zero costs no digits. It cancels where both kinds of
    # images exist, and stands alone where there is one.
    mean = jnp.mean(activations, axis=0)
    centred = activations - mean[None, :]
    with_concept = _cross(centred, present) / jnp.maximum(number, 1)
    without = _cross(centred, 1 - present) / jnp.maximum(others, 1)
    kinds = jnp.sign(number) - jnp.sign(others)
    return with_concept - without + mean[:, None] * kinds


def wpmi(
    activations: Float[AnyArray, "I U"],
    concept_probs: Float[AnyArray, "I C"],
    alpha: float,
    lam: float = 1.0,
) -> Float[Array, "U C"]:
    """Mean log probability over the active images, less `lam` times the log mean over all."""
    active = jnp.asarray(_active(activations, alpha), jnp.float32)
    logs = jnp.log(jnp.maximum(concept_probs, _LEAST_PROBABILITY))
    likelihood = _cross(active, logs) / active.sum(axis=0)[:, None]
    return likelihood - lam * jnp.log(jnp.mean(concept_probs, axis=0))[None, :]


def spearman_correlation(
    activations: Float[AnyArray, "I U"], concept_probs: Float[AnyArray, "I C"]
) -> Float[Array, "U C"]:
    """`correlation` of ranks; equal values share their mean rank."""
    return correlation(_ranks(activations), _ranks(concept_probs))


def correlation_top_and_random(
    activations: Float[AnyArray, "I U"],
    concept_probs: Float[AnyArray, "I C"],
    *,
    key: Key[Array, ""],
) -> Float[Array, "U C"]:
    """`correlation` over 25 of each unit's top 0.2 % of images and 25 random ones."""
    return _top_and_random(correlation, activations, concept_probs, key)


def spearman_top_and_random(
    activations: Float[AnyArray, "I U"],
    concept_probs: Float[AnyArray, "I C"],
    *,
    key: Key[Array, ""],
) -> Float[Array, "U C"]:
    """`spearman_correlation` over 25 of each unit's top 0.2 % of images and 25 random ones."""
    return _top_and_random(spearman_correlation, activations, concept_probs, key)


def of_pairs(
    measure: Measure, activations: Float[AnyArray, "I U"], simulated: Float[AnyArray, "I U"]
) -> Float[Array, " U"]:
    """A measure of every unit's activation with its own explanation, and no other's."""

    def pair(unit: Float[Array, " I"], values: Float[Array, " I"]) -> Float[Array, ""]:
        return measure(unit[:, None], values[:, None])[0, 0]

    return jax.vmap(pair, in_axes=1)(jnp.asarray(activations), jnp.asarray(simulated))


def weighted_average_precision(
    ranked: Bool[Array, " I"], last: Int[Array, " I"], weights: Float[Array, " I"]
) -> Float[Array, ""]:
    """Average precision where each image counts `weights` times, as in a bootstrap.

    Args:
      ranked: whether each image is to be found, in the order of `descending`.
      last: of `descending`.
      weights: of the images, in that order.
    """
    relevant = jnp.where(ranked, weights, 0.0)
    hits = jnp.cumsum(relevant)[last]
    drawn = jnp.cumsum(weights)[last]
    total = relevant.sum()
    return (relevant * hits / jnp.maximum(drawn, 1)).sum() / jnp.maximum(total, 1)


def descending(values: Float[Array, " I"]) -> tuple[Int[Array, " I"], Int[Array, " I"]]:
    """Images from the largest value to the least, and for each place the last that ties with it."""
    order = jnp.argsort(-values, stable=True)
    ordered = values[order]
    return order, jnp.searchsorted(-ordered, -ordered, side="right") - 1


def _cross(units: Float[AnyArray, "I U"], concepts: Float[AnyArray, "I C"]) -> Float[Array, "U C"]:
    return jnp.matmul(
        jnp.asarray(units).T, jnp.asarray(concepts), precision=jax.lax.Precision.HIGHEST
    )


def _active(activations: Float[AnyArray, "I U"], alpha: float) -> Bool[Array, "I U"]:
    return jnp.asarray(activations) >= cutoffs(activations, alpha)[None, :]


def _counts(
    activations: Float[AnyArray, "I U"], concept_probs: Float[AnyArray, "I C"], alpha: float
) -> Counts:
    return counts(_active(activations, alpha), jnp.asarray(concept_probs) >= PRESENT)


def _neither(n: Counts) -> Float[Array, "U C"]:
    return n.images - n.active - n.present + n.both


def _ranks(values: Float[AnyArray, "I N"]) -> Float[Array, "I N"]:
    """Rank of each value in its column, from 0; equal values share their mean rank."""

    def column(x: Float[Array, " I"]) -> Float[Array, " I"]:
        ordered = jnp.sort(x)
        first = jnp.searchsorted(ordered, x, side="left")
        behind = jnp.searchsorted(ordered, x, side="right")
        return (first + behind - 1).astype(jnp.float32) / 2

    return jax.vmap(column, in_axes=1, out_axes=1)(jnp.asarray(values))


def _area(values: Float[AnyArray, "I N"], positive: Bool[AnyArray, "I M"]) -> Float[Array, "N M"]:
    """AUROC of each column of values for each column of positives; 0 without one of either kind."""
    images = values.shape[0]
    flags = jnp.asarray(positive, jnp.float32)
    number = flags.sum(axis=0)[None, :]
    # Ranks about their middle are half as large: their sums in float32 keep a digit more.
    middle = (images - 1) / 2
    above = _cross(_ranks(values) - middle, flags) + number * middle
    pairs = jnp.maximum(number * (images - number), 1)
    area = (above - number * (number - 1) / 2) / pairs
    return jnp.where((number > 0) & (number < images), area, 0.0)


def _average_precision(
    values: Float[AnyArray, "I N"], positive: Bool[AnyArray, "I M"]
) -> Float[Array, "N M"]:
    """Sum over the distinct values, from the largest, of the gain in recall times the precision.

    0 for a column of positives that has none. A column of values at a time: its order serves all
    columns of positives, and only [I, M] is held.
    """
    flags = jnp.asarray(positive)
    ones = jnp.ones(values.shape[0], jnp.float32)
    score = jax.vmap(weighted_average_precision, in_axes=(1, None, None))

    def column(x: Float[Array, " I"]) -> Float[Array, " M"]:
        order, last = descending(x)
        return score(flags[order], last, ones)

    return jax.lax.map(column, jnp.asarray(values).T)


def _top_and_random(
    measure: Measure,
    activations: Float[AnyArray, "I U"],
    concept_probs: Float[AnyArray, "I C"],
    key: Key[Array, ""],
) -> Float[Array, "U C"]:
    """A measure over some of a unit's top images and some of all, drawn for each unit."""
    images, units = activations.shape
    top = math.ceil(_TOP_SHARE * images)
    concepts = jnp.asarray(concept_probs)

    def unit(values: Float[Array, " I"], key: Key[Array, ""]) -> Float[Array, " C"]:
        of_top, of_all = jax.random.split(key)
        best = jax.random.permutation(of_top, jax.lax.top_k(values, top)[1])[:_DRAWN]
        random = jax.random.choice(of_all, images, (min(_DRAWN, images),), replace=False)
        drawn = jnp.concatenate([best, random])
        return measure(values[drawn][:, None], concepts[drawn])[0]

    keys = jax.random.split(key, units)
    return jax.lax.map(lambda pair: unit(*pair), (jnp.asarray(activations).T, keys))


def sound(alpha: float) -> dict[str, Measure]:
    """The five sound measures by name."""
    return {
        "correlation": correlation,
        "cosine": cosine,
        "auprc": functools.partial(auprc, alpha=alpha),
        "f1": functools.partial(f1, alpha=alpha),
        "iou": functools.partial(iou, alpha=alpha),
    }


def compared(alpha: float, key: Key[Array, ""]) -> dict[str, Measure]:
    """The unsound measures of the paper by name, for comparison; `key` draws images."""
    top = functools.partial(correlation_top_and_random, key=key)
    spearman_top = functools.partial(spearman_top_and_random, key=key)
    return {
        "recall": functools.partial(recall, alpha=alpha),
        "precision": functools.partial(precision, alpha=alpha),
        "accuracy": functools.partial(accuracy, alpha=alpha),
        "balanced_accuracy": functools.partial(balanced_accuracy, alpha=alpha),
        "inverse_balanced_accuracy": functools.partial(inverse_balanced_accuracy, alpha=alpha),
        "auc": functools.partial(auc, alpha=alpha),
        "inverse_auc": inverse_auc,
        "inverse_auprc": inverse_auprc,
        "correlation_top_and_random": top,
        "spearman_correlation": spearman_correlation,
        "spearman_top_and_random": spearman_top,
        "wpmi": functools.partial(wpmi, alpha=alpha),
        "mad": mad,
    }
