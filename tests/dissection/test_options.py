"""Hyperparameters are stated once, without JAX, and agree with the kernels' defaults."""

import inspect
import subprocess
import sys
from typing import get_args

import pytest

from emojax.dissection.options import (
    Similarity,
    SoftWpmi,
    Wpmi,
    options_of,
    wpmi_options,
)
from emojax.errors import InputError
from emojax.ops import similarity as ops


def test_importing_options_loads_no_jax():
    code = (
        "import sys, emojax.dissection.options; print('jax' in sys.modules, 'numpy' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("name", get_args(Similarity))
def test_defaults_are_those_of_the_kernels(name):
    defaults = vars(options_of(name, {}))
    kernel = inspect.signature(getattr(ops, name)).parameters
    for option, value in defaults.items():
        assert kernel[option].default == value, option


def test_none_is_the_default_of_the_function():
    assert wpmi_options("soft_wpmi") == SoftWpmi()
    assert wpmi_options("wpmi", top_k=5, lam=0.0) == Wpmi(top_k=5, lam=0.0)
    assert wpmi_options("cos_similarity") is None


def test_refusals():
    assert wpmi_options("wpmi", prior="none") == Wpmi(prior="none")
    with pytest.raises(InputError, match=r"--dissect.top-k is not a setting of rank_reorder"):
        wpmi_options("rank_reorder", top_k=5)
    with pytest.raises(
        InputError,
        match="no similarity function 'cosine'; known: consensus, correlation, soft_wpmi",
    ):
        options_of("cosine", {})
    with pytest.raises(TypeError, match="p_start"):
        options_of("wpmi", {"p_start": 0.5})
