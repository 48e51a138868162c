"""Judges explanations of units, anybody's, on images that did not make them.

An explanation simulates a unit: the value of its concept, or of its weighted sum, on every image,
as the judge's encoder sees it. The five sound measures of "Evaluating Neuron Explanations"
(Oikarinen, Yan and Weng, ICML 2025, arXiv 2506.05774) compare that with the unit's activations,
with bootstrap intervals over images; files of explanations are compared on the units that they
share and on the same resamples. `sanity` runs that paper's two tests of the measures themselves on
the images at hand.
Shapes: I images, N explained units of a file, C concepts, D embedding, R resamples.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from emojax.brief import brief
from emojax.dissection.calibration import Calibration
from emojax.dissection.explanation_files import Explanation, ExplanationFile
from emojax.ops import explanation_metrics as metrics
from emojax.ops.stats import bootstrap_counts
from emojax.tables import Tabular

MEASURES = ("correlation", "cosine", "auprc", "f1", "iou")
_UNITS_AT_A_TIME = 256  # whose resamples are held on the device
_IMAGES_AT_A_TIME = 4096  # whose concept values are held in float64


class Simulated(NamedTuple):
    """What explanations predict for images.

    Attributes:
      values: the simulated activations.
      present: where the explanation says that the unit is active: a single calibrated concept of
        probability 0.5 or more; of all others the ⌈alpha · I⌉ largest values, as of activations.
    """

    values: Float[np.ndarray, "I N"]
    present: Bool[np.ndarray, "I N"]


@brief
@dataclass(frozen=True)
class Judgement(Tabular):
    """How well the explanations of one file match.

    Attributes:
      file: the file.
      scores: of each unit by each of `MEASURES`.
      intervals: lower and upper ends.
      resampled: the scores of each resample of the images.
    """

    file: ExplanationFile
    scores: Float[np.ndarray, "5 N"]
    intervals: Float[np.ndarray, "2 5 N"]
    resampled: Float[np.ndarray, "R 5 N"]

    def columns(self) -> dict[str, Any]:
        """A row per explained unit: each measure with the ends of its interval."""
        explained = self.file.explanations
        table: dict[str, Any] = {
            "layer": [explanation.layer for explanation in explained],
            "unit": [explanation.unit for explanation in explained],
        }
        for place, name in enumerate(MEASURES):
            low, high = self.intervals[:, place]
            table |= {name: self.scores[place], f"{name}_low": low, f"{name}_high": high}
        return table

    def mean(self) -> dict[str, tuple[float, float, float]]:
        """Mean over units of each measure, with its interval."""
        means = self.scores.mean(axis=1)
        low, high = _interval(means, self.resampled.mean(axis=2))
        return {
            name: (float(means[i]), float(low[i]), float(high[i]))
            for i, name in enumerate(MEASURES)
        }


@dataclass(frozen=True)
class Difference:
    """How much better the second of two files is, on the units that both explain.

    Attributes:
      first: name of a file.
      second: name of the other.
      units: that both explain.
      measures: mean difference second − first, lower and upper end, by measure.
    """

    first: str
    second: str
    units: int
    measures: Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Sanity:
    """Whether a measure notices that labels of a concept go missing, and that wrong ones are added.

    Attributes:
      missing: share of units whose score falls when half of the concept's images lose it.
      extra: share of units whose score falls when as many images without it gain it.
      passes: whether both are at least `SANITY_SHARE`.
      sound: whether the measure passes in the published table.
    """

    missing: float
    extra: float
    passes: bool
    sound: bool


SANITY_SHARE = 0.9
_NOTICED = 1e-3  # fall of a score, as a share of the measure's range, that counts
_SIGNED = ("correlation", "cosine", "spearman")  # how names of measures from −1 to 1 begin


def simulate(
    explanations: Sequence[Explanation],
    concepts: Mapping[str, int],
    images: Float[np.ndarray, "I D"],
    texts: Float[np.ndarray, "C D"],
    calibration: Calibration,
    alpha: float,
) -> Simulated:
    """What explanations predict, by the unit embeddings of images and concepts.

    Args:
      explanations: of N units.
      concepts: row of each concept in `texts`.
      images: unit embeddings.
      texts: unit embeddings.
      calibration: turns cosines into probabilities.
      alpha: share of the images on which a value without a probability means active.
    """
    from scipy.sparse import csr_array

    columns = [unit for unit, e in enumerate(explanations) for _ in e.concepts]
    rows = [concepts[concept] for e in explanations for concept in e.concepts]
    weights = [weight for e in explanations for weight in e.weights]
    mixing = csr_array((weights, (columns, rows)), shape=(len(explanations), len(texts)))
    bias = np.array([e.bias for e in explanations])
    values = np.empty((len(images), len(explanations)), np.float32)
    for start in range(0, len(images), _IMAGES_AT_A_TIME):
        part = slice(start, start + _IMAGES_AT_A_TIME)
        cosines = np.asarray(images[part], np.float64) @ np.asarray(texts, np.float64).T
        values[part] = (mixing @ calibration(cosines).T).T + bias
    present = values >= np.asarray(metrics.cutoffs(values, alpha))
    present &= values.max(axis=0) > values.min(axis=0)  # what never varies predicts nothing
    if calibration.pair is not None:
        single = np.array([not e.linear for e in explanations])
        present[:, single] = values[:, single] >= metrics.PRESENT
    return Simulated(values, present)


def judge(
    file: ExplanationFile,
    activations: Float[np.ndarray, "I N"],
    simulated: Simulated,
    *,
    alpha: float,
    resamples: int = 200,
    seed: int = 0,
) -> Judgement:
    """Scores the explanations of a file, with 95 % intervals of a bootstrap over images.

    Files that are judged with the same seed, resamples and images see the same draws. In a
    resample the activations that count as active, and the values that count as present, stay what
    they are on all images.

    Args:
      file: the file.
      activations: of the file's units, in its order.
      simulated: what the file predicts.
      alpha: share of the images on which a unit is active.
      resamples: of the images.
      seed: of their draws.
    """
    counts = bootstrap_counts(jax.random.key(seed), len(activations), resamples)
    scores = []
    resampled = []
    for start in range(0, activations.shape[1], _UNITS_AT_A_TIME):
        units = slice(start, start + _UNITS_AT_A_TIME)
        block = [activations[:, units], simulated.values[:, units], simulated.present[:, units]]
        # Blocks of one shape, so that one program serves all: repeats fill the last, then go.
        width = block[0].shape[1]
        fill = ((0, 0), (0, min(_UNITS_AT_A_TIME, activations.shape[1]) - width))
        padded = [np.pad(array, fill, mode="edge") for array in block]
        scores.append(np.asarray(_scores(*padded, alpha))[:, :width])
        resampled.append(np.asarray(_resample(*padded, counts, alpha))[:, :, :width])
    observed = np.concatenate(scores, axis=1)
    every = np.concatenate(resampled, axis=2)
    return Judgement(file, observed, _interval(observed, every), every)


def compare(first: Judgement, second: Judgement) -> Difference | None:
    """The paired difference of two files on the units that both explain; None without any."""
    places = {(e.layer, e.unit): i for i, e in enumerate(second.file.explanations)}
    shared = [
        (i, places[e.layer, e.unit])
        for i, e in enumerate(first.file.explanations)
        if (e.layer, e.unit) in places
    ]
    if not shared:
        return None
    of_first, of_second = np.array(shared).T
    observed = (second.scores[:, of_second] - first.scores[:, of_first]).mean(axis=1)
    means = second.resampled[:, :, of_second].mean(axis=2)
    low, high = _interval(observed, means - first.resampled[:, :, of_first].mean(axis=2))
    measures = {
        name: (float(observed[i]), float(low[i]), float(high[i])) for i, name in enumerate(MEASURES)
    }
    return Difference(first.file.name, second.file.name, len(shared), measures)


def sanity(
    activations: Float[np.ndarray, "I U"],
    present: Bool[np.ndarray, "I C"],
    *,
    alpha: float,
    seed: int = 0,
    labels: Int[np.ndarray, " U"] | None = None,
) -> dict[str, Sanity]:
    """The missing-labels and extra-labels tests of all measures, on the images at hand.

    As published: half of the images of a unit's concept lose it, or as many others gain it by
    chance, and the measure must fall by a thousandth of its range. A unit's concept is the one
    whose presence overlaps most with its activity (IoU), where it is not known. Units that are
    never active with any concept are left out.

    Args:
      activations: of the units.
      present: where each concept is present.
      alpha: share of the images on which a unit is active.
      seed: of the draws.
      labels: the concept of each unit, where it is known.
    """
    units = np.asarray(activations)
    if labels is None:
        overlap = np.asarray(metrics.iou(units, present.astype(np.float32), alpha))
        usable = overlap.max(axis=1) > 0
        units = units[:, usable]
        labels = overlap.argmax(axis=1)[usable]
    shown = present[:, labels].astype(np.float32)
    rng = np.random.default_rng(seed)
    kept = np.where(rng.random(shown.shape) > 0.5, shown, 0).astype(np.float32)
    share = shown.sum(axis=0) / np.maximum(len(shown) - shown.sum(axis=0), 1)
    added = np.where(rng.random(shown.shape) < share, 1, shown).astype(np.float32)
    results = {}
    for name in _measures(alpha, seed):
        score = _pairs_of(name, alpha, seed)
        before, missing, extra = (np.asarray(score(units, x)) for x in (shown, kept, added))
        spread = _range_of(name, before, missing, extra)
        falls = [float((x - before < -_NOTICED * spread).mean()) for x in (missing, extra)]
        passes = min(falls) >= SANITY_SHARE
        results[name] = Sanity(falls[0], falls[1], passes, name in MEASURES)
    return results


def _range_of(name: str, *scores: np.ndarray) -> float:
    """The range of a measure: 2 for those from −1 to 1, what was seen where there is no bound."""
    if name in ("wpmi", "mad"):
        return float(max(x.max() for x in scores) - min(x.min() for x in scores))
    return 2.0 if name.startswith(_SIGNED) else 1.0


def _measures(alpha: float, seed: int) -> dict[str, metrics.Measure]:
    return metrics.sound(alpha) | metrics.compared(alpha, jax.random.key(seed))


@functools.lru_cache(maxsize=64)
def _pairs_of(name: str, alpha: float, seed: int) -> Callable[..., jax.Array]:
    """The program of a measure of pairs, kept so that a second call traces nothing."""
    return jax.jit(functools.partial(metrics.of_pairs, _measures(alpha, seed)[name]))


def _interval(observed: np.ndarray, resampled: np.ndarray) -> np.ndarray:
    """The middle 95 % of resamples along the first axis, moved to lie about what was observed.

    A resample shows images twice, and what finds one finds its copy: average precision is higher
    in resamples than on the images, by more than it varies. Their mean tells by how much.
    """
    moved = resampled - resampled.mean(axis=0) + observed
    return np.quantile(moved, (0.025, 0.975), axis=0).astype(np.float32)


@functools.partial(jax.jit, static_argnames="alpha")
def _scores(
    activations: Float[Array, "I N"],
    values: Float[Array, "I N"],
    present: Bool[Array, "I N"],
    alpha: float,
) -> Float[Array, "5 N"]:
    flags = present.astype(jnp.float32)
    by = metrics.sound(alpha)
    simulated = {name: flags if name in ("f1", "iou") else values for name in MEASURES}
    return jnp.stack([metrics.of_pairs(by[n], activations, simulated[n]) for n in MEASURES])


@functools.partial(jax.jit, static_argnames="alpha")
def _resample(
    activations: Float[Array, "I N"],
    values: Float[Array, "I N"],
    present: Bool[Array, "I N"],
    counts: Float[Array, "R I"],
    alpha: float,
) -> Float[Array, "R 5 N"]:
    """The five measures of every resample."""
    active = activations >= metrics.cutoffs(activations, alpha)
    images = len(activations)

    def totals(columns: Float[Array, "I N"]) -> Float[Array, "R N"]:
        return jnp.matmul(counts, columns, precision=jax.lax.Precision.HIGHEST)

    def standard(x: Float[Array, "I N"]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Centred to unit deviation, so that sums keep their digits; and what was taken off."""
        mean = x.mean(axis=0)
        std = jnp.maximum(x.std(axis=0), 1e-9)
        return (x - mean) / std, mean, std

    unit, unit_mean, unit_std = standard(activations)
    simulated, mean, std = standard(values)
    unit_sum, sum_ = totals(unit), totals(simulated)
    unit_square, square, product = totals(unit**2), totals(simulated**2), totals(unit * simulated)
    correlation = metrics.correlation_of_sums(
        images,
        product - unit_sum * sum_ / images,
        unit_square - unit_sum**2 / images,
        square - sum_**2 / images,
    )
    # The cosine of what it was before: x = mean + std · z, so its sums are those of z, expanded.
    raw_product = (
        unit_std * std * product
        + unit_std * mean * unit_sum
        + unit_mean * std * sum_
        + images * unit_mean * mean
    )
    raw_unit = unit_std**2 * unit_square + 2 * unit_std * unit_mean * unit_sum
    raw = std**2 * square + 2 * std * mean * sum_
    norms = jnp.sqrt(jnp.maximum(raw_unit + images * unit_mean**2, 0.0))
    norms *= jnp.sqrt(jnp.maximum(raw + images * mean**2, 0.0))
    cosine = raw_product / jnp.maximum(norms, 1e-9)

    both = totals((active & present).astype(jnp.float32))
    either = totals(active.astype(jnp.float32)) + totals(present.astype(jnp.float32))
    f1 = 2 * both / jnp.maximum(either, 1)
    iou = both / jnp.maximum(either - both, 1)

    def precision(pair: tuple[jax.Array, jax.Array]) -> Float[Array, " R"]:
        order, last = metrics.descending(pair[1])
        score = functools.partial(metrics.weighted_average_precision, pair[0][order], last)
        return jax.vmap(score)(counts[:, order])

    auprc = jax.lax.map(precision, (active.T, values.T)).T
    return jnp.stack([correlation, cosine, auprc, f1, iou], axis=1)
