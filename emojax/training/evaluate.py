"""Accuracy of a network on a labelled set, by either protocol of the seed: `resize40` (one view) or `tencrop`.

Shapes: I images, B batch.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emojax.data import classes as class_names
from emojax.data.image_set import ImageSet, duplicates
from emojax.data.map_images import map_images
from emojax.errors import InputError
from emojax.models.deep_emotion import DeepEmotion
from emojax.models.vgg import VggNet
from emojax.ops import image
from emojax.ops.stats import mcnemar_exact
from emojax.probing.network import Network

Protocol = Literal["resize40", "tencrop"]


@dataclass(frozen=True)
class Evaluation:
    """Results on a labelled set.

    Attributes:
      logits: [I, classes] float32; the mean over crops for `tencrop`.
      labels: [I] int32.
      classes: class names.
    """

    logits: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    @property
    def predictions(self) -> np.ndarray:
        """Predicted class [I]; ties to the lower class."""
        return self.logits.argmax(axis=1)

    def top(self, k: int) -> float:
        """Share of images whose class is among the k best."""
        own = np.take_along_axis(self.logits, self.labels[:, None], axis=1)
        earlier = np.arange(self.logits.shape[1])[None, :] < self.labels[:, None]
        rank = ((self.logits > own) | ((self.logits == own) & earlier)).sum(axis=1)
        return float((rank < k).mean())

    def confusion(self) -> np.ndarray:
        """Counts [classes, classes]: true class by row, predicted by column."""
        classes = len(self.classes)
        return np.bincount(self.labels * classes + self.predictions, minlength=classes**2).reshape(classes, classes)

    def losses(self) -> np.ndarray:
        """Negative log-likelihood of each image [I], natural logarithm; float64."""
        logits = self.logits.astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        own = np.take_along_axis(logits, self.labels[:, None], axis=1)[:, 0]
        return np.log(np.exp(logits).sum(axis=1)) - own

    def nll(self) -> float:
        """Mean of the losses."""
        return float(self.losses().mean())

    def summary(self) -> dict[str, Any]:
        """All of it as plain numbers, ready for JSON; recall is None for a class without images."""
        confusion = self.confusion()
        counts = confusion.sum(axis=1)
        recall = {c: float(confusion[i, i] / counts[i]) if counts[i] else None for i, c in enumerate(self.classes)}
        present = [r for r in recall.values() if r is not None]
        return {
            "images": len(self.labels),
            "correct": int(np.trace(confusion)),
            "top1": self.top(1),
            "top2": self.top(2),
            "macro_recall": float(np.mean(present)),
            "nll": self.nll(),
            "recall": recall,
            "correct_per_class": {c: int(confusion[i, i]) for i, c in enumerate(self.classes)},
            "confusion": confusion.tolist(),
            "classes": list(self.classes),  # of the confusion's rows and columns
        }


def join(*parts: Evaluation) -> Evaluation:
    """Evaluations of several splits as one, as the paper pooled both test splits.

    Raises:
      InputError: the splits' classes differ, or stand in another order.
    """
    same_classes([part.classes for part in parts])
    return Evaluation(np.concatenate([p.logits for p in parts]), np.concatenate([p.labels for p in parts]), parts[0].classes)


def same_classes(classes: Sequence[tuple[str, ...]]) -> None:
    """Refuses to pool labels that count in different orders.

    Raises:
      InputError: the classes differ, or stand in another order.
    """
    for each in classes:
        if each != classes[0]:
            raise InputError(
                f"splits with the classes {class_names.listed(classes[0])} and "
                f"{class_names.listed(each)} cannot be pooled; bring them into one order "
                "(ImageSet.in_order)"
            )


@dataclass(frozen=True)
class BetterOrder:
    """Another order of the class names under which a network is right far more often.

    Attributes:
      names: of the outputs, in order.
      correct: images right under these names, and `given_correct` under the given ones.
    """

    names: tuple[str, ...]
    correct: int
    given_correct: int


def better_order(confusion: np.ndarray, classes: Sequence[str]) -> BetterOrder | None:
    """The order of class names that fits a confusion matrix far better than the given one, if any.

    The candidate has the highest mean recall of all C! orders (a linear assignment); recall, because
    a network that gives everyone the commonest class fits any order equally well by it. It counts if
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
    # Equals, such as the classes without images, stay where they are.
    _, output = linear_sum_assignment(recall + 1e-9 * np.eye(len(classes)), maximize=True)
    moved = (output != given) & (sizes > 0)
    if not moved.any():
        return None
    # No image is right under both orders, so those of the renamed classes are all discordant pairs.
    gained = int(confusion[given[moved], output[moved]].sum())
    lost = int(confusion[given[moved], given[moved]].sum())
    p_value = mcnemar_exact(gained, lost)
    significant = p_value == 0 or math.log(p_value) + math.lgamma(len(classes) + 1) <= math.log(0.01)
    margin = recall[given[moved], output[moved]].sum() >= 2 * recall[given[moved], given[moved]].sum()
    if gained <= lost or not significant or not margin:
        return None
    names = [""] * len(classes)
    for name, at in zip(classes, output, strict=True):
        names[at] = name
    correct = int(np.trace(confusion))
    return BetterOrder(tuple(names), correct + gained - lost, correct)


def average(*members: Evaluation) -> Evaluation:
    """An ensemble: the mean of its members' class probabilities, as logits."""
    logits = jnp.stack([jnp.asarray(member.logits) for member in members])
    mean = jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - np.log(len(members))
    return Evaluation(np.asarray(mean), members[0].labels, members[0].classes)


def without_copies(result: Evaluation, images: ImageSet, of: ImageSet) -> Evaluation:
    """The result on those images of a set that do not also occur in another, pixel for pixel.

    Raises:
      InputError: all of them do.
    """
    new = ~duplicates(images.images, of.images)
    if not new.any():
        raise InputError(f"every image of {images.name} also occurs in {of.name}")
    return Evaluation(result.logits[new], result.labels[new], result.classes)


def tencrop_views(size: int) -> Callable[[jax.Array], jax.Array]:
    """Preprocessing for `tencrop`: uint8 [B, H, W, C] → ten gray crops in [0, 1], [B, 10, size, size, 1]."""
    return lambda images: image.ten_crop(image.to_unit(image.to_gray(images)), size)


def class_order(model: Any, classes: Sequence[str]) -> tuple[str, ...]:
    """Class names of a network's outputs, in order, for images with these classes.

    Those that it carries; else FER2013's numbering, where the network is one of ours and FER2013's
    names are the images' (in any order, by any alias); else the images' own.
    """
    names = getattr(getattr(model, "config", None), "class_names", None)
    if names is not None:
        return names
    ours = isinstance(model, VggNet | DeepEmotion)
    fer2013 = ours and class_names.positions(classes, class_names.FER2013) is not None
    return class_names.FER2013 if fer2013 else tuple(classes)


def labelled(images: ImageSet, model: Any, outputs: int | None = None) -> ImageSet:
    """A set that can be tested on a network, its labels in the order of the network's outputs.

    `outputs` is their number where the network has no `config.classes`.

    Raises:
      InputError: there are no labels, or other classes than the network's.
    """
    if images.labels is None:
        raise InputError(f"{images.name} has no labels to test against")
    count = model.config.classes if outputs is None else outputs
    if len(images.classes) != count:
        known = getattr(getattr(model, "config", None), "class_names", None)
        theirs = f" ({class_names.listed(known)})" if known else ""
        raise InputError(
            f"{images.name} has {len(images.classes)} classes, the network {count}{theirs}; "
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
    """Runs the network over a labelled set.

    `tencrop` averages the logits of ten crops of the network's input size (VGGNet only).

    Raises:
      InputError: the set has no labels, or the classes do not match.
    """
    if protocol == "tencrop" and not isinstance(model, VggNet):
        raise InputError("the tencrop protocol crops to a VGGNet's input size; pass a VggNet or use resize40")
    if isinstance(model, nnx.Module):
        graphdef, params = nnx.split(model)
        forward = _logits_of(graphdef, protocol)
    else:
        params = model.params

        def forward(params: Any, chunk: jax.Array) -> jax.Array:
            return model.apply(params, model.preprocess(chunk))[0]

    one = jax.ShapeDtypeStruct((1, *images.images.shape[1:]), np.uint8)
    images = labelled(images, model, jax.eval_shape(forward, params, one).shape[-1])
    keep = isinstance(model, nnx.Module)  # another of its kind may follow, as after each epoch of training
    logits = map_images(forward, params, images, batch=batch, tile=tile, progress=progress, keep=keep)
    return Evaluation(logits, images.labels, images.classes)


@functools.lru_cache(maxsize=8)
def _logits_of(graphdef: Any, protocol: Protocol) -> Callable[[Any, jax.Array], jax.Array]:
    """(state, uint8 images [B, H, W, C]) → logits [B, classes]; one object per architecture, so that it compiles once."""

    def forward(state: Any, chunk: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, state)
        if protocol == "resize40":
            return model(getattr(model, "preprocess", image.to_unit)(chunk))[0]
        x = tencrop_views(model.config.input_size)(chunk)
        return model(x.reshape(-1, *x.shape[2:]))[0].reshape(*x.shape[:2], -1).mean(axis=1)

    return forward
