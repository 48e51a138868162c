"""What a study on a slow layer is cut down to, and that the estimate is said before it begins."""

import dataclasses
import logging

import numpy as np
import pytest

from emojax.dissection.table import LayerSummary
from emojax.editing import budget
from emojax.editing.activations import pre_bias_activations
from emojax.editing.search import Edit
from emojax.errors import InputError

BOTH = budget.Images(100, 100, 100)
HALVES = budget.Images(100, 50, 50)
SIZES = [40, 40]  # images of two test splits
OPTIONS = Edit(tau=(0.0, 0.5), factor=(1.0, 2.0, 3.0))  # four settings that edit


def row(layer, interpretable):
    return LayerSummary(layer, interpretable, 0, *[None] * 3, 1.0, *[None] * 4)


QUICK = [row("lin2", 18), row("lin3", 7)]  # of the layers that feed the logits


@pytest.fixture(scope="module")
def splits(tiny_vgg, blobs):
    few = blobs.first(40)
    other = dataclasses.replace(few, key="other", name="other")
    return [pre_bias_activations(tiny_vgg, split, "lin1") for split in (few, other)]


def test_seconds_count_every_setting():
    size = budget.Size(permutations=19, masks=30)
    # With one set: the grid and one of factor 1, the selection, its repeats, masks and controls.
    want = 100 * (4 + 1 + 4 + 19 * 4 + 30 + 10)
    assert budget.seconds({"lin1": 1.0}, OPTIONS, BOTH, size) == want
    want = 100 * (4 + 1) + 50 * (4 + 19 * (4 + 1) + 30 + 10)
    assert budget.seconds({"lin1": 1.0}, OPTIONS, HALVES, size) == want
    two = budget.seconds({"lin1": 1.0, "conv4b": 3.0}, OPTIONS, HALVES, size)
    assert two == 100 * (4 * 4 + 4) + 50 * (4 * 4 + 19 * (4 * 4 + 3) + 3 * (30 + 10))


def test_equal_settings_count_once():
    """Thresholds below all scores scale every unit alike: by each factor one setting is left."""
    scores = np.full((6, 3), 10.0, np.float32)
    factors = {setting.factor for setting in OPTIONS.settings(["lin1"])}
    different = budget.different_settings(OPTIONS, "lin1", scores)
    assert different == len(factors) < len(OPTIONS.settings(["lin1"]))
    size = budget.Size(permutations=19, masks=30)
    want = 100 * (different + 1 + different + 19 * different + 30 + 10)
    assert budget.seconds({"lin1": 1.0}, OPTIONS, BOTH, size, {"lin1": different}) == want


@pytest.mark.parametrize(
    ("minutes", "permutations", "masks"), [(1e9, 199, 1000), (15, 139, 698), (2.6, 19, 95)]
)
def test_permutations_go_down_to_the_fewest_that_reach_alpha(minutes, permutations, masks):
    cost = {"lin1": 899.9 / budget.seconds({"lin1": 1.0}, OPTIONS, BOTH, budget.Size(139, 698))}
    options = OPTIONS.model_copy(update={"minutes": minutes})
    size = budget.largest_size(cost, options, BOTH)
    assert size == budget.Size(permutations, masks)
    assert 1 / (size.permutations + 1) <= options.alpha
    assert budget.seconds(cost, options, BOTH, size) <= 60 * minutes * (1 + 1e-9)


def test_too_little_time_for_the_fewest():
    options = OPTIONS.model_copy(update={"minutes": 1.0, "permutations": 0, "masks": 0})
    assert budget.largest_size({"lin1": 10.0}, options, BOTH) is None
    assert budget.largest_size({"lin1": 1e-6}, options, BOTH) == budget.Size(0, 0)


def test_the_estimate_is_said(caplog):
    caplog.set_level(logging.INFO, "emojax")
    allowed = budget.within_minutes(OPTIONS, ("lin1",), SIZES, {"lin1": 1e-6}, QUICK)
    assert allowed == budget.Allowed(("lin1",), 199, 1000)
    assert "lin1 does not feed the logits" in caplog.messages[0]

    caplog.clear()
    full = budget.seconds({"lin1": 1.0}, OPTIONS, budget.Images(80, 40, 40), budget.Size(199, 1000))
    costs = {"lin1": 1800 / full}
    allowed = budget.within_minutes(OPTIONS, ("lin1",), SIZES, costs, QUICK)
    assert 19 <= allowed.permutations < 199
    assert allowed.limited is not None
    assert f"{allowed.permutations} permutations" in caplog.messages[0]
    assert "instead of 199 and 1000, which would take about 30 min" in caplog.messages[0]


def test_where_nothing_fits(caplog):
    caplog.set_level(logging.INFO, "emojax")
    costs = {"lin1": 100.0}
    auto = budget.within_minutes(OPTIONS, ("lin1",), SIZES, costs, QUICK)
    assert (auto.layers, auto.permutations, auto.masks) == (("lin2",), 199, 1000)
    assert "lin2, the layer with the most interpretable units of those" in caplog.messages[0]
    named = OPTIONS.model_copy(update={"layers": ("lin1",)})
    for options, quick in ((named, QUICK), (OPTIONS, [])):
        with pytest.raises(InputError, match=r"more than --edit.minutes 15; give --edit.minutes"):
            budget.within_minutes(options, ("lin1",), SIZES, costs, quick)
    lin2 = budget.within_minutes(OPTIONS, ("lin2",), SIZES, {}, QUICK)
    assert lin2 == budget.Allowed(("lin2",), 199, 1000)


@pytest.mark.slow
def test_a_setting_is_timed(splits):
    cost = budget.seconds_per_image(splits, OPTIONS)
    assert np.isfinite(cost)
    assert cost > 0
