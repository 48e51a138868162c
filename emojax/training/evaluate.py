"""Tests of a network on labelled sets: accuracy, recall, NLL, and a check of its class order.

The protocols are the reference implementation's: `resize40` tests one view of an image, `tencrop`
the mean over ten. Training validates with it; the edit study compares its results. Shapes: I
images, B batch, T tile, C classes.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Integer, PyTree, UInt8

from emojax.brief import brief
from emojax.data import classes as class_names
from emojax.data.image_set import ImageSet, duplicates
from emojax.data.map_images import map_images
from emojax.errors import InputError
from emojax.models.classifier import Cuttable
from emojax.models.deep_emotion import DeepEmotion
from emojax.ops import image
from emojax.ops.stats import calibration_error, mcnemar_exact
from emojax.probing.network import Network
from emojax.tables import Tabular

Protocol = Literal["resize40", "tencrop"]


class CalibrationBin(NamedTuple):
    """Images whose confidence lies between `start` and the next bin's.

    `confidence` is its mean over them, `accuracy` the share that is right.
    """

    start: float
    images: int
    confidence: float
    accuracy: float


class Calibration(NamedTuple):
    """How far confidence is from accuracy, and the bins with images in them.

    `error` is the expected calibration error: the mean over images of the distance in their bin.
    Bins are open below and closed above.
    """

    error: float
    bins: tuple[CalibrationBin, ...]

    def as_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"error": self.error, "bins": [row._asdict() for row in self.bins]}


@brief
@dataclass(frozen=True)
class Evaluation(Tabular):
    """Results on a labelled set.

    Attributes:
      logits: float32; the mean over crops for `tencrop`.
      labels: true classes, int32.
      classes: class names, in the order of the logits.
    """

    logits: Float[np.ndarray, "I C"]
    labels: Int[np.ndarray, " I"]
    classes: tuple[str, ...]

    def columns(self) -> dict[str, np.ndarray]:
        """A row per image: true and predicted class, loss, and the probability of every class."""
        names = np.array(self.classes, dtype=object)
        logits = self.logits.astype(np.float64)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)
        table = {"label": names[self.labels], "predicted": names[self.predictions]}
        table |= {"right": self.predictions == self.labels, "loss": self.losses()}
        return table | {f"p_{name}": shares[:, c] for c, name in enumerate(self.classes)}

    @property
    def predictions(self) -> Int[np.ndarray, " I"]:
        """Predicted classes; ties go to the lower one."""
        return self.logits.argmax(axis=1)

    def top(self, k: int) -> float:
        """Share of images whose class is among the k best."""
        own = np.take_along_axis(self.logits, self.labels[:, None], axis=1)
        # A class of the same logit ranks before the true one if it is lower, as in `predictions`.
        lower = np.arange(self.logits.shape[1])[None, :] < self.labels[:, None]
        rank = ((self.logits > own) | ((self.logits == own) & lower)).sum(axis=1)
        return float((rank < k).mean())

    def confusion(self) -> Int[np.ndarray, "C C"]:
        """Counts of images: true class by row, predicted by column."""
        classes = len(self.classes)
        cells = self.labels * classes + self.predictions
        return np.bincount(cells, minlength=classes**2).reshape(classes, classes)

    def losses(self) -> Float[np.ndarray, " I"]:
        """Negative log-likelihood of each image, natural logarithm; float64."""
        logits = self.logits.astype(np.float64)
        # Logits that overflowed are infinite: the loss of such an image is no number, which is said
        # by its value (NaN), not by a warning.
        with np.errstate(invalid="ignore"):
            logits -= logits.max(axis=1, keepdims=True)
            own = np.take_along_axis(logits, self.labels[:, None], axis=1)[:, 0]
            return np.log(np.exp(logits).sum(axis=1)) - own

    def nll(self) -> float:
        """Mean of the losses."""
        return float(self.losses().mean())

    def accuracy_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Wilson's interval of the share of right predictions, as of independent images."""
        from scipy import stats

        right = int((self.predictions == self.labels).sum())
        interval = stats.binomtest(right, len(self.labels)).proportion_ci(level, method="wilson")
        return float(interval.low), float(interval.high)

    def calibration(self, bins: int = 15) -> "Calibration | None":
        """Confidence against accuracy; None where a logit that overflowed leaves no probabilities.

        Args:
          bins: of equal width, into which images are sorted by their confidence, the probability of
            the predicted class, as in `stats.calibration_error`.
        """
        logits = self.logits.astype(np.float64)
        if not np.isfinite(logits).all():
            return None
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        confidence = 1.0 / odds.sum(axis=1)
        right = self.predictions == self.labels
        in_bin = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
        rows = []
        for number in np.unique(in_bin):
            chosen = in_bin == number
            sure, correct = float(confidence[chosen].mean()), float(right[chosen].mean())
            rows.append(CalibrationBin(float(number / bins), int(chosen.sum()), sure, correct))
        return Calibration(float(calibration_error(confidence, right, bins)), tuple(rows))

    def summary(self) -> dict[str, Any]:
        """All of it as plain numbers, ready for JSON; recall is None for a class without images."""
        confusion = self.confusion()
        counts = confusion.sum(axis=1)
        recall = {
            name: float(confusion[row, row] / counts[row]) if counts[row] else None
            for row, name in enumerate(self.classes)
        }
        known = [share for share in recall.values() if share is not None]
        return {
            "images": len(self.labels),
            "correct": int(np.trace(confusion)),
            "top1": self.top(1),
            "top2": self.top(2),
            "macro_recall": float(np.mean(known)),
            "nll": self.nll(),
            "recall": recall,
            "correct_per_class": {
                name: int(confusion[row, row]) for row, name in enumerate(self.classes)
            },
            "confusion": confusion.tolist(),
            "classes": list(self.classes),  # of the confusion's rows and columns
        }


def join(*splits: Evaluation) -> Evaluation:
    """Evaluations of several splits as one, as the paper pooled both test splits.

    Raises:
      InputError: the splits' classes differ, or are in another order.
    """
    same_classes([split.classes for split in splits])
    logits = np.concatenate([split.logits for split in splits])
    labels = np.concatenate([split.labels for split in splits])
    return Evaluation(logits, labels, splits[0].classes)


def same_classes(classes: Sequence[tuple[str, ...]]) -> None:
    """Refuses to pool labels that count in different orders; takes the class names of each split.

    Raises:
      InputError: the classes differ, or are in another order.
    """
    for names in classes:
        if names != classes[0]:
            raise InputError(
                f"splits with the classes {class_names.listed(classes[0])} and "
                f"{class_names.listed(names)} cannot be pooled; bring them into one order "
                "(ImageSet.in_order)"
            )


@dataclass(frozen=True)
class BetterOrder:
    """Another order of the class names under which a network is right far more often.

    Attributes:
      names: of the outputs, in order.
      correct: images that are right under these names.
      given_correct: images that are right under the given names.
    """

    names: tuple[str, ...]
    correct: int
    given_correct: int


def better_order(
    confusion: Integer[np.ndarray, "C C"], classes: Sequence[str]
) -> BetterOrder | None:
    """The order of class names that fits a confusion matrix far better than the given one, if any.

    The candidate has the highest mean recall of all C! orders (a linear assignment); recall,
    because a network that gives everyone the commonest class fits any order equally well by it. It
    counts if
    - McNemar's exact test between the two orders, image by image, holds at 1 % after Bonferroni's
      correction for the C! orders that the candidate was chosen from, and
    - over the classes that it renames, recall is at least twice that under the given order: a right
      order may mix up two classes now and then, but not mistake each for another twice as often as
      it recognizes them.
    """
    from scipy.optimize import linear_sum_assignment

    sizes = confusion.sum(axis=1)
    recall = confusion / np.maximum(sizes, 1)[:, None]
    given = np.arange(len(classes))
    # The small term breaks ties: equals, such as the classes without images, stay where they are.
    _, output = linear_sum_assignment(recall + 1e-9 * np.eye(len(classes)), maximize=True)
    moved = (output != given) & (sizes > 0)
    if not moved.any():
        return None
    # No image is right under both orders, so those of the renamed classes are all discordant pairs.
    gained = int(confusion[given[moved], output[moved]].sum())
    lost = int(confusion[given[moved], given[moved]].sum())
    p_value = mcnemar_exact(gained, lost)
    # Bonferroni over C! orders, in logarithms: lgamma(C + 1) is log(C!).
    orders = math.lgamma(len(classes) + 1)
    significant = p_value == 0 or math.log(p_value) + orders <= math.log(0.01)
    recall_before = recall[given[moved], given[moved]].sum()
    doubled = recall[given[moved], output[moved]].sum() >= 2 * recall_before
    if gained <= lost or not significant or not doubled:
        return None
    names = [""] * len(classes)
    for name, position in zip(classes, output, strict=True):
        names[position] = name
    correct = int(np.trace(confusion))
    return BetterOrder(tuple(names), correct + gained - lost, correct)


def average(*members: Evaluation) -> Evaluation:
    """An ensemble: the mean of its members' class probabilities, as logits."""
    logits = jnp.stack([jnp.asarray(member.logits) for member in members])
    mean = jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - np.log(len(members))
    return Evaluation(np.asarray(mean), members[0].labels, members[0].classes)


def without_duplicates(result: Evaluation, images: ImageSet, of: ImageSet) -> Evaluation:
    """A result on the images of a set that do not also occur in the set `of`, pixel for pixel.

    Raises:
      InputError: all of them do.
    """
    new = ~duplicates(images.images, of.images)
    if not new.any():
        raise InputError(f"every image of {images.name} also occurs in {of.name}")
    return Evaluation(result.logits[new], result.labels[new], result.classes)


def tencrop_views(size: int) -> Callable[[Array], Array]:
    """Preprocessing for `tencrop`: images → their ten gray crops of this size, in [0, 1]."""

    def views(images: UInt8[Array, "B H W C"]) -> Float[Array, "B 10 S S 1"]:
        return image.ten_crop(image.to_unit(image.to_gray(images)), size)

    return views


def class_order(model: nnx.Module | Network, classes: Sequence[str]) -> tuple[str, ...]:
    """Class names of a network's outputs, in order, for images with these classes.

    Those of its configuration; else FER2013's numbering, where the network is one of ours and the
    images' names are FER2013's (in any order, by any alias); else the images' own.
    """
    names = getattr(getattr(model, "config", None), "class_names", None)
    if names is not None:
        return names
    ours = isinstance(model, Cuttable | DeepEmotion)
    fer2013 = ours and class_names.positions(classes, class_names.FER2013) is not None
    return class_names.FER2013 if fer2013 else tuple(classes)


def labelled(images: ImageSet, model: nnx.Module | Network, outputs: int | None = None) -> ImageSet:
    """A set that can be tested on a network, its labels in the order of the network's outputs.

    `outputs` is their number; None takes it from the configuration of one of our networks.

    Raises:
      InputError: there are no labels, or other classes than the network's.
    """
    if images.labels is None:
        raise InputError(f"{images.name} has no labels to test against")
    config = getattr(model, "config", None)
    count = getattr(config, "classes", None) if outputs is None else outputs
    if len(images.classes) != count:
        known = getattr(config, "class_names", None)
        names = f" ({class_names.listed(known)})" if known else ""
        raise InputError(
            f"{images.name} has {len(images.classes)} classes, the network {count}{names}; "
            f"the images' are {class_names.listed(images.classes) or 'not named'}"
        )
    return images.in_order(class_order(model, images.classes))


def evaluate(
    model: nnx.Module | Network,
    images: ImageSet,
    *,
    protocol: Protocol = "resize40",
    batch: int = 256,
    tile: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Tests a network on a labelled set.

    Args:
      model: a flax.nnx module that returns `(logits, taps)`, or any network that `as_network`
        wrapped.
      images: the set.
      protocol: `tencrop` averages the logits of ten crops of the network's input size
        (VggNet and CompactNet only).
      batch: images that travel at once; results do not depend on it.
      tile: images computed together; None suits the device.
      progress: called with (images done, images in all) after every batch.

    Raises:
      InputError: the set has no labels, or the classes do not match.
    """
    if protocol == "tencrop" and not isinstance(model, Cuttable):
        raise InputError(
            "the tencrop protocol crops to the network's input size; pass a VggNet or a "
            "CompactNet, or use resize40"
        )
    # Programs are cached: another network of the same kind may follow, as after each epoch of
    # training.
    # A plain function may hold its weights itself, and is not cached: it would hold their memory.
    keep = isinstance(model, nnx.Module) or bool(jax.tree.leaves(model.params))
    if isinstance(model, nnx.Module):
        graphdef, params = nnx.split(model)
        logits_of = _module_logits(graphdef, protocol)
    else:
        params = model.params
        build = _cached_network_logits if keep else _network_logits
        logits_of = build(model.apply, model.preprocess)
    sample = jax.ShapeDtypeStruct((1, *images.images.shape[1:]), np.uint8)
    outputs = jax.eval_shape(logits_of, params, sample).shape[-1]
    images = labelled(images, model, outputs)
    logits = map_images(
        logits_of, params, images, batch=batch, tile=tile, progress=progress, keep=keep
    )
    return Evaluation(logits, np.asarray(images.labels), images.classes)


_Logits = Callable[[PyTree, Array], Array]  # (variables, uint8 images [T, H, W, C]) → logits [T, C]


@functools.lru_cache(maxsize=8)
def _module_logits(graphdef: nnx.GraphDef, protocol: Protocol) -> _Logits:
    """A module's logits; one object for one architecture, so that it compiles once."""

    def logits_of(
        state: PyTree, pixels: UInt8[Array, "T H W channels"]
    ) -> Float[Array, "T classes"]:
        model = nnx.merge(graphdef, state)
        if protocol == "resize40":
            return model(getattr(model, "preprocess", image.to_unit)(pixels))[0]
        crops = tencrop_views(model.config.input_size)(pixels)  # [T, 10, S, S, 1]
        logits = model(model.normalize(crops.reshape(-1, *crops.shape[2:])))[0]
        return logits.reshape(*crops.shape[:2], -1).mean(axis=1)

    return logits_of


def _network_logits(
    apply: Callable[[Any, Array], tuple[Array, Any]], preprocess: Callable[[Array], Array]
) -> _Logits:
    """A wrapped network's logits."""

    def logits_of(
        params: PyTree, pixels: UInt8[Array, "T H W channels"]
    ) -> Float[Array, "T classes"]:
        return apply(params, preprocess(pixels))[0]

    return logits_of


_cached_network_logits = functools.lru_cache(maxsize=8)(_network_logits)
