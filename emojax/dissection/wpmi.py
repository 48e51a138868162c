"""Scores of the two WPMI functions from a probe record, a tile of concepts at a time, and how far to trust the labels.

The product of image and text embeddings is never held whole. Concepts are split over the mesh: beyond the softmax's
normaliser, no score needs another device's. Shapes: I images in some list, U units of all layers in a row, C concepts,
K top-k, R random lists, D embedding.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from emojax.distributed.data_parallel import data_parallel
from emojax.distributed.mesh import AXIS, put_replicated, put_sharded
from emojax.ops import similarity as ops
from emojax.ops import stats
from emojax.probing.record import ProbeRecord


@dataclass(frozen=True)
class SoftWpmi:
    """Hyperparameters of soft-WPMI, with the official names and defaults."""

    top_k: int = 100
    a: float = 10.0
    lam: float = 1.0
    min_prob: float = 1e-7
    p_start: float = 0.998
    p_end: float = 0.97

    @property
    def weights(self) -> np.ndarray:
        """Of an image by its rank [K]."""
        return ops.soft_weights(self.top_k, self.p_start, self.p_end)


@dataclass(frozen=True)
class Wpmi:
    """Hyperparameters of WPMI, with the official names and defaults."""

    top_k: int = 28
    a: float = 2.0
    lam: float = 0.6
    min_prob: float = 1e-7

    @property
    def weights(self) -> np.ndarray:
        """Of an image by its rank [K]: all belong."""
        return np.ones(self.top_k)


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


def score(
    record: ProbeRecord, texts: np.ndarray, kind: SoftWpmi | Wpmi, null_sets: int, mesh: Mesh
) -> tuple[np.ndarray, Confidence | None]:
    """Scores [U, C] of a record with unit text embeddings [C, D]; with `null_sets`, the labels' confidence too.

    One long axis of image lists holds every unit's, then (for confidence) every unit's of even and of odd images, then
    random ones. Each layer's prior is taken off the first three blocks per block, and off the random lists per layer, so
    one set of random lists serves all layers.
    """
    lists = [record.top_k(kind.top_k).indices]
    units, concepts = len(lists[0]), len(texts)
    halves = null_sets > 0 and record.images // 2 >= kind.top_k
    if halves:
        lists += [half[:, : kind.top_k] for half in record.top.indices]
    blocks = len(lists)
    if null_sets:
        rng = np.random.default_rng(0)
        lists.append(
            np.stack(
                [rng.choice(record.images, kind.top_k, replace=False) for _ in range(null_sets)]
            )
        )
    used, rows = np.unique(
        np.concatenate(lists), return_inverse=True
    )  # only images in some list matter
    rows = np.int32(rows.reshape(-1, kind.top_k))

    # Tiles do not depend on the devices, or near ties would be decided by how many there are.
    width = min(ops.CONCEPT_TILE, concepts)
    tiles = -(-concepts // (width * mesh.size)) * mesh.size
    tiled = np.zeros((tiles * width, texts.shape[1]), np.float32)
    tiled[:concepts] = texts
    real = np.arange(tiles * width).reshape(tiles, width) < concepts

    program = _program(mesh, kind, tuple(record.layers.values()), blocks, concepts)
    whole = put_replicated(mesh, (record.embeddings[used], rows))
    parts = put_sharded(mesh, (tiled.reshape(tiles, width, -1), real))
    scores, half_best, half_at, null = map(np.asarray, program(*whole, *parts))
    scores = np.moveaxis(scores, 0, 1).reshape(units, -1)[:, :concepts]
    if not null_sets:
        return scores, None

    best, null = jnp.asarray(scores.max(axis=1)), jnp.asarray(null.max(axis=0))
    layer_of = record.segment_ids
    p_values = jnp.concatenate(
        [stats.permutation_p_values(best[layer_of == at], row) for at, row in enumerate(null)]
    )
    labels = None
    if halves:
        tile = half_best.argmax(axis=0)
        labels = (tile * width + np.take_along_axis(half_at, tile[None], axis=0)[0]).reshape(
            2, units
        )
    return scores, Confidence(
        np.asarray(p_values), np.asarray(stats.benjamini_hochberg(p_values)), labels
    )


@functools.lru_cache(maxsize=16)
def _program(
    mesh: Mesh, kind: SoftWpmi | Wpmi, sizes: tuple[int, ...], blocks: int, concepts: int
) -> Callable:
    """The jitted scoring of all tiles: compiled once for a record's layers and a number of concepts.

    Takes embeddings [I, D], image lists [blocks·U + R, K], texts [tiles, width, D] and which of them are real
    [tiles, width]. Gives, by tile: the units' scores [U, width], the halves' best scores and where they are
    [(blocks − 1)·U], and the random lists' best scores by layer [layers, R].
    """
    units, product = sum(sizes), functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

    def local(
        images: jax.Array, lists: jax.Array, texts: jax.Array, real: jax.Array
    ) -> tuple[jax.Array, ...]:
        def log_sum(tile: tuple[jax.Array, jax.Array]) -> jax.Array:
            text, exists = tile
            return ops.log_normaliser(
                images, lambda rows: jnp.where(exists, kind.a * product(rows, text.T), -jnp.inf)
            )

        sums = jax.lax.all_gather(jax.lax.map(log_sum, (texts, real)), AXIS, tiled=True)
        normaliser = jax.nn.logsumexp(sums[: -(-concepts // texts.shape[1])], axis=0)

        def score(tile: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
            text, exists = tile
            probs = jnp.exp(kind.a * product(images, text.T) - normaliser[:, None])
            total, constant = ops.weighted_loglik(
                probs, lists, kind.weights, kind.min_prob, concepts
            )
            prior = ops.layer_prior(total[: blocks * units], sizes * blocks)
            scores = total[: blocks * units] - kind.lam * jnp.repeat(
                prior, np.asarray(sizes * blocks), axis=0
            )
            null = total[None, blocks * units :] - kind.lam * prior[: len(sizes), None]
            shifted = (x + (1.0 - kind.lam) * constant for x in (scores, null))
            scores, null = (jnp.where(exists, x, -jnp.inf) for x in shifted)
            return scores[:units], scores[units:].max(1), scores[units:].argmax(1), null.max(2)

        return jax.lax.map(score, (texts, real))

    return data_parallel(local, mesh, replicated=2, sharded=2)
