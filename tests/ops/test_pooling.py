"""Pooling, against numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from emojax.ops import pooling


@pytest.mark.parametrize("how", ["avg", "max"])
def test_pooling(how):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(
        pooling.pool(jnp.asarray(x), how),
        getattr(x, {"avg": "mean", "max": "max"}[how])((1, 2)),
        rtol=1e-5,
    )
    np.testing.assert_array_equal(pooling.pool(jnp.asarray(x[:, 0]), how), x[:, 0, 0])
    np.testing.assert_array_equal(pooling.pool(jnp.asarray(x[:, 0, 0]), how), x[:, 0, 0])
    with pytest.raises(ValueError, match="2, 3 or 4 axes"):
        pooling.pool(jnp.ones(3), how)


@pytest.mark.parametrize("tokens", ["cls", "mean", "max"])
def test_tokens(tokens):
    x = np.random.default_rng(0).standard_normal((2, 7, 5)).astype(np.float32)
    plain = {"cls": x[:, 0], "mean": np.float64(x).mean(axis=1), "max": x.max(axis=1)}[tokens]
    np.testing.assert_allclose(pooling.pool(jnp.asarray(x), tokens=tokens), plain, rtol=1e-5)
    np.testing.assert_allclose(pooling.over_tokens(x, tokens), plain, rtol=1e-5)
