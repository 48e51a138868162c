"""Binds concepts to a probe record: scores of every unit with every concept, labels, and how well labels describe.

Concepts come late. The product of image and text embeddings is never needed whole: WPMI gathers the rows of each unit's
top images, one tile of concepts at a time, and the cosine follows from the record's moments. Shapes: I images, U units
of all layers in a row, C concepts, K top-k, D embedding.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from emojax.data.concepts import ConceptSet
from emojax.data.weights import ClipEncoder
from emojax.engine.record import ProbeRecord
from emojax.errors import InputError
from emojax.mesh import AXIS, make_mesh, put_copy, split
from emojax.ops import similarity as ops
from emojax.ops import stats

Similarity = Literal["soft_wpmi", "wpmi", "rank_reorder", "cos_similarity", "cos_similarity_cubed"]
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
    confidence: "Confidence | None" = None

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
class Confidence:
    """Whether the labels are more than chance, and whether they hold on either half of the images.

    Attributes:
      p_value: chance [U] that a random list of as many images scores this high with its own best concept.
      q_value: p_value [U] adjusted over all units (Benjamini–Hochberg).
      half_labels: labels [2, U] from even and from odd images alone; None when a half has too few images.
    """

    p_value: np.ndarray
    q_value: np.ndarray
    half_labels: np.ndarray | None

    def holds(self, labels: np.ndarray) -> np.ndarray | None:
        """Where both halves give the unit's label [U] bool."""
        return None if self.half_labels is None else (self.half_labels == labels).all(axis=0)


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
        text_embeddings = clip.embed_texts(concepts.concepts)
    texts = jnp.asarray(text_embeddings, jnp.float32)
    if texts.shape != (len(concepts), record.embeddings.shape[1]):
        expected = (len(concepts), record.embeddings.shape[1])
        raise InputError(f"text embeddings have shape {texts.shape}, not {expected}")
    mesh, confidence = mesh or make_mesh(), None
    match similarity:
        case "soft_wpmi":
            scores, confidence = _soft_wpmi(record, texts, null_sets, mesh, **hyperparameters)
        case "wpmi":
            scores, confidence = _wpmi(record, texts, null_sets, mesh, **hyperparameters)
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


def _soft_wpmi(
    record: ProbeRecord,
    texts: jax.Array,
    null_sets: int,
    mesh: Mesh,
    *,
    top_k: int = 100,
    a: float = 10.0,
    lam: float = 1.0,
    min_prob: float = 1e-7,
    p_start: float = 0.998,
    p_end: float = 0.97,
) -> tuple[np.ndarray, "Confidence | None"]:
    weights = ops.soft_weights(top_k, p_start, p_end)
    loglik = functools.partial(ops.soft_loglik, weights=weights, min_prob=min_prob, concepts=len(texts))
    return _pmi(record, texts, null_sets, mesh, top_k=top_k, a=a, lam=lam, loglik=loglik)


def _wpmi(
    record: ProbeRecord,
    texts: jax.Array,
    null_sets: int,
    mesh: Mesh,
    *,
    top_k: int = 28,
    a: float = 2.0,
    lam: float = 0.6,
    min_prob: float = 1e-7,
) -> tuple[np.ndarray, "Confidence | None"]:
    loglik = functools.partial(ops.hard_loglik, min_prob=min_prob, concepts=len(texts))
    return _pmi(record, texts, null_sets, mesh, top_k=top_k, a=a, lam=lam, loglik=loglik)


def _pmi(
    record: ProbeRecord,
    texts: jax.Array,
    null_sets: int,
    mesh: Mesh,
    *,
    top_k: int,
    a: float,
    lam: float,
    loglik: Callable[[jax.Array, jax.Array], tuple[jax.Array, float]],
) -> tuple[np.ndarray, "Confidence | None"]:
    """Either WPMI, a tile of concepts at a time; with `null_sets`, the labels' confidence from the same tiles.

    One long axis of image lists holds every unit's, then (for confidence) every unit's of even and of odd images, then
    random ones. Each layer's prior is taken off the first three blocks per block, and off the random lists per layer, so
    one set of random lists serves all layers. Concepts are split over the mesh: beyond the softmax's normaliser, no score
    needs another device's.
    """
    lists = [record.top_k(top_k).indices]
    sizes, units, concepts = list(record.layers.values()), len(lists[0]), len(texts)
    halves = null_sets > 0 and record.images // 2 >= top_k
    if halves:
        lists += [half[:, :top_k] for half in record.top.indices]
    blocks = len(lists)
    if null_sets:
        rng = np.random.default_rng(0)
        lists.append(np.stack([rng.choice(record.images, top_k, replace=False) for _ in range(null_sets)]))
    used, rows = np.unique(np.concatenate(lists), return_inverse=True)  # only images in some list matter
    rows = np.int32(rows.reshape(-1, top_k))

    width = min(ops.CONCEPT_TILE, -(-concepts // mesh.size))
    tiles = -(-concepts // (width * mesh.size)) * mesh.size
    tiled = np.zeros((tiles * width, texts.shape[1]), np.float32)
    tiled[:concepts] = texts
    real = np.arange(tiles * width).reshape(tiles, width) < concepts

    def local(images: jax.Array, rows: jax.Array, texts: jax.Array, real: jax.Array) -> tuple[jax.Array, ...]:
        """One device's tiles of concepts: texts [tiles, width, D], real [tiles, width]."""
        mine = texts.reshape(-1, texts.shape[-1])
        product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        own = ops.log_normaliser(images, lambda image: jnp.where(real.reshape(-1), a * product(mine, image), -jnp.inf))
        largest = jax.lax.pmax(own, AXIS)
        normaliser = largest + jnp.log(jax.lax.psum(jnp.exp(own - largest), AXIS))

        def score(tile: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
            text, exists = tile
            total, constant = loglik(jnp.exp(a * product(images, text.T) - normaliser[:, None]), rows)
            prior = ops.layer_prior(total[: blocks * units], sizes * blocks)
            scores = total[: blocks * units] - lam * jnp.repeat(prior, np.asarray(sizes * blocks), axis=0)
            null = total[None, blocks * units :] - lam * prior[: len(sizes), None]
            scores, null = (jnp.where(exists, x + (1.0 - lam) * constant, -jnp.inf) for x in (scores, null))
            return scores[:units], scores[units:].max(1), scores[units:].argmax(1), null.max(2)

        return jax.lax.map(score, (texts, real))

    parts, whole = PartitionSpec(AXIS), PartitionSpec()
    specs = {"mesh": mesh, "in_specs": (whole, whole, parts, parts), "out_specs": parts, "check_vma": False}
    images = put_copy(mesh, (record.embeddings[used], rows))
    concept_parts = jax.device_put((tiled.reshape(tiles, width, -1), real), split(mesh))
    scores, half_best, half_at, null = map(np.asarray, jax.jit(jax.shard_map(local, **specs))(*images, *concept_parts))
    scores = np.moveaxis(scores, 0, 1).reshape(units, -1)[:, :concepts]
    if not null_sets:
        return scores, None

    best, null = jnp.asarray(scores.max(axis=1)), jnp.asarray(null.max(axis=0))
    layer_of = record.segment_ids
    p_values = jnp.concatenate([stats.permutation_p_values(best[layer_of == at], null[at]) for at in range(len(sizes))])
    labels = None
    if halves:
        tile = half_best.argmax(axis=0)
        labels = (tile * width + np.take_along_axis(half_at, tile[None], axis=0)[0]).reshape(2, units)
    return scores, Confidence(np.asarray(p_values), np.asarray(stats.benjamini_hochberg(p_values)), labels)


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
