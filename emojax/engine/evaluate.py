"""Accuracy of a network on a labelled set, by either protocol of the seed: `resize40` (one view) or `tencrop`.

Shapes: I images, B batch.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emojax.data.loader import ImageSet, copies
from emojax.engine.network import Network, map_images
from emojax.errors import InputError
from emojax.models.compact import Editable
from emojax.ops import image

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
        }


def join(*parts: Evaluation) -> Evaluation:
    """Evaluations of several splits as one, as the paper pooled both test splits."""
    return Evaluation(np.concatenate([p.logits for p in parts]), np.concatenate([p.labels for p in parts]), parts[0].classes)


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
    new = ~copies(images.images, of.images)
    if not new.any():
        raise InputError(f"every image of {images.name} also occurs in {of.name}")
    return Evaluation(result.logits[new], result.labels[new], result.classes)


def tencrop_views(size: int) -> Callable[[jax.Array], jax.Array]:
    """Preprocessing for `tencrop`: uint8 [B, H, W, C] → ten gray crops in [0, 1], [B, 10, size, size, 1]."""
    return lambda images: image.ten_crop(image.to_unit(image.to_gray(images)), size)


def labelled(images: ImageSet, classes: int) -> np.ndarray:
    """The labels of a set that can be tested on a network with this many classes.

    Raises:
      InputError: there are no labels, or more classes than the network has.
    """
    if images.labels is None:
        raise InputError(f"{images.name} has no labels to test against")
    if len(images.classes) != classes:
        raise InputError(f"{images.name} has {len(images.classes)} classes, the network {classes}")
    return images.labels


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

    `tencrop` averages the logits of ten crops of the network's input size (VGGNet and CompactNet only).

    Raises:
      InputError: the set has no labels, or the classes do not match.
    """
    if protocol == "tencrop" and not isinstance(model, Editable):
        raise InputError(
            "the tencrop protocol crops to the network's input size; pass a VggNet or a CompactNet, or use resize40"
        )
    if isinstance(model, nnx.Module):
        graphdef, params = nnx.split(model)
        forward = _logits_of(graphdef, protocol)
    else:
        params = model.params

        def forward(params: Any, chunk: jax.Array) -> jax.Array:
            return model.apply(params, model.preprocess(chunk))[0]

    one = jax.ShapeDtypeStruct((1, *images.images.shape[1:]), np.uint8)
    labels = labelled(images, jax.eval_shape(forward, params, one).shape[-1])
    keep = isinstance(model, nnx.Module)  # another of its kind may follow, as after each epoch of training
    logits = map_images(forward, params, images, batch=batch, tile=tile, progress=progress, keep=keep)
    return Evaluation(logits, labels, images.classes)


@functools.lru_cache(maxsize=8)
def _logits_of(graphdef: Any, protocol: Protocol) -> Callable[[Any, jax.Array], jax.Array]:
    """(state, uint8 images [B, H, W, C]) → logits [B, classes]; one object per architecture, so that it compiles once."""

    def forward(state: Any, chunk: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, state)
        if protocol == "resize40":
            return model(getattr(model, "preprocess", image.to_unit)(chunk))[0]
        x = model.normalize(tencrop_views(model.config.input_size)(chunk))
        return model(x.reshape(-1, *x.shape[2:]))[0].reshape(*x.shape[:2], -1).mean(axis=1)

    return forward
