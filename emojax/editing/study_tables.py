"""The tables of a study: the grid, every threshold, and random units at many sizes.

Shapes: U units, S settings.
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from emojax.editing.outcomes import Outcomes
from emojax.editing.search import Search, Setting
from emojax.editing.study_result import Table
from emojax.editing.sweep import Sweep
from emojax.ops.stats import benjamini_hochberg, mcnemar_exact

_BAND_SIZES = 31  # numbers of random units, along all thresholds
_BAND_DRAWS = 100  # random sets of units of each size


def setting_columns(grid: Sequence[Setting]) -> Table:
    """The columns that say which setting a row is of."""
    return {
        "layer": [setting.layer for setting in grid],
        "kind": [setting.kind for setting in grid],
        "tau": ["" if setting.tau is None else setting.tau for setting in grid],
        "factor": [setting.factor for setting in grid],
    }


def sweep_table(grid: Sequence[Setting], outcomes: Outcomes, sweep: Sweep) -> Table:
    """The grid's settings with their outcomes; `sweep` is any of the same images.

    McNemar's p of each setting is adjusted over all that edit something; being of the images that
    settings are compared on, it describes the grid and decides nothing.
    """
    before = sweep.evaluate(np.ones(sweep.activations.units, np.float32))
    was_right = before.predictions == before.labels
    is_right = outcomes.predictions == before.labels
    gained = (is_right & ~was_right).sum(axis=1)
    lost = (was_right & ~is_right).sum(axis=1)
    counts = zip(gained, lost, strict=True)
    p_values = np.array([mcnemar_exact(int(more), int(less)) for more, less in counts])
    edits = np.array([setting.factor != 1 or setting.kind == "continuous" for setting in grid])
    adjusted = np.ones(len(grid))
    adjusted[edits] = benjamini_hochberg(jnp.asarray(p_values[edits]))
    return setting_columns(grid) | {
        "images": [int(outcomes.sizes.sum())] * len(grid),
        "correct": outcomes.correct,
        "accuracy": outcomes.accuracy,
        "macro_recall": outcomes.macro_recall,
        "nll": outcomes.nll,
        "near_ties": outcomes.near_ties,
        "gained": gained,
        "lost": lost,
        "p_value": p_values,
        "p_adjusted": adjusted,
    }


def threshold_table(
    sweeps: Mapping[str, Sweep], scores: Mapping[str, np.ndarray], options: Search
) -> Table:
    """Every threshold that changes anything, for layers that feed the logits."""
    factors = [factor for factor in options.factor if factor != 1]
    rows = []
    for layer, sweep in sweeps.items():
        if not sweep.activations.feeds_logits:
            continue
        for thresholds in sweep.thresholds(scores[layer], factors):
            outcomes = thresholds.outcomes
            correct = outcomes.correct
            accuracy = outcomes.accuracy
            recall = outcomes.macro_recall
            nll = np.asarray(outcomes.nll)
            # At the next score tau leaves that unit out: a score is not above itself.
            taus = np.append(thresholds.scores, -np.inf)
            for cut in np.flatnonzero(thresholds.reachable()):
                rows.append({
                    "layer": layer,
                    "factor": thresholds.factor,
                    "units_above": cut,
                    "tau": "" if np.isinf(taus[cut]) else taus[cut],
                    "correct": correct[cut],
                    "accuracy": accuracy[cut],
                    "macro_recall": recall[cut],
                    "nll": nll[cut],
                })  # fmt: skip
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def random_bands(sweep: Sweep, setting: Setting, masks: int) -> Table:
    """Accuracy with the setting's factor on random units: mean and 95 % range at each size."""
    draws = min(masks, _BAND_DRAWS)
    if setting.kind != "threshold" or not sweep.activations.feeds_logits or not draws:
        return {}
    units = sweep.activations.units
    sizes = np.unique(np.linspace(0, units, _BAND_SIZES).round().astype(int))
    # The first n of a random order of units are n random units.
    orders = np.tile(np.arange(units), (len(sizes) * draws, 1))
    orders = np.random.default_rng(0).permuted(orders, axis=1)
    random = orders < np.repeat(sizes, draws)[:, None]
    outcomes = sweep.masks(random, setting.factor, full=False)
    accuracy = outcomes.accuracy.reshape(len(sizes), draws)
    low, high = np.quantile(accuracy, [0.025, 0.975], axis=1)
    return {
        "layer": [setting.layer] * len(sizes),
        "factor": [setting.factor] * len(sizes),
        "units_above": sizes,
        "draws": [draws] * len(sizes),
        "mean": accuracy.mean(axis=1),
        "low": low,
        "high": high,
    }
