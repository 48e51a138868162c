"""How commands that test a network settle its class order: said before any work."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from emojax.commands.console import say
from emojax.data.classes import FER2013, listed
from emojax.data.image_set import ImageSet
from emojax.data.weights import with_classes
from emojax.errors import InputError, one_line
from emojax.models.classifier import Classifier
from emojax.settings import Target
from emojax.training.evaluate import better_order, class_order, labelled

_Classifier = TypeVar("_Classifier", bound=Classifier)


def given(model: _Classifier, target: Target) -> _Classifier:
    """The network with the class names of the settings, where they give any.

    Raises:
      InputError: as `with_classes`, or the weights file itself names others.
    """
    names = target.classes
    known = model.config.class_names
    if not names:
        return model
    try:
        named = with_classes(model, names)
    except InputError as error:
        raise InputError(f"--target.classes: {error}") from None
    if known is not None and known != names:
        source = target.weights or target.path
        raise InputError(
            f"--target.classes are {listed(names)}, but {source} itself names its outputs "
            f"{listed(known)}; leave the setting out"
        )
    return named


def settle(
    model: _Classifier,
    weights: Path,
    tests: Sequence[ImageSet],
    cure: str = "; --target.classes can tell otherwise",
) -> _Classifier:
    """The network with names for its outputs, after checking that the sets' classes match them.

    Says in one line what is assumed where nothing names them.

    Raises:
      InputError: a set has no labels, or other classes than the network or than the first set.
    """
    labelled(tests[0], model)
    order = class_order(model, tests[0].classes)
    whose = "the network"
    if model.config.class_names is None:
        if order == FER2013:
            because = "FER2013's numbering"
        else:
            because = f"the order in {tests[0].name}"
            whose = tests[0].name
        taken = f"{weights.name} does not name its classes; their order is taken to be"
        say(one_line(f"{taken} {listed(order)} ({because}){cure}"))
    for images in tests[1:]:
        if images.labels is not None:
            images.in_order(order, of=whose)
    model = with_classes(model, order)
    for images in tests:
        labelled(images, model)
    return model


def overflowed(weights: Path, summaries: Mapping[str, Mapping[str, Any]] | None) -> list[str]:
    """A warning if logits are not finite, so that no loss is known; summaries by split."""
    names = [name for name, summary in (summaries or {}).items() if math.isnan(summary["nll"])]
    if not names:
        return []
    return [
        f"logits of {weights.name} are beyond float32 on {listed(names)}: its weights are finite "
        "but too large, and its accuracy and NLL there say nothing"
    ]


def shuffled(weights: Path, summaries: Mapping[str, Mapping[str, Any]] | None) -> list[str]:
    """A warning if another order of the classes fits the results far better; summaries by split.

    The last split is looked at: all together, where there are several.
    """
    if not summaries:
        return []
    name, summary = list(summaries.items())[-1]
    better = better_order(np.asarray(summary["confusion"]), summary["classes"])
    if better is None:
        return []
    total = summary["images"]
    return [
        f"{weights.name} seems to count its classes in another order: taken as "
        f"{listed(better.names)}, {better.correct / total:.2%} of {total} images"
        f"{'' if name == 'all' else f' of {name}'} are right, not "
        f"{better.given_correct / total:.2%}; "
        "check the folders' names, or give the order with --target.classes"
    ]
