"""Edits by concept beside what else mends a network that leans on a shortcut, on the same images.

All contenders work on the last hidden layer's outputs (the features) and the last layer. They see
one set of images, the selection; another, held out, says how good they are. Groups are a class with
or without a nuisance. Shapes: I images, U units, C classes, G groups, S seeds, N concepts, R
resamples.
"""

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from emojax.editing.erase import eraser, within
from emojax.editing.refit import (
    Linear,
    activation_gap,
    adjust,
    refit_balanced,
    softmax,
    worst_group,
)
from emojax.ops.stats import calibration_error, mcnemar_exact

NONE = "no edit"
SILENCED = "units of the concept silenced"
ERASED = "concept erased from the last layer"
DFR = "last layer refitted, balanced groups (DFR)"
NO_GROUPS = (
    "logit adjustment and temperature",
    "last layer refitted, balanced classes",
    "units with an activation gap silenced, refitted",
)
ORACLE = "units of the nuisance by the truth silenced"
_ORACLE_SIZES = (0, 1, 2, 4, 8, 16, 32)
DRAWS = 39  # random units, random directions


@dataclass(frozen=True)
class Images:
    """What the contenders know of a set of images.

    Attributes:
      features: outputs of the last hidden layer, as the last layer reads them, float64.
      labels: classes.
      groups: 2 · class, and one more with the nuisance.
      similarities: CLIP's cosines with every concept.
    """

    features: Float[np.ndarray, "I U"]
    labels: Int[np.ndarray, " I"]
    groups: Int[np.ndarray, " I"]
    similarities: Float[np.ndarray, "I N"]


class Contest(NamedTuple):
    """Held-out logits of every contender, and of the random controls of the two edits [R, I, C]."""

    logits: dict[str, Float[np.ndarray, "I C"]]
    random: dict[str, Float[np.ndarray, "R I C"]]


def contest(
    selection: Images,
    held_out: Images,
    last: Linear,
    units: Bool[np.ndarray, " U"],
    concept: int,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Contest:
    """Fits every contender on the selection and gives its logits on the held-out images.

    Args:
      selection, held_out: the images.
      last: the last layer.
      units: those that the concept labels.
      concept: its number among the similarities.
      draws: random controls: as many random units; directions of similarities that are permuted
        within the classes.
      seed: of all draws.
    """
    rng = np.random.default_rng(seed)
    features, labels, groups = selection.features, selection.labels, selection.groups
    before = last.logits(features)
    classes = before.shape[1]

    edited = edits(selection, held_out, last, units, concept, draws=draws, rng=rng)
    gap = activation_gap(features, labels, before.argmax(axis=1))
    gapped = np.zeros(len(units), bool)
    gapped[np.argsort(-gap, kind="stable")[: units.sum()]] = True
    refitted = refit_balanced(features * ~gapped, labels, labels, classes, seed=seed)
    adjustment, class_balanced, neuron_tune = NO_GROUPS
    logits = {
        NONE: last.logits(held_out.features),
        adjustment: adjust(before, labels)(last.logits(held_out.features)),
        class_balanced: refit_balanced(features, labels, labels, classes, seed=seed).logits(
            held_out.features
        ),
        neuron_tune: refitted.logits(held_out.features * ~gapped),
        **{name: logits for name, (logits, _) in edited.items()},
        ORACLE: silenced(last, _oracle(selection, last)).logits(held_out.features),
        DFR: refit_balanced(features, labels, groups, classes, seed=seed).logits(held_out.features),
    }
    return Contest(logits, {name: drawn for name, (_, drawn) in edited.items()})


def edits(
    selection: Images,
    held_out: Images,
    last: Linear,
    units: Bool[np.ndarray, " U"],
    concept: int,
    *,
    draws: int,
    rng: np.random.Generator,
) -> dict[str, tuple[Float[np.ndarray, "I C"], Float[np.ndarray, "R I C"]]]:
    """Held-out logits of the two edits by concept, each with those of its random controls."""

    erased = eraser(last, selection.features, selection.labels)

    def by_erasing(similarities: np.ndarray) -> np.ndarray:
        return erased(similarities[:, None]).logits(held_out.features)

    def by_silencing(mask: np.ndarray) -> np.ndarray:
        return silenced(last, mask).logits(held_out.features)

    masks = rng.permuted(np.tile(units, (draws, 1)), axis=1)
    own = selection.similarities[:, concept]
    shuffled = [permuted_within(own, selection.labels, rng) for _ in range(draws)]
    return {
        SILENCED: (by_silencing(units), np.stack([by_silencing(mask) for mask in masks])),
        ERASED: (
            by_erasing(own),
            np.stack([by_erasing(similarities) for similarities in shuffled]),
        ),
    }


def silenced(last: Linear, mask: Bool[np.ndarray, " U"]) -> Linear:
    """The last layer without some units."""
    return Linear(last.weight * ~mask[:, None], last.bias)


def _oracle(selection: Images, last: Linear) -> Bool[np.ndarray, " U"]:
    """The units that tell the nuisance best within the classes; how many, by the worst group."""
    shown = (selection.groups % 2).astype(float)[:, None]
    own = within(selection.features, selection.labels)
    together = np.abs(own.T @ within(shown, selection.labels))[:, 0]
    spread = own.std(axis=0)
    effect = np.divide(together, spread, out=np.zeros_like(spread), where=spread > 0)
    order = np.argsort(-effect, kind="stable")
    masks = [np.isin(np.arange(len(order)), order[:size]) for size in _ORACLE_SIZES]

    def worst(mask: np.ndarray) -> float:
        logits = silenced(last, mask).logits(selection.features)
        return worst_group(logits.argmax(axis=1) == selection.labels, selection.groups)

    return masks[int(np.argmax([worst(mask) for mask in masks]))]


def permuted_within(
    values: Float[np.ndarray, "I ..."], labels: Int[np.ndarray, " I"], rng: np.random.Generator
) -> Float[np.ndarray, "I ..."]:
    """The values, permuted among the images of each class."""
    permuted = values.copy()
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        permuted[rows] = values[rng.permutation(rows)]
    return permuted


def measures(logits: Float[np.ndarray, "I C"], images: Images) -> dict[str, float]:
    """Accuracy, macro recall, worst class, worst group, NLL and expected calibration error."""
    share = softmax(np.asarray(logits, np.float64))
    right = share.argmax(axis=1) == images.labels
    recalls = [right[images.labels == label].mean() for label in np.unique(images.labels)]
    own = share[np.arange(len(right)), images.labels]
    return {
        "accuracy": float(right.mean()),
        "macro_recall": float(np.mean(recalls)),
        "worst_class": float(np.min(recalls)),
        "worst_group": worst_group(right, images.groups),
        "nll": float(-np.log(np.maximum(own, 1e-300)).mean()),
        "ece": float(calibration_error(np.asarray(share.max(axis=1), np.float32), right)),
    }


def against(
    before: Float[np.ndarray, "I C"],
    after: Float[np.ndarray, "I C"],
    images: Images,
    minority: Bool[np.ndarray, " I"],
    *,
    resamples: int = 9999,
    seed: int = 0,
) -> dict[str, Any]:
    """What `after` gains over `before`: by image, where a shortcut misleads, in the worst group.

    Args:
      before, after: logits of two contenders.
      images: the held-out images.
      minority: images of the groups that the shortcut misleads, known beforehand.
      resamples: of the images within their groups, for the worst group's p-value (one-sided: how
        often it is not raised).
      seed: of the resamples.
    """
    was = before.argmax(axis=1) == images.labels
    now = after.argmax(axis=1) == images.labels

    def counts(rows: np.ndarray) -> dict[str, Any]:
        gained, lost = int((now & ~was & rows).sum()), int((was & ~now & rows).sum())
        return {"gained": gained, "lost": lost, "p_value": mcnemar_exact(gained, lost)}

    rng = np.random.default_rng(seed)
    first, second = [], []
    for group in np.unique(images.groups):
        rows = images.groups == group
        size = int(rows.sum())
        # Right before and after, after alone, before alone, neither: all that a resample needs.
        cells = np.array([(was & now & rows).sum(), (now & ~was & rows).sum()])
        cells = np.append(cells, (was & ~now & rows).sum())
        drawn = rng.multinomial(size, [*(cells / size), 1 - cells.sum() / size], resamples) / size
        first.append(drawn[:, 0] + drawn[:, 2])
        second.append(drawn[:, 0] + drawn[:, 1])
    change = np.min(second, axis=0) - np.min(first, axis=0)
    return {
        "all": counts(np.ones(len(was), bool)),
        "minority": counts(minority),
        "worst_group": {
            "change": worst_group(now, images.groups) - worst_group(was, images.groups),
            "low": float(np.quantile(change, 0.025)),
            "high": float(np.quantile(change, 0.975)),
            "p_value": (1 + int((change <= 0).sum())) / (1 + resamples),
        },
    }


def sign_flip_p_value(changes: Float[np.ndarray, " S"]) -> float:
    """Whether changes, one of each training seed, are above 0 on average: exact, one-sided.

    If an edit did nothing, each seed's change could as well have the other sign. With S seeds the
    smallest p-value is 2⁻ˢ.

    Raises:
      ValueError: more than 20 seeds, whose signs are too many to list.
    """
    if len(changes) > 20:
        raise ValueError(f"{len(changes)} seeds have too many signs to list; at most 20")
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(changes))))
    sums = signs @ np.asarray(changes, np.float64)
    # Sums of the same numbers in another order may differ in the last digit.
    return float((sums >= np.sum(changes) - 1e-12).mean())
