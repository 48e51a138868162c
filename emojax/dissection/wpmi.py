"""Scores of the two WPMI functions from a probe record, and whether the labels can be trusted.

Consensus is here too: soft_wpmi, with correlation added at the end.

The product of image and text embeddings is never held whole: concepts come in tiles, split over the
mesh, and beyond the softmax's normaliser no score needs another device's. Shapes: I images in some
list, U units of all layers side by side, C concepts, K top-k, R random lists, D embedding.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from emojax.dissection.options import Consensus, SoftWpmi, Wpmi
from emojax.dissection.scores import consensus
from emojax.distributed.data_parallel import data_parallel
from emojax.distributed.mesh import (
    AXIS,
    batch_sharded,
    placed_shapes,
    put_replicated,
    put_sharded,
    replicated,
)
from emojax.ops import similarity as ops
from emojax.ops import stats
from emojax.probing.record import ProbeRecord


class Scored(NamedTuple):
    """Scores, and what goes with them as in `Confidence`."""

    scores: Float[np.ndarray, "U C"]
    half_labels: Int[np.ndarray, "2 U"] | None
    p_value: Float[np.ndarray, " U"] | None
    q_value: Float[np.ndarray, " U"] | None


class _Lists(NamedTuple):
    """All lists of images to score, one under the other.

    Attributes:
      images: the probe images [I] that are in some list.
      rows: lists [blocks · U + R, K] of positions in `images`: every unit's; with `halves`, every
        unit's of even and of odd images; then R random ones.
      halves: whether the halves' lists are there, so that blocks is 3, not 1.
    """

    images: np.ndarray
    rows: np.ndarray
    halves: bool


class _Tiles(NamedTuple):
    """Unit text embeddings in tiles [tiles, width, D], and which are concepts, not filling."""

    texts: np.ndarray
    is_concept: np.ndarray

    @property
    def width(self) -> int:
        """Concepts in a tile."""
        return self.is_concept.shape[1]


def score(
    record: ProbeRecord,
    texts: Float[Array, "C D"],
    options: SoftWpmi | Wpmi,
    null_sets: int,
    halves: bool,
    mesh: Mesh,
) -> Scored:
    """Scores of a record with unit text embeddings.

    Each layer's prior is taken off per block of lists, and off the random lists per layer, so one
    set of random lists serves all layers.

    Args:
      record: the record.
      texts: the embeddings.
      options: of the function.
      null_sets: random lists to test labels against.
      halves: also label by either half of the images, if its lists are long enough.
      mesh: devices to shard the concepts over.
    """
    units = int(sum(record.layers.values()))
    concepts = len(texts)
    lists = _lists(record, options.top_k, null_sets, halves)
    if options.prior == "images":
        # The prior is an expectation over all images.
        lists = _Lists(
            np.arange(record.images), lists.images.astype(np.int32)[lists.rows], lists.halves
        )
    tiles = _tiles(np.asarray(texts), mesh)

    blocks = 3 if lists.halves else 1
    program = program_of(mesh, options, tuple(record.layers.values()), blocks, concepts)
    whole = put_replicated(mesh, (record.embeddings[lists.images], lists.rows))
    sharded = put_sharded(mesh, tuple(tiles))
    by_tile, half_best, half_concept, null = map(np.asarray, program(*whole, *sharded))

    rows = np.moveaxis(by_tile, 0, 1).reshape(-1, units, tiles.width * len(by_tile))
    scores, *half_scores = rows[..., :concepts]
    half_labels = p_value = q_value = None
    if lists.halves:
        half_labels = _half_labels(half_best, half_concept, tiles.width)
    if null_sets:
        p_value, q_value = _significance(scores, null.max(axis=0), record.segment_ids)
    if isinstance(options, Consensus):
        scores = consensus(scores, record.covariances, texts)
        if half_scores:
            both = zip(half_scores, record.half_covariances, strict=True)
            half_labels = np.stack([consensus(*half, texts).argmax(axis=1) for half in both])
    return Scored(scores, half_labels, p_value, q_value)


def _lists(record: ProbeRecord, top_k: int, null_sets: int, halves: bool) -> _Lists:
    """The image lists of a record's units, and `null_sets` random ones."""
    lists = [np.asarray(record.top_k(top_k).indices)]
    halves = halves and record.images // 2 >= top_k
    if halves:
        lists += [np.asarray(half[:, :top_k]) for half in record.top.indices]
    if null_sets:
        rng = np.random.default_rng(0)
        draws = [rng.choice(record.images, top_k, replace=False) for _ in range(null_sets)]
        lists.append(np.stack(draws))
    # Only images in some list matter: the others' embeddings never leave the host.
    images, rows = np.unique(np.concatenate(lists), return_inverse=True)
    return _Lists(images, rows.reshape(-1, top_k).astype(np.int32), halves)


def _tiles(texts: np.ndarray, mesh: Mesh) -> _Tiles:
    """Concepts [C, D] dealt into equal tiles, as many for every device."""
    concepts, dimension = texts.shape
    # The width does not depend on the devices, or near ties would be decided by how many there are.
    width = min(ops.CONCEPT_TILE, concepts)
    tiles = -(-concepts // (width * mesh.size)) * mesh.size
    filled = np.zeros((tiles * width, dimension), np.float32)
    filled[:concepts] = texts
    is_concept = np.arange(tiles * width).reshape(tiles, width) < concepts
    return _Tiles(filled.reshape(tiles, width, dimension), is_concept)


def _half_labels(best: np.ndarray, concept: np.ndarray, width: int) -> np.ndarray:
    """Labels [2, U] of the halves, from each tile's best score and its place there [tiles, 2U]."""
    tile = best.argmax(axis=0)
    in_tile = np.take_along_axis(concept, tile[None], axis=0)[0]
    return (tile * width + in_tile).reshape(2, -1)


def _significance(
    scores: np.ndarray, null: np.ndarray, segment_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """p- and q-values [U] of best scores, from random lists' best scores by layer [layers, R]."""
    best = scores.max(axis=1)
    p_values = []
    for layer, draws in enumerate(null):
        observed = jnp.asarray(best[segment_ids == layer])
        p_values.append(stats.permutation_p_values(observed, jnp.asarray(draws)))
    p_value = jnp.concatenate(p_values)
    return np.asarray(p_value), np.asarray(stats.benjamini_hochberg(p_value))


PARTS = {
    "normaliser": "normaliser",
    "lists": "lists",
    "prior": "prior",
}  # the named scopes of the scoring's work


def shapes(
    mesh: Mesh, lists: tuple[int, int], images: int, concepts: int, embedding: int
) -> tuple[PyTree, ...]:
    """The arguments of `program_of` as shapes with shardings, to compile it without arrays.

    Args:
      mesh: the devices, which need not be there.
      lists: how many lists there are, and how long they are.
      images: those in some list; with the prior over images, all.
      concepts: how many.
      embedding: width of the embeddings.
    """
    tiles = _tiles(np.broadcast_to(np.float32(0), (concepts, embedding)), mesh)
    whole = (
        jax.ShapeDtypeStruct((images, embedding), np.float32),
        jax.ShapeDtypeStruct(lists, np.int32),
    )
    return *placed_shapes(replicated(mesh), whole), *placed_shapes(
        batch_sharded(mesh), tuple(tiles)
    )


def rank_weights(options: SoftWpmi | Wpmi) -> np.ndarray:
    """The chance [K] that the image of a rank belongs to the activating set; in WPMI all do."""
    if isinstance(options, SoftWpmi):
        return ops.soft_weights(options.top_k, options.p_start, options.p_end)
    return np.ones(options.top_k)


@functools.lru_cache(maxsize=16)
def program_of(
    mesh: Mesh, options: SoftWpmi | Wpmi, sizes: tuple[int, ...], blocks: int, concepts: int
) -> Callable:
    """The jitted scoring of all tiles: compiled once for given layers and number of concepts.

    Takes embeddings [I, D], image lists [blocks·U + R, K], texts [tiles, width, D] and which of
    them are concepts [tiles, width]. Gives, by tile: the units' scores [U, width], for
    consensus with those of the halves below [blocks·U, width]; the halves' best scores and their
    places in the tile [(blocks − 1)·U]; the random lists' best scores by layer [layers, R].
    """
    units = sum(sizes)
    layers = len(sizes)
    weights = rank_weights(options)
    lam = 0.0 if options.prior == "none" else options.lam
    kept = blocks * units if isinstance(options, Consensus) else units
    # The halves' blocks repeat the layers: each block of a layer's units has a prior of its own.
    groups = sizes * blocks

    def logits(images: jax.Array, texts: jax.Array) -> jax.Array:
        return options.a * jnp.matmul(images, texts.T, precision=jax.lax.Precision.HIGHEST)

    def local(
        images: jax.Array, lists: jax.Array, texts: jax.Array, is_concept: jax.Array
    ) -> tuple[jax.Array, ...]:
        # First pass over the tiles: the softmax's normaliser of each image, over all concepts.
        # Filling counts for nothing in it, being −∞.
        def log_sum(tile: tuple[jax.Array, jax.Array]) -> jax.Array:
            text, exists = tile
            masked = lambda rows: jnp.where(exists, logits(rows, text), -jnp.inf)  # noqa: E731
            return ops.log_normaliser(images, masked)

        with jax.named_scope("normaliser"):
            sums = jax.lax.all_gather(jax.lax.map(log_sum, (texts, is_concept)), AXIS, tiled=True)
            # Tiles of nothing but filling, which only some numbers of devices need, are left out:
            # the sum has the same terms on any mesh.
            normaliser = jax.nn.logsumexp(sums[: -(-concepts // texts.shape[1])], axis=0)

        # Second pass: a tile's probabilities, and from them the scores of all lists.
        def score_tile(tile: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
            text, exists = tile
            probs = jnp.exp(logits(images, text) - normaliser[:, None])
            with jax.named_scope("lists"):
                loglik, constant = ops.weighted_loglik(
                    probs, lists, weights, options.min_prob, concepts
                )
            if options.prior == "units":
                # A layer's own expectation over its units, here of each block.
                prior = ops.layer_prior(loglik[: blocks * units], groups)
                own_prior = jnp.repeat(prior, np.asarray(groups), axis=0)
            elif options.prior == "images":
                with jax.named_scope("prior"):
                    expected = ops.image_prior(probs, weights, options.min_prob, concepts)
                prior = jnp.broadcast_to(expected, (layers, *expected.shape))
                own_prior = expected
            else:
                prior = jnp.zeros((layers, probs.shape[1]))
                own_prior = prior[0]
            scores = loglik[: blocks * units] - lam * own_prior
            # A random list has no layer: it is scored as a unit of each, [layers, R, width].
            null = loglik[None, blocks * units :] - lam * prior[:layers, None]
            # What `weighted_loglik` took off as a constant stays where the prior is weighed less.
            shift = (1.0 - lam) * constant
            scores = jnp.where(exists, scores + shift, -jnp.inf)
            null = jnp.where(exists, null + shift, -jnp.inf)
            halves = scores[units:]
            return scores[:kept], halves.max(1), halves.argmax(1), null.max(2)

        return jax.lax.map(score_tile, (texts, is_concept))

    return data_parallel(local, mesh, replicated=2, sharded=2)
