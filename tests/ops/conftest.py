"""Kernels broadcast only where their source says so."""

import jax
import pytest


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield
