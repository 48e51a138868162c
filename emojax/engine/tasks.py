"""What can be learnt: the expression of a face, and which text goes with which picture. Shapes: I images, B batch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from emojax.data.loader import ImageSet, stream
from emojax.data.weights import ClipEncoder, unit_rows
from emojax.engine.evaluate import labelled
from emojax.engine.train import Task
from emojax.errors import InputError
from emojax.models.compact import CompactNet
from emojax.models.deep_emotion import DeepEmotion
from emojax.models.vgg import VggNet
from emojax.ops import augment as views
from emojax.ops.image import to_gray, to_unit

Precision = Literal["float32", "bfloat16"]
Start = Callable[[int], tuple[Any, Any]]
RESIDENT = 2 << 30  # bytes of images that a device is asked to hold; larger sets are streamed


def epoch_rows(images: int, batch: int, seed: int, epoch: int, first: int = 0) -> Iterator[np.ndarray]:
    """Shuffled batches [B] int32 of image indices, from batch `first` on.

    The last images that fill no batch wait for another epoch's order.
    """
    order = np.random.default_rng([seed, epoch]).permutation(images).astype(np.int32)
    return (order[at : at + batch] for at in range(first * batch, images - batch + 1, batch))


def start_from(model: nnx.Module) -> Start:
    """Every seed begins with the variables of this network."""
    _, params, rest = nnx.split(model, nnx.Param, ...)
    return lambda seed: (params, rest)


def start_fresh(build: Callable[[int], nnx.Module]) -> Start:
    """Every seed begins with its own random network."""
    return lambda seed: start_from(nnx.jit(lambda: build(seed))())(seed)


def classifier(
    model: VggNet | DeepEmotion | CompactNet,
    images: ImageSet,
    *,
    batch: int,
    start: Start | None = None,
    label_smoothing: float = 0.0,
    augment: views.Augment = "flip",
    contrast: float = 0.0,
    mixup: float = 0.0,
    precision: Precision = "float32",
    resident: bool | None = None,
) -> Task:
    """Cross-entropy on a labelled set; augmented in the step, on the device.

    A set of up to 2 GiB stays on the device and batches are gathered there; a larger one (or `resident=False`) is
    streamed by Grain, in the same order. With `bfloat16` the network computes in it; parameters, statistics of BatchNorm,
    loss and optimizer stay float32. `contrast` and `mixup` are the strengths of `ops.augment`'s functions, 0 for none; with
    mixup, training accuracy counts the class that weighs more. `start` gives each seed's first variables; the network's
    own when None.

    Raises:
      InputError: the set has no labels, other classes than the network, or fewer images than a batch.
    """
    labels, faces = labelled(images, model.config.classes), images.images
    _enough(images, batch)
    model.train()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    model.eval()
    if resident is None:
        resident = int(np.prod(faces.shape)) <= RESIDENT

    def loss(params: Any, rest: Any, data: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, tuple[Any, Any]]:
        if precision == "bfloat16":
            params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
        network = nnx.merge(graphdef, params, rest, copy=True)  # a copy: BatchNorm's statistics are written inside
        view_key, drop_key = jax.random.split(key)
        pixels, own = (data[0][batch], data[1][batch]) if resident else batch
        if augment == "flip":
            x = network.preprocess(views.mirror(view_key, pixels))
        else:
            pixels = to_gray(pixels) if network.config.channels == 1 else pixels
            side = network.config.input_size
            x = network.normalize(views.augment(augment, view_key, to_unit(pixels), side, contrast=contrast))
        own = jnp.repeat(own, len(x) // len(own))
        target = optax.smooth_labels(jax.nn.one_hot(own, network.config.classes), label_smoothing)
        if mixup:
            x, target = views.mixup(jax.random.fold_in(key, 2), x, target, mixup)
        logits = network(x.astype(precision), rngs=nnx.Rngs(dropout=drop_key))[0].astype(jnp.float32)
        rest = nnx.state(network, nnx.Not(nnx.Param))
        return optax.softmax_cross_entropy(logits, target).mean(), (
            rest,
            {"accuracy": (logits.argmax(axis=-1) == own).mean()},
        )

    def batches(epoch: int, seed: int, first: int) -> Iterator[Any]:
        rows = epoch_rows(len(images), batch, seed, epoch, first)
        return rows if resident else stream(faces, np.asarray(labels), rows)

    data = (np.asarray(faces[: len(images)]), np.asarray(labels)) if resident else None
    return Task(start or (lambda seed: (params, rest)), data, loss, batches, len(images) // batch, batch)


def trained(model: VggNet | DeepEmotion | CompactNet, params: Any, rest: Any) -> VggNet | DeepEmotion | CompactNet:
    """A network of the same kind with these variables, in eval mode."""
    model = _with(model, params, rest)
    model.eval()
    return model


def _with(model: Any, params: Any, rest: Any) -> Any:
    graphdef = nnx.split(model, nnx.Param, ...)[0]
    return nnx.merge(graphdef, *jax.tree.map(np.asarray, (params, rest)))


def _enough(images: ImageSet, batch: int) -> None:
    if len(images) < batch:
        raise InputError(f"{images.name} has {len(images)} images, fewer than a batch; --train.batch {batch} is too many")


# Contrast of images and texts


@dataclass(frozen=True)
class Pairs:
    """Images with a text each.

    Attributes:
      images: uint8 [I, H, W, C].
      tokens: epoch → token ids [I, L] int32 of each image's text.
      matches: (epoch, rows [B]) → whether text i is true of image j, bool [B, B]; None where only its own text is.
    """

    images: np.ndarray
    tokens: Callable[[int], np.ndarray]
    matches: Callable[[int, np.ndarray], np.ndarray] | None = None


def contrastive_loss(cosines: jax.Array, scale: jax.Array, matches: jax.Array) -> jax.Array:
    """CLIP's symmetric cross-entropy, with the probability shared by all texts that are true of an image.

    `cosines` [B, B] of text i and image j; `matches` [B, B] bool: text i is true of image j. With the identity it is
    the loss of Radford et al. 2021, figure 3; in a small world captions of other images are true too, and calling them
    false would teach their opposite.
    """
    logits = scale * cosines

    def one_way(logits: jax.Array, matches: jax.Array) -> jax.Array:
        target = matches / matches.sum(axis=1, keepdims=True)
        return optax.softmax_cross_entropy(logits, target).mean()

    return (one_way(logits, matches) + one_way(logits.T, matches.T)) / 2


# The loss does not change when all cosines shift. Published CLIPs have them above zero, and rank_reorder takes a root of
# their mean; the weak pull keeps ours there too.
_LEAST_COSINE = 0.1


def contrastive(encoder: ClipEncoder, pairs: Pairs, *, batch: int) -> Task:
    """CLIP's training of both towers of a `ClipEncoder` on images that stay on the device, mirrored at random.

    Raises:
      InputError: fewer pairs than a batch.
    """
    images = ImageSet.from_arrays(pairs.images, name="pairs")
    _enough(images, batch)
    graphdef, params, rest = nnx.split(encoder.model, nnx.Param, ...)

    def loss(params: Any, rest: Any, data: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, tuple[Any, Any]]:
        rows, tokens, matches = batch
        network = nnx.merge(graphdef, params, rest, copy=True)
        faces = encoder.preprocess(views.mirror(key, data[rows]))
        image, text = network.image_features(faces), network.text_features(tokens)
        cosines = unit_rows(text) @ unit_rows(image).T
        scale = jnp.exp(jnp.minimum(network.logit_scale[...], jnp.log(100.0)))  # the paper's ceiling
        below = jnp.maximum(_LEAST_COSINE - cosines, 0.0)
        return contrastive_loss(cosines, scale, matches) + 10.0 * (below**2).mean(), (rest, {"scale": scale})

    def batches(epoch: int, seed: int, first: int) -> Iterator[Any]:
        tokens = pairs.tokens(epoch)
        for rows in epoch_rows(len(images), batch, seed, epoch, first):
            same = np.eye(len(rows), dtype=bool) if pairs.matches is None else pairs.matches(epoch, rows)
            yield rows, tokens[rows], same

    steps = len(images) // batch
    return Task(lambda seed: (params, rest), images.images, loss, batches, steps, batch, "validation_pair_accuracy")


def trained_clip(encoder: ClipEncoder, params: Any, rest: Any) -> ClipEncoder:
    """The encoder with trained towers."""
    return replace(encoder, model=_with(encoder.model, params, rest))
