"""Labels by many settings of the similarity functions at once, from one record.

Which label a unit gets depends on the function and its hyperparameters. Tried together, settings
share what costs: the cosines, the softmax of a temperature, and the pass over each unit's top
images, which does not depend on the prior. Shapes: I images, U units of all layers side by side, C
concepts, K top-k, D embedding, S settings.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from emojax.data.concepts import ConceptSet
from emojax.dissection import scores as similarities
from emojax.dissection import trust
from emojax.dissection.labels import Confidence, Dissection
from emojax.dissection.options import (
    WITH_PRIOR,
    Consensus,
    Correlation,
    Cosine,
    Prior,
    Similarity,
    SoftWpmi,
    Wpmi,
    options_of,
)
from emojax.dissection.wpmi import rank_weights
from emojax.errors import InputError
from emojax.ops import similarity as ops
from emojax.probing.record import ProbeRecord

Labelling = Correlation | Cosine | SoftWpmi | Wpmi


@dataclass(frozen=True)
class LabelSetting:
    """A similarity function with its hyperparameters."""

    similarity: Similarity
    options: Labelling

    def cells(self) -> dict[str, str | float | int]:
        """What tells it from other settings, by name; "" for what the function does not have."""
        names = ("prior", "a", "lam", "top_k")
        return {"similarity": self.similarity} | {
            name: getattr(self.options, name, "") for name in names
        }


def grid(
    similarities: Sequence[Similarity],
    *,
    a: Sequence[float] = (),
    lam: Sequence[float] = (),
    top_k: Sequence[int] = (),
    prior: Sequence[Prior] = (),
) -> list[LabelSetting]:
    """Every combination of what is given, each once; an empty list is the function's default.

    Without a prior λ has no meaning, so it is not varied there.

    Raises:
      InputError: a function other than consensus, correlation, cos_similarity, wpmi and soft_wpmi.
    """
    settings: dict[LabelSetting, None] = {}
    for similarity in similarities:
        if similarity not in WITH_PRIOR:
            options = options_of(similarity, {})
            if not isinstance(options, Correlation | Cosine):
                raise InputError(
                    "label settings are of consensus, correlation, cos_similarity, wpmi and "
                    f"soft_wpmi, not of {similarity}"
                )
            settings[LabelSetting(similarity, options)] = None
            continue
        combinations = itertools.product(
            top_k or (None,), a or (None,), prior or (None,), lam or (None,)
        )
        for size, factor, compared_with, weight in combinations:
            options = options_of(
                similarity,
                {
                    "top_k": size,
                    "a": factor,
                    "prior": compared_with,
                    "lam": None if compared_with == "none" else weight,
                },
            )
            assert isinstance(options, SoftWpmi | Wpmi)
            settings[LabelSetting(similarity, options)] = None
    return list(settings)


def dissect_by(
    record: ProbeRecord,
    concepts: ConceptSet,
    texts: Float[Array, "C D"] | Float[np.ndarray, "C D"],
    settings: Sequence[LabelSetting],
) -> Iterator[Dissection]:
    """The dissection of each setting, as `dissect` gives it without p-values.

    Settings that differ in the prior alone should be neighbours, and those of one temperature, as
    `grid` orders them. The images × concepts cosines must fit into memory.

    Raises:
      InputError: the record's lists are too short for a setting, or it has a single image.
    """
    texts = jnp.asarray(texts, jnp.float32)
    logliks = functools.lru_cache(maxsize=1)(functools.partial(_logliks, record, texts))
    # A half of a single image has no variance.
    halved = record.half_sizes[1] >= 2
    for setting in settings:
        options = setting.options
        halves = []
        match options:
            case Correlation():
                scores = similarities.correlation(record.covariances, texts)
                if halved:
                    halves = [
                        similarities.correlation(half, texts) for half in record.half_covariances
                    ]
            case Cosine():
                scores = similarities.cos_similarity(record.moments, texts)
                if halved:
                    halves = [similarities.cos_similarity(half, texts) for half in record.halves]
            case SoftWpmi() | Wpmi():
                shared = logliks(tuple(rank_weights(options).tolist()), options.a, options.min_prob)
                scores, *halves = _less_prior(record, shared, options)
                if isinstance(options, Consensus):
                    scores = similarities.consensus(scores, record.covariances, texts)
                    both = zip(halves, record.half_covariances[: len(halves)], strict=True)
                    halves = [similarities.consensus(*half, texts) for half in both]
        confidence = None
        if halves:
            half_labels = np.stack([half.argmax(axis=1) for half in halves])
            confidence = Confidence(half_labels, trust.held_out(record, texts, half_labels))
        prior = options.prior if isinstance(options, SoftWpmi | Wpmi) else None
        yield Dissection(record, concepts, setting.similarity, scores, confidence, prior)


@dataclass(frozen=True)
class _Logliks:
    """What settings of one temperature and length of lists share.

    Attributes:
      blocks: log-likelihoods by all images' lists, and by either half's where these are long enough
        [1 or 3, U, C], less `constant`.
      expected: that of random lists [C], less the same.
      constant: what the two lack.
    """

    blocks: Float[Array, "blocks U C"]
    expected: Float[Array, " C"]
    constant: float


def _logliks(
    record: ProbeRecord,
    texts: Float[Array, "C D"],
    weights: tuple[float, ...],
    a: float,
    min_prob: float,
) -> _Logliks:
    top_k = len(weights)
    lists = [record.top_k(top_k).indices]
    if record.images // 2 >= top_k:
        lists += [half[:, :top_k] for half in record.top.indices]
    rows = jnp.asarray(np.concatenate(lists))
    loglik, expected, constant = _loglik_program(
        jnp.asarray(record.embeddings), texts, rows, a, weights=weights, min_prob=min_prob
    )
    blocks = loglik.reshape(len(lists), -1, len(texts))
    return _Logliks(blocks, expected, float(constant))


@functools.partial(jax.jit, static_argnames=("weights", "min_prob"))
def _loglik_program(
    images: Float[Array, "I D"],
    texts: Float[Array, "C D"],
    rows: Int[Array, "lists K"],
    a: Float[Array, ""] | float,
    *,
    weights: tuple[float, ...],
    min_prob: float,
) -> tuple[Float[Array, "lists C"], Float[Array, " C"], Float[Array, ""]]:
    """Compiled once for a length of lists: the temperature is an argument."""
    logits = a * jnp.matmul(images, texts.T, precision=jax.lax.Precision.HIGHEST)
    probs = jnp.exp(logits - ops.log_normaliser(logits, lambda block: block)[:, None])
    by_rank = np.asarray(weights)
    loglik, constant = ops.weighted_loglik(probs, rows, by_rank, min_prob, len(texts))
    expected = ops.image_prior(probs, by_rank, min_prob, len(texts))
    return loglik, expected, jnp.asarray(constant)


def _less_prior(
    record: ProbeRecord, shared: _Logliks, options: SoftWpmi | Wpmi
) -> list[Float[np.ndarray, "U C"]]:
    """Scores by all images, and by either half where there are lists of it."""
    lam = 0.0 if options.prior == "none" else options.lam
    shift = (1.0 - lam) * shared.constant
    if options.prior == "units":
        sizes = tuple(record.layers.values())
        blocks = [_less_layer_prior(block, lam, sizes=sizes) for block in shared.blocks]
    else:
        blocks = [block - lam * shared.expected for block in shared.blocks]
    return [np.asarray(block + shift) for block in blocks]


_less_layer_prior = jax.jit(ops.subtract_layer_prior, static_argnames="sizes")


def shares(
    labels: Sequence[Int[np.ndarray, " U"]], default: Int[np.ndarray, " U"]
) -> Float[np.ndarray, " U"]:
    """Per unit the share of settings that give its default label."""
    return np.mean([own == default for own in labels], axis=0)
