"""Similarity functions bound to a probe record: scores [U, C] with unit text embeddings [C, D].

One function per similarity; the two WPMI functions, which work in tiles over the mesh, are in
`wpmi`. Shapes: I images, U units of all layers side by side, C concepts, K top-k, D embedding, N
ranked images, R random orders.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from emojax.dissection.options import CosineCubed, RankReorder
from emojax.distributed.mesh import replicated
from emojax.errors import InputError
from emojax.ops import similarity as ops
from emojax.ops.moments import Covariances, Moments
from emojax.probing.record import ProbeRecord

_correlation_from_covariances = jax.jit(ops.correlation_from_covariances)
_consensus = jax.jit(ops.consensus_of)
_cosine_from_moments = jax.jit(ops.cos_similarity_from_moments)
_cosine_cubed = jax.jit(ops.cos_similarity_cubed, static_argnames="min_norm")


def correlation(covariances: Covariances, texts: Float[Array, "C D"]) -> Float[np.ndarray, "U C"]:
    """Correlation, from a record's covariances; 0 for a unit that does not vary."""
    # The variance of a concept's cosines is tᵀ cov(E) t: in float64, since t may lie where the
    # embeddings vary little.
    text = np.asarray(texts, np.float64)
    concepts = np.einsum("cd,cd->c", text @ covariances.gram, text)
    return np.asarray(
        _correlation_from_covariances(
            np.float32(covariances.cross),
            np.float32(np.sqrt(covariances.unit)),
            np.float32(np.sqrt(np.maximum(concepts, 0.0))),
            texts,
        )
    )


def consensus(
    soft_wpmi: Float[np.ndarray, "U C"], covariances: Covariances, texts: Float[Array, "C D"]
) -> Float[np.ndarray, "U C"]:
    """Consensus of soft_wpmi's scores and correlation, from a record's covariances."""
    return np.asarray(_consensus(soft_wpmi, correlation(covariances, texts)))


def programs_of_consensus(
    mesh: Mesh, units: int, concepts: int, embedding: int
) -> dict[str, tuple[Callable, tuple[PyTree, ...]]]:
    """The jitted functions of `consensus` by name, with shapes in place of their arguments.

    They are compiled so for a mesh, of one device as they run, that need not be there.
    """

    def shape(*sides: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sides, np.float32, sharding=replicated(mesh))

    scores, texts = shape(units, concepts), shape(concepts, embedding)
    covariances = shape(units, embedding), shape(units), shape(concepts), texts
    return {
        "correlation_from_covariances": (_correlation_from_covariances, covariances),
        "consensus_of": (_consensus, (scores, scores)),
    }


def cos_similarity(sums: Moments, texts: Float[Array, "C D"]) -> Float[np.ndarray, "U C"]:
    """The cosine, from sums alone."""
    cross, square, gram = map(np.float32, (sums.cross, sums.square, sums.gram))
    return np.asarray(_cosine_from_moments(cross, square, gram, texts))


def cos_similarity_cubed(
    record: ProbeRecord, texts: Float[Array, "C D"], options: CosineCubed
) -> Float[np.ndarray, "U C"]:
    """The cosine of cubes, from all activations.

    Raises:
      InputError: the record has no activations.
    """
    if record.activations is None:
        raise InputError(
            "cos_similarity_cubed needs the activations; probe with --probe.keep-activations"
        )
    images = jnp.asarray(record.embeddings)
    clip_feats = jnp.matmul(images, texts.T, precision=jax.lax.Precision.HIGHEST)
    activations = jnp.asarray(record.activations)
    return np.asarray(_cosine_cubed(clip_feats, activations, min_norm=options.min_norm))


def rank_reorder(
    record: ProbeRecord, texts: Float[Array, "C D"], options: RankReorder
) -> Float[np.ndarray, "U C"]:
    """How well concepts rank each unit's top images, from the record's lists.

    Raises:
      InputError: too few images, or the record's lists are too short.
    """
    size = ops.rank_reorder_size(record.images, options.top_fraction)
    if size < 2:
        raise InputError(
            f"rank_reorder ranks {options.top_fraction:.0%} of the images; "
            f"{record.images} images are too few"
        )
    top = record.top_k(size)
    permutations = options.permutations
    if permutations is None:
        key = jax.random.key(0) if options.key is None else options.key
        permutations = ops.random_permutations(key, len(top.indices), size)
    scores = _rank_reorder(
        jnp.asarray(record.embeddings),
        texts,
        jnp.asarray(top.values),
        jnp.asarray(top.indices),
        jnp.asarray(permutations),
        p=options.p,
        scale_p=options.scale_p,
    )
    return np.asarray(scores)


@functools.partial(jax.jit, static_argnames=("p", "scale_p"))
def _rank_reorder(
    images: Float[Array, "I D"],
    texts: Float[Array, "C D"],
    values: Float[Array, "U N"],
    indices: Int[Array, "U N"],
    permutations: Int[Array, "U R N"],
    *,
    p: float,
    scale_p: float,
) -> Float[Array, "U C"]:
    baseline = ops.rank_reorder_baseline(values, permutations, p)

    # A unit at a time: the cosines of all units' top images would be U × N × C numbers.
    def score_unit(unit: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        activations, rows, expected = unit
        clip_rows = jnp.matmul(images[rows], texts.T, precision=jax.lax.Precision.HIGHEST)
        return ops.rank_reorder_from_topk(activations, clip_rows, expected, p=p, scale_p=scale_p)

    return jax.lax.map(score_unit, (values, indices, baseline))
