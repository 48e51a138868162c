"""A study of one edit by named concepts: the units that stand for them are silenced or amplified.

Nothing is selected, so every test image is held out. The test is McNemar's against no edit, and as
many random units of the layer say whether the labels are why. Shapes: U units, M masks.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from emojax.data.image_set import ImageSet
from emojax.dissection.explain import explain
from emojax.dissection.labels import Dissection
from emojax.editing.activations import pool_activations, pre_bias_activations
from emojax.editing.budget import seconds_per_image
from emojax.editing.edit import edit
from emojax.editing.search import AUTO, Edit
from emojax.editing.stages import Stage
from emojax.editing.study_result import (
    ChosenSetting,
    Study,
    StudySummary,
    Table,
    Tested,
    results_by_split,
)
from emojax.editing.sweep import Sweep
from emojax.errors import InputError
from emojax.evidence.comparison import (
    intervals,
    net_wins,
    numbers,
    per_class,
    permutation_p_value,
    spread_of,
    wins,
)
from emojax.evidence.controls import random_gains
from emojax.evidence.verdict import Evidence
from emojax.models.classifier import Editable
from emojax.probing.network import resolve_layers

_RESAMPLES = 10_000  # of the images, for the intervals


def concept_units(
    dissection: Dissection, options: Edit
) -> dict[str, dict[str, Bool[np.ndarray, " units"]]]:
    """By concept and layer, the units that stand for each concept that the options name.

    Raises:
      InputError: as `Dissection.units` and `explain`.
    """
    names = [*options.suppress, *options.amplify]
    if options.rule == "share":
        explained = explain(dissection.record, dissection.concepts)
        return {name: explained.units(name, least=options.least) for name in names}
    return {name: dissection.units(name, rule=options.rule, least=options.least) for name in names}


def concept_gains(
    units: Mapping[str, Mapping[str, Bool[np.ndarray, " units"]]], layer: str, options: Edit
) -> Float[np.ndarray, " units"]:
    """The gains of a layer's units; the gains of a unit that stands for several are multiplied."""
    gains = np.ones(len(next(iter(units.values()))[layer]), np.float32)
    for name, by_layer in units.items():
        suppressed = name in options.suppress
        factor = options.suppress_factor if suppressed else options.amplify_factor
        gains *= np.where(by_layer[layer], np.float32(factor), np.float32(1.0))
    return gains


def layer_of_concepts(
    units: Mapping[str, Mapping[str, Bool[np.ndarray, " units"]]], options: Edit, logits: str
) -> str:
    """The layer that the options name; `auto` is the last with such units, the logits' left out.

    Raises:
      InputError: no unit there stands for the concepts; the message says which layers have some.
    """
    by_layer = list(units.values())
    counts = {
        layer: int(np.any([own[layer] for own in by_layer], axis=0).sum()) for layer in by_layer[0]
    }
    named = ", ".join(map(repr, units))
    if options.layers == (AUTO,):
        hidden = [layer for layer, count in counts.items() if count and layer != logits]
        if not hidden:
            raise InputError(
                f"no hidden unit stands for {named} by the rule {options.rule}; give another "
                "--edit.rule, or other words for the concept"
            )
        return hidden[-1]
    (layer,) = resolve_layers(options.layers, list(counts))
    if not counts[layer]:
        others = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
        raise InputError(
            f"no unit of {layer} stands for {named} by the rule {options.rule}; layers with such "
            f"units: {others or 'none'}"
        )
    return layer


def study_by_concept(
    model: Editable,
    dissection: Dissection,
    tests: Sequence[ImageSet],
    options: Edit,
    batch: int,
    cache: Path | None,
    stage: Stage,
) -> Study:
    """Edits the units that stand for the named concepts and tests that, on all test splits.

    Args:
      model: the network.
      dissection: of its units.
      tests: labelled test splits.
      options: the concepts, factors, rule and layer; level and number of random choices.
      batch: images per step; does not change results.
      cache: a folder in which activations are cached.
      stage: a context around every stage of the work.

    Raises:
      InputError: as `concept_units` and `layer_of_concepts`.
    """
    units = concept_units(dissection, options)
    layer = layer_of_concepts(units, options, list(model.config.units())[-1])
    gains = concept_gains(units, layer, options)
    chosen = np.flatnonzero(np.any([own[layer] for own in units.values()], axis=0))
    splits = []
    for test in tests:
        with stage("layer activations", "images") as progress:
            splits.append(
                pre_bias_activations(
                    model, test, layer, batch=batch, cache=cache, progress=progress
                )
            )
    pooled = Sweep(pool_activations(*splits), scope=options.scope)
    ones = np.ones_like(gains)
    pairs = [(pooled.evaluate(ones), pooled.evaluate(gains))]
    won = wins(net_wins(pairs))
    alone = np.where(np.arange(len(gains)) == chosen[:, None], gains, ones)
    draws, limited = options.masks, None
    if not pooled.activations.feeds_logits:
        draws, limited = _draws_in_time(
            seconds_per_image(splits, options), len(pairs[0][0].labels), options
        )
    with stage("evidence", "settings") as progress:
        rows = np.concatenate(
            [ones[None], alone, *random_gains([gains], draws, np.random.default_rng(0))]
        )
        outcomes = pooled.gains(rows, full=False, progress=progress)
    drawn = outcomes.correct[1 + len(chosen) :] - outcomes.correct[0]
    p_units = permutation_p_value(won["gained"] - won["lost"], drawn)
    named = _in_words(units, layer, options)
    evidence = Evidence(
        gained=won["gained"],
        lost=won["lost"],
        total=len(pairs[0][0].labels),
        alpha=options.alpha,
        named=named,
        p_scores=p_units,
        networks=[
            {"images": pooled.activations.name, "before": numbers(pairs[0][0])}
            | {"after": numbers(pairs[0][1])}
            | won
        ],
        intervals=intervals(pairs, _RESAMPLES, 1 - options.alpha, 0),
        per_class=per_class(pairs),
        controls={"random_masks": {"draws": draws, "p_value": p_units} | spread_of(drawn)},
    )
    names = [test.name for test in tests]
    own = [Sweep(split, scope=options.scope) for split in splits]
    summary = StudySummary(
        setting=ChosenSetting(layer, "concepts", concepts=named),
        scope=options.scope,
        selected_on_test=False,
        baseline=results_by_split(names, [sweep.evaluate(ones) for sweep in own]),
        edited=results_by_split(names, [sweep.evaluate(gains) for sweep in own]),
        limited=limited,
        tested=Tested(names, evidence.total, evidence.gained, evidence.lost),
        finding=evidence.finding,
        p_value=evidence.p_value,
        verdict=evidence.verdict,
    )
    changes = outcomes.hits[1 : 1 + len(chosen)] - outcomes.hits[0]
    return Study(
        summary=summary,
        edited=edit(model, layer, gains, scope=options.scope),
        edited_units=_unit_table(
            dissection, units, layer, chosen, gains, changes, pooled.activations.classes
        ),
        evidence=evidence,
    )


def _draws_in_time(cost: float, images: int, options: Edit) -> tuple[int, str | None]:
    """Random choices that `options.minutes` allow, at least those that can reach alpha."""
    most = int(60 * options.minutes / (cost * images))
    draws = min(options.masks, max(most, math.ceil(1 / options.alpha) - 1))
    if draws == options.masks:
        return draws, None
    return draws, f"{draws} random choices of units instead of {options.masks}"


def _in_words(
    units: Mapping[str, Mapping[str, Bool[np.ndarray, " units"]]], layer: str, options: Edit
) -> str:
    """What the edit does: each concept, its units, their factor."""
    parts = []
    for name, own in units.items():
        suppressed = name in options.suppress
        factor = options.suppress_factor if suppressed else options.amplify_factor
        count = int(own[layer].sum())
        parts.append(f"{count} unit{'s' * (count != 1)} for {name!r} × {factor:g}")
    return f"{layer}: {', '.join(parts)}"


def _unit_table(
    dissection: Dissection,
    units: Mapping[str, Mapping[str, Bool[np.ndarray, " units"]]],
    layer: str,
    chosen: np.ndarray,
    gains: np.ndarray,
    changes: np.ndarray,
    classes: Sequence[str],
) -> Table:
    """A row per edited unit: its concepts, similarity, gain, and what its gain alone changes.

    `changes` are in correct test images, [unit, class].
    """
    scores = dissection.record.by_layer(dissection.scores)[layer]
    concepts, similarity = [], []
    for unit in chosen:
        own = [name for name, by_layer in units.items() if by_layer[layer][unit]]
        concepts.append("; ".join(own))
        similarity.append(float(scores[unit, dissection.concepts.indices(own)].max()))
    table: Table = {
        "layer": [layer] * len(chosen),
        "unit": chosen,
        "concepts": concepts,
        "similarity": similarity,
        "gain": gains[chosen],
        "change": changes.sum(axis=1),
    }
    for number, name in enumerate(classes):
        table[f"change_{name}"] = changes[:, number]
    return table
