"""Statistics that are part of a claim, as pure functions; the tests compare each with scipy or
statsmodels.
"""

import functools
import math

import jax
import jax.numpy as jnp


def permutation_p_values(observed: jax.Array, null: jax.Array) -> jax.Array:
    """(1 + how many of the null draws reach the observed value) / (1 + draws): observed [U], null
    [R] → p [U].

    Never zero, as an exact test's p-value must not be (Phipson and Smyth 2010).
    """
    below = jnp.searchsorted(jnp.sort(null), observed, side="left")
    return (1.0 + null.shape[0] - below) / (1.0 + null.shape[0])


def benjamini_hochberg(p_values: jax.Array) -> jax.Array:
    """Adjusted p-values [U] of Benjamini and Hochberg (1995): calling those below q holds the false
    discovery rate at q.
    """
    count = p_values.shape[0]
    order = jnp.argsort(p_values)
    scaled = p_values[order] * count / jnp.arange(1, count + 1)
    adjusted = jnp.minimum(jax.lax.cummin(scaled, reverse=True), 1.0)
    return jnp.zeros_like(p_values).at[order].set(adjusted)


def mcnemar_exact(gained: int, lost: int) -> float:
    """McNemar's exact test, two-sided (McNemar 1947): the p-value of `gained` wins and `lost`
    losses at even odds.

    In float64 on the host, since float32 would not do for small p-values. Also the sign test.
    """
    trials, fewer = gained + lost, min(gained, lost)
    if 2 * fewer == trials:
        return 1.0
    of_all = math.lgamma(trials + 1) - trials * math.log(2)
    terms = (
        math.exp(of_all - math.lgamma(k + 1) - math.lgamma(trials - k + 1))
        for k in range(fewer + 1)
    )
    return min(1.0, 2 * math.fsum(terms))


@functools.partial(jax.jit, static_argnames="resamples")
def bootstrap_totals(key: jax.Array, columns: jax.Array, resamples: int) -> jax.Array:
    """Column sums of resamples with replacement (Efron 1979): `columns` [I, K] → [resamples, K]
    float32.

    Every statistic that is a function of sums is a function of these. All columns see the same
    draws, so what is measured twice on each image stays paired.
    """
    images = columns.shape[0]

    def one(key: jax.Array) -> jax.Array:
        drawn = jax.random.randint(key, (images,), 0, images)
        return jnp.zeros(images, columns.dtype).at[drawn].add(1.0)

    def some(keys: jax.Array) -> jax.Array:
        return jnp.matmul(jax.vmap(one)(keys), columns, precision="highest")

    keys = jax.random.split(key, -(-resamples // 64) * 64).reshape(-1, 64)
    return jax.lax.map(some, keys).reshape(-1, columns.shape[1])[:resamples]


def calibration_error(confidence: jax.Array, correct: jax.Array, bins: int = 15) -> jax.Array:
    """Expected calibration error (Guo et al. 2017) over equal bins of confidence, each open below
    and closed above.

    `confidence` [I] of the predicted class, in (0, 1]; `correct` [I] booleans.
    """
    edges = jnp.linspace(0.0, 1.0, bins + 1)[1:-1]
    into = jnp.searchsorted(edges, confidence, side="left")
    gap = jnp.asarray(correct, jnp.float32) - confidence
    return jnp.abs(jnp.zeros(bins).at[into].add(gap)).sum() / confidence.shape[0]
