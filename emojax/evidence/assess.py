"""Whether an edit helped: one setting selected on one set of images, one test on another, controls.

The question has two sides. Did predictions change for the better beyond chance? McNemar's exact
test on held-out images, which took no part in the selection. Do the units' scores deserve the
credit? Selection and test are repeated with permuted scores, which spares nothing: a search that
finds good settings by luck finds them for permuted scores too. "The edit helps" needs both at level
alpha, so scores unrelated to the network earn it with probability at most alpha.
Shapes: U units, S settings, R permutations.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from emojax.editing.activations import Progress
from emojax.editing.edit import gains_of
from emojax.editing.outcomes import Outcomes
from emojax.editing.search import PAPER, Search, Setting
from emojax.editing.sweep import try_settings
from emojax.evidence.comparison import (
    Pair,
    intervals,
    net_wins,
    numbers,
    per_class,
    permutation_p_value,
    spread_of,
    wins,
)
from emojax.evidence.controls import (
    GROUP,
    SLOW_GROUP,
    permuted_scores,
    random_gains,
    single_controls,
)
from emojax.evidence.subject import Scores, Side, Subject, checked_settings
from emojax.evidence.verdict import Evidence


def assess(
    subjects: Sequence[Subject],
    search: Search = PAPER,
    *,
    alpha: float = 0.05,
    permutations: int = 199,
    masks: int = 1000,
    resamples: int = 10_000,
    seed: int = 0,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Evidence:
    """Selects one setting, tests it once, and compares it with controls.

    The setting has the most correct images, over all networks, on the images of the selection; the
    first of equals. `masks` random controls have the setting's gains on random units. Draws follow
    `seed`. With several networks an image counts as gained when more of them are put right than
    wrong; the permutations permute each network's scores.

    A search over layers that do not feed the logits repeats what follows them for every setting and
    permutation; ask for fewer permutations there. With `cache`, a folder, what is done is cached,
    and a run that was stopped resumes. `progress` hears of permutations. The edit, the baseline and
    single controls are evaluated by the plain arithmetic; grids, permutations and random masks go
    the fast way, exact up to near ties (`editing/sweep.py`).

    Raises:
      InputError: no subject or setting, subjects that differ in layers or images, or scores that do
        not fit.
    """
    settings = checked_settings(subjects, search)
    count = len(subjects)
    rng = np.random.default_rng(seed)
    scores = [
        {layer: np.asarray(values, np.float32) for layer, values in subject.scores.items()}
        for subject in subjects
    ]
    selection = Side.of([subject.selection for subject in subjects], search.scope, cache)
    held_out = [subject.held_out for subject in subjects if subject.held_out is not None]
    test = Side.of(held_out, search.scope, cache) if held_out else selection

    # The selection: of all settings, the one that gains the most images over all networks.
    grid = [
        try_settings(sweeps, settings, _own_scores(settings, [own] * len(settings)), full=False)
        for sweeps, own in zip(selection.sweeps, scores, strict=True)
    ]
    table = _changes(selection, grid)
    chosen = settings[int(table.argmax())]

    # The test: that one setting, by the plain arithmetic.
    gains = [gains_of(chosen, own[chosen.layer]) for own in scores]
    after = [
        sweeps[chosen.layer].evaluate(own) for sweeps, own in zip(test.sweeps, gains, strict=True)
    ]
    pairs = list(zip(test.before, after, strict=True))
    net = net_wins(pairs)
    change = int(net.sum())

    best, tested = _with_permuted_scores(
        subjects, settings, scores, selection, test, permutations, rng, progress
    )
    controls = single_controls(test, chosen, subjects, scores, gains, after)
    if masks:
        by_network = zip(test.sweeps, random_gains(gains, masks, rng), strict=True)
        if chosen.kind == "continuous":
            outcomes = [
                sweeps[chosen.layer].gains(drawn, full=False) for sweeps, drawn in by_network
            ]
        else:
            factor = np.float32(chosen.factor)
            outcomes = [
                sweeps[chosen.layer].masks(drawn == factor, chosen.factor, full=False)
                for sweeps, drawn in by_network
            ]
        controls["random_masks"] = _compared(change, _changes(test, outcomes), count)
    controls["permuted_scores"] = _compared(change, tested, count)
    won = wins(net)
    return Evidence(
        gained=won["gained"],
        lost=won["lost"],
        total=test.images,
        alpha=alpha,
        change=change / count,
        selected_on_test=test is selection,
        setting=chosen,
        p_scores=controls["permuted_scores"]["p_value"],
        selection=_selection(selection, settings, table, best),
        networks=_networks(test, chosen.layer, pairs),
        intervals=intervals(pairs, resamples, 1 - alpha, seed),
        per_class=per_class(pairs),
        controls=controls,
    )


def _with_permuted_scores(
    subjects: Sequence[Subject],
    settings: Sequence[Setting],
    scores: Sequence[Scores],
    selection: Side,
    test: Side,
    permutations: int,
    rng: np.random.Generator,
    progress: Progress | None,
) -> tuple[Int[np.ndarray, " R"], Int[np.ndarray, " R"]]:
    """The whole procedure with permuted scores: every permutation selects its own best setting, and
    that one is tested. So the comparison allows for the search itself, however large it was.

    Returns:
      The change of each permutation's best setting on the images of the selection, and of the same
      setting on those of the test.
    """
    best: list[int] = []
    tested: list[int] = []
    quick = all(own.feeds_logits for subject in subjects for own in subject.selection.values())
    group = GROUP if quick else SLOW_GROUP
    for draws in permuted_scores(scores, permutations, group, rng):
        drawn = len(draws[0])
        # All settings with the first permutation, then all with the second, and so on: row r of
        # `changes` is permutation r's.
        every = list(settings) * drawn
        outcomes = []
        for sweeps, own in zip(selection.sweeps, draws, strict=True):
            repeated = [draw for draw in own for _ in settings]
            outcomes.append(try_settings(sweeps, every, _own_scores(every, repeated), full=False))
        changes = _changes(selection, outcomes).reshape(drawn, -1)
        best += changes.max(axis=1).tolist()
        if test is not selection:
            picked = [settings[number] for number in changes.argmax(axis=1)]
            outcomes = [
                try_settings(sweeps, picked, _own_scores(picked, own), full=False)
                for sweeps, own in zip(test.sweeps, draws, strict=True)
            ]
            tested += _changes(test, outcomes).tolist()
        if progress is not None:
            progress(len(best), permutations)
    selected = np.array(best, np.int64)
    return selected, selected if test is selection else np.array(tested, np.int64)


def _own_scores(settings: Sequence[Setting], draws: Sequence[Scores]) -> list[np.ndarray]:
    """The scores [U] of each setting's layer, from a draw per setting."""
    return [draw[setting.layer] for setting, draw in zip(settings, draws, strict=True)]


def _changes(side: Side, by_network: Sequence[Outcomes]) -> Int[np.ndarray, " S"]:
    """Correct images of all networks together, above the unedited networks'."""
    return np.sum([outcomes.correct for outcomes in by_network], axis=0) - side.correct


def _compared(change: int, drawn: Int[np.ndarray, " R"], networks: int) -> dict[str, Any]:
    """The edit's change among those of random controls."""
    p_value = permutation_p_value(change, drawn)
    return {"draws": len(drawn), "p_value": p_value} | spread_of(drawn / networks)


def _selection(
    side: Side,
    settings: Sequence[Setting],
    table: Int[np.ndarray, " S"],
    best: Int[np.ndarray, " R"],
) -> dict[str, Any]:
    """How the setting was selected, and how well the best of permuted scores does there."""
    count = len(side.sweeps)
    layer = settings[int(table.argmax())].layer
    return {
        "images": side.images,
        "name": side.sweeps[0][layer].activations.name,
        "settings": len(settings),
        "change": float(table.max()) / count,
        "mean_change": float(table.mean()) / count,
        "p_search": permutation_p_value(table.max(), best),
        "permutations": len(best),
        "permuted_change": spread_of(best / count),
        "grid": [
            {**setting._asdict(), "change": float(changed) / count}
            for setting, changed in zip(settings, table, strict=True)
        ],
    }


def _networks(test: Side, layer: str, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Every network before and after the edit, with its own wins and losses."""
    return [
        {
            "images": sweeps[layer].activations.name,
            "before": numbers(before),
            "after": numbers(after),
        }
        | wins(net_wins([(before, after)]))
        for sweeps, (before, after) in zip(test.sweeps, pairs, strict=True)
    ]
