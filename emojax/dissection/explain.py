"""Linear explanations: a unit as a short weighted sum of concepts, with a bias.

After "Linear Explanations for Individual Neurons" (Oikarinen and Weng, ICML 2024). The concepts are
chosen and their weights fitted on the even images, and tested on the odd ones; both from the
record's moments alone, so that no image is read again. Shapes: I images, U units of all layers side
by side, C concepts, D embedding, K concepts of an explanation at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from emojax.brief import brief
from emojax.data.clip_encoder import ClipEncoder
from emojax.data.concepts import ConceptSet
from emojax.dissection.calibration import Calibration
from emojax.dissection.dissect import concept_texts
from emojax.errors import InputError
from emojax.ops import linear_explanation
from emojax.ops.linear_explanation import NONE
from emojax.probing.record import ProbeRecord
from emojax.tables import Tabular, unit_columns

_greedy = jax.jit(linear_explanation.greedy, static_argnames=("most", "tolerance"))
_IMAGES_AT_A_TIME = 1024  # of which probabilities are held
_LEAST_VARIANCE = 1e-14  # of the mean square: less than this is the rounding of sums in float64


@brief
@dataclass(frozen=True)
class HalfMoments:
    """Means and covariances of activations and concepts over some images, float64."""

    unit_mean: Float[np.ndarray, " U"]
    concept_mean: Float[np.ndarray, " C"]
    unit_variance: Float[np.ndarray, " U"]
    concept_covariance: Float[np.ndarray, "C C"]
    covariance: Float[np.ndarray, "U C"]

    @property
    def correlation(self) -> Float[np.ndarray, "U C"]:
        """Of each unit with each concept; 0 where either is constant."""
        scale = np.outer(_inverse_std(self.unit_variance), _inverse_std(self._concept_variance))
        return self.covariance * scale

    @property
    def concept_correlation(self) -> Float[np.ndarray, "C C"]:
        """Of the concepts with each other; 0 where either is constant."""
        scale = _inverse_std(self._concept_variance)
        return self.concept_covariance * np.outer(scale, scale)

    @property
    def _concept_variance(self) -> Float[np.ndarray, " C"]:
        return np.diagonal(self.concept_covariance)


@brief
@dataclass
class Explanations(Tabular):
    """Every unit as a weighted sum of concepts.

    Attributes:
      record: the probe record.
      concepts: the concept set.
      calibration: how cosines became the concepts' values.
      chosen: concepts in the order chosen, NONE (−1) behind the last.
      weights: of the chosen concepts, 0 behind the last.
      bias: what is added to their sum.
      fitted: correlation of simulated and real activation on the images that chose (even ones).
      correlation: the same on the images that did not (odd ones); 0 for a constant unit.
      labels: the best single concept of each unit, on the images that chose.
      held_out: correlation of each unit with each single concept on the images that did not choose.
      texts: unit embeddings of the concepts.
    """

    record: ProbeRecord = field(repr=False)
    concepts: ConceptSet
    calibration: Calibration
    chosen: Int[np.ndarray, "U K"]
    weights: Float[np.ndarray, "U K"]
    bias: Float[np.ndarray, " U"]
    fitted: Float[np.ndarray, " U"]
    correlation: Float[np.ndarray, " U"]
    labels: Int[np.ndarray, " U"]
    held_out: Float[np.ndarray, "U C"] = field(repr=False)
    texts: Float[np.ndarray, "C D"] = field(repr=False)

    @property
    def lengths(self) -> Int[np.ndarray, " U"]:
        """Number of concepts of each explanation."""
        return (self.chosen != NONE).sum(axis=1)

    def units(self, *concepts: str, least: float = 0.5) -> dict[str, Bool[np.ndarray, " units"]]:
        """Which units of each layer have at least this share of their weights on the concepts.

        The share is that of the concepts' positive weights in the sum of all weights' sizes: a unit
        that a concept turns off does not stand for it.

        Raises:
          InputError: a concept is not in the set.
        """
        wanted = np.isin(self.chosen, self.concepts.indices(concepts))
        own = np.where(wanted, np.maximum(self.weights, 0.0), 0.0).sum(axis=1)
        total = np.abs(self.weights).sum(axis=1)
        return self.record.by_layer((own >= least * total) & (own > 0))

    @property
    def label_correlation(self) -> Float[np.ndarray, " U"]:
        """Held-out correlation of each unit's best single concept."""
        return self.correlation_of(self.labels)

    def correlation_of(self, labels: Int[np.ndarray, " U"]) -> Float[np.ndarray, " U"]:
        """Held-out correlation of each unit with one concept each, for anybody's labels."""
        return self.held_out[np.arange(len(labels)), labels]

    def sample(
        self, images: int = 48
    ) -> tuple[Float[np.ndarray, "S U"], Float[np.ndarray, "S U"]] | None:
        """Real and simulated activations on some images that did not choose, spread over them.

        None for a record without activations.
        """
        if self.record.activations is None:
            return None
        held_out = np.arange(1, self.record.images, 2)
        places = np.linspace(0, len(held_out) - 1, min(images, len(held_out))).astype(int)
        rows = held_out[places]
        embeddings = np.asarray(self.record.embeddings[rows], np.float64)
        values = self.calibration(embeddings @ self.texts.T)
        # A concept at a time: K terms of [S, U], and never [S, U, K].
        terms = zip(self.chosen.T, self.weights.T, strict=True)
        simulated = self.bias + sum(values[:, chosen] * weights for chosen, weights in terms)
        real = np.asarray(self.record.activations[rows], np.float32)
        return real, np.asarray(simulated, np.float32)

    def columns(self) -> dict[str, np.ndarray]:
        """A row per unit: its concepts and weights in the order chosen, None and NaN behind the
        last, the bias, and the held-out correlations of the sum and of the best single concept.
        """
        names = np.array([*self.concepts.concepts, None], dtype=object)  # NONE (−1) is the last
        table = unit_columns(self.record.layers)
        for place in range(self.chosen.shape[1]):
            chosen = self.chosen[:, place]
            weights = np.where(chosen == NONE, np.nan, self.weights[:, place])
            table |= {f"weight{place}": weights, f"concept{place}": names[chosen]}
        return table | {
            "bias": self.bias,
            "correlation": self.correlation,
            "label": names[self.labels],
            "label_correlation": self.label_correlation,
        }

    def header(self) -> list[str]:
        """The columns of `explanations.csv`: those published, and the single label beside them."""
        pairs = [
            f"{part}{n}" for n in range(self.chosen.shape[1]) for part in ("weight", "concept")
        ]
        return ["layer", "unit", *pairs, "bias", "correlation", "label", "label_correlation"]

    def rows(self) -> list[list[Any]]:
        """A row per unit; 0 stands for weight and concept behind the last, as published."""
        names = self.concepts.concepts
        rows = []
        row = 0
        for layer, units in self.record.layers.items():
            for unit in range(units):
                cells: list[Any] = [layer, unit]
                for concept, weight in zip(self.chosen[row], self.weights[row], strict=True):
                    cells += [0, 0] if concept == NONE else [weight, names[concept]]
                label = self.labels[row]
                cells += [self.bias[row], self.correlation[row]]
                rows.append([*cells, names[label], self.held_out[row, label]])
                row += 1
        return rows


def explain(
    record: ProbeRecord,
    concepts: ConceptSet | Sequence[str],
    *,
    most: int = 10,
    tolerance: float = 0.02,
    calibration: Calibration | None = None,
    clip: ClipEncoder | None = None,
    text_embeddings: Float[Array, "C D"] | Float[np.ndarray, "C D"] | None = None,
) -> Explanations:
    """Explains every unit by up to `most` concepts.

    Args:
      record: from `probe`. With a calibration it needs the activations: probabilities are not
        linear in the image embeddings, so their moments with the units are not in the record.
      concepts: a concept set, or plain phrases.
      most: the largest number of concepts.
      tolerance: least gain in correlation that another concept must bring.
      calibration: turns cosines into probabilities; plain cosines when None.
      clip: the encoder that made the record's embeddings; the record's own when None.
      text_embeddings: unit embeddings of the concepts, instead of `clip`.

    Raises:
      InputError: a half has fewer than three images, activations are needed and not there, a
        concept is called 0, or there is no encoder.
    """
    if not isinstance(concepts, ConceptSet):
        concepts = ConceptSet(tuple(concepts))
    calibration = calibration or Calibration()
    if "0" in concepts.concepts:
        raise InputError("a concept is called '0', which stands for none in explanations.csv")
    if record.images < 6:
        raise InputError(f"explanations need 6 images, 3 a half; the record has {record.images}")
    texts = np.asarray(concept_texts(record, concepts, clip, text_embeddings), np.float64)
    if calibration.pair is None:
        choosing, testing = (_from_record(record, half, texts) for half in (0, 1))
    else:
        choosing, testing = (_from_images(record, half, texts, calibration) for half in (0, 1))

    correlations = choosing.correlation
    gram = choosing.concept_correlation
    choice = _greedy(
        jnp.asarray(correlations, jnp.float32),
        jnp.asarray(gram, jnp.float32),
        most=min(most, len(concepts)),
        tolerance=tolerance,
    )
    chosen = np.asarray(choice.concepts)
    weights = _weights(choosing, chosen)
    return Explanations(
        record=record,
        concepts=concepts,
        calibration=calibration,
        chosen=chosen,
        weights=weights,
        bias=choosing.unit_mean - (weights * choosing.concept_mean[chosen]).sum(axis=1),
        fitted=_multiple_correlation(choosing, chosen, weights),
        correlation=_multiple_correlation(testing, chosen, weights),
        labels=correlations.argmax(axis=1),
        held_out=testing.correlation.astype(np.float32),
        texts=texts,
    )


def _from_record(record: ProbeRecord, half: int, texts: Float[np.ndarray, "C D"]) -> HalfMoments:
    """The moments of plain cosines on one half: linear in those with the embeddings."""
    # Float64 on the host: a variance is a small difference of such sums.
    total, square, cross, gram, embedding = (
        np.asarray(sums[half], np.float64) for sums in record.half_moments
    )
    images = record.half_sizes[half]
    unit_mean = total / images
    embedding_mean = embedding / images
    concept_mean = texts @ embedding_mean
    centred_gram = gram / images - np.outer(embedding_mean, embedding_mean)
    centred_cross = cross / images - np.outer(unit_mean, embedding_mean)
    mean_square = square / images
    return HalfMoments(
        unit_mean=unit_mean,
        concept_mean=concept_mean,
        unit_variance=_variance(mean_square - unit_mean**2, mean_square),
        concept_covariance=texts @ centred_gram @ texts.T,
        covariance=centred_cross @ texts.T,
    )


def _from_images(
    record: ProbeRecord, half: int, texts: Float[np.ndarray, "C D"], calibration: Calibration
) -> HalfMoments:
    """The moments of calibrated probabilities on one half, from embeddings and activations.

    Raises:
      InputError: the record has no activations.
    """
    if record.activations is None:
        raise InputError(
            "explanations in calibrated probabilities need the activations; probe with "
            "--probe.keep-activations, or leave the calibration out"
        )
    embeddings = record.embeddings[half::2]
    activations = record.activations[half::2]
    images = len(embeddings)
    concept_mean = np.zeros(len(texts))
    unit_mean = np.asarray(activations, np.float64).mean(axis=0)
    starts = range(0, images, _IMAGES_AT_A_TIME)

    def values(start: int) -> tuple[np.ndarray, slice]:
        rows = slice(start, start + _IMAGES_AT_A_TIME)
        return calibration(np.asarray(embeddings[rows], np.float64) @ texts.T), rows

    for start in starts:
        concept_mean += values(start)[0].sum(axis=0) / images
    # A second pass, about the means: probabilities near 0 would lose their digits otherwise.
    concept_covariance = np.zeros((len(texts), len(texts)))
    covariance = np.zeros((len(unit_mean), len(texts)))
    unit_variance = np.zeros(len(unit_mean))
    for start in starts:
        probabilities, rows = values(start)
        probabilities -= concept_mean
        centred = np.asarray(activations[rows], np.float64) - unit_mean
        concept_covariance += probabilities.T @ probabilities / images
        covariance += centred.T @ probabilities / images
        unit_variance += (centred**2).sum(axis=0) / images
    return HalfMoments(unit_mean, concept_mean, unit_variance, concept_covariance, covariance)


def _weights(moments: HalfMoments, chosen: Int[np.ndarray, "U K"]) -> Float[np.ndarray, "U K"]:
    """Least squares of each unit on its concepts; 0 behind the last.

    Normal equations in float64: the choice leaves out concepts that are nearly mixtures of others.
    """
    there = chosen != NONE
    both = there[:, :, None] & there[:, None, :]
    matrix = moments.concept_covariance[chosen[:, :, None], chosen[:, None, :]]
    # Places behind the last get equations of their own: 1 · w = 0.
    matrix = np.where(both, matrix, np.eye(chosen.shape[1]))
    target = np.take_along_axis(moments.covariance, np.maximum(chosen, 0), axis=1)
    return np.linalg.solve(matrix, np.where(there, target, 0.0)[:, :, None])[:, :, 0]


def _multiple_correlation(
    moments: HalfMoments, chosen: Int[np.ndarray, "U K"], weights: Float[np.ndarray, "U K"]
) -> Float[np.ndarray, " U"]:
    """Correlation of the weighted sums with the activations; 0 where either is constant."""
    places = np.maximum(chosen, 0)
    matrix = moments.concept_covariance[places[:, :, None], places[:, None, :]]
    variance = np.einsum("uj,ujk,uk->u", weights, matrix, weights)
    products = np.take_along_axis(moments.covariance, places, axis=1)
    covariance = (weights * products).sum(axis=1)
    return covariance * _inverse_std(variance) * _inverse_std(moments.unit_variance)


def _variance(variance: np.ndarray, mean_square: np.ndarray) -> np.ndarray:
    """A variance that came of a difference; 0 where it is nothing but rounding."""
    return np.where(variance > _LEAST_VARIANCE * mean_square, variance, 0.0)


def _inverse_std(variance: np.ndarray) -> np.ndarray:
    """1 / √variance, 0 for a variance of 0: what is constant correlates with nothing."""
    positive = variance > 0
    return np.where(positive, 1 / np.sqrt(np.where(positive, variance, 1.0)), 0.0)
