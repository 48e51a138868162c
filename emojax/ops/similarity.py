"""The five similarity functions of CLIP-Dissect (Oikarinen and Weng, arXiv 2204.10965), with the
official names.

Each takes `clip_feats` [I, C] (cosine of image and concept) and `target_feats` [I, U] (pooled
activations) and gives scores [U, C]. `segment_ids` [U], ascending from 0, tells the layer of each
unit: the WPMI normaliser is taken inside a layer, so all layers are scored in one call. Inside
`jax.shard_map` with the concepts of `clip_feats` split over a mesh axis, the two WPMI functions
take its name as `axis_name`: only the softmax's normaliser and each unit's top images are
exchanged, and on a CPU one device per core beats one device on all of them. The `*_from_topk` forms
take what a streaming probe keeps instead: each unit's top-k image indices [U, K]. Shapes: I images,
U units, C concepts, K top-k, D embedding.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

_HIGHEST = jax.lax.Precision.HIGHEST
# Concepts at a time: a CPU's cache nearly holds 10,000 images' probabilities; 32 and 128 were
# slower.
CONCEPT_TILE = 64


def cos_similarity(clip_feats: jax.Array, target_feats: jax.Array) -> jax.Array:
    """Cosine over images, not centred: [I, C], [I, U] → [U, C]."""
    cross = jnp.matmul(target_feats.T, clip_feats, precision=_HIGHEST)
    norms = (
        jnp.linalg.norm(target_feats, axis=0)[:, None]
        * jnp.linalg.norm(clip_feats, axis=0)[None, :]
    )
    return cross / norms


def cos_similarity_from_moments(
    cross: jax.Array, square: jax.Array, gram: jax.Array, text_embeddings: jax.Array
) -> jax.Array:
    """`cos_similarity` from moments alone: `cross` = AᵀE [U, D], `square` = ΣA² [U], `gram` = EᵀE
    [D, D], text [C, D].
    """
    against = jnp.matmul(cross, text_embeddings.T, precision=_HIGHEST)
    spread = jnp.einsum("cd,de,ce->c", text_embeddings, gram, text_embeddings, precision=_HIGHEST)
    return against / (jnp.sqrt(square)[:, None] * jnp.sqrt(spread)[None, :])


def cos_similarity_cubed(
    clip_feats: jax.Array, target_feats: jax.Array, *, min_norm: float = 1e-3
) -> jax.Array:
    """Cosine of centred, cubed columns, norms clipped at `min_norm`: [I, C], [I, U] → [U, C]."""

    def cubed(x: jax.Array) -> jax.Array:
        x = (x - x.mean(axis=0, keepdims=True)) ** 3
        return x / jnp.maximum(jnp.linalg.norm(x, axis=0, keepdims=True), min_norm)

    return jnp.matmul(cubed(target_feats).T, cubed(clip_feats), precision=_HIGHEST)


def top_k_images(target_feats: jax.Array, k: int, axis_name: str | None = None) -> jax.Array:
    """Indices [U, K] of each unit's k most activating images, ties to the lower index.

    With `axis_name` each device of that mesh axis sorts its share of the units, which are whole on
    all of them.
    """
    if axis_name is None:
        return _top_k_of_groups(target_feats, k)
    units = target_feats.shape[1]
    share = -(-units // jax.lax.axis_size(axis_name))
    padded = jnp.pad(target_feats, ((0, 0), (0, -units % share)))
    own = jax.lax.dynamic_slice_in_dim(padded, jax.lax.axis_index(axis_name) * share, share, axis=1)
    return jax.lax.all_gather(top_k_images(own, k), axis_name, tiled=True)[:units]


def _top_k_of_groups(target_feats: jax.Array, k: int) -> jax.Array:
    """`top_k_images` of one device: the top k lie in those k groups of images that have the largest
    maxima.

    Two short sorts in place of a long one. Equal maxima go to the earlier group, so that ties still
    go to the lower index.
    """
    images, units = target_feats.shape
    size = math.isqrt(images // k)
    if size < 2:
        return jax.lax.top_k(target_feats.T, k)[1]
    groups = -(-images // size)
    padded = jnp.pad(target_feats, ((0, groups * size - images), (0, 0)), constant_values=-jnp.inf)
    largest = padded.reshape(groups, size, units).max(axis=1)
    chosen = jnp.sort(jax.lax.top_k(largest.T, k)[1], axis=1)
    among = (chosen[:, :, None] * size + jnp.arange(size)).reshape(units, k * size)
    best = jax.lax.top_k(jnp.take_along_axis(padded.T, among, axis=1), k)[1]
    return jnp.take_along_axis(among, best, axis=1)


def layer_sizes(segment_ids: jax.Array | np.ndarray | None, units: int) -> tuple[int, ...]:
    """Units of each layer from ascending `segment_ids`, which must be concrete: the sizes shape the
    program.

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


def layer_prior(loglik: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """logsumexp over each layer's units of loglik [U, C], less log U_layer: [layers, C]."""
    starts = np.cumsum([0, *sizes])
    layers = [loglik[start : start + size] for start, size in zip(starts, sizes, strict=False)]
    return jnp.stack([jax.nn.logsumexp(layer, axis=0) - math.log(len(layer)) for layer in layers])


def subtract_layer_prior(loglik: jax.Array, lam: float, sizes: Sequence[int]) -> jax.Array:
    """loglik − λ·prior of the unit's layer: [U, C] → [U, C]."""
    prior = jnp.repeat(
        layer_prior(loglik, sizes), np.asarray(sizes), axis=0, total_repeat_length=len(loglik)
    )
    return loglik - lam * prior


def soft_weights(top_k: int, p_start: float = 0.998, p_end: float = 0.97) -> np.ndarray:
    """Soft-WPMI's chance [K] that an image of rank r belongs to the unit's highly activating set;
    float64.
    """
    return p_start - np.arange(top_k) / top_k * (p_start - p_end)


def weighted_loglik(
    probs: jax.Array, indices: jax.Array, weights: np.ndarray, min_prob: float, concepts: int
) -> tuple[jax.Array, float]:
    """Σ_r log(1 + w_r(S − 1) + min_prob) over each unit's images, as a difference from its value at
    S = 1/concepts.

    `probs` [I, C] = S, `indices` [U, K], `weights` [K], 1 without soft membership → ([U, C], the
    constant that was taken off). The difference is what scores are made of and is small, so float32
    holds it well. A factor is w_r·(S + odds_r) with odds_r = (1 − w_r + min_prob) / w_r, which
    keeps a small S. The w_r go to the constant, and a common scale makes the product of all factors
    1 at S = 1/concepts. Factors are multiplied in groups before the logarithm: in so few that no
    product can fall below float32's range whatever S is, and if one then rises above it, in as many
    as are safe.
    """
    odds = (
        (1.0 - weights) + min_prob
    ) / weights  # in float64: 1 - 0.998 would cost float32 four digits
    log_scale = -np.log(odds + 1.0 / concepts).mean()
    lowest, highest = np.log(odds) + log_scale, np.log(odds + 1.0) + log_scale
    odds, probs = jnp.asarray(np.exp(lowest), probs.dtype), probs * float(np.exp(log_scale))
    images = indices.T.astype(
        jnp.uint32
    )  # without a sign there are no negative indices to look for

    def multiply(product: jax.Array, ranks: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        rows = (probs.at[image].get(mode="promise_in_bounds") for image in ranks[1])
        factors = [odd + row for odd, row in zip(ranks[0], rows, strict=True)]
        return math.prod(factors, start=product), None

    def in_groups(groups: int) -> jax.Array:
        total = jnp.zeros((len(indices), probs.shape[1]), probs.dtype)
        for first, steps in _groups_of_ranks(len(weights), groups):
            product = multiply(jnp.ones_like(total), (odds[first], images[first]))[0]
            total += jnp.log(jax.lax.scan(multiply, product, (odds[steps], images[steps]))[0])
        return total

    few, safe = (
        _groups_within_range(lowest, np.zeros_like(lowest)),
        _groups_within_range(lowest, highest),
    )
    quick = in_groups(few)
    total = (
        quick
        if few == safe
        else jax.lax.cond(jnp.isfinite(quick).all(), lambda: quick, lambda: in_groups(safe))
    )
    return total, float(np.log(weights).sum() - len(weights) * log_scale)


def _groups_of_ranks(k: int, groups: int, step: int = 10) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ranks 0 to k − 1 dealt to groups in turn, and in each to steps in turn: a first, short step
    [< 10], others [n, 10].

    In turn, so that the small odds of the first ranks meet large ones everywhere. Ten gathers in
    one compiled loop are few enough for a CPU's registers.
    """
    dealt = []
    for ranks in (np.arange(first, k, groups) for first in range(groups)):
        whole = len(ranks) // step * step
        dealt.append((ranks[whole:], ranks[:whole].reshape(step, -1).T))
    return dealt


def _groups_within_range(lowest: np.ndarray, highest: np.ndarray) -> int:
    """Into how few groups factors can be dealt so that no running product leaves float32's range.

    `lowest` and `highest` are the logarithms [K] of each factor's bounds.
    """
    room = 85.0  # e^85 = 8e36
    for groups in range(1, len(lowest)):
        orders = [
            np.concatenate([first, steps.ravel()])
            for first, steps in _groups_of_ranks(len(lowest), groups)
        ]
        if all(
            lowest[ranks].cumsum().min() > -room and highest[ranks].cumsum().max() < room
            for ranks in orders
        ):
            return groups
    return len(lowest)


def log_normaliser(
    rows: jax.Array,
    logits: Callable[[jax.Array], jax.Array],
    axis_name: str | None = None,
    block: int = 64,
) -> jax.Array:
    """logsumexp over concepts of each image's logits [I], a block of images at a time: `logits`
    maps rows [b, …] → [b, C].

    The last block reaches back over images that are done, so that no copy has to be padded. With
    `axis_name` a device has its part of the concepts and the sum goes over all.
    """
    images = len(rows)
    block = min(block, images)

    def by_block(log_sum: Callable[[jax.Array], jax.Array]) -> jax.Array:
        def one(number: jax.Array, out: jax.Array) -> jax.Array:
            start = jnp.minimum(number * block, images - block)
            own = log_sum(logits(jax.lax.dynamic_slice_in_dim(rows, start, block)))
            return jax.lax.dynamic_update_slice_in_dim(out, own, start, axis=0)

        return jax.lax.fori_loop(0, -(-images // block), one, jnp.zeros(images, rows.dtype))

    quick = by_block(_quick_logsumexp)
    safe = functools.partial(by_block, functools.partial(jax.nn.logsumexp, axis=1))
    own = jax.lax.cond(jnp.isfinite(quick).all(), lambda: quick, safe)
    if axis_name is None:
        return own
    largest = jax.lax.pmax(own, axis_name)
    return largest + jnp.log(jax.lax.psum(jnp.exp(own - largest), axis_name))


def _quick_logsumexp(logits: jax.Array) -> jax.Array:
    """logsumexp over each row of logits [b, C] → [b], or what is not finite where logits differ by
    more than 88.

    It reads the logits once: what it takes off is the largest of a row's first ones. It adds
    halves, because XLA does not vectorise a sum along rows on a CPU.
    """
    shift = logits[:, :CONCEPT_TILE].max(axis=1)
    terms, odd = jnp.exp(logits - shift[:, None]), 0.0
    while (width := terms.shape[1]) > 64:
        odd += terms[:, width // 2 * 2 :].sum(axis=1)
        terms = terms[:, : width // 2] + terms[:, width // 2 : width // 2 * 2]
    return shift + jnp.log(terms.sum(axis=1) + odd)


def _wpmi_scores(
    clip_feats: jax.Array,
    target_feats: jax.Array,
    weights: np.ndarray,
    a: float,
    lam: float,
    min_prob: float,
    segment_ids: jax.Array | None,
    axis_name: str | None,
) -> jax.Array:
    """WPMI scores [U, C] with `weights` [K] by rank, a tile of concepts at a time, so that its
    softmax stays in the cache.

    The last tile reaches back over concepts that are done.
    """
    units, concepts = target_feats.shape[1], clip_feats.shape[1]
    indices = top_k_images(target_feats, len(weights), axis_name)
    all_concepts = concepts * (1 if axis_name is None else jax.lax.axis_size(axis_name))
    width, sizes = min(CONCEPT_TILE, concepts), layer_sizes(segment_ids, units)
    normaliser = log_normaliser(clip_feats, lambda rows: a * rows, axis_name)

    def tile(number: jax.Array, scores: jax.Array) -> jax.Array:
        start = jnp.minimum(number * width, concepts - width)
        logits = a * jax.lax.dynamic_slice_in_dim(clip_feats, start, width, axis=1)
        probs = jnp.exp(logits - normaliser[:, None])
        loglik, constant = weighted_loglik(probs, indices, weights, min_prob, all_concepts)
        part = subtract_layer_prior(loglik, lam, sizes) + (1.0 - lam) * constant
        return jax.lax.dynamic_update_slice_in_dim(scores, part, start, axis=1)

    return jax.lax.fori_loop(
        0, -(-concepts // width), tile, jnp.zeros((units, concepts), clip_feats.dtype)
    )


def wpmi(
    clip_feats: jax.Array,
    target_feats: jax.Array,
    *,
    top_k: int = 28,
    a: float = 2.0,
    lam: float = 0.6,
    min_prob: float = 1e-7,
    segment_ids: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Weighted pointwise mutual information: [I, C], [I, U] → [U, C] (equation 4 of the
    CLIP-Dissect paper).
    """
    return _wpmi_scores(
        clip_feats, target_feats, np.ones(top_k), a, lam, min_prob, segment_ids, axis_name
    )


def soft_wpmi(
    clip_feats: jax.Array,
    target_feats: jax.Array,
    *,
    top_k: int = 100,
    a: float = 10.0,
    lam: float = 1.0,
    min_prob: float = 1e-7,
    p_start: float = 0.998,
    p_end: float = 0.97,
    segment_ids: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """WPMI with soft membership of the top images: [I, C], [I, U] → [U, C] (equation 6 of the
    CLIP-Dissect paper).
    """
    weights = soft_weights(top_k, p_start, p_end)
    return _wpmi_scores(clip_feats, target_feats, weights, a, lam, min_prob, segment_ids, axis_name)


def rank_reorder_baseline(
    activations: jax.Array, permutations: jax.Array, p: float = 3.0
) -> jax.Array:
    """Mean |a[π] − a|^p over random orders: `activations` [U, N], descending, `permutations` [U, R,
    N] → [U].

    The permutations count from the smallest activation, as in the official code.
    """
    ascending = activations[:, ::-1]
    shuffled = jax.vmap(lambda a, order: a[order])(ascending, permutations)
    return jnp.mean(jnp.abs(shuffled - ascending[:, None, :]) ** p, axis=(1, 2))


def random_permutations(key: jax.Array, units: int, size: int, repeats: int = 5) -> jax.Array:
    """Random orders [U, R, N] for `rank_reorder`'s baseline."""
    orders = jnp.broadcast_to(jnp.arange(size), (units, repeats, size))
    return jax.random.permutation(key, orders, axis=2, independent=True)


def descending_order(values: jax.Array) -> jax.Array:
    """Stable argsort, largest first, of each row of float32 [R, N] → int32 [R, N].

    Sorting pairs is slow on a CPU, sorting plain integers is fast: sort the values' bits, look up
    each value's rank, and sort rank·N + place, which puts equal values in the order of their
    places.
    """
    n = values.shape[1]
    if n * n >= 2**31:
        return jnp.argsort(-values, axis=1).astype(jnp.int32)
    bits = jax.lax.bitcast_convert_type(-values + 0.0, jnp.int32)  # + 0.0 makes -0 and 0 equal
    bits = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # as integers in the order of the floats
    rank = jax.vmap(lambda row, sought: jnp.searchsorted(row, sought, method="scan_unrolled"))(
        jnp.sort(bits, axis=1), bits
    )
    return jnp.sort(rank.astype(jnp.int32) * n + jnp.arange(n, dtype=jnp.int32), axis=1) % n


def rank_reorder_from_topk(
    activations: jax.Array,
    clip_rows: jax.Array,
    baseline: jax.Array,
    *,
    p: float = 3.0,
    scale_p: float = 0.5,
) -> jax.Array:
    """One unit: its N largest `activations` [N], descending, the same images' `clip_rows` [N, C],
    its baseline [] → [C].
    """
    reordered = activations[
        descending_order(clip_rows.T)
    ]  # [C, N]; image r of the concept's ranking against the r-th
    error = jnp.mean(jnp.abs(reordered - activations) ** p, axis=1) / baseline
    return -error / clip_rows.mean(axis=0) ** scale_p


def rank_reorder(
    clip_feats: jax.Array,
    target_feats: jax.Array,
    *,
    p: float = 3.0,
    top_fraction: float = 0.05,
    scale_p: float = 0.5,
    permutations: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Minus the error of reordering a unit's top activations by the concept's ranking: [I, C], [I,
    U] → [U, C].

    `permutations` [U, 5, N] are the random orders of the baseline; without them they are drawn from
    `key` (`jax.random.key(0)` when None), so the result never depends on hidden state.
    """
    n = rank_reorder_size(target_feats.shape[0], top_fraction)
    values, indices = jax.lax.top_k(target_feats.T, n)
    if permutations is None:
        permutations = random_permutations(
            jax.random.key(0) if key is None else key, values.shape[0], n
        )
    baseline = rank_reorder_baseline(values, permutations, p)
    one = functools.partial(rank_reorder_from_topk, p=p, scale_p=scale_p)
    return jax.lax.map(
        lambda unit: one(unit[0], clip_feats[unit[1]], unit[2]), (values, indices, baseline)
    )


def rank_reorder_size(images: int, top_fraction: float = 0.05) -> int:
    """How many top images `rank_reorder` needs from a probe set of this size."""
    return math.floor(images * top_fraction)
