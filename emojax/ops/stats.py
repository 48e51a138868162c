"""Statistics that are part of a claim, as pure functions; the tests compare each with scipy or statsmodels."""

import jax
import jax.numpy as jnp


def permutation_p_values(observed: jax.Array, null: jax.Array) -> jax.Array:
    """(1 + how many of the null draws reach the observed value) / (1 + draws): observed [U], null [R] → p [U].

    Never zero, as an exact test's p-value must not be (Phipson and Smyth 2010).
    """
    below = jnp.searchsorted(jnp.sort(null), observed, side="left")
    return (1.0 + null.shape[0] - below) / (1.0 + null.shape[0])


def benjamini_hochberg(p_values: jax.Array) -> jax.Array:
    """Adjusted p-values [U] of Benjamini and Hochberg (1995): calling those below q holds the false discovery rate at q."""
    count = p_values.shape[0]
    order = jnp.argsort(p_values)
    scaled = p_values[order] * count / jnp.arange(1, count + 1)
    adjusted = jnp.minimum(jax.lax.cummin(scaled, reverse=True), 1.0)
    return jnp.zeros_like(p_values).at[order].set(adjusted)
