"""Binds concepts to a probe record: scores of every unit with every concept, and its label.

Concepts come late: the record is all that is needed, not the images. Shapes: U units of all layers
side by side, C concepts, D embedding.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from emojax.data.clip_encoder import ClipEncoder
from emojax.data.concepts import ConceptSet
from emojax.dissection import encoder_check, wpmi
from emojax.dissection import scores as similarities
from emojax.dissection import trust as trusting
from emojax.dissection.labels import Confidence, Dissection
from emojax.dissection.options import (
    DEFAULT,
    Correlation,
    Cosine,
    CosineCubed,
    Hyperparameters,
    RankReorder,
    Similarity,
    SoftWpmi,
    Wpmi,
    options_of,
)
from emojax.distributed.mesh import make_mesh
from emojax.errors import InputError
from emojax.probing.record import ProbeRecord
from emojax.section import user_path
from emojax.store import cached, content_key

_TEXTS_FORMAT = 1  # of cached text embeddings; part of their key
_log = logging.getLogger("emojax")


def dissect(
    record: ProbeRecord,
    concepts: ConceptSet | Sequence[str],
    *,
    similarity: Similarity | None = None,
    clip: ClipEncoder | None = None,
    text_embeddings: Float[Array, "C D"] | Float[np.ndarray, "C D"] | None = None,
    null_sets: int = 1000,
    trust: bool = True,
    mesh: Mesh | None = None,
    **hyperparameters: Unpack[Hyperparameters],
) -> Dissection:
    """Scores a record with a concept set.

    Args:
      record: from `probe`.
      concepts: a concept set, or plain phrases.
      similarity: correlation, one of CLIP-Dissect's five functions as published, or consensus; None
        is the one that is right most often on rendered faces, consensus.
      clip: the encoder that made the record's embeddings; the record's own when None.
      text_embeddings: unit embeddings of the concepts, instead of `clip`. Without them, and so with
        an encoder at hand, a warning is logged of one that does not know such images.
      null_sets: random image lists that labels are tested against (the two WPMI functions;
        consensus by its soft_wpmi); 0 leaves p-values out.
      trust: also say whether labels hold on either half of the images; without, and without
        `null_sets`, the result has no confidence.
      mesh: devices to shard the concepts over; all when None.
      **hyperparameters: of the similarity function, with the official names and defaults (see
        `emojax.dissection.options`).

    Raises:
      InputError: the record lacks what the function needs, there is no encoder, or the function is
        undefined for a unit with every concept.
      TypeError: the function has no such hyperparameter.
    """
    if not isinstance(concepts, ConceptSet):
        concepts = ConceptSet(tuple(concepts))
    similarity = similarity or DEFAULT
    options = options_of(similarity, hyperparameters)
    texts = concept_texts(record, concepts, clip, text_embeddings)
    encoder = clip or record.clip
    if text_embeddings is None and encoder is not None:
        for line in encoder_check.doubts(encoder, encoder_check.zero_shot(record, encoder)):
            _log.warning(line)
    half_labels = None
    p_value = q_value = None
    match options:
        case SoftWpmi() | Wpmi():
            scores, half_labels, p_value, q_value = wpmi.score(
                record, texts, options, null_sets, trust, mesh or make_mesh()
            )
        case Correlation():
            scores = similarities.correlation(record.covariances, texts)
            if trust and record.images >= 4:
                halves = record.half_covariances
                half_labels = np.stack(
                    [similarities.correlation(half, texts).argmax(axis=1) for half in halves]
                )
        case Cosine():
            scores = similarities.cos_similarity(record.moments, texts)
            if trust and record.images >= 4:
                half_labels = np.stack(
                    [similarities.cos_similarity(half, texts).argmax(1) for half in record.halves]
                )
        case RankReorder():
            scores = similarities.rank_reorder(record, texts, options)
        case CosineCubed():
            scores = similarities.cos_similarity_cubed(record, texts, options)
    scores = _undefined_marked(scores, similarity)
    held_out = None if half_labels is None else trusting.held_out(record, texts, half_labels)
    known = half_labels is not None or p_value is not None
    confidence = Confidence(half_labels, held_out, p_value, q_value) if known else None
    prior = options.prior if isinstance(options, SoftWpmi | Wpmi) else None
    return Dissection(record, concepts, similarity, scores, confidence, prior)


def concept_texts(
    record: ProbeRecord,
    concepts: ConceptSet,
    clip: ClipEncoder | None,
    embeddings: jax.Array | np.ndarray | None,
) -> jax.Array:
    """Unit embeddings [C, D] of the concepts, by the CLIP that made the record.

    Raises:
      InputError: there is no encoder, it is another one, or the given embeddings do not fit.
    """
    if embeddings is None:
        clip = clip or record.clip
        if clip is None:
            raise InputError(
                "this record was read from disk: pass the clip that made it, or text_embeddings"
            )
    if clip is not None and clip.key != record.clip_key:
        raise InputError(
            f"the record was made with another CLIP than {clip.name}; pass the one that made it, "
            "or probe again"
        )
    if embeddings is None and clip is not None:
        embeddings = embed_concepts(clip, concepts)
    texts = jnp.asarray(embeddings, jnp.float32)
    expected = (len(concepts), record.embeddings.shape[1])
    if texts.shape != expected:
        raise InputError(f"text embeddings have shape {texts.shape}, not {expected}")
    return texts


def _undefined_marked(
    scores: Float[np.ndarray, "U C"], similarity: str
) -> Float[np.ndarray, "U C"]:
    """The scores with NaN for every undefined pair; refuses units that have no other."""
    undefined = ~np.isfinite(scores)
    without = undefined.all(axis=1)
    if without.any():
        why = "its scores are beyond float32; use other hyperparameters or another similarity"
        if similarity == "rank_reorder":
            why = (
                "it takes the root of a mean cosine that must be positive, over top activations "
                "that must differ; use another similarity"
            )
        raise InputError(
            f"{similarity} is undefined with every concept for {without.sum()} units, first unit "
            f"{np.argmax(without)}: {why}"
        )
    return np.where(undefined, np.float32(np.nan), scores)


def embed_concepts(
    clip: ClipEncoder, concepts: ConceptSet, cache: Path | None = None
) -> Float[np.ndarray, "C D"]:
    """Unit embeddings of the concepts, cached in `cache` by the content of concepts and CLIP.

    The tokens are part of the key: whatever a tokenizer is, nothing else of it reaches the network.
    """
    texts = concepts.concepts
    if cache is None:
        return clip.embed_texts(texts)
    content = [_TEXTS_FORMAT, clip.key, list(texts), clip.tokenize(texts), jax.default_backend()]
    folder = user_path(cache) / "texts"
    embed = lambda: {"texts": clip.embed_texts(texts)}  # noqa: E731
    return cached(folder, content_key(content), embed)["texts"]
