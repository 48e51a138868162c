"""The demo's last part: an edit by name that helps, of a network that leans on glasses.

The network was trained on faces whose glasses went with "happy"; in the test they go with nothing.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from emojax.commands.console import progress
from emojax.commands.study import timed_stages
from emojax.data.concepts import ConceptSet
from emojax.dissection.dissect import dissect
from emojax.editing.activations import pre_bias_activations
from emojax.editing.concept_study import study_by_erasing
from emojax.editing.refit import Linear, refit_balanced, worst_group
from emojax.editing.search import Edit
from emojax.editing.shortcuts import features_of
from emojax.models.vgg import LAYERS, VggNet
from emojax.probing.probe import probe
from emojax.synthetic import shipped, shortcut

if TYPE_CHECKING:
    from emojax.data.image_set import ImageSet
    from emojax.store import Run

_LAYER = "lin2"
_SEEDS = (21, 22, 23)  # of the faces to fit on, to test on, and to refit with groups on
_LEAST = 4  # images of a group that a balanced refit needs


def edit_by_concept(run: "Run", images: int) -> dict[str, Any]:
    """Erases the concept from the shipped network and tests that; `edit_by_concept` of the summary.

    It takes so many faces like those of the network's training, and as many to test on, half of
    each class with glasses. `share_of_dfr` is the gain in the worst group (a class with or without
    glasses) as a share of what refitting the last layer gains on a quarter as many faces whose
    groups are known and alike in size; None where that gains nothing, or these are too few.
    """
    concept = shipped.SHORTCUT.nuisance
    with run.timed("edit by concept"):
        model, clip = shipped.load_shortcut(), shipped.load_demo()[1]
        fitted = shortcut.planted(images, _SEEDS[0], shipped.SHORTCUT)
        tested = shortcut.fair(images, _SEEDS[1], shipped.SHORTCUT)
        probed, test = fitted.image_set("with a shortcut"), tested.image_set("without it")
        with progress("probe with a shortcut") as bar:
            record = probe(model, probed, clip, layers=(_LAYER,), progress=bar)
        dissection = dissect(record, ConceptSet((concept,)), similarity="correlation", trust=False)
        options = Edit(suppress=(concept,), method="erase")
        study = study_by_erasing(
            model, dissection, probed, [test], options, 256, None, timed_stages(run)
        )
        balanced = shortcut.fair(images // 4, _SEEDS[2], shipped.SHORTCUT)
        sets = (balanced.image_set("with known groups"), test)
        groups = [shortcut.groups(faces, shipped.SHORTCUT) for faces in (balanced, tested)]
        worst = _worst_groups(model, cast("VggNet", study.edited), sets, groups)
    summary = study.summary
    counts = summary.tested
    assert counts is not None  # an edit by concept is always tested
    return {
        "concept": concept,
        "images": counts.images,
        "gained": counts.gained,
        "lost": counts.lost,
        "p_value": summary.p_value,
        "worst_group": {"before": worst[0], "after": worst[1]},
        "share_of_dfr": _share(*worst),
        "finding": summary.finding,
        "verdict": summary.verdict,
    }


def _worst_groups(
    model: VggNet, edited: VggNet, sets: "Sequence[ImageSet]", groups: Sequence[np.ndarray]
) -> tuple[float, float, float | None]:
    """Accuracy in the worst group of the second set: unedited, edited, refitted with the groups."""
    fitted, tested = (pre_bias_activations(model, images, _LAYER) for images in sets)
    features = features_of(tested)
    layers = []
    for own in (model, edited):
        last: Any = getattr(own, LAYERS[-1])
        kernel, bias = (np.asarray(leaf[...], np.float64) for leaf in (last.kernel, last.bias))
        layers.append(Linear(kernel, bias))
    if np.bincount(groups[0], minlength=2 * len(fitted.classes)).min() >= _LEAST:
        classes = len(fitted.classes)
        layers.append(refit_balanced(features_of(fitted), fitted.labels, groups[0], classes))
    worst = [
        worst_group(layer.logits(features).argmax(axis=1) == tested.labels, groups[1])
        for layer in layers
    ]
    return worst[0], worst[1], worst[2] if len(worst) > 2 else None


def _share(before: float, after: float, refitted: float | None) -> float | None:
    """The edit's gain as a share of the refit's."""
    if refitted is None or refitted <= before:
        return None
    return (after - before) / (refitted - before)
