"""Whether an edit helped: one setting chosen on one set of images, one test of it on another, and controls.

The question has two halves. Did predictions change for the better beyond chance? McNemar's exact test on images that
took no part in the choice. Do the units' scores deserve the credit? Choice and confirmation are repeated with permuted
scores, which spares nothing: a search that finds good settings by luck finds them for permuted scores too. "The edit
helps" needs both at level alpha, so scores unrelated to the network earn it with probability at most alpha.
Shapes: I images, U units, C classes, S settings, R permutations.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emojax.data.loader import ImageSet
from emojax.engine.edit import PAPER, Search, Setting
from emojax.engine.evaluate import Evaluation
from emojax.engine.inputs import LayerInputs, join_inputs, layer_inputs
from emojax.engine.sweep import evaluate_gains, try_gains, try_masks, try_settings
from emojax.engine.verdict import Evidence
from emojax.errors import InputError
from emojax.models.compact import Editable
from emojax.ops import gains as ops
from emojax.ops import stats
from emojax.ops.gains import Scope

_GROUP = 256  # permutations tried together


@dataclass(frozen=True)
class Subject:
    """A network to be edited. Several of them are seeds of one experiment: same layers, same images.

    Attributes:
      scores: of the units [U], by layer.
      select: inputs of these layers on the images that the setting is chosen on.
      confirm: on those that it is tested on; None tests on the images of the choice, and says so.
      learned: gains [U] learned from labels, by layer, as a yardstick.
    """

    scores: Mapping[str, np.ndarray]
    select: Mapping[str, LayerInputs]
    confirm: Mapping[str, LayerInputs] | None = None
    learned: Mapping[str, np.ndarray] = field(default_factory=dict)


def subject(
    model: Editable,
    scores: Mapping[str, np.ndarray],
    select: ImageSet | Sequence[ImageSet],
    confirm: ImageSet | Sequence[ImageSet] | None = None,
    **options: Any,
) -> Subject:
    """A subject from a network and image sets; several sets are pooled. Options as for `layer_inputs`."""

    def read(sets: ImageSet | Sequence[ImageSet]) -> dict[str, LayerInputs]:
        sets = [sets] if isinstance(sets, ImageSet) else sets
        return {layer: join_inputs(*(layer_inputs(model, one, layer, **options) for one in sets)) for layer in scores}

    return Subject(scores, read(select), None if confirm is None else read(confirm))


@dataclass(frozen=True)
class _Side:
    """The images of the choice or of the test, as every network sees them."""

    inputs: Sequence[Mapping[str, LayerInputs]]
    before: Sequence[Evaluation]
    options: Mapping[str, Any]

    @classmethod
    def of(cls, inputs: Sequence[Mapping[str, LayerInputs]], scope: Scope, store: Path | None) -> "_Side":
        layers = [next(iter(one.values())) for one in inputs]
        before = [evaluate_gains(layer, np.ones(layer.units, np.float32)) for layer in layers]
        return cls(inputs, before, {"scope": scope, "full": False, "store": store})

    @property
    def correct(self) -> int:
        """Correct images of the unedited networks together."""
        return sum(int(_ok(result).sum()) for result in self.before)

    def under(self, layer: str, gains: Sequence[np.ndarray]) -> list[Evaluation]:
        """Every network with its gains."""
        scope = self.options["scope"]
        return [evaluate_gains(one[layer], g, scope=scope) for one, g in zip(self.inputs, gains, strict=True)]

    def changes(self, settings: Sequence[Setting], scores: Sequence[Sequence[Mapping[str, np.ndarray]]]) -> np.ndarray:
        """Correct images above the unedited networks' [S]: setting s with each network's s-th scores."""
        found = -self.correct
        for one, mine in zip(self.inputs, scores, strict=True):
            trials = [(setting, draw[setting.layer]) for setting, draw in zip(settings, mine, strict=True)]
            found = found + try_settings(one, trials, **self.options).correct
        return found


def _ok(result: Evaluation) -> np.ndarray:
    return result.predictions == result.labels


def _numbers(result: Evaluation) -> dict[str, float]:
    """Accuracy, macro recall, NLL and calibration error."""
    found = result.summary()
    shifted = np.exp(np.float64(result.logits) - np.float64(result.logits).max(axis=1, keepdims=True))
    confidence = 1.0 / shifted.sum(axis=1)  # of the predicted class, whose shifted logit is 0
    ece = stats.calibration_error(jnp.asarray(confidence, jnp.float32), jnp.asarray(_ok(result)))
    names = {"correct": "correct", "accuracy": "top1", "macro_recall": "macro_recall", "nll": "nll"}
    return {name: found[theirs] for name, theirs in names.items()} | {"ece": float(ece)}


def _net(pairs: Sequence[tuple[Evaluation, Evaluation]]) -> np.ndarray:
    """Networks that an edit puts right less those it puts wrong, for each image [I]; pairs are (before, after)."""
    return sum(_ok(after).astype(int) - _ok(before) for before, after in pairs)


def _wins(net: np.ndarray) -> dict[str, Any]:
    gained, lost = int((net > 0).sum()), int((net < 0).sum())
    return {"gained": gained, "lost": lost, "p_value": stats.mcnemar_exact(gained, lost)}


def _intervals(pairs: Sequence[tuple[Evaluation, Evaluation]], resamples: int, level: float, seed: int) -> dict[str, Any]:
    """Percentile intervals of the differences, after − before, over resampled images; means over the networks."""
    labels, classes = pairs[0][0].labels, len(pairs[0][0].classes)
    own = np.eye(classes)[labels]
    better = _net(pairs)[:, None] / len(pairs)
    loss = np.mean([after.losses() - before.losses() for before, after in pairs], axis=0)
    columns = np.concatenate([loss[:, None], own, own * better], axis=1)
    drawn = stats.bootstrap_totals(jax.random.key(seed), jnp.asarray(columns, jnp.float32), resamples)

    def differences(totals: np.ndarray) -> dict[str, np.ndarray]:
        sizes, hits = totals[:, 1 : classes + 1], totals[:, classes + 1 :]
        recalls = np.where(sizes > 0, hits / np.maximum(sizes, 1), 0.0)
        return {
            "accuracy": hits.sum(axis=1) / len(labels),
            "macro_recall": recalls.sum(axis=1) / (sizes > 0).sum(axis=1),
            "nll": totals[:, 0] / len(labels),
        }

    seen, spread = differences(columns.sum(axis=0)[None]), differences(np.float64(drawn))
    edges = [(1 - level) / 2, (1 + level) / 2]
    return {
        name: {"difference": float(seen[name][0]), "interval": [float(x) for x in np.quantile(spread[name], edges)]}
        for name in seen
    }


def _per_class(pairs: Sequence[tuple[Evaluation, Evaluation]]) -> dict[str, Any]:
    """Wins and losses within each true class; p-values adjusted for their number (Benjamini–Hochberg)."""
    before = pairs[0][0]
    net, present = _net(pairs), [c for c in range(len(before.classes)) if (before.labels == c).any()]
    rows = [_wins(net[before.labels == c]) for c in present]
    adjusted = stats.benjamini_hochberg(jnp.asarray([row["p_value"] for row in rows]))
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
    store: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evidence:
    """Chooses one setting, tests it once, and compares it with controls.

    The setting has the most correct images, over all networks, on the `select` images; the first of equals. `masks`
    random controls have the setting's gains on random units. Draws follow `seed`. With several networks an image counts
    as gained when more of them are put right than wrong; the permutations permute each network's scores.

    A search over layers that do not feed the logits repeats what follows them for every setting and permutation; ask for
    fewer permutations there. With `store`, a folder, what is done is kept there, and a run that was stopped goes on.
    `progress` hears of permutations. The edit, the baseline and single controls are evaluated by the plain arithmetic;
    grids, permutations and random masks go the fast way, exact up to near ties (`engine/sweep.py`).

    Raises:
      InputError: no subject or setting, subjects that differ in layers or images, or scores that do not fit.
    """
    settings = _checked(subjects, search)
    rng, on_test, count = np.random.default_rng(seed), subjects[0].confirm is None, len(subjects)
    scores = [{name: np.asarray(s, np.float32) for name, s in one.scores.items()} for one in subjects]
    choice = _Side.of([one.select for one in subjects], search.scope, store)
    test = choice if on_test else _Side.of([one.confirm for one in subjects], search.scope, store)

    table = choice.changes(settings, [[mine] * len(settings) for mine in scores])
    chosen = settings[int(table.argmax())]
    own = [chosen.gains(mine[chosen.layer]) for mine in scores]
    after = test.under(chosen.layer, own)
    pairs = list(zip(test.before, after, strict=True))
    change = int(_net(pairs).sum())

    found, confirmed = _permuted(choice, test, settings, scores, permutations, rng, progress)
    learned = [one.learned[chosen.layer] for one in subjects if chosen.layer in one.learned]
    controls = _others(test, chosen, scores, own, after, learned)
    if masks:
        drawn = _random_masks(test, chosen, own, masks, rng)
        controls["random_masks"] = {"draws": masks, "p_value": _p_value(change, drawn)} | _spread(drawn / count)
    p_scores = _p_value(change, confirmed)
    controls["permuted_scores"] = {"draws": permutations, "p_value": p_scores} | _spread(confirmed / count)
    selection = {
        "images": len(choice.before[0].labels),
        "name": choice.inputs[0][chosen.layer].name,
        "settings": len(settings),
        "change": float(table.max()) / count,
        "mean_change": float(table.mean()) / count,
        "p_search": _p_value(table.max(), found),
        "permutations": permutations,
        "permuted_change": _spread(found / count),
        "grid": [{**setting._asdict(), "change": float(c) / count} for setting, c in zip(settings, table, strict=True)],
    }
    networks = [
        {"images": one[chosen.layer].name, "before": _numbers(x), "after": _numbers(y)} | _wins(_net([(x, y)]))
        for one, (x, y) in zip(test.inputs, pairs, strict=True)
    ]
    wins = _wins(_net(pairs))
    return Evidence(
        gained=wins["gained"],
        lost=wins["lost"],
        total=len(test.before[0].labels),
        alpha=alpha,
        change=change / count,
        selected_on_test=on_test,
        setting=chosen,
        p_scores=p_scores,
        selection=selection,
        networks=networks,
        intervals=_intervals(pairs, resamples, 1 - alpha, seed),
        per_class=_per_class(pairs),
        controls=controls,
    )


def _permuted(
    choice: _Side,
    test: _Side,
    settings: Sequence[Setting],
    scores: Sequence[Mapping[str, np.ndarray]],
    permutations: int,
    rng: np.random.Generator,
    progress: Callable[[int, int], None] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Choice and test with permuted scores [R]: the best change on the choice's images, and its change on the test's."""
    found, confirmed = np.empty(permutations, np.int64), np.empty(permutations, np.int64)
    for start in range(0, permutations, _GROUP):
        rows = slice(start, min(start + _GROUP, permutations))
        count = rows.stop - start
        draws = [[{k: rng.permutation(s) for k, s in mine.items()} for _ in range(count)] for mine in scores]
        each = [[draw for draw in mine for _ in settings] for mine in draws]
        table = choice.changes(list(settings) * count, each).reshape(count, -1)
        found[rows] = table.max(axis=1)
        picked = [settings[at] for at in table.argmax(axis=1)]
        confirmed[rows] = found[rows] if test is choice else test.changes(picked, draws)
        if progress is not None:
            progress(rows.stop, permutations)
    return found, confirmed


def _checked(subjects: Sequence[Subject], search: Search) -> list[Setting]:
    if not subjects:
        raise InputError("no network to assess; give at least one subject")
    first = subjects[0]
    settings = search.settings(list(first.scores))
    if not settings:
        raise InputError("the search has no setting that edits anything; give a factor other than 1")
    for one in subjects:
        if list(one.scores) != list(first.scores) or (one.confirm is None) != (first.confirm is None):
            raise InputError("the networks differ in layers or sets; assess those of one experiment together")
        for name, scores in one.scores.items():
            for inputs, theirs in ((one.select, first.select), (one.confirm, first.confirm)):
                if inputs is None:
                    continue
                if np.shape(scores) != (inputs[name].units,) or not np.isfinite(scores).all():
                    raise InputError(f"layer {name} needs {inputs[name].units} finite scores, not shape {np.shape(scores)}")
                if not np.array_equal(inputs[name].labels, theirs[next(iter(theirs))].labels):
                    raise InputError(f"layer {name} was read on other images than the rest; use the same sets throughout")
    return settings


def _p_value(observed: float, null: np.ndarray) -> float | None:
    """As `stats.permutation_p_values`, in float64: a p-value of just alpha must compare as such. None without draws."""
    return (1 + int((null >= observed).sum())) / (1 + len(null)) if len(null) else None


def _spread(values: np.ndarray) -> dict[str, float]:
    """Mean and 95 % range of what controls changed."""
    if not len(values):
        return {}
    low, high = np.quantile(values, [0.025, 0.975])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high), "best": float(values.max())}


def _others(
    test: _Side,
    chosen: Setting,
    scores: Sequence[Mapping[str, np.ndarray]],
    own: Sequence[np.ndarray],
    after: Sequence[Evaluation],
    learned: Sequence[np.ndarray],
) -> dict[str, Any]:
    """What other edits of the layer change on the test's images, and how the edit fares against each, image by image."""
    layer, count = chosen.layer, len(own)
    alike = [np.full(len(g), chosen.factor, np.float32) for g in own]
    heavy = [np.asarray(ops.from_mask(ops.above_mean(one[layer].weight_sums), chosen.factor)) for one in test.inputs]
    inverted = [chosen.gains(-mine[layer]) for mine in scores] if chosen.kind == "continuous" else [1 / g for g in own]
    others = {"all_up": alike, "all_down": [1 / g for g in alike], "inverted": inverted, "weight_sum": heavy}
    if len(learned) == count:
        others["learned"] = learned
    found = {}
    for name, gains in others.items():
        results = test.under(layer, gains)
        change = sum(int(_ok(result).sum()) for result in results) - test.correct
        against = _wins(_net(list(zip(results, after, strict=True))))
        found[name] = {"change": change / count, "edit_against_it": against}
    return found


def _random_masks(
    test: _Side, chosen: Setting, own: Sequence[np.ndarray], masks: int, rng: np.random.Generator
) -> np.ndarray:
    """Changes [S] with the edit's gains on random units: as many of each gain as the edit has."""
    found = -test.correct
    for one, gains in zip(test.inputs, own, strict=True):
        inputs, drawn = one[chosen.layer], rng.permuted(np.tile(gains, (masks, 1)), axis=1)
        if chosen.kind == "continuous":
            outcomes = try_gains(inputs, drawn, **test.options)
        else:
            outcomes = try_masks(inputs, drawn == np.float32(chosen.factor), chosen.factor, **test.options)
        found = found + outcomes.correct
    return found
