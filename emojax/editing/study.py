"""A study of edits by labels: layers, a sweep, one setting selected and tested, the edited network.

It takes what the dissection found and gives one `Study`, which `report/write_study.py` writes, the
commands print and the page reads back. Nothing here writes or prints.
Shapes: U units, S settings.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from emojax.data.image_set import ImageSet
from emojax.dissection.labels import Dissection
from emojax.dissection.table import LayerSummary, most_interpretable_layer
from emojax.editing.activations import (
    PreBiasActivations,
    Progress,
    pool_activations,
    pre_bias_activations,
)
from emojax.editing.baselines import learn_gains
from emojax.editing.edit import edit, gains_of, read_gains
from emojax.editing.search import AUTO, PAPER_STUDY, Edit, Kind, Scope, Search, Setting
from emojax.editing.sweep import Outcomes, Sweep
from emojax.errors import InputError
from emojax.evidence.assess import Subject, assess
from emojax.evidence.verdict import Evidence, Finding
from emojax.models.classifier import Editable
from emojax.models.tapped import TappedNetwork
from emojax.models.vgg import VggNet
from emojax.ops.stats import benjamini_hochberg, mcnemar_exact
from emojax.probing.network import resolve_layers
from emojax.store import content_key
from emojax.training.evaluate import Evaluation, Protocol, evaluate, join, labelled

_BAND_SIZES = 31  # numbers of random units, along all thresholds
_BAND_DRAWS = 100  # random sets of units of each size
_CROPPED = 512  # images whose ten views are in memory together

Table = dict[str, Sequence[Any] | np.ndarray]  # columns by name
Stage = Callable[[str, str], AbstractContextManager[Progress | None]]
"""(name, unit) → a context around one stage of the work, which gives the stage's progress."""


@dataclass(frozen=True)
class SplitResult:
    """A network's results on one test split, as `Evaluation.summary` gives them."""

    images: int
    correct: int
    top1: float
    top2: float
    macro_recall: float
    nll: float
    recall: dict[str, float | None]
    correct_per_class: dict[str, int]
    confusion: list[list[int]]
    classes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ChosenSetting:
    """The setting that was selected; of gains from a file, the layer alone is known."""

    layer: str
    kind: Kind | Literal["file"]
    tau: float | None = None
    factor: float | None = None


@dataclass(frozen=True)
class Tested:
    """The test: names of its image sets, its images, those that the edit gained and lost."""

    on: list[str]
    images: int
    gained: int
    lost: int


@dataclass(frozen=True)
class StudySummary:
    """The study in `summary.json`, under `edit`.

    Attributes:
      setting: of the edit.
      scope: what its gains scale.
      selected_on_test: whether it was selected on the images of the test.
      baseline: results of the unedited network by split; `all` are all of them. None where the
        sweep did not try it.
      edited: those of the edited network.
      layer_chosen: what chose the layer.
      tested: where, and with what result.
      finding: the verdict in a word.
      p_value: McNemar's.
      verdict: in plain language.

    The last five are None where there was no such choice or test.
    """

    setting: ChosenSetting
    scope: Scope
    selected_on_test: bool
    baseline: dict[str, SplitResult] | None
    edited: dict[str, SplitResult]
    layer_chosen: str | None = None
    tested: Tested | None = None
    finding: Finding | None = None
    p_value: float | None = None
    verdict: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values, without what does not apply."""
        values = dataclasses.asdict(self).items()
        return {name: x for name, x in values if x is not None or name == "baseline"}


@dataclass(frozen=True)
class Study:
    """What a study found; tables are empty where they do not apply.

    Attributes:
      summary: as numbers and words.
      edited: the edited network.
      selected_on: image sets that the edit was selected on.
      sweep: every setting of the grid, on all test splits together.
      thresholds: every threshold that changes anything, for layers where all of them are cheap.
      bands: accuracy with the setting's factor on random units, at sizes along all thresholds.
      evidence: None for ten crops.
    """

    summary: StudySummary
    edited: Editable
    selected_on: tuple[ImageSet, ...] = ()
    sweep: Table = field(default_factory=dict)
    thresholds: Table = field(default_factory=dict)
    bands: Table = field(default_factory=dict)
    evidence: Evidence | None = None


def check_study(
    model: nnx.Module,
    options: Edit,
    images: ImageSet,
    tests: Sequence[ImageSet],
    *,
    probed: Sequence[str] = (),
    protocol: Protocol = "resize40",
) -> None:
    """Refuses before the probe what the study would refuse after it.

    Args:
      model: the network.
      options: of the study.
      images: the probe images.
      tests: labelled test splits.
      probed: names or patterns of the layers that are probed; without any, the network's own.
      protocol: of the test.

    Raises:
      InputError: no edit to search, layers that are not probed, too few permutations, a bad file of
        gains, test sets without labels, or the same images where different ones are needed.
    """
    if not isinstance(model, VggNet | TappedNetwork):
        raise InputError(
            "edits are made to a VGGNet or the networks of --target.path, and this is a "
            f"{type(model).__name__}; `emojax dissect` labels its units"
        )
    if protocol == "tencrop" and not isinstance(model, VggNet):
        raise InputError("--evaluate.protocol tencrop crops to a VGGNet's input; use resize40")
    units = model.config.units()
    layers = options.layers
    if layers != (AUTO,):
        available = resolve_layers(probed or model.config.probed(), list(units))
        layers = resolve_layers(layers, available)
    one_view = protocol == "resize40"
    other_kinds = options.top_fraction or options.continuous
    if options.gains is not None:
        if len(layers) != 1 or layers[0] == AUTO:
            raise InputError("--edit.gains are those of one layer; name it with --edit.layers")
        read_gains(options.gains, units[layers[0]])
    elif not options.settings([AUTO]):
        raise InputError("--edit.factor has only 1, which edits nothing; give another factor")
    elif not one_view and (len(layers) > 1 or other_kinds):
        raise InputError(
            "--evaluate.protocol tencrop takes thresholds on one layer; use resize40 for other "
            "searches"
        )
    # The smallest p-value that R permutations can give is 1 / (R + 1).
    if options.permutations and 1 / (options.permutations + 1) > options.alpha:
        least = math.ceil(1 / options.alpha) - 1
        given = f"--edit.permutations {options.permutations}"
        raise InputError(f"{given} cannot reach p ≤ {options.alpha:g}; give at least {least}")
    _check_sets(model, options, images, tests)


def _check_sets(
    model: Editable, options: Edit, images: ImageSet, tests: Sequence[ImageSet]
) -> None:
    names: dict[str, str] = {}
    for test in tests:
        labelled(test, model)
        if test.key in names:
            raise InputError(
                f"test splits {names[test.key]} and {test.name} are the same images; name "
                "different ones"
            )
        names[test.key] = test.name
    if options.learned:
        labelled(images, model)
        if images.key in names:
            raise InputError(
                f"--edit.learned fits gains on {images.name}, which is also a test split; probe "
                "another split"
            )


def layers_to_edit(options: Edit, table1: Sequence[LayerSummary]) -> tuple[str, ...]:
    """The layers that the options name, in the network's order; `auto` is the paper's rule.

    Raises:
      InputError: a layer was not probed.
    """
    if options.layers == (AUTO,):
        return (most_interpretable_layer(table1),)
    return resolve_layers(options.layers, [row.layer for row in table1])


def _silent(_name: str, _unit: str) -> AbstractContextManager[None]:
    return contextlib.nullcontext()


def run_study(
    model: Editable,
    dissection: Dissection,
    table1: Sequence[LayerSummary],
    images: ImageSet,
    tests: Sequence[ImageSet],
    options: Edit = PAPER_STUDY,
    *,
    protocol: Protocol = "resize40",
    batch: int = 256,
    cache: Path | None = None,
    stage: Stage = _silent,
) -> Study:
    """Selects an edit by labels, tests it, and applies it.

    With gains from a file nothing is selected; with ten crops there is a grid and no evidence.

    Args:
      model: the network.
      dissection: of its units, whose scores make the edits.
      table1: of the dissection; its layers are those that were probed.
      images: the probe images, which learned gains are fitted on.
      tests: labelled test splits, all different.
      options: the settings to try, how one is selected, and the evidence.
      protocol: one view of each image, or ten crops.
      batch: images per step; does not change results.
      cache: a folder in which activations and outcomes are cached.
      stage: a context around every stage of the work.

    Raises:
      InputError: as `check_study`, or the dissection lacks a layer.
    """
    layers = layers_to_edit(options, table1)
    if options.gains is not None:
        return _given_gains(model, layers[0], tests, options, protocol, batch, stage)
    scores = {layer: dissection.layer_scores(layer) for layer in layers}
    if protocol == "tencrop":
        return _ten_crops(model, scores, tests, options, batch, stage)

    with stage("layer activations", "images") as progress:

        def read(layer: str, split: ImageSet) -> PreBiasActivations:
            return pre_bias_activations(
                model, split, layer, batch=batch, cache=cache, progress=progress
            )

        by_split = {layer: [read(layer, test) for test in tests] for layer in layers}
        fitted_on = {layer: read(layer, images) for layer in layers if options.learned}
    pooled = {layer: pool_activations(*own) for layer, own in by_split.items()}

    sweeps = {layer: Sweep(own, scope=options.scope, cache=cache) for layer, own in pooled.items()}
    with stage("sweep", "settings"):
        # Splits are pooled for the tables, as in the paper; the selection has its own images.
        grid = options.grid(layers)
        outcomes = _sweep_grid(sweeps, grid, scores)
        sweep_table = _sweep_table(grid, outcomes, next(iter(sweeps.values())))
        threshold_table = _threshold_table(sweeps, scores, options)

    apart = options.choose_on == "first_split" and len(tests) > 1
    selection = pooled
    held_out = None
    if apart:
        selection = {layer: own[0] for layer, own in by_split.items()}
        held_out = {layer: pool_activations(*own[1:]) for layer, own in by_split.items()}
    learned = {layer: learn_gains(own, scope=options.scope) for layer, own in fitted_on.items()}
    with stage("evidence", "permutations") as progress:
        evidence = assess(
            [Subject(scores, selection, held_out, learned)],
            options,
            alpha=options.alpha,
            permutations=options.permutations,
            masks=options.masks,
            cache=cache,
            progress=progress,
        )

    setting = _known(evidence.setting)
    with stage("bands", "settings"):
        bands = _bands(sweeps[setting.layer], setting, options.masks)
    gains = gains_of(setting, scores[setting.layer])
    own = [Sweep(split, scope=options.scope) for split in by_split[setting.layer]]
    names = [test.name for test in tests]
    summary = StudySummary(
        setting=ChosenSetting(*setting),
        scope=options.scope,
        selected_on_test=evidence.selected_on_test,
        baseline=_results(names, [sweep.evaluate(np.ones_like(gains)) for sweep in own]),
        edited=_results(names, [sweep.evaluate(gains) for sweep in own]),
        layer_chosen=_what_chose(options, layers),
        tested=Tested(
            on=names[1:] if apart else names,
            images=evidence.total,
            gained=evidence.gained,
            lost=evidence.lost,
        ),
        finding=evidence.finding,
        p_value=evidence.p_value,
        verdict=evidence.verdict,
    )
    return Study(
        summary=summary,
        edited=edit(model, setting.layer, gains, scope=options.scope),
        selected_on=tuple(tests[:1] if apart else tests),
        sweep=sweep_table,
        thresholds=threshold_table,
        bands=bands,
        evidence=evidence,
    )


def _known(setting: Setting | None) -> Setting:
    if setting is None:
        raise ValueError("an assessment without a setting; `assess` always gives one")
    return setting


def _what_chose(options: Edit, layers: Sequence[str]) -> str:
    if options.layers == (AUTO,):
        return "most interpretable units"
    return "by the search" if len(layers) > 1 else "by name"


def _results(names: Sequence[str], evaluations: Sequence[Evaluation]) -> dict[str, SplitResult]:
    """Each split alone and, when there are several, all pooled."""
    by_name = dict(zip(names, evaluations, strict=True))
    if len(by_name) > 1:
        by_name["all"] = join(*evaluations)
    return {name: SplitResult(**result.summary()) for name, result in by_name.items()}


def _given_gains(
    model: Editable,
    layer: str,
    tests: Sequence[ImageSet],
    options: Edit,
    protocol: Protocol,
    batch: int,
    stage: Stage,
) -> Study:
    """Gains from a file: nothing is selected, so all splits are a test, and McNemar's is enough."""
    if options.gains is None:
        raise ValueError("no file of gains")
    gains = read_gains(options.gains, model.config.units()[layer])
    edited = edit(model, layer, gains, scope=options.scope)
    with stage("evaluate", "images") as progress:

        def test_all(network: Editable) -> list[Evaluation]:
            return [
                evaluate(network, test, protocol=protocol, batch=batch, progress=progress)
                for test in tests
            ]

        before = test_all(model)
        after = test_all(edited)
    was_right = np.concatenate([result.predictions == result.labels for result in before])
    is_right = np.concatenate([result.predictions == result.labels for result in after])
    evidence = Evidence(
        gained=int((is_right & ~was_right).sum()),
        lost=int((was_right & ~is_right).sum()),
        total=len(was_right),
        alpha=options.alpha,
    )
    names = [test.name for test in tests]
    summary = StudySummary(
        setting=ChosenSetting(layer, "file"),
        scope=options.scope,
        selected_on_test=False,
        baseline=_results(names, before),
        edited=_results(names, after),
        finding=evidence.finding,
        p_value=evidence.p_value,
        verdict=evidence.verdict,
    )
    return Study(summary, edited, evidence=evidence)


def _ten_crops(
    model: Editable,
    scores: Mapping[str, np.ndarray],
    tests: Sequence[ImageSet],
    options: Search,
    batch: int,
    stage: Stage,
) -> Study:
    """The grid alone, without evidence: the mean over ten crops has no fast path."""
    ((layer, own),) = scores.items()
    grid = options.grid([layer])
    gains = np.stack([gains_of(setting, own) for setting in grid])
    with stage("sweep", "images") as progress:
        by_split = [
            _cropped(model, test, layer, gains, options.scope, batch, progress) for test in tests
        ]
    pooled = [join(*same).summary() for same in zip(*by_split, strict=True)]
    table = _setting_columns(grid)
    columns = {"correct": "correct", "accuracy": "top1"}
    columns |= {name: name for name in ("macro_recall", "nll")}
    table["images"] = [summary["images"] for summary in pooled]
    for column, name in columns.items():
        table[column] = [summary[name] for summary in pooled]
    best = max(range(len(grid)), key=lambda number: pooled[number]["correct"])
    names = [test.name for test in tests]
    unedited = np.flatnonzero((gains == 1).all(axis=1))
    baseline = None  # where factor 1 is not in the grid
    if len(unedited):
        baseline = _results(names, [split[unedited[0]] for split in by_split])
    summary = StudySummary(
        setting=ChosenSetting(*grid[best]),
        scope=options.scope,
        selected_on_test=True,
        baseline=baseline,
        edited=_results(names, [split[best] for split in by_split]),
    )
    edited = edit(model, layer, gains[best], scope=options.scope)
    return Study(summary, edited, selected_on=tuple(tests), sweep=table)


def _cropped(
    model: Editable,
    images: ImageSet,
    layer: str,
    gains: Float[np.ndarray, "S U"],
    scope: Scope,
    batch: int,
    progress: Progress | None,
) -> list[Evaluation]:
    """Every setting's evaluation by ten crops.

    The activations of ten views of a whole set would not fit into memory, so a part of the images
    goes through all settings before the next.
    """
    images = labelled(images, model)
    labels = images.labels
    if labels is None:
        raise ValueError(f"{images.name} has no labels; `labelled` refuses such a set")
    total = len(images)
    logits = []
    for start in range(0, total, _CROPPED):
        rows = slice(start, min(start + _CROPPED, total))
        part = dataclasses.replace(
            images,
            images=images.images[rows],
            labels=labels[rows],
            ids=images.ids[rows],
            key=content_key([images.key, rows.start, rows.stop]),
        )
        activations = pre_bias_activations(model, part, layer, protocol="tencrop", batch=batch)
        sweep = Sweep(activations, scope=scope)
        logits.append([result.logits for result in sweep.evaluate_each(gains)])
        if progress is not None:
            progress(rows.stop, total)
    return [
        Evaluation(np.concatenate(same), labels, images.classes)
        for same in zip(*logits, strict=True)
    ]


# Tables


def _setting_columns(grid: Sequence[Setting]) -> Table:
    return {
        "layer": [setting.layer for setting in grid],
        "kind": [setting.kind for setting in grid],
        "tau": ["" if setting.tau is None else setting.tau for setting in grid],
        "factor": [setting.factor for setting in grid],
    }


def _sweep_grid(
    sweeps: Mapping[str, Sweep], grid: Sequence[Setting], scores: Mapping[str, np.ndarray]
) -> Outcomes:
    """The outcomes of settings of several layers, in the grid's order."""
    outcomes = []
    order = []
    for layer, sweep in sweeps.items():
        numbers = [number for number, setting in enumerate(grid) if setting.layer == layer]
        own = [grid[number] for number in numbers]
        outcomes.append(sweep.settings(own, [scores[layer]] * len(own)))
        order += numbers
    return Outcomes.join(outcomes).select(np.argsort(order))


def _sweep_table(grid: Sequence[Setting], outcomes: Outcomes, sweep: Sweep) -> Table:
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
    edits = np.array([one.factor != 1 or one.kind == "continuous" for one in grid])
    adjusted = np.ones(len(grid))
    adjusted[edits] = benjamini_hochberg(jnp.asarray(p_values[edits]))
    return _setting_columns(grid) | {
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


def _threshold_table(
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


def _bands(sweep: Sweep, setting: Setting, masks: int) -> Table:
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
