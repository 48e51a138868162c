"""Statistics that are part of a claim, as pure functions.

Labels, sweeps and the evidence take their p-values, resamples and calibration from here. Whatever
scipy offers is scipy's; the tests compare the rest with scipy or plain float64 numpy.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Real

from emojax.ops.arrays import AnyArray

BINS = 15  # of a calibration error
_RESAMPLES_AT_A_TIME = 64  # bounds the memory of their counts, [64, I]


def permutation_p_values(
    observed: Real[AnyArray, " U"], null: Real[AnyArray, " R"]
) -> Float[Array, " U"]:
    """(1 + how many of the null draws reach the observed value) / (1 + draws).

    Never zero, as an exact test's p-value must not be (Phipson and Smyth 2010).
    """
    draws = null.shape[0]
    below = jnp.searchsorted(jnp.sort(null), observed, side="left").astype(jnp.float32)
    return (1.0 + draws - below) / (1.0 + draws)


def benjamini_hochberg(p_values: Float[AnyArray, " U"]) -> Float[np.ndarray, " U"]:
    """Adjusted p-values of Benjamini and Hochberg (1995), in the dtype of `p_values`.

    Calling those below q holds the false discovery rate at q. Computed in float64 on the host.

    Raises:
      ValueError: a p-value is not between 0 and 1.
    """
    from scipy.stats import false_discovery_control  # its import takes a good part of a second

    # float64, because in float32 the ranks' quotients cost the last digit.
    adjusted = false_discovery_control(np.asarray(p_values, np.float64))
    return np.asarray(adjusted, p_values.dtype)


def mcnemar_exact(gained: int, lost: int) -> float:
    """McNemar's exact test, two-sided (McNemar 1947): the p-value of wins and losses at even odds.

    In float64 on the host, since float32 would not do for small p-values. Also the sign test.
    """
    from scipy.special import bdtr

    # At even odds the binomial is symmetric: both tails are twice the smaller one. Twice the
    # binomial's distribution function takes microseconds and is right to 1e-300, whereas
    # `scipy.stats.binomtest` takes a millisecond, in sweeps of thousands, and gives 0 for 3e-300.
    tail = float(bdtr(min(gained, lost), gained + lost, 0.5))
    return min(1.0, 2.0 * tail)  # equal counts share the middle term: more than 1


@functools.partial(jax.jit, static_argnames="resamples")
def bootstrap_totals(
    key: Key[Array, ""], columns: Float[Array, "I K"], resamples: int
) -> Float[Array, "R K"]:
    """Column sums of `resamples` resamples of the images with replacement (Efron 1979).

    Every statistic that is a function of sums is a function of these. All columns see the same
    draws, so what is measured twice on each image stays paired.
    """
    images = columns.shape[0]

    def totals(keys: Key[Array, " S"]) -> Float[Array, "S K"]:
        # Counts times columns: the sums of many resamples are one matrix product, not gathers.
        draws = jax.vmap(_draw_counts, in_axes=(0, None))(keys, images)
        return jnp.matmul(draws.astype(columns.dtype), columns, precision="highest")

    # A whole number of blocks, each resample from its own key; the surplus is cut off.
    blocks = -(-resamples // _RESAMPLES_AT_A_TIME)
    keys = jax.random.split(key, blocks * _RESAMPLES_AT_A_TIME).reshape(-1, _RESAMPLES_AT_A_TIME)
    return jax.lax.map(totals, keys).reshape(-1, columns.shape[1])[:resamples]


@functools.partial(jax.jit, static_argnames=("images", "resamples"))
def bootstrap_counts(key: Key[Array, ""], images: int, resamples: int) -> Float[Array, "R I"]:
    """How often each image is in each resample, for statistics that are no functions of sums."""
    return jax.vmap(_draw_counts, in_axes=(0, None))(jax.random.split(key, resamples), images)


def _draw_counts(key: Key[Array, ""], images: int) -> Float[Array, " I"]:
    drawn = jax.random.randint(key, (images,), 0, images)
    return jnp.zeros(images, jnp.float32).at[drawn].add(1.0)


def calibration_error(
    confidence: Float[AnyArray, " I"], correct: Bool[AnyArray, " I"], bins: int = BINS
) -> Float[Array, ""]:
    """Expected calibration error (Guo et al. 2017) over equal bins of confidence.

    `confidence` is that of the predicted class, in (0, 1].
    """
    # A bin's share of the images times its gap |accuracy - mean confidence| is the sum of its
    # images' gaps over all images, so the counts of the bins cancel.
    gap = jnp.asarray(correct, jnp.float32) - confidence
    in_bins = jnp.zeros(bins).at[confidence_bins(confidence, bins)].add(gap)
    return jnp.abs(in_bins).sum() / confidence.shape[0]


def confidence_bins(confidence: Float[AnyArray, " I"], bins: int = BINS) -> Int[Array, " I"]:
    """The bin of each confidence in (0, 1], of equal width, open below and closed above."""
    edges = jnp.linspace(0.0, 1.0, bins + 1)[1:-1]
    return jnp.searchsorted(edges, confidence, side="left")
