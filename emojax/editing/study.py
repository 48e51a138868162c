"""A study of edits by labels: layers, a sweep, one setting selected and tested, the edited network.

It takes what the dissection found and gives one `Study`, which `report/write_study.py` writes, the
commands print and the page reads back. Nothing here writes or prints.
Shapes: U units, S settings.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from emojax.data.image_set import ImageSet
from emojax.dissection.labels import Dissection
from emojax.dissection.table import LayerSummary, most_interpretable_layer
from emojax.editing.activations import (
    PreBiasActivations,
    pool_activations,
    pre_bias_activations,
)
from emojax.editing.baselines import learn_gains
from emojax.editing.budget import (
    Allowed,
    different_settings,
    seconds_per_image,
    within_minutes,
)
from emojax.editing.concept_study import study_by_concept, study_by_erasing
from emojax.editing.edit import edit, gains_of, read_gains
from emojax.editing.search import AUTO, PAPER_STUDY, Edit, Setting
from emojax.editing.stages import Stage, untimed
from emojax.editing.study_checks import erases
from emojax.editing.study_result import (
    ChosenSetting,
    SplitResult,
    Study,
    StudySummary,
    Tested,
    results_by_split,
)
from emojax.editing.study_tables import random_bands, sweep_table, threshold_table
from emojax.editing.sweep import Sweep, try_settings
from emojax.editing.ten_crops import study_by_ten_crops
from emojax.evidence.assess import assess
from emojax.evidence.subject import Subject
from emojax.evidence.verdict import Evidence
from emojax.models.classifier import Editable, feeds_logits
from emojax.probing.network import resolve_layers
from emojax.training.evaluate import Evaluation, Protocol, evaluate


def layers_to_edit(options: Edit, table1: Sequence[LayerSummary]) -> tuple[str, ...]:
    """The layers that the options name, in the network's order; `auto` is the paper's rule.

    Raises:
      InputError: a layer was not probed.
    """
    if options.layers == (AUTO,):
        return (most_interpretable_layer(table1),)
    return resolve_layers(options.layers, [row.layer for row in table1])


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
    stage: Stage = untimed,
) -> Study:
    """Selects an edit by labels, tests it, and applies it.

    With gains from a file or named concepts nothing is selected; with ten crops there is a grid
    and no evidence. Of named concepts, the method `auto` erases them where that can be done, and
    logs which it takes.

    Args:
      model: the network.
      dissection: of its units, whose scores make the edits.
      table1: of the dissection; its layers are those that were probed.
      images: the probe images, which learned gains are fitted on and concepts erased by.
      tests: labelled test splits, all different.
      options: the settings to try, how one is selected, and the evidence.
      protocol: one view of each image, or ten crops.
      batch: images per step; does not change results.
      cache: a folder in which activations and outcomes are cached.
      stage: a context around every stage of the work.

    Raises:
      InputError: as `check_study`, the dissection lacks a layer, or `options.minutes` are too few
        for the layers that are named.
    """
    if options.by_concept:
        if erases(model, images, options, dissection.record.clip):
            return study_by_erasing(model, dissection, images, tests, options, batch, cache, stage)
        return study_by_concept(model, dissection, tests, options, batch, cache, stage)
    layers = layers_to_edit(options, table1)
    if options.gains is not None:
        return _given_gains(model, layers[0], tests, options, protocol, batch, stage)
    if protocol == "tencrop":
        scores = {layer: dissection.layer_scores(layer) for layer in layers}
        return study_by_ten_crops(model, scores, tests, options, batch, stage)

    def read(split: ImageSet, layer: str) -> PreBiasActivations:
        with stage("layer activations", "images") as progress:
            return pre_bias_activations(
                model, split, layer, batch=batch, cache=cache, progress=progress
            )

    by_split = {layer: [read(test, layer) for test in tests] for layer in layers}
    # Timed here, for every kernel to be few calls away from the command.
    costs = {
        layer: seconds_per_image(own, options)
        for layer, own in by_split.items()
        if not own[0].feeds_logits
    }
    scores = {layer: dissection.layer_scores(layer) for layer in layers}
    different = {layer: different_settings(options, layer, scores[layer]) for layer in costs}
    quick = [row for row in table1 if feeds_logits(model, row.layer)]
    sizes = [len(test) for test in tests]
    allowed = within_minutes(options, layers, sizes, costs, quick, different)
    if allowed.layers != layers:
        layers = allowed.layers
        by_split = {layer: [read(test, layer) for test in tests] for layer in layers}
        scores = {layer: dissection.layer_scores(layer) for layer in layers}
    fitted_on = {layer: read(images, layer) for layer in layers if options.learned}
    pooled = {layer: pool_activations(*own) for layer, own in by_split.items()}

    sweeps = {layer: Sweep(own, scope=options.scope, cache=cache) for layer, own in pooled.items()}
    with stage("sweep", "settings") as progress:
        # Splits are pooled for the tables, as in the paper; the selection has its own images.
        grid = options.grid(layers)
        own_scores = [scores[setting.layer] for setting in grid]
        outcomes = try_settings(sweeps, grid, own_scores, progress=progress)
        grid_table = sweep_table(grid, outcomes, next(iter(sweeps.values())))
        thresholds = threshold_table(sweeps, scores, options)

    selection, held_out = pooled, None
    if options.choose_on == "first_split" and len(tests) > 1:
        selection, held_out = _first_and_rest(by_split)
    learned = {layer: learn_gains(own, scope=options.scope) for layer, own in fitted_on.items()}
    with stage("evidence", "permutations") as progress:
        evidence = assess(
            [Subject(scores, selection, held_out, learned)],
            options,
            alpha=options.alpha,
            permutations=allowed.permutations,
            masks=allowed.masks,
            cache=cache,
            progress=progress,
        )

    setting = _known(evidence.setting)
    with stage("bands", "settings"):
        bands = random_bands(sweeps[setting.layer], setting, options.masks)
    gains = gains_of(setting, scores[setting.layer])
    own = [Sweep(split, scope=options.scope) for split in by_split[setting.layer]]
    names = [test.name for test in tests]
    summary = _summary(
        options,
        allowed,
        evidence,
        baseline=results_by_split(names, [sweep.evaluate(np.ones_like(gains)) for sweep in own]),
        edited=results_by_split(names, [sweep.evaluate(gains) for sweep in own]),
        tested_on=names if held_out is None else names[1:],
    )
    return Study(
        summary=summary,
        edited=edit(model, setting.layer, gains, scope=options.scope),
        selected_on=tuple(tests if held_out is None else tests[:1]),
        sweep=grid_table,
        thresholds=thresholds,
        bands=bands,
        evidence=evidence,
    )


def _first_and_rest(
    by_split: Mapping[str, Sequence[PreBiasActivations]],
) -> tuple[dict[str, PreBiasActivations], dict[str, PreBiasActivations]]:
    """Every layer's activations on the first split, and on all others together."""
    first = {layer: own[0] for layer, own in by_split.items()}
    return first, {layer: pool_activations(*own[1:]) for layer, own in by_split.items()}


def _summary(
    options: Edit,
    allowed: Allowed,
    evidence: Evidence,
    *,
    baseline: dict[str, SplitResult],
    edited: dict[str, SplitResult],
    tested_on: list[str],
) -> StudySummary:
    """The summary of a search, from its evidence and the results by split."""
    return StudySummary(
        setting=ChosenSetting(*_known(evidence.setting)),
        scope=options.scope,
        selected_on_test=evidence.selected_on_test,
        baseline=baseline,
        edited=edited,
        layer_chosen=_what_chose(options, allowed.layers),
        limited=allowed.limited,
        tested=Tested(
            on=tested_on,
            images=evidence.total,
            gained=evidence.gained,
            lost=evidence.lost,
        ),
        finding=evidence.finding,
        p_value=evidence.p_value,
        verdict=evidence.verdict,
        by_measure=evidence.by_measure,
    )


def _known(setting: Setting | None) -> Setting:
    if setting is None:
        raise ValueError("an assessment without a setting; `assess` always gives one")
    return setting


def _what_chose(options: Edit, layers: Sequence[str]) -> str:
    if options.layers == (AUTO,):
        return "most interpretable units"
    return "by the search" if len(layers) > 1 else "by name"


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
        baseline=results_by_split(names, before),
        edited=results_by_split(names, after),
        finding=evidence.finding,
        p_value=evidence.p_value,
        verdict=evidence.verdict,
        by_measure=evidence.by_measure,
    )
    return Study(summary, edited, evidence=evidence)
