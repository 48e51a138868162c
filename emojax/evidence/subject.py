"""What is assessed: a network to be edited, its units' scores, its activations on two sides.

The images that a setting is selected on are one side, those that it is tested on the other.
Shapes: I images, U units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from emojax.brief import brief
from emojax.data.image_set import ImageSet
from emojax.editing.activations import (
    PreBiasActivations,
    Progress,
    pool_activations,
    pre_bias_activations,
)
from emojax.editing.search import Scope, Search, Setting
from emojax.editing.sweep import Sweep
from emojax.errors import InputError
from emojax.evidence.comparison import right
from emojax.models.classifier import Editable
from emojax.training.evaluate import Evaluation, same_classes

Scores = Mapping[str, np.ndarray]  # of the units [U], by layer


@brief
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
class Side:
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
    ) -> "Side":
        """Several networks' activations of every layer; `scope` and `cache` are of the sweeps."""
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
        return sum(int(right(result).sum()) for result in self.before)


def checked_settings(subjects: Sequence[Subject], search: Search) -> list[Setting]:
    """The settings to try, after checking that the subjects fit each other."""
    if not subjects:
        raise InputError("no network to assess; give at least one subject")
    first = subjects[0]
    settings = search.settings(list(first.scores))
    if not settings:
        raise InputError(
            "the search has no setting that edits anything; give a factor other than 1"
        )
    for subject in subjects:
        same_layers = list(subject.scores) == list(first.scores)
        if not same_layers or (subject.held_out is None) != (first.held_out is None):
            raise InputError(
                "the networks differ in layers or sets; assess those of one experiment together"
            )
        for layer, scores in subject.scores.items():
            _check_layer(layer, scores, subject.selection, first.selection)
            if subject.held_out is not None and first.held_out is not None:
                _check_layer(layer, scores, subject.held_out, first.held_out)
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
