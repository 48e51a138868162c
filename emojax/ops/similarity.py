"""Correlation, the five similarity functions of CLIP-Dissect, and a consensus of two.

The paper is Oikarinen and Weng, arXiv 2204.10965.

They turn activations and CLIP's similarities into the scores that units are labelled by. Each takes
`clip_feats` [I, C] (cosine of image and concept) and `target_feats` [I, U] (pooled activations) and
gives scores [U, C]; names and defaults are the official ones.

The two WPMI functions compare a unit's log-likelihood of a concept with a `prior`. The official
one, `units`, is a mean over the units of the layer, in the logarithm nearly their maximum: a unit
is given the concept that the layer's best detector of it detects least. `images` is the expectation
over random lists of images: more than any images would give? With `none` nothing is taken off.

`segment_ids` [U], ascending from 0, tells the layer of each unit: the prior over units is taken
inside a layer, so all layers are scored in one call. Inside `jax.shard_map` with the concepts of
`clip_feats` sharded over a mesh axis, the two WPMI functions take its name as `axis_name`: only the
softmax's normaliser and each unit's top images are exchanged, and on a CPU one device per core
beats one device on all of them. The `*_from_topk`, `*_from_moments` and `*_from_covariances` forms
take the statistics that a streaming probe stores, such as each unit's top-k image indices [U, K].

Shapes: I images, U units, C concepts, K top-k, D embedding, L layers, N top images of rank_reorder,
R random orders.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, Key, UInt32

from emojax.ops.arrays import AnyArray

_HIGHEST = jax.lax.Precision.HIGHEST
# Concepts at a time. A CPU's cache nearly holds the probabilities of 10,000 images; 32 and 128 were
# slower.
CONCEPT_TILE = 64
_STEP = 10  # gathers in one compiled loop: few enough for a CPU's registers
_MAX_EXPONENT = 85.0  # e^85 = 8e36, a twentieth of what float32 holds
_QUADRATURE_ERROR = 1e-6  # of the prior over images, relative to the largest logarithm in it
_FACTORS = 16  # images whose factors are multiplied before a logarithm of the prior over images

Prior = Literal["units", "images", "none"]


def cos_similarity(
    clip_feats: Float[AnyArray, "I C"], target_feats: Float[AnyArray, "I U"]
) -> Float[Array, "U C"]:
    """Cosine over images, not centred."""
    cross = jnp.matmul(target_feats.T, clip_feats, precision=_HIGHEST)
    unit_norms = jnp.linalg.norm(target_feats, axis=0)[:, None]
    concept_norms = jnp.linalg.norm(clip_feats, axis=0)[None, :]
    return cross / (unit_norms * concept_norms)


def cos_similarity_from_moments(
    cross: Float[AnyArray, "U D"],
    square: Float[AnyArray, " U"],
    gram: Float[AnyArray, "D D"],
    text_embeddings: Float[AnyArray, "C D"],
) -> Float[Array, "U C"]:
    """`cos_similarity` from moments alone: `cross` = AᵀE, `square` = ΣA², `gram` = EᵀE."""
    product = jnp.matmul(cross, text_embeddings.T, precision=_HIGHEST)
    # A concept's squared norm over images is Σ(E·t)² = tᵀ(EᵀE)t.
    concept_squares = jnp.einsum(
        "cd,de,ce->c", text_embeddings, gram, text_embeddings, precision=_HIGHEST
    )
    return product / (jnp.sqrt(square)[:, None] * jnp.sqrt(concept_squares)[None, :])


def correlation(
    clip_feats: Float[AnyArray, "I C"], target_feats: Float[AnyArray, "I U"]
) -> Float[Array, "U C"]:
    """Pearson's correlation over images; 0 where an activation or a concept does not vary.

    Raises:
      ValueError: there is a single image.
    """
    if len(clip_feats) < 2:
        raise ValueError("correlation needs at least two images")

    def standardised(x: Float[AnyArray, "I columns"]) -> Float[Array, "I columns"]:
        # Less the first row, a column without variance is exactly 0, and one with little of it
        # keeps its digits.
        x = jnp.asarray(x)
        x = x - x[:1]
        x = x - x.mean(axis=0, keepdims=True)
        norm = jnp.linalg.norm(x, axis=0, keepdims=True)
        return x / jnp.where(norm > 0, norm, 1.0)

    return jnp.matmul(standardised(target_feats).T, standardised(clip_feats), precision=_HIGHEST)


def correlation_from_covariances(
    cross: Float[AnyArray, "U D"],
    unit_spreads: Float[AnyArray, " U"],
    concept_spreads: Float[AnyArray, " C"],
    text_embeddings: Float[AnyArray, "C D"],
) -> Float[Array, "U C"]:
    """`correlation` from covariances of activations with embeddings, and standard deviations.

    0 where a standard deviation is 0.
    """

    def scale(spreads: Float[AnyArray, " n"]) -> Float[Array, " n"]:
        spreads = jnp.asarray(spreads)
        return jnp.where(spreads > 0, 1.0 / jnp.where(spreads > 0, spreads, 1.0), 0.0)

    # Units are scaled before the product, whose size may be far larger.
    scaled_units = jnp.asarray(cross) * scale(unit_spreads)[:, None]
    scaled_texts = jnp.asarray(text_embeddings) * scale(concept_spreads)[:, None]
    return jnp.matmul(scaled_units, scaled_texts.T, precision=_HIGHEST)


def cos_similarity_cubed(
    clip_feats: Float[AnyArray, "I C"],
    target_feats: Float[AnyArray, "I U"],
    *,
    min_norm: float = 1e-3,
) -> Float[Array, "U C"]:
    """Cosine of the centred, cubed columns, norms clipped at `min_norm`."""

    def cubed(x: Float[AnyArray, "I columns"]) -> Float[Array, "I columns"]:
        x = jnp.asarray(x)
        cubes = (x - x.mean(axis=0, keepdims=True)) ** 3
        return cubes / jnp.maximum(jnp.linalg.norm(cubes, axis=0, keepdims=True), min_norm)

    return jnp.matmul(cubed(target_feats).T, cubed(clip_feats), precision=_HIGHEST)


def top_k_images(
    target_feats: Float[AnyArray, "I U"], k: int, axis_name: str | None = None
) -> Int32[Array, "U {k}"]:
    """Indices of each unit's k most activating images, ties to the lower index.

    With `axis_name` each device of that mesh axis sorts its share of the units, which are
    replicated.
    """
    if axis_name is None:
        return _top_k_of_groups(target_feats, k)
    units = target_feats.shape[1]
    share = -(-units // jax.lax.axis_size(axis_name))
    padded = jnp.pad(target_feats, ((0, 0), (0, -units % share)))
    first = jax.lax.axis_index(axis_name) * share
    own = jax.lax.dynamic_slice_in_dim(padded, first, share, axis=1)
    return jax.lax.all_gather(top_k_images(own, k), axis_name, tiled=True)[:units]


def _top_k_of_groups(target_feats: Float[AnyArray, "I U"], k: int) -> Int32[Array, "U {k}"]:
    """`top_k_images` of one device, by two short sorts in place of a long one.

    Images are cut into groups of `size` neighbours. The top k lie in those k groups that have the
    largest maxima: an image outside of them is below k maxima, and so is not among the top k.
    """
    images, units = target_feats.shape
    # Sorting I/size maxima and then k·size candidates costs least at size = √(I/k).
    size = math.isqrt(images // k)
    if size < 2:
        return jax.lax.top_k(target_feats.T, k)[1]
    groups = -(-images // size)
    fill = groups * size - images
    padded = jnp.pad(target_feats, ((0, fill), (0, 0)), constant_values=-jnp.inf)
    maxima = padded.reshape(groups, size, units).max(axis=1)
    # Ties go to the lower index: `top_k` takes the earlier of equal maxima, and the groups are put
    # back in their order, so that the second `top_k` meets equal candidates in theirs.
    chosen = jnp.sort(jax.lax.top_k(maxima.T, k)[1], axis=1)
    members = jnp.arange(size, dtype=chosen.dtype)
    candidates = (chosen[:, :, None] * size + members[None, None, :]).reshape(units, k * size)
    values = jnp.take_along_axis(padded.T, candidates, axis=1)
    return jnp.take_along_axis(candidates, jax.lax.top_k(values, k)[1], axis=1)


def layer_sizes(segment_ids: Int[AnyArray, "..."] | None, units: int) -> tuple[int, ...]:
    """Units of each layer from ascending `segment_ids`, which must be concrete.

    The sizes shape the program. None means a single layer.

    Raises:
      ValueError: `segment_ids` are not ascending from 0 or not one per unit.
    """
    if segment_ids is None:
        return (units,)
    ids = np.asarray(segment_ids)
    if ids.shape != (units,) or ids[0] != 0 or not np.isin(np.diff(ids), (0, 1)).all():
        raise ValueError(
            f"segment_ids must be {units} layer numbers, ascending from 0 without gaps"
        )
    return tuple(int(n) for n in np.bincount(ids))


def layer_prior(loglik: Float[Array, "U C"], sizes: Sequence[int]) -> Float[Array, "L C"]:
    """logsumexp of loglik over each layer's units, less log U_layer: log p(concept)."""
    starts = np.cumsum([0, *sizes])
    layers = [loglik[start : start + size] for start, size in zip(starts, sizes, strict=False)]
    return jnp.stack([jax.nn.logsumexp(layer, axis=0) - math.log(len(layer)) for layer in layers])


def subtract_layer_prior(
    loglik: Float[Array, "U C"], lam: float | Float[Array, ""], sizes: Sequence[int]
) -> Float[Array, "U C"]:
    """loglik − λ·prior of the unit's layer."""
    prior = layer_prior(loglik, sizes)
    of_unit = jnp.repeat(prior, np.asarray(sizes), axis=0, total_repeat_length=len(loglik))
    return loglik - lam * of_unit


def image_prior(
    probs: Float[Array, "I C"],
    weights: Float[np.ndarray, " K"],
    min_prob: float,
    concepts: int,
) -> Float[Array, " C"]:
    """Mean over all lists of K images of what `weighted_loglik` gives for a list.

    By linearity it is Σ_r mean_i log(1 + w_r(S_i − 1) + min_prob), whatever the images of a list
    have to do with each other. As a function of the rank that is smooth, so the sum over ranks is
    taken at a few nodes.

    Args:
      probs: S of all images, as for `weighted_loglik`.
      weights, min_prob, concepts: as there.
    """
    odds = ((1.0 - weights) + min_prob) / weights
    log_scale = -np.log(odds + 1.0 / concepts).mean()  # as in `weighted_loglik`
    nodes, node_weights = _quadrature(odds)
    scaled_probs = probs * float(np.exp(log_scale))
    images = len(probs)
    total = jnp.zeros(probs.shape[1], probs.dtype)
    for node, weight in zip(nodes, node_weights, strict=True):
        log_at_0 = np.log(node) + log_scale
        log_at_1 = np.log(node + 1.0) + log_scale
        odd = float(np.exp(log_at_0))
        # As in `weighted_loglik`: so many factors in a product that it cannot vanish unnoticed; if
        # it grows out of range, so few that it cannot.
        few = _factors_in_range(images, log_at_0)
        safe = min(few, _factors_in_range(images, log_at_1))
        logs = _sum_of_logs(scaled_probs, odd, few)
        if safe < few:
            logs = jax.lax.cond(
                jnp.isfinite(logs).all(),
                lambda logs=logs: logs,
                lambda odd=odd, safe=safe: _sum_of_logs(scaled_probs, odd, safe),
            )
        total += float(weight) / images * logs
    return total


def _factors_in_range(images: int, log_bound: float) -> int:
    """How many factors of this largest or least logarithm a float32 can hold the product of."""
    return max(1, min(_FACTORS, images, int(_MAX_EXPONENT / max(abs(log_bound), 1e-9))))


def _sum_of_logs(probs: Float[Array, "I C"], odd: float, factors: int) -> Float[Array, " C"]:
    """Σ_i log(S_i + odd), so many images to a logarithm."""
    size = len(probs) // factors
    parts = [probs[start * size : (start + 1) * size] + odd for start in range(factors)]
    rest = probs[factors * size :]
    logs = jnp.log(functools.reduce(operator.mul, parts))
    # A product with ones, because XLA does not vectorise a sum over rows on a CPU, nor what it
    # fuses into one, here the logarithm.
    total = jnp.matmul(jnp.ones((1, size), probs.dtype), logs, precision=_HIGHEST)[0]
    return total + jnp.log(rest + odd).sum(axis=0)


def _quadrature(odds: Float[np.ndarray, " K"]) -> tuple[np.ndarray, np.ndarray]:
    """Nodes (odds again) and weights that stand for a sum over all `odds`.

    Gauss's rule for that sum in t = log(odds), where log(S + e^t) has its nearest singularity π off
    the real line whatever S is: with half a range h of t the error of n nodes falls as ρ^(−2n),
    ρ = π/h + √(1 + (π/h)²) (Trefethen 2008, theorem 4.5).
    """
    t = np.log(odds)
    half = (t.max() - t.min()) / 2
    distinct = len(np.unique(t))
    count = 1
    if distinct > 1:
        rho = math.pi / half + math.hypot(1.0, math.pi / half)
        count = min(distinct, math.ceil(-math.log(_QUADRATURE_ERROR) / (2 * math.log(rho))))
    middle = (t.max() + t.min()) / 2
    x = (t - middle) / (half or 1.0)
    # Orthonormal polynomials over the ranks; multiplication by x in them is the Jacobi matrix,
    # whose eigenvalues are the nodes (Golub and Welsch 1969).
    basis = np.linalg.qr(np.polynomial.chebyshev.chebvander(x, count - 1))[0]
    eigenvalues, vectors = np.linalg.eigh(basis.T @ (x[:, None] * basis))
    return np.exp(middle + (half or 1.0) * eigenvalues), (basis.sum(axis=0) @ vectors) ** 2


def soft_weights(
    top_k: int, p_start: float = 0.998, p_end: float = 0.97
) -> Float[np.ndarray, " {top_k}"]:
    """Soft-WPMI's chance that an image of rank r is in the unit's highly activating set; float64.

    Falls linearly from `p_start` (equation 6 of the paper and the official code's constants).
    """
    return p_start - np.arange(top_k) / top_k * (p_start - p_end)


def weighted_loglik(
    probs: Float[Array, "I C"],
    indices: Int[Array, "U K"],
    weights: Float[np.ndarray, " K"],
    min_prob: float,
    concepts: int,
) -> tuple[Float[Array, "U C"], float]:
    """Σ_r log(1 + w_r(S − 1) + min_prob) over each unit's images, less its value at S = 1/concepts.

    The difference is what scores are made of and is small, so float32 holds it well.

    Args:
      probs: S, the softmax over all `concepts` of each image's similarities; may be a tile of them.
      indices: each unit's top images, by rank r.
      weights: w_r; 1 without soft membership.

    Returns:
      The difference, and the constant that was taken off: their sum is the sum of logarithms.
    """
    # A term is the logarithm of w·(S + odds) with odds = (1 − w + min_prob) / w. With thousands of
    # concepts S is near 1e-4: added to odds of 2e-3 it keeps its digits, in 1 + w(S − 1) it would
    # lose them. The odds are taken in float64, since 1 − 0.998 would cost float32 four digits.
    odds = ((1.0 - weights) + min_prob) / weights
    # Every factor S + odds is multiplied by one number, such that the product of all of them is 1
    # at S = 1/concepts. What the scale and the w take away goes to the constant.
    log_scale = -np.log(odds + 1.0 / concepts).mean()
    constant = float(np.log(weights).sum() - len(weights) * log_scale)
    log_at_0 = np.log(odds) + log_scale  # of a scaled factor at S = 0, its least
    log_at_1 = np.log(odds + 1.0) + log_scale  # at S = 1, its largest
    scaled_odds = jnp.asarray(np.exp(log_at_0), probs.dtype)
    scaled_probs = probs * float(np.exp(log_scale))
    # Unsigned: XLA does not look for negative indices then.
    images_by_rank = indices.T.astype(jnp.uint32)

    def in_groups(groups: int) -> Float[Array, "U C"]:
        """Products of the factors of each group of ranks, and the sum of their logarithms."""
        total = jnp.zeros((len(indices), probs.shape[1]), probs.dtype)
        for first, steps in _groups_of_ranks(len(weights), groups):
            product = _multiply(
                jnp.ones_like(total), scaled_probs, scaled_odds[first], images_by_rank[first]
            )
            product, _ = jax.lax.scan(
                lambda product, step: (_multiply(product, scaled_probs, *step), None),
                product,
                (scaled_odds[steps], images_by_rank[steps]),
            )
            total += jnp.log(product)
        return total

    # A logarithm costs far more than a product, so factors are multiplied in few groups: so few
    # that no product can fall below float32's range whatever S is (it would come out as log 0,
    # unnoticed among others). It may rise above the range, where S is large on most ranks; that
    # shows as infinity, and then all is done again in as many groups as are safe on both sides.
    few = _groups_within_range(log_at_0, np.zeros_like(log_at_0))
    safe = _groups_within_range(log_at_0, log_at_1)
    quick = in_groups(few)
    if few == safe:
        return quick, constant
    total = jax.lax.cond(jnp.isfinite(quick).all(), lambda: quick, lambda: in_groups(safe))
    return total, constant


def _multiply(
    product: Float[Array, "U C"],
    probs: Float[Array, "I C"],
    odds: Float[Array, " ranks"],
    images: UInt32[Array, "ranks U"],
) -> Float[Array, "U C"]:
    """The product, times S + odds for each of a few ranks.

    Unrolled, so that the compiler reads and writes `product` once for all ranks.
    """
    rows = [probs.at[image].get(mode="promise_in_bounds") for image in images]
    factors = [odd + row for odd, row in zip(odds, rows, strict=True)]
    return functools.reduce(operator.mul, factors, product)


def _groups_of_ranks(k: int, groups: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ranks 0 to k − 1 dealt to groups in turn, and in each group to steps in turn.

    In turn, so that the small odds of the first ranks meet large ones everywhere: products then
    stay near the middle of their range.

    Returns:
      For each group a first, short step [< 10] and the others [steps, 10].
    """
    dealt = []
    for group in range(groups):
        ranks = np.arange(group, k, groups)
        in_full_steps = len(ranks) // _STEP * _STEP
        steps = ranks[:in_full_steps].reshape(_STEP, -1).T
        dealt.append((ranks[in_full_steps:], steps))
    return dealt


def _groups_within_range(
    log_lowest: Float[np.ndarray, " K"], log_highest: Float[np.ndarray, " K"]
) -> int:
    """Into how few groups factors can be dealt so that no running product leaves float32's range.

    `log_lowest` and `log_highest` are the logarithms of each factor's bounds.
    """
    for groups in range(1, len(log_lowest)):
        # Running products matter, not only the last: one that underflows on the way stays 0.
        orders = [
            np.concatenate([first, steps.ravel()])
            for first, steps in _groups_of_ranks(len(log_lowest), groups)
        ]
        if all(
            log_lowest[ranks].cumsum().min() > -_MAX_EXPONENT
            and log_highest[ranks].cumsum().max() < _MAX_EXPONENT
            for ranks in orders
        ):
            return groups
    return len(log_lowest)


def log_normaliser(
    rows: Float[Array, "I ..."],
    logits: Callable[[Array], Array],
    axis_name: str | None = None,
    block: int = 64,
) -> Float[Array, " I"]:
    """logsumexp over concepts of each image's logits, a block of images at a time.

    Args:
      rows: what an image's logits are made of.
      logits: maps rows [block, ...] to logits [block, C].
      axis_name: the mesh axis over which the concepts are sharded; the sum goes over all of them.
      block: images at a time, so that all logits never exist at once.
    """
    images = len(rows)
    block = min(block, images)

    def by_block(log_sum: Callable[[Array], Array]) -> Float[Array, " I"]:
        def write_block(number: Int[Array, ""], out: Float[Array, " I"]) -> Float[Array, " I"]:
            # The last block overlaps the one before it, so that no image has to be padded; what
            # is written twice is the same number.
            start = jnp.minimum(number * block, images - block)
            own = log_sum(logits(jax.lax.dynamic_slice_in_dim(rows, start, block)))
            return jax.lax.dynamic_update_slice_in_dim(out, own, start, axis=0)

        blocks = -(-images // block)
        return jax.lax.fori_loop(0, blocks, write_block, jnp.zeros(images, rows.dtype))

    # The quick sum overflows only where a row's logits differ by more than 88, which no cosine
    # does at the papers' temperatures; it then says so by not being finite.
    quick = by_block(_quick_logsumexp)
    safe = functools.partial(by_block, functools.partial(jax.nn.logsumexp, axis=1))
    own = jax.lax.cond(jnp.isfinite(quick).all(), lambda: quick, safe)
    if axis_name is None:
        return own
    largest = jax.lax.pmax(own, axis_name)
    return largest + jnp.log(jax.lax.psum(jnp.exp(own - largest), axis_name))


def _quick_logsumexp(logits: Float[Array, "block C"]) -> Float[Array, " block"]:
    """logsumexp over each row, or what is not finite where a row's logits differ by more than 88.

    It reads the logits once: what it takes off is the largest of a row's first ones, not of all.
    """
    shift = logits[:, :CONCEPT_TILE].max(axis=1)
    terms = jnp.exp(logits - shift[:, None])
    # Halves are added to each other, element by element, because XLA does not vectorise a sum
    # along rows on a CPU. An odd last column is put aside.
    aside: Array | float = 0.0
    while (width := terms.shape[1]) > 64:
        half = width // 2
        aside += terms[:, half * 2 :].sum(axis=1)
        terms = terms[:, :half] + terms[:, half : half * 2]
    return shift + jnp.log(terms.sum(axis=1) + aside)


@functools.partial(
    jax.jit, static_argnames=("weights", "a", "lam", "min_prob", "prior", "sizes", "axis_name")
)
def _wpmi_scores(
    clip_feats: Float[Array, "I C"],
    target_feats: Float[Array, "I U"],
    *,
    weights: tuple[float, ...],
    a: float,
    lam: float,
    min_prob: float,
    prior: Prior,
    sizes: tuple[int, ...],
    axis_name: str | None,
) -> Float[Array, "U C"]:
    """WPMI scores with `weights` [K] by rank, for layers of `sizes` units.

    A tile of concepts at a time, so that its softmax stays in the cache.
    """
    units = target_feats.shape[1]
    concepts = clip_feats.shape[1]
    width = min(CONCEPT_TILE, concepts)
    all_concepts = concepts * (1 if axis_name is None else jax.lax.axis_size(axis_name))
    by_rank = np.asarray(weights)
    indices = top_k_images(target_feats, len(weights), axis_name)
    # The softmax over concepts needs every concept's logit, the tiles need only its normaliser.
    normaliser = log_normaliser(clip_feats, lambda rows: a * rows, axis_name)

    def write_tile(number: Int[Array, ""], scores: Float[Array, "U C"]) -> Float[Array, "U C"]:
        # The last tile overlaps the one before it: all tiles have one shape, and nothing is padded.
        start = jnp.minimum(number * width, concepts - width)
        logits = a * jax.lax.dynamic_slice_in_dim(clip_feats, start, width, axis=1)
        probs = jnp.exp(logits - normaliser[:, None])
        loglik, constant = weighted_loglik(probs, indices, by_rank, min_prob, all_concepts)
        # The prior is of the difference too, and so lacks the constant once: loglik − λ·prior
        # lacks it 1 − λ times.
        if prior == "units":
            tile = subtract_layer_prior(loglik, lam, sizes) + (1.0 - lam) * constant
        elif prior == "images":
            expected = image_prior(probs, by_rank, min_prob, all_concepts)
            tile = loglik - lam * expected[None, :] + (1.0 - lam) * constant
        else:
            tile = loglik + constant
        return jax.lax.dynamic_update_slice_in_dim(scores, tile, start, axis=1)

    tiles = -(-concepts // width)
    scores = jnp.zeros((units, concepts), clip_feats.dtype)
    return jax.lax.fori_loop(0, tiles, write_tile, scores)


def wpmi(
    clip_feats: Float[AnyArray, "I C"],
    target_feats: Float[AnyArray, "I U"],
    *,
    top_k: int = 28,
    a: float = 2.0,
    lam: float = 0.6,
    min_prob: float = 1e-7,
    prior: Prior = "units",
    segment_ids: Int[AnyArray, "..."] | None = None,
    axis_name: str | None = None,
) -> Float[Array, "U C"]:
    """Weighted pointwise mutual information (equation 4 of the CLIP-Dissect paper)."""
    return _wpmi_scores(
        clip_feats,
        target_feats,
        weights=(1.0,) * top_k,
        a=a,
        lam=lam,
        min_prob=min_prob,
        prior=prior,
        sizes=layer_sizes(segment_ids, target_feats.shape[1]),
        axis_name=axis_name,
    )


def soft_wpmi(
    clip_feats: Float[AnyArray, "I C"],
    target_feats: Float[AnyArray, "I U"],
    *,
    top_k: int = 100,
    a: float = 10.0,
    lam: float = 1.0,
    min_prob: float = 1e-7,
    p_start: float = 0.998,
    p_end: float = 0.97,
    prior: Prior = "units",
    segment_ids: Int[AnyArray, "..."] | None = None,
    axis_name: str | None = None,
) -> Float[Array, "U C"]:
    """WPMI with soft membership of the top images (equation 6 of the CLIP-Dissect paper)."""
    return _wpmi_scores(
        clip_feats,
        target_feats,
        weights=tuple(soft_weights(top_k, p_start, p_end).tolist()),
        a=a,
        lam=lam,
        min_prob=min_prob,
        prior=prior,
        sizes=layer_sizes(segment_ids, target_feats.shape[1]),
        axis_name=axis_name,
    )


def consensus_of(
    soft_wpmi_scores: Float[AnyArray, "U C"], correlations: Float[AnyArray, "U C"]
) -> Float[Array, "U C"]:
    """Mean of both, correlations brought to each unit's mean and spread of the other over concepts.

    Labels are those of the sum of standard scores; the scale is that of soft_wpmi. Correlations
    that are all equal, as those of a unit that does not vary, count for nothing.
    """
    scores = jnp.asarray(soft_wpmi_scores)
    correlations = jnp.asarray(correlations)
    mean = scores.mean(axis=1, keepdims=True)
    spread = scores.std(axis=1, keepdims=True)
    centred = correlations - correlations.mean(axis=1, keepdims=True)
    own_spread = correlations.std(axis=1, keepdims=True)
    scale = jnp.where(own_spread > 0, spread / jnp.where(own_spread > 0, own_spread, 1.0), 0.0)
    return 0.5 * (scores + mean + scale * centred)


def consensus(
    clip_feats: Float[AnyArray, "I C"],
    target_feats: Float[AnyArray, "I U"],
    *,
    top_k: int = 100,
    a: float = 10.0,
    lam: float = 1.0,
    min_prob: float = 1e-7,
    p_start: float = 0.998,
    p_end: float = 0.97,
    prior: Prior = "images",
    segment_ids: Int[AnyArray, "..."] | None = None,
) -> Float[Array, "U C"]:
    """`consensus_of` soft_wpmi, with the prior over images, and correlation.

    Raises:
      ValueError: there is a single image.
    """
    scores = soft_wpmi(
        clip_feats,
        target_feats,
        top_k=top_k,
        a=a,
        lam=lam,
        min_prob=min_prob,
        p_start=p_start,
        p_end=p_end,
        prior=prior,
        segment_ids=segment_ids,
    )
    return consensus_of(scores, correlation(clip_feats, target_feats))


def rank_reorder_baseline(
    activations: Float[AnyArray, "U N"], permutations: Int[AnyArray, "U R N"], p: float = 3.0
) -> Float[Array, " U"]:
    """Mean |a[π] − a|^p over random orders π; activations descending.

    The permutations count from the smallest activation, as in the official code.
    """
    ascending = activations[:, ::-1]
    shuffled = jax.vmap(lambda values, orders: values[orders])(ascending, permutations)
    return jnp.mean(jnp.abs(shuffled - ascending[:, None, :]) ** p, axis=(1, 2))


def random_permutations(
    key: Key[Array, ""], units: int, size: int, repeats: int = 5
) -> Int32[Array, "{units} {repeats} {size}"]:
    """Random orders for `rank_reorder`'s baseline."""
    orders = jnp.broadcast_to(jnp.arange(size), (units, repeats, size))
    return jax.random.permutation(key, orders, axis=2, independent=True)


def descending_order(values: Float[Array, "R N"]) -> Int32[Array, "R N"]:
    """Stable argsort, largest first, of each row of float32.

    Sorting pairs is slow on a CPU, sorting plain integers is fast. So each value's rank and its
    place become one integer, rank·N + place, and those are sorted.
    """
    n = values.shape[1]
    if n * n >= 2**31:  # rank·N + place would not fit
        return jnp.argsort(-values, axis=1).astype(jnp.int32)
    # A float's bits, read as an integer, grow with the float if it is positive. A negative one's
    # other bits count downwards, so they are flipped. + 0.0 makes -0 and 0 equal.
    bits = jax.lax.bitcast_convert_type(-values + 0.0, jnp.int32)
    bits = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    # Equal values get equal ranks, the number of values before them; the place decides then.
    find = functools.partial(jnp.searchsorted, method="scan_unrolled")
    rank = jax.vmap(find)(jnp.sort(bits, axis=1), bits).astype(jnp.int32)
    place = jnp.arange(n, dtype=jnp.int32)[None, :]
    return jnp.sort(rank * n + place, axis=1) % n


def rank_reorder_from_topk(
    activations: Float[Array, " N"],
    clip_rows: Float[Array, "N C"],
    baseline: Float[Array, ""],
    *,
    p: float = 3.0,
    scale_p: float = 0.5,
) -> Float[Array, " C"]:
    """One unit: its N largest activations, descending, the same images' rows, its baseline."""
    # [C, N]: image r of the concept's ranking is compared with the r-th of the unit's own.
    reordered = activations[descending_order(clip_rows.T)]
    error = jnp.mean(jnp.abs(reordered - activations[None, :]) ** p, axis=1) / baseline
    return -error / clip_rows.mean(axis=0) ** scale_p


def rank_reorder(
    clip_feats: Float[AnyArray, "I C"],
    target_feats: Float[AnyArray, "I U"],
    *,
    p: float = 3.0,
    top_fraction: float = 0.05,
    scale_p: float = 0.5,
    permutations: Int[AnyArray, "U R N"] | None = None,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "U C"]:
    """Minus the error of reordering a unit's top activations by the concept's ranking.

    `permutations` are the random orders of the baseline; without them they are drawn from `key`
    (`jax.random.key(0)` when None), so the result never depends on hidden state.
    """
    n = rank_reorder_size(target_feats.shape[0], top_fraction)
    if permutations is None:
        key = jax.random.key(0) if key is None else key
        permutations = random_permutations(key, target_feats.shape[1], n)
    values, indices = jax.lax.top_k(target_feats.T, n)
    baseline = rank_reorder_baseline(values, permutations, p)
    return _reorder_errors(clip_feats, values, indices, baseline, p=p, scale_p=scale_p)


@functools.partial(jax.jit, static_argnames=("p", "scale_p"))
def _reorder_errors(
    clip_feats: Float[Array, "I C"],
    activations: Float[Array, "U N"],
    indices: Int32[Array, "U N"],
    baseline: Float[Array, " U"],
    *,
    p: float,
    scale_p: float,
) -> Float[Array, "U C"]:
    """`rank_reorder_from_topk` of all units; one after the other, which bounds the memory."""

    def of_unit(unit: tuple[Array, Array, Array]) -> Float[Array, " C"]:
        values, images, baseline = unit
        return rank_reorder_from_topk(values, clip_feats[images], baseline, p=p, scale_p=scale_p)

    return jax.lax.map(of_unit, (activations, indices, baseline))


def rank_reorder_size(images: int, top_fraction: float = 0.05) -> int:
    """How many top images `rank_reorder` needs from a probe set of this size."""
    return math.floor(images * top_fraction)
