"""The study by ten crops of every image: the grid alone, without evidence.

The mean over ten crops has no fast path, so every setting takes what follows the layer ten times.
Shapes: U units, S settings.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from emojax.data.image_set import ImageSet
from emojax.editing.activations import Progress, pre_bias_activations
from emojax.editing.edit import edit, gains_of
from emojax.editing.search import Scope, Search
from emojax.editing.stages import Stage
from emojax.editing.study_result import ChosenSetting, Study, StudySummary, results_by_split
from emojax.editing.study_tables import setting_columns
from emojax.editing.sweep import Sweep
from emojax.models.classifier import Editable
from emojax.store import content_key
from emojax.training.evaluate import Evaluation, join, labelled

_CROPPED = 512  # images whose ten views are in memory together


def study_by_ten_crops(
    model: Editable,
    scores: Mapping[str, np.ndarray],
    tests: Sequence[ImageSet],
    options: Search,
    batch: int,
    stage: Stage,
) -> Study:
    """Tries the grid on one layer and takes its best setting, which is not tested.

    Args:
      model: the network.
      scores: of the units of the one layer [U], by its name.
      tests: labelled test splits; the setting is selected on all of them.
      options: the grid.
      batch: images per step; does not change results.
      stage: a context around the sweep.
    """
    ((layer, own),) = scores.items()
    grid = options.grid([layer])
    gains = np.stack([gains_of(setting, own) for setting in grid])
    with stage("sweep", "images") as progress:
        by_split = [
            _cropped(model, test, layer, gains, options.scope, batch, progress) for test in tests
        ]
    pooled = [join(*same).summary() for same in zip(*by_split, strict=True)]
    table = setting_columns(grid)
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
        baseline = results_by_split(names, [split[unedited[0]] for split in by_split])
    summary = StudySummary(
        setting=ChosenSetting(*grid[best]),
        scope=options.scope,
        selected_on_test=True,
        baseline=baseline,
        edited=results_by_split(names, [split[best] for split in by_split]),
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
