"""Finds shortcuts: concepts whose units push a class that they do not go with elsewhere.

A unit of the last hidden layer pushes a class by its output times its weight to that class, less
its mean weight; the push of a concept is that of all units that it labels. A shortcut's units push
a class on the probe set, where the concept goes with the class by CLIP's similarity; on held-out
images the concept goes less with the class, and images of other classes that are called so have
more of the push. All of it is asked for, the last two as tests. What holds on the held-out images
as on the probe set is no shortcut for these tests, however odd it is. Shapes: I images, U units, C
classes, N concepts.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from emojax.editing.activations import PreBiasActivations
from emojax.editing.refit import Linear
from emojax.errors import InputError
from emojax.ops.stats import benjamini_hochberg

LEVEL = 0.05  # of the q-values that are called a finding
UNFINDABLE = (
    "A shortcut that holds on the test splits as on the probe set cannot be found so; name test "
    "splits of elsewhere."
)


class Side(NamedTuple):
    """A labelled set.

    Attributes:
      features: outputs of the last hidden layer.
      labels: classes.
      predictions: the network's.
      similarities: CLIP's cosines with every concept.
    """

    features: Float[np.ndarray, "I U"]
    labels: Int[np.ndarray, " I"]
    predictions: Int[np.ndarray, " I"]
    similarities: Float[np.ndarray, "I N"]


def side_of(
    activations: PreBiasActivations,
    embeddings: Float[np.ndarray, "I D"],
    texts: Float[np.ndarray, "N D"],
) -> Side:
    """A side from the activations of a layer that feeds the logits, and CLIP's embeddings.

    Raises:
      InputError: the layer does not feed the logits.
    """
    if not activations.feeds_logits:
        raise InputError(f"layer {activations.layer} does not feed the logits")
    features = features_of(activations)
    logits = last_layer_of(activations).logits(features)
    similarities = np.asarray(embeddings @ texts.T, np.float64)
    return Side(features, activations.labels, logits.argmax(axis=1), similarities)


def features_of(activations: PreBiasActivations) -> Float[np.ndarray, "I U"]:
    """Outputs of a layer that feeds the logits, as the last layer reads them; float64."""
    head = activations.params
    features = np.maximum(activations.values + np.asarray(head.bias), np.asarray(head.floor))
    return np.asarray(features, np.float64)


def last_layer_of(activations: PreBiasActivations) -> Linear:
    """What makes logits of `features_of`; float64."""
    head = activations.params
    return Linear(np.asarray(head.weight, np.float64), np.asarray(head.offset, np.float64))


class Suspect(NamedTuple):
    """A concept and the class that its units push.

    Attributes:
      concept: its name.
      label: number of the class.
      units: how many it labels.
      drive: on the probe set, by how many standard deviations the push is larger on images of the
        class than on others.
      association: the same of CLIP's similarity to the concept.
      held_out_association: the same on the held-out images.
      errors: on the held-out images of other classes, by how many it is larger on those that are
        called this class.
      p_value: that the association falls from probe to held-out images by chance, or that errors
        go with the push by chance; the larger, counting that the concept is the worst of all.
      q_value: adjusted over the classes (Benjamini–Hochberg).
    """

    concept: str
    label: int
    units: int
    drive: float
    association: float
    held_out_association: float
    errors: float
    p_value: float
    q_value: float


_MEASURED = ("drive", "association", "held_out_association", "errors")


def find_shortcuts(
    probe: Side,
    held_out: Side,
    weight: Float[np.ndarray, "U C"],
    units: Mapping[str, Bool[np.ndarray, " U"]],
    *,
    permutations: int = 999,
    seed: int = 0,
) -> list[Suspect]:
    """Concepts that drive a class on the probe set and its errors on held-out images, worst first.

    A row for every class and every concept that labels a unit. The fall of the association is
    compared with permutations of which set an image is of, within each class; the errors with
    permutations of which images of each other class are called the class. In either the largest
    over all concepts counts, so that many concepts find no more by chance than one.

    Args:
      probe, held_out: the sets.
      weight: of the last layer.
      units: which stand for each concept, in the order of the similarities.
      permutations: of either kind.
      seed: of the permutations.

    Raises:
      InputError: no concept labels a unit.
    """
    there = [number for number, mask in enumerate(units.values()) if mask.any()]
    names = [list(units)[number] for number in there]
    if not names:
        raise InputError("no concept labels a unit of the last hidden layer")
    masks = np.stack([units[name] for name in names]).astype(float)
    centred = weight - weight.mean(axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    members = _members([probe.labels, held_out.labels], permutations, rng)
    similar = np.concatenate([probe.similarities, held_out.similarities])[:, there]
    similar = similar / _scale(similar)
    of_class = np.concatenate([probe.labels, held_out.labels])
    rows, p_values = [], []
    for label in range(weight.shape[1]):
        mine = (masks * centred[:, label]).T
        pushes = probe.features @ mine, held_out.features @ mine
        scale = _scale(np.concatenate(pushes))
        drive = _difference(pushes[0] / scale, probe.labels == label)
        associations = [
            _difference(similar[own], of_class[own] == label) for own in (members[0], ~members[0])
        ]
        errors, p_errors = _errors(pushes[1] / scale, held_out, label, permutations, rng)
        p_fall = _p_fall(similar, of_class == label, members)
        there_before = (drive > 0) & (associations[0] > 0)
        p_values.append(np.where(there_before, np.maximum(p_fall, p_errors), 1.0))
        measured = zip(names, masks.sum(axis=1), drive, *associations, errors, strict=True)
        for name, count, *values in measured:
            numbers = dict(zip(_MEASURED, map(float, values), strict=True))
            rows.append(Suspect(name, label, int(count), p_value=1.0, q_value=1.0, **numbers))
    return _ranked(rows, np.stack(p_values))


def least_permutations(classes: int) -> int:
    """How many permutations can give a concept of one class a q-value of at most `LEVEL`."""
    return math.ceil(classes / LEVEL) - 1  # p is at least 1 / (permutations + 1), q classes times p


def _ranked(
    rows: Sequence[Suspect],
    p_values: Float[np.ndarray, "C N"],
) -> list[Suspect]:
    """The suspects with their q-values, the found ones with the largest fall first."""
    # Within a class the permutations count all concepts; over the classes the q-values do.
    q_values = np.stack([benjamini_hochberg(column) for column in p_values.T], axis=1).ravel()
    suspects = [
        row._replace(p_value=float(p), q_value=float(q))
        for row, p, q in zip(rows, p_values.ravel(), q_values, strict=True)
    ]
    # Permutations tell no difference beyond their number, so the found are ranked by their size.
    return sorted(
        suspects, key=lambda one: (one.q_value > LEVEL, one.held_out_association - one.association)
    )


def _scale(values: Float[np.ndarray, "I N"]) -> Float[np.ndarray, " N"]:
    """Standard deviations, 1 for what is constant."""
    spread = values.std(axis=0)
    return np.where(spread > 0, spread, 1.0)


def _difference(
    values: Float[np.ndarray, "I N"], own: Bool[np.ndarray, " I"]
) -> Float[np.ndarray, " N"]:
    """How much larger values are on images of a class than on the others; 0 without either."""
    if own.all() or not own.any():
        return np.zeros(values.shape[1])
    return values[own].mean(axis=0) - values[~own].mean(axis=0)


def _members(
    labels: Sequence[np.ndarray], permutations: int, rng: np.random.Generator
) -> Bool[np.ndarray, "R I"]:
    """Which images of both sets are of the first: as it is, then permuted within the classes."""
    of_class = np.concatenate(labels)
    first = np.arange(len(of_class)) < len(labels[0])
    members = np.repeat(first[None], permutations + 1, axis=0)
    for value in np.unique(of_class):
        rows = np.flatnonzero(of_class == value)
        for draw in members[1:]:
            draw[rows] = first[rng.permutation(rows)]
    return members


def _p_fall(
    similar: Float[np.ndarray, "I N"], own: Bool[np.ndarray, " I"], members: Bool[np.ndarray, "R I"]
) -> Float[np.ndarray, " N"]:
    """Chance that each concept's association falls so from the first set to the second."""
    # Sizes within classes are fixed, so it is linear in which images are of which set.
    change = np.zeros(members.shape)
    for group, sign in ((own, 1.0), (~own, -1.0)):
        sizes = [(members[0] & group).sum(), (~members[0] & group).sum()]
        if not all(sizes):
            return np.ones(similar.shape[1])
        change += sign * ((members & group) / sizes[0] - (~members & group) / sizes[1])
    return _p_of_largest(change @ similar)


def _errors(
    push: Float[np.ndarray, "I N"],
    side: Side,
    label: int,
    permutations: int,
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """How much larger the push is on other classes' images that are called the class; and p."""
    others = np.flatnonzero(side.labels != label)
    called = side.predictions[others] == label
    if not called.any() or called.all():
        return np.zeros(push.shape[1]), np.ones(push.shape[1])
    own, of_class = push[others], side.labels[others]
    draws = np.repeat(called[None], permutations + 1, axis=0)
    for value in np.unique(of_class):
        rows = np.flatnonzero(of_class == value)
        for draw in draws[1:]:
            draw[rows] = called[rng.permutation(rows)]
    wrong = draws / called.sum() - (~draws) / (~called).sum()
    gaps = wrong @ own
    return gaps[0], _p_of_largest(gaps)


def _p_of_largest(values: Float[np.ndarray, "R N"]) -> Float[np.ndarray, " N"]:
    """p of each concept's observed value (row 0) among the largest of each permutation.

    Each concept is measured in its own permutations' standard deviations first.
    """
    spread = values[1:].std(axis=0)
    scaled = (values - values[1:].mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    largest = scaled[1:].max(axis=1)
    return (1 + (largest[:, None] >= scaled[0]).sum(axis=0)) / (1 + len(largest))
