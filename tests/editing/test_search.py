"""Settings and searches: their order, their gains, and what importing them loads."""

import subprocess
import sys
from typing import get_args

import numpy as np

from emojax.editing import search
from emojax.editing.edit import gains_of
from emojax.editing.search import Edit, Search, Setting
from emojax.ops import gains as ops


def test_settings():
    scores = np.array([0.1, 0.9, -0.4, 0.5], np.float32)
    np.testing.assert_allclose(
        gains_of(Setting("lin2", "threshold", 0.3, 2.0), scores), [0.5, 2, 0.5, 2]
    )
    np.testing.assert_allclose(
        gains_of(Setting("lin2", "top_fraction", 0.25, 2.0), scores), [0.5, 2, 0.5, 0.5]
    )
    np.testing.assert_allclose(
        gains_of(Setting("lin2", "continuous", None, 2.0), scores), ops.continuous(scores, 2.0)
    )
    assert str(Setting("lin2", "threshold", 0.25, 1.5)) == "lin2, threshold, tau 0.25, factor 1.5"
    assert (
        str(Setting("lin2", "top_fraction", 0.25, 1.5))
        == "lin2, top fraction, best 25 %, factor 1.5"
    )
    assert (
        len(Search().settings(["lin1", "lin2"])) == 2 * 60
    )  # the paper's grid without its factor 1


def test_a_study_is_a_search_and_shares_its_fields():
    options = Edit(tau=(0.0,), factor=(1.0, 2.0), layers=("lin2",))
    assert options.settings(["lin2"]) == Search(tau=(0.0,), factor=(1.0, 2.0)).settings(["lin2"])
    assert [one.factor for one in options.grid(["lin2"])] == [1.0, 2.0]
    assert get_args(search.Scope) == get_args(ops.Scope)


def test_importing_options_loads_no_jax():
    code = "import sys, emojax.editing.search; "
    code += "print([m for m in ('jax', 'numpy') if m in sys.modules])"
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert got.stdout.strip() == "[]"
