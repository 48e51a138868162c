"""Binds concepts to a probe record: scores of every unit with every concept, labels, and how well labels describe.

Concepts come late. The product of image and text embeddings is never needed whole: WPMI gathers the rows of each unit's
top images, one tile of concepts at a time, and the cosine follows from the record's moments. Shapes: I images, U units
of all layers in a row, C concepts, K top-k, D embedding.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from emojax.data.clip_encoder import ClipEncoder
from emojax.data.concepts import ConceptSet
from emojax.dissection import wpmi as pmi
from emojax.dissection.wpmi import Confidence
from emojax.distributed.mesh import make_mesh
from emojax.errors import InputError
from emojax.ops import similarity as ops
from emojax.probing.record import ProbeRecord
from emojax.store import cached, content_key

Similarity = Literal["soft_wpmi", "wpmi", "rank_reorder", "cos_similarity", "cos_similarity_cubed"]
_TEXTS_FORMAT = 1  # of cached text embeddings; part of their key
DESCRIBED_BY = 10  # top images that decide whether a label describes a unit (seed, table 1)


@dataclass
class Dissection:
    """Scores of every unit with every concept, and the record and concepts they came from.

    Attributes:
      record: the probe record.
      concepts: the concept set.
      similarity: name of the similarity function.
      scores: [U, C] float32; comparable only within a layer, probe set and concept set.
      confidence: of the labels, for the two WPMI functions; None otherwise.
    """

    record: ProbeRecord
    concepts: ConceptSet
    similarity: Similarity
    scores: np.ndarray
    confidence: Confidence | None = None

    @cached_property
    def labels(self) -> np.ndarray:
        """Index of each unit's best concept [U]; ties to the earlier concept."""
        return self.scores.argmax(axis=1)

    @cached_property
    def best(self) -> np.ndarray:
        """Each unit's maximum similarity [U]."""
        return self.scores.max(axis=1)

    @cached_property
    def runner_up(self) -> np.ndarray | None:
        """Index of each unit's second-best concept [U]; None with a single concept."""
        if len(self.concepts) < 2:
            return None
        others = self.scores.copy()
        others[np.arange(len(others)), self.labels] = -np.inf
        return others.argmax(axis=1)

    def layer_scores(self, layer: str) -> np.ndarray:
        """Maximum similarity of the units of one layer."""
        if layer not in self.record.layers:
            raise InputError(f"layer {layer!r} was not probed; probed: {', '.join(self.record.layers)}")
        return self.best[self.record.segment_ids == list(self.record.layers).index(layer)]

    @cached_property
    def description(self) -> "Description | None":
        """How well the labels describe the units, or None without class labels or a concept → emotion map."""
        mask = None if self.record.labels is None else self.concepts.class_mask(self.record.classes)
        if mask is None:
            return None
        described = mask[self.labels]  # [U, classes]: classes that the unit's label speaks for
        top = self.record.top_k(min(DESCRIBED_BY, self.record.images)).indices
        hits = np.take_along_axis(described, self.record.labels[top], axis=1)
        share = np.bincount(self.record.labels, minlength=len(self.record.classes)) / self.record.images
        return Description(hits.mean(axis=1), described @ share)


@dataclass(frozen=True)
class Description:
    """Share [U] of each unit's top 10 images whose class its label speaks for, and that share for random images."""

    accuracy: np.ndarray
    chance: np.ndarray


def dissect(
    record: ProbeRecord,
    concepts: ConceptSet | Sequence[str],
    *,
    similarity: Similarity = "soft_wpmi",
    clip: ClipEncoder | None = None,
    text_embeddings: np.ndarray | None = None,
    null_sets: int = 1000,
    mesh: Mesh | None = None,
    **hyperparameters: Any,
) -> Dissection:
    """Scores a record with a concept set.

    Args:
      record: from `probe`.
      concepts: a concept set, or plain phrases.
      similarity: one of CLIP-Dissect's five functions.
      clip: the encoder that made the record's embeddings; the record's own when None.
      text_embeddings: unit embeddings [C, D] of the concepts, instead of `clip`.
      null_sets: random image lists that labels are tested against (the two WPMI functions); 0 leaves confidence out.
      mesh: devices to split the concepts over; all when None.
      **hyperparameters: of the similarity function, with the official names and defaults (`emojax.ops.similarity`).

    Raises:
      InputError: the record lacks what the function needs, or there is no encoder.
    """
    if not isinstance(concepts, ConceptSet):
        concepts = ConceptSet(tuple(concepts))
    if text_embeddings is None:
        clip = clip or record.clip
        if clip is None:
            raise InputError("this record was read from disk: pass the clip that made it, or text_embeddings")
        text_embeddings = embed_concepts(clip, concepts)
    if clip is not None and clip.key != record.clip_key:
        raise InputError(
            f"the record was made with another CLIP than {clip.name}; pass the one that made it, or probe again"
        )
    texts = jnp.asarray(text_embeddings, jnp.float32)
    if texts.shape != (len(concepts), record.embeddings.shape[1]):
        expected = (len(concepts), record.embeddings.shape[1])
        raise InputError(f"text embeddings have shape {texts.shape}, not {expected}")
    mesh, confidence = mesh or make_mesh(), None
    match similarity:
        case "soft_wpmi":
            scores, confidence = pmi.score(record, texts, pmi.SoftWpmi(**hyperparameters), null_sets, mesh)
        case "wpmi":
            scores, confidence = pmi.score(record, texts, pmi.Wpmi(**hyperparameters), null_sets, mesh)
        case "rank_reorder":
            scores = np.asarray(_rank_reorder(record, texts, **hyperparameters))
        case "cos_similarity":
            scores = np.asarray(_cosine(record, texts, **hyperparameters))
        case "cos_similarity_cubed":
            scores = np.asarray(_cosine_cubed(record, texts, **hyperparameters))
        case _:
            raise InputError(f"no similarity function {similarity!r}; known: {', '.join(Similarity.__args__)}")
    bad = ~np.isfinite(scores)
    if bad.any():
        unit, concept = np.argwhere(bad)[0]
        raise InputError(
            f"{similarity} is undefined for {bad.sum()} pairs, first unit {unit} with {concepts.concepts[concept]!r}"
            " (rank_reorder takes the root of a mean cosine that must be positive); use another similarity"
        )
    return Dissection(record, concepts, similarity, scores, confidence)


def embed_concepts(clip: ClipEncoder, concepts: ConceptSet, cache: Path | None = None) -> np.ndarray:
    """Unit embeddings [C, D] of the concepts, cached in `cache` by the content of concepts and CLIP.

    The tokens are part of the key: whatever a tokenizer is, nothing else of it reaches the network.
    """
    texts = concepts.concepts
    if cache is None:
        return clip.embed_texts(texts)
    parts = [_TEXTS_FORMAT, clip.key, list(texts), clip.tokenize(texts), jax.default_backend()]
    folder = Path(cache).expanduser() / "texts"
    return cached(folder, content_key(parts), lambda: {"texts": clip.embed_texts(texts)})["texts"]


def _cosine(record: ProbeRecord, texts: jax.Array) -> jax.Array:
    cross, square, gram = (
        jnp.asarray(x, jnp.float32) for x in (record.moments.cross, record.moments.square, record.moments.gram)
    )
    return jax.jit(ops.cos_similarity_from_moments)(cross, square, gram, texts)


def _cosine_cubed(record: ProbeRecord, texts: jax.Array, *, min_norm: float = 1e-3) -> jax.Array:
    if record.activations is None:
        raise InputError("cos_similarity_cubed needs the activations; probe with --probe.keep-activations")
    against = jnp.matmul(jnp.asarray(record.embeddings), texts.T, precision=jax.lax.Precision.HIGHEST)
    return jax.jit(functools.partial(ops.cos_similarity_cubed, min_norm=min_norm))(against, jnp.asarray(record.activations))


def _rank_reorder(
    record: ProbeRecord,
    texts: jax.Array,
    *,
    p: float = 3.0,
    top_fraction: float = 0.05,
    scale_p: float = 0.5,
    permutations: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    n = ops.rank_reorder_size(record.images, top_fraction)
    if n < 2:
        raise InputError(f"rank_reorder ranks {top_fraction:.0%} of the images; {record.images} images are too few")
    top = record.top_k(n)
    if permutations is None:
        permutations = ops.random_permutations(jax.random.key(0) if key is None else key, len(top.indices), n)

    @jax.jit
    def run(images: jax.Array, texts: jax.Array, values: jax.Array, indices: jax.Array, orders: jax.Array) -> jax.Array:
        baseline = ops.rank_reorder_baseline(values, orders, p)

        def unit(one: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            activations, rows, base = one
            clip_rows = jnp.matmul(images[rows], texts.T, precision=jax.lax.Precision.HIGHEST)
            return ops.rank_reorder_from_topk(activations, clip_rows, base, p=p, scale_p=scale_p)

        return jax.lax.map(unit, (values, indices, baseline))

    return run(jnp.asarray(record.embeddings), texts, *map(jnp.asarray, (top.values, top.indices, permutations)))


@dataclass(frozen=True)
class LayerSummary:
    """One row of the paper's Table 1, with what chance alone would give.

    Accuracies are means over units of the share of a unit's top 10 images whose class its label speaks for; None where
    there is no such unit or no class labels. `adjusted_*` is (accuracy − chance) / (1 − chance): 0 for random labels.
    """

    layer: str
    interpretable: int
    not_interpretable: int
    overall_acc: float | None
    interp_acc: float | None
    uninterp_acc: float | None
    share: float
    chance_overall: float | None
    chance_interp: float | None
    adjusted_overall: float | None
    adjusted_interp: float | None


def interpretability(dissection: Dissection, tau: float = 0.0) -> list[LayerSummary]:
    """The paper's Table 1: a unit is interpretable when its maximum similarity exceeds tau."""
    rows, description = [], dissection.description
    for number, (layer, units) in enumerate(dissection.record.layers.items()):
        mine = dissection.record.segment_ids == number
        above = mine & (dissection.best > tau)
        groups = (mine, above, mine & ~above)

        def mean(values: np.ndarray | None, group: np.ndarray) -> float | None:
            return float(values[group].mean()) if values is not None and group.any() else None

        accuracy = [mean(description and description.accuracy, group) for group in groups]
        chance = [mean(description and description.chance, group) for group in groups[:2]]
        adjusted = [
            None if a is None or c is None or c == 1.0 else (a - c) / (1.0 - c)
            for a, c in zip(accuracy[:2], chance, strict=True)
        ]
        count = int(above.sum())
        rows.append(LayerSummary(layer, count, units - count, *accuracy, count / units, *chance, *adjusted))
    return rows


def most_interpretable_layer(rows: Sequence[LayerSummary]) -> str:
    """The paper's rule for the layer to edit: the one with the most interpretable units; ties to the later layer."""
    return max(reversed(rows), key=lambda row: row.interpretable).layer
