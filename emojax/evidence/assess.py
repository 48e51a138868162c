"""Whether an edit helped: one setting selected on one set of images, one test on another, controls.

The question has two sides. Did predictions change for the better beyond chance? McNemar's exact
test on held-out images, which took no part in the selection. Do the units' scores deserve the
credit? Selection and test are repeated with permuted scores, which spares nothing: a search that
finds good settings by luck finds them for permuted scores too. "The edit helps" needs both at level
alpha, so scores unrelated to the network earn it with probability at most alpha.
Shapes: I images, U units, C classes, S settings, R permutations.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from emojax.data.image_set import ImageSet
from emojax.editing.activations import (
    PreBiasActivations,
    Progress,
    pool_activations,
    pre_bias_activations,
)
from emojax.editing.edit import gains_of
from emojax.editing.search import PAPER, Scope, Search, Setting
from emojax.editing.sweep import Sweep
from emojax.errors import InputError
from emojax.evidence.verdict import Evidence
from emojax.models.classifier import Editable
from emojax.ops import gains as ops
from emojax.ops import stats
from emojax.training.evaluate import Evaluation, same_classes

_GROUP = 256  # permutations tried together

Scores = Mapping[str, np.ndarray]  # of the units [U], by layer
Pair = tuple[Evaluation, Evaluation]  # of one network, before and after the edit


@dataclass(frozen=True)
class Subject:
    """A network to be edited. Several of them are seeds of one experiment: same layers and images.

    Attributes:
      scores: of the units [U], by layer.
      selection: activations of these layers on the images that the setting is selected on.
      held_out: on those that it is tested on; None tests on the images of the selection, and the
        evidence says so.
      learned: gains [U] learned from labels, by layer, as a yardstick.
    """

    scores: Scores
    selection: Mapping[str, PreBiasActivations]
    held_out: Mapping[str, PreBiasActivations] | None = None
    learned: Mapping[str, np.ndarray] = field(default_factory=dict)


def subject(
    model: Editable,
    scores: Scores,
    selection: ImageSet | Sequence[ImageSet],
    held_out: ImageSet | Sequence[ImageSet] | None = None,
    *,
    batch: int = 256,
    tile: int | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Subject:
    """A subject from a network and image sets; several sets are pooled.

    Options are those of `pre_bias_activations`.
    """

    def read(sets: ImageSet | Sequence[ImageSet]) -> dict[str, PreBiasActivations]:
        sets = [sets] if isinstance(sets, ImageSet) else sets
        by_layer = {}
        for layer in scores:
            activations = [
                pre_bias_activations(
                    model, images, layer, batch=batch, tile=tile, cache=cache, progress=progress
                )
                for images in sets
            ]
            by_layer[layer] = pool_activations(*activations)
        return by_layer

    return Subject(scores, read(selection), None if held_out is None else read(held_out))


@dataclass(frozen=True)
class _Side:
    """The images of the selection or of the test, as every network sees them.

    Attributes:
      sweeps: of every layer, for each network.
      before: each unedited network.
    """

    sweeps: Sequence[Mapping[str, Sweep]]
    before: Sequence[Evaluation]

    @classmethod
    def of(
        cls,
        networks: Sequence[Mapping[str, PreBiasActivations]],
        scope: Scope,
        cache: Path | None,
    ) -> "_Side":
        sweeps = [
            {layer: Sweep(own, scope=scope, cache=cache) for layer, own in network.items()}
            for network in networks
        ]
        # Gains of 1 edit nothing, whatever the layer and scope.
        first = [next(iter(layers.values())) for layers in sweeps]
        before = [sweep.evaluate(np.ones(sweep.activations.units, np.float32)) for sweep in first]
        return cls(sweeps, before)

    @property
    def images(self) -> int:
        """Images of the side."""
        return len(self.before[0].labels)

    @property
    def correct(self) -> int:
        """Correct images of the unedited networks together."""
        return sum(int(_right(result).sum()) for result in self.before)

    def edited(self, layer: str, gains: Sequence[np.ndarray]) -> list[Evaluation]:
        """Every network with its gains [U], by the plain arithmetic."""
        return [layers[layer].evaluate(own) for layers, own in zip(self.sweeps, gains, strict=True)]

    def changes(
        self, settings: Sequence[Setting], scores: Sequence[Sequence[Scores]]
    ) -> Int[np.ndarray, " S"]:
        """Correct images above the unedited networks'; setting s has each network's s-th."""
        total = np.full(len(settings), -self.correct)
        for layers, draws in zip(self.sweeps, scores, strict=True):
            for layer, sweep in layers.items():
                numbers = [n for n, setting in enumerate(settings) if setting.layer == layer]
                if numbers:
                    own = [draws[n][layer] for n in numbers]
                    chosen = [settings[n] for n in numbers]
                    total[numbers] += sweep.settings(chosen, own, full=False).correct
        return total


def _right(result: Evaluation) -> np.ndarray:
    """Which images are predicted right [I]."""
    return result.predictions == result.labels


def _numbers(result: Evaluation) -> dict[str, float]:
    """Accuracy, macro recall, NLL and calibration error."""
    summary = result.summary()
    logits = np.float64(result.logits)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = 1.0 / shifted.sum(axis=1)  # of the predicted class, whose shifted logit is 0
    ece = stats.calibration_error(jnp.asarray(confidence, jnp.float32), jnp.asarray(_right(result)))
    return {
        "correct": summary["correct"],
        "accuracy": summary["top1"],
        "macro_recall": summary["macro_recall"],
        "nll": summary["nll"],
        "ece": float(ece),
    }


def _net(pairs: Sequence[Pair]) -> Int[np.ndarray, " I"]:
    """Networks that an edit puts right less those it puts wrong, for each image."""
    changes = [_right(after).astype(int) - _right(before) for before, after in pairs]
    return np.sum(changes, axis=0)


def _wins(net: Int[np.ndarray, " I"]) -> dict[str, Any]:
    """Images gained and lost, by more networks than not, and McNemar's p."""
    gained = int((net > 0).sum())
    lost = int((net < 0).sum())
    return {"gained": gained, "lost": lost, "p_value": stats.mcnemar_exact(gained, lost)}


def _intervals(pairs: Sequence[Pair], resamples: int, level: float, seed: int) -> dict[str, Any]:
    """Percentile intervals of the differences, after − before, over resampled images.

    Differences are means over the networks. Macro recall is a ratio of sums over images, so a
    resample needs only column sums: of losses, of images per class, and of wins per class.
    """
    labels = pairs[0][0].labels
    classes = len(pairs[0][0].classes)
    own = np.eye(classes)[labels]
    better = _net(pairs)[:, None] / len(pairs)
    loss = np.mean([after.losses() - before.losses() for before, after in pairs], axis=0)
    columns = np.concatenate([loss[:, None], own, own * better], axis=1)
    key = jax.random.key(seed)
    drawn = stats.bootstrap_totals(key, jnp.asarray(columns, jnp.float32), resamples)

    def differences(totals: np.ndarray) -> dict[str, np.ndarray]:
        sizes = totals[:, 1 : classes + 1]
        wins = totals[:, classes + 1 :]
        recalls = np.where(sizes > 0, wins / np.maximum(sizes, 1), 0.0)
        return {
            "accuracy": wins.sum(axis=1) / len(labels),
            "macro_recall": recalls.sum(axis=1) / (sizes > 0).sum(axis=1),
            "nll": totals[:, 0] / len(labels),
        }

    observed = differences(columns.sum(axis=0)[None])
    spread = differences(np.asarray(drawn, np.float64))
    edges = [(1 - level) / 2, (1 + level) / 2]
    return {
        name: {
            "difference": float(observed[name][0]),
            "interval": [float(x) for x in np.quantile(spread[name], edges)],
        }
        for name in observed
    }


def _per_class(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Wins and losses within each true class; p-values adjusted for their number (BH)."""
    before = pairs[0][0]
    net = _net(pairs)
    present = [c for c in range(len(before.classes)) if (before.labels == c).any()]
    rows = [_wins(net[before.labels == c]) for c in present]
    p_values = jnp.asarray([row["p_value"] for row in rows])
    adjusted = stats.benjamini_hochberg(p_values)
    return {
        before.classes[c]: row | {"images": int((before.labels == c).sum()), "p_adjusted": float(p)}
        for c, row, p in zip(present, rows, adjusted, strict=True)
    }


# The procedure


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
    settings = _checked(subjects, search)
    count = len(subjects)
    rng = np.random.default_rng(seed)
    scores = [_float32(one.scores) for one in subjects]
    selection = _Side.of([one.selection for one in subjects], search.scope, cache)
    held_out = [one.held_out for one in subjects if one.held_out is not None]
    test = _Side.of(held_out, search.scope, cache) if held_out else selection

    table = selection.changes(settings, [[own] * len(settings) for own in scores])
    chosen = settings[int(table.argmax())]
    gains = [gains_of(chosen, own[chosen.layer]) for own in scores]
    after = test.edited(chosen.layer, gains)
    pairs = list(zip(test.before, after, strict=True))
    net = _net(pairs)
    change = int(net.sum())

    # The whole procedure with permuted scores: every permutation selects its own best setting, and
    # that one is tested. So the comparison allows for the search itself, however large it was.
    best = np.empty(permutations, np.int64)  # change of the best setting, on the selection's images
    tested = np.empty(permutations, np.int64)  # and of the same setting on the test's
    for rows, draws in _permuted(scores, permutations, rng):
        drawn = rows.stop - rows.start
        every = [[draw for draw in own for _ in settings] for own in draws]
        changes = selection.changes(settings * drawn, every).reshape(drawn, -1)
        best[rows] = changes.max(axis=1)
        picked = [settings[number] for number in changes.argmax(axis=1)]
        tested[rows] = best[rows] if test is selection else test.changes(picked, draws)
        if progress is not None:
            progress(rows.stop, permutations)

    controls = _controls(test, chosen, subjects, scores, gains, after)
    if masks:
        random = _random_masks(test, chosen, gains, masks, rng)
        p_value = _p_value(change, random)
        controls["random_masks"] = {"draws": masks, "p_value": p_value} | _spread(random / count)
    p_scores = _p_value(change, tested)
    controls["permuted_scores"] = {
        "draws": permutations,
        "p_value": p_scores,
    } | _spread(tested / count)
    wins = _wins(net)
    return Evidence(
        gained=wins["gained"],
        lost=wins["lost"],
        total=test.images,
        alpha=alpha,
        change=change / count,
        selected_on_test=test is selection,
        setting=chosen,
        p_scores=p_scores,
        selection={
            "images": selection.images,
            "name": selection.sweeps[0][chosen.layer].activations.name,
            "settings": len(settings),
            "change": float(table.max()) / count,
            "mean_change": float(table.mean()) / count,
            "p_search": _p_value(table.max(), best),
            "permutations": permutations,
            "permuted_change": _spread(best / count),
            "grid": [
                {**setting._asdict(), "change": float(changed) / count}
                for setting, changed in zip(settings, table, strict=True)
            ],
        },
        networks=_networks(test, chosen.layer, pairs),
        intervals=_intervals(pairs, resamples, 1 - alpha, seed),
        per_class=_per_class(pairs),
        controls=controls,
    )


def _float32(scores: Scores) -> dict[str, Float[np.ndarray, " U"]]:
    return {layer: np.asarray(values, np.float32) for layer, values in scores.items()}


def _permuted(
    scores: Sequence[Scores], permutations: int, rng: np.random.Generator
) -> Iterator[tuple[slice, list[list[Scores]]]]:
    """Permuted scores, `_GROUP` permutations at a time: their numbers, and a list per network.

    Which score belongs to which unit is what the null hypothesis calls arbitrary, so scores change
    places within their layer and keep their values: thresholds and fractions scale as many units
    up as before. Networks and layers are permuted independently. They go together in groups
    because a sweep of thousands of masks is one matrix product.
    """
    for start in range(0, permutations, _GROUP):
        rows = slice(start, min(start + _GROUP, permutations))
        # The order of the draws fixes the results for a seed: by network, permutation, layer.
        yield (
            rows,
            [
                [
                    {layer: rng.permutation(values) for layer, values in own.items()}
                    for _ in range(rows.stop - rows.start)
                ]
                for own in scores
            ],
        )


def _checked(subjects: Sequence[Subject], search: Search) -> list[Setting]:
    """The settings to try, after checking that the subjects fit each other."""
    if not subjects:
        raise InputError("no network to assess; give at least one subject")
    first = subjects[0]
    settings = search.settings(list(first.scores))
    if not settings:
        raise InputError(
            "the search has no setting that edits anything; give a factor other than 1"
        )
    for one in subjects:
        same_layers = list(one.scores) == list(first.scores)
        if not same_layers or (one.held_out is None) != (first.held_out is None):
            raise InputError(
                "the networks differ in layers or sets; assess those of one experiment together"
            )
        for layer, scores in one.scores.items():
            _check_layer(layer, scores, one.selection, first.selection)
            if one.held_out is not None and first.held_out is not None:
                _check_layer(layer, scores, one.held_out, first.held_out)
    return settings


def _check_layer(
    layer: str,
    scores: np.ndarray,
    own: Mapping[str, PreBiasActivations],
    reference: Mapping[str, PreBiasActivations],
) -> None:
    """Refuses scores that do not fit a layer, and activations of other images."""
    activations = own[layer]
    first = next(iter(reference.values()))
    same_classes([first.classes, activations.classes])
    if np.shape(scores) != (activations.units,) or not np.isfinite(scores).all():
        raise InputError(
            f"layer {layer} needs {activations.units} finite scores, not shape {np.shape(scores)}"
        )
    if not np.array_equal(activations.labels, first.labels):
        raise InputError(
            f"layer {layer} was read on other images than the rest; use the same sets throughout"
        )


def _p_value(observed: float, null: np.ndarray) -> float | None:
    """As `stats.permutation_p_values`, in float64: a p-value of just alpha must compare as such.

    The observed outcome counts as one of the draws, so no p-value is 0. None without draws.
    """
    return (1 + int((null >= observed).sum())) / (1 + len(null)) if len(null) else None


def _spread(values: np.ndarray) -> dict[str, float]:
    """Mean and 95 % range of what controls changed."""
    if not len(values):
        return {}
    low, high = np.quantile(values, [0.025, 0.975])
    return {
        "mean": float(values.mean()),
        "low": float(low),
        "high": float(high),
        "best": float(values.max()),
    }


def _networks(test: _Side, layer: str, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Every network before and after the edit, with its own wins and losses."""
    return [
        {
            "images": layers[layer].activations.name,
            "before": _numbers(before),
            "after": _numbers(after),
        }
        | _wins(_net([(before, after)]))
        for layers, (before, after) in zip(test.sweeps, pairs, strict=True)
    ]


def _controls(
    test: _Side,
    chosen: Setting,
    subjects: Sequence[Subject],
    scores: Sequence[Scores],
    gains: Sequence[np.ndarray],
    after: Sequence[Evaluation],
) -> dict[str, Any]:
    """What other edits of the layer change, and how the edit fares against each, by image.

    Each answers a simpler explanation: any scaling of the layer would do, either direction would
    do, large weights rather than scores say which units matter. Learned gains show the possible.
    """
    layer = chosen.layer
    count = len(subjects)
    alike = [np.full(len(own), chosen.factor, np.float32) for own in gains]
    heavy = []
    for layers in test.sweeps:
        sums = jnp.asarray(layers[layer].activations.weight_sums)
        heavy.append(np.asarray(ops.from_mask(ops.above_mean(sums), chosen.factor)))
    if chosen.kind == "continuous":  # of a gain of 0 there is no inverse
        inverted = [gains_of(chosen, -own[layer]) for own in scores]
    else:
        inverted = [1 / own for own in gains]
    edits = {
        "all_up": alike,
        "all_down": [1 / own for own in alike],
        "inverted": inverted,
        "weight_sum": heavy,
    }
    learned = [one.learned[layer] for one in subjects if layer in one.learned]
    if len(learned) == count:
        edits["learned"] = learned
    controls = {}
    for name, other in edits.items():
        results = test.edited(layer, other)
        change = sum(int(_right(result).sum()) for result in results) - test.correct
        against = _wins(_net(list(zip(results, after, strict=True))))
        controls[name] = {"change": change / count, "edit_against_it": against}
    return controls


def _random_masks(
    test: _Side,
    chosen: Setting,
    gains: Sequence[np.ndarray],
    masks: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, " S"]:
    """Changes with the edit's gains on random units: as many of each gain as the edit has.

    These keep how strong the edit is and forget which units it chose. They say less than permuted
    scores, since their setting was not selected.
    """
    total = np.full(masks, -test.correct)
    for layers, own in zip(test.sweeps, gains, strict=True):
        drawn = rng.permuted(np.tile(own, (masks, 1)), axis=1)
        sweep = layers[chosen.layer]
        if chosen.kind == "continuous":
            outcomes = sweep.gains(drawn, full=False)
        else:
            up = drawn == np.float32(chosen.factor)
            outcomes = sweep.masks(up, chosen.factor, full=False)
        total += outcomes.correct
    return total
