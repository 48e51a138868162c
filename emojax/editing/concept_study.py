"""A study of one edit by named concepts: they are erased, or units that stand for them are scaled.

Nothing is selected, so every test image is held out. The test is McNemar's against no edit, and
random controls say whether the names are why: directions of permuted similarities, or as many
random units of the layer. Shapes: I images, U units, M masks or draws.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from emojax.data.concepts import ConceptSet
from emojax.data.image_set import ImageSet
from emojax.dissection.dissect import concept_texts
from emojax.dissection.explain import explain
from emojax.dissection.labels import Dissection
from emojax.editing.activations import (
    PreBiasActivations,
    Progress,
    pool_activations,
    pre_bias_activations,
)
from emojax.editing.arena import permuted_within
from emojax.editing.budget import seconds_per_image
from emojax.editing.edit import edit, with_last_layer
from emojax.editing.erase import eraser
from emojax.editing.refit import Linear
from emojax.editing.search import AUTO, Edit
from emojax.editing.shortcuts import Side, features_of, last_layer_of, side_of
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
    Pair,
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
from emojax.models.classifier import Cuttable, Editable, last_hidden
from emojax.probing.network import resolve_layers
from emojax.training.evaluate import Evaluation, join

_RESAMPLES = 10_000  # of the images, for the intervals
_ERASED_AT_RANDOM = 199  # random controls of an erasing, each of which is a fit


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
        gains *= np.where(by_layer[layer], np.float32(_factor(name, options)), np.float32(1.0))
    return gains


def _factor(concept: str, options: Edit) -> float:
    """What the units that stand for a concept are scaled by."""
    return options.suppress_factor if concept in options.suppress else options.amplify_factor


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
    splits = _read(model, tests, layer, batch, cache, stage)
    ones = np.ones_like(gains)
    pairs = []
    for split in splits:
        sweep = Sweep(split, scope=options.scope)
        pairs.append((sweep.evaluate(ones), sweep.evaluate(gains)))
    pooled = Sweep(pool_activations(*splits), scope=options.scope)
    alone = np.where(np.arange(len(gains)) == chosen[:, None], gains, ones)
    draws, limited = options.masks, None
    if not pooled.activations.feeds_logits:
        images = len(pooled.activations.labels)
        draws, limited = _draws_in_time(seconds_per_image(splits, options), images, options)
    random = random_gains([gains], draws, np.random.default_rng(0))[0]
    with stage("evidence", "settings") as progress:
        rows = np.concatenate([ones[None], alone, random])
        outcomes = pooled.gains(rows, full=False, progress=progress)
    drawn = outcomes.correct[1 + len(chosen) :] - outcomes.correct[0]
    changes = outcomes.hits[1 : 1 + len(chosen)] - outcomes.hits[0]
    classes = pooled.activations.classes
    return _study(
        tests,
        pairs,
        drawn,
        "random_masks",
        ChosenSetting(layer, "concepts", concepts=_in_words(units, layer, options)),
        options,
        edited=edit(model, layer, gains, scope=options.scope),
        limited=limited,
        edited_units=_unit_table(dissection, units, layer, chosen, gains, changes, classes),
    )


def study_by_erasing(
    model: Editable,
    dissection: Dissection,
    images: ImageSet,
    tests: Sequence[ImageSet],
    options: Edit,
    batch: int,
    cache: Path | None,
    stage: Stage,
) -> Study:
    """Erases the suppressed concepts from the last layer and tests that, on all test splits.

    The erasing is fitted on the probe images: their classes and CLIP's similarities, no other
    label. It is compared with the erasing of similarities that are permuted within the classes.
    Arguments are those of `study_by_concept`; `images` are the probe images.

    Raises:
      InputError: as `pre_bias_activations` and `concept_texts`.
    """
    if not isinstance(model, Cuttable):
        raise ValueError("a last layer that is not the network's own; `check_study` refuses it")
    layer = last_hidden(model)
    assert layer is not None  # ours have one
    record = dissection.record
    texts = concept_texts(record, ConceptSet(options.suppress), None, None)
    first, *splits = _read(model, [images, *tests], layer, batch, cache, stage)
    side = side_of(first, record.embeddings, np.asarray(texts))
    last = last_layer_of(first)
    erased = eraser(last, side.features, side.labels)
    edited = erased(side.similarities)
    features = [features_of(split) for split in splits]
    pairs = []
    for split, own in zip(splits, features, strict=True):
        results = (layer.logits(own).astype(np.float32) for layer in (last, edited))
        before, after = (Evaluation(logits, split.labels, split.classes) for logits in results)
        pairs.append((before, after))
    together, labels = np.concatenate(features), np.concatenate([own.labels for own in splits])
    unedited = int((last.logits(together).argmax(axis=1) == labels).sum())
    draws = min(options.masks, _ERASED_AT_RANDOM)
    with stage("evidence", "settings") as progress:
        correct = correct_at_random(erased, side, together, labels, draws, progress)
    named = f"{', '.join(map(repr, options.suppress))} erased from the last layer"
    return _study(
        tests,
        pairs,
        correct - unedited,
        "random_directions",
        ChosenSetting(layer, "erased", concepts=named),
        options,
        edited=with_last_layer(model, edited.weight, edited.bias),
        selected_on=(images,),
    )


def correct_at_random(
    erased: Callable[[Float[np.ndarray, "I N"]], Linear],
    side: Side,
    features: Float[np.ndarray, "I U"],
    labels: Int[np.ndarray, " I"],
    draws: int,
    progress: Progress | None = None,
) -> Int[np.ndarray, " M"]:
    """Correct images after erasings that are fitted on permuted similarities.

    The similarities of an image stay together and go to another of its class, so each draw erases
    as many directions as there are concepts: several that are named at once are one test.

    Args:
      erased: `eraser` of the side.
      side: what the erasing is fitted on.
      features, labels: of the test.
      draws: how many.
      progress: is told after every draw.
    """
    rng = np.random.default_rng(0)
    correct = np.zeros(draws, int)
    for draw in range(draws):
        edited = erased(permuted_within(side.similarities, side.labels, rng))
        correct[draw] = (edited.logits(features).argmax(axis=1) == labels).sum()
        if progress is not None:
            progress(draw + 1, draws)
    return correct


def _read(
    model: Editable,
    sets: Sequence[ImageSet],
    layer: str,
    batch: int,
    cache: Path | None,
    stage: Stage,
) -> list[PreBiasActivations]:
    splits = []
    for images in sets:
        with stage("layer activations", "images") as progress:
            splits.append(
                pre_bias_activations(
                    model, images, layer, batch=batch, cache=cache, progress=progress
                )
            )
    return splits


def _study(
    tests: Sequence[ImageSet],
    pairs: Sequence[Pair],
    drawn: Int[np.ndarray, " M"],
    control: Literal["random_masks", "random_directions"],
    setting: ChosenSetting,
    options: Edit,
    *,
    edited: Editable,
    limited: str | None = None,
    selected_on: tuple[ImageSet, ...] = (),
    edited_units: Table | None = None,
) -> Study:
    """The evidence and the study from each split's results before and after.

    `drawn` are the changes in correct images, on all splits, of the random `control`.
    """
    befores, afters = zip(*pairs, strict=True)
    pair = join(*befores), join(*afters)
    won = wins(net_wins([pair]))
    p_random = permutation_p_value(won["gained"] - won["lost"], drawn)
    names = [test.name for test in tests]
    controls = {}
    if len(drawn):
        controls[control] = {"draws": len(drawn), "p_value": p_random} | spread_of(drawn)
    evidence = Evidence(
        gained=won["gained"],
        lost=won["lost"],
        total=len(pair[0].labels),
        alpha=options.alpha,
        named=setting.concepts,
        p_scores=p_random,
        networks=[
            {"images": " + ".join(names), "before": numbers(pair[0]), "after": numbers(pair[1])}
            | won
        ],
        intervals=intervals([pair], _RESAMPLES, 1 - options.alpha, 0),
        per_class=per_class([pair]),
        controls=controls,
    )
    summary = StudySummary(
        setting=setting,
        scope=options.scope,
        selected_on_test=False,
        baseline=results_by_split(names, befores),
        edited=results_by_split(names, afters),
        limited=limited,
        tested=Tested(names, evidence.total, evidence.gained, evidence.lost),
        finding=evidence.finding,
        p_value=evidence.p_value,
        verdict=evidence.verdict,
    )
    return Study(
        summary,
        edited,
        selected_on=selected_on,
        edited_units=edited_units or {},
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
        count = int(own[layer].sum())
        parts.append(f"{count} unit{'s' * (count != 1)} for {name!r} × {_factor(name, options):g}")
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
