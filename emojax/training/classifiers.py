"""Training of expression classifiers: new networks, their loss as a task, and the whole run.

`train_classifiers` is what `emojax train` calls for every network but CLIP. Shapes: I images, B
batch, V views of an image, C classes.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from emojax.data.image_set import ImageSet
from emojax.data.loader import stream
from emojax.models.compact import CompactConfig, CompactNet
from emojax.models.deep_emotion import DeepEmotion, DeepEmotionConfig
from emojax.models.vgg import HIDDEN, VggConfig, VggNet
from emojax.models.vit import Vit, VitConfig
from emojax.ops import augment as views
from emojax.ops.image import to_gray, to_unit
from emojax.training import tasks
from emojax.training.evaluate import Protocol, evaluate, labelled
from emojax.training.fit import Progress, Report, Result, fit
from emojax.training.recipe import Recipe
from emojax.training.tasks import Loss, Metrics, Start, Task
from emojax.training.training_log import Row

Classifier = VggNet | DeepEmotion | CompactNet | Vit
Architecture = Literal["vgg", "deep_emotion", "compact", "vit"]
Size = Literal["paper", "small"]
Precision = Literal["float32", "bfloat16"]
_Network = TypeVar("_Network", VggNet, DeepEmotion, CompactNet, Vit, Classifier)
RESIDENT = 2 << 30  # bytes of images that a device is asked to hold; larger sets are streamed


class TrainedClassifier(NamedTuple):
    """A classifier after its best epoch, in eval mode, and the result that it is from."""

    model: Classifier
    result: Result


def new_network(
    architecture: Architecture, images: ImageSet, seed: int, *, size: Size = "small"
) -> Classifier:
    """A random network for a labelled set, its outputs named after the set's classes.

    Args:
      architecture: which of the networks.
      images: the set; a Deep-Emotion also takes its number of channels from it.
      seed: of the weights.
      size: the network in full, or a small one of the same layers (not of Deep-Emotion and ViT).
    """
    rngs = nnx.Rngs(seed)
    classes = len(images.classes)
    if architecture == "deep_emotion":
        channels = images.images.shape[-1]
        config = DeepEmotionConfig(channels, classes, class_names=images.classes)
        return DeepEmotion(config, rngs=rngs)
    if architecture == "vit":
        return Vit(VitConfig.small(classes, images.classes), rngs=rngs)
    if architecture == "compact":
        widths = CompactConfig() if size == "paper" else CompactConfig.small()
        return CompactNet(replace(widths, classes=classes, class_names=images.classes), rngs=rngs)
    sizes = VggConfig.paper() if size == "paper" else VggConfig.small()
    return VggNet(replace(sizes, classes=classes, class_names=images.classes), rngs=rngs)


def with_new_head(model: VggNet, seed: int) -> VggNet:
    """A copy whose dense layers are random by `seed`; the convolutions stay: transfer learning."""
    copy = nnx.clone(model)
    fresh = VggNet(model.config, rngs=nnx.Rngs(seed))
    for layer in (*HIDDEN, "lin3"):
        setattr(copy, layer, getattr(fresh, layer))
    return copy


def train_classifiers(
    first: Classifier | Callable[[int], Classifier],
    recipes: Recipe | Sequence[Recipe],
    images: ImageSet,
    validation: ImageSet,
    *,
    batch: int,
    augment: views.Augment = "flip",
    precision: Precision = "float32",
    label_smoothing: float = 0.0,
    protocol: Protocol = "resize40",
    shard: bool = False,
    report: Report | None = None,
    progress: Progress | None = None,
    checkpoints: Path | None = None,
    save_every: float = 300.0,
) -> list[TrainedClassifier]:
    """Trains a network for each recipe; accuracy and NLL on the validation set choose its epoch.

    Args:
      first: the network that every recipe begins with, or a function from a seed to a random one.
      recipes: one, or several that differ in seed and learning rate.
      images: labelled set to train on.
      validation: labelled set that is tested on after every epoch, by `protocol`.
      batch, augment, precision, label_smoothing: as `classification_task` takes them.
      protocol: of the validation.
      shard, report, progress, checkpoints, save_every: as `fit` takes them.

    Raises:
      InputError: as `classification_task`, `fit` and `evaluate` raise it.
    """
    if isinstance(first, Classifier):
        model: Classifier = first
        start = None
    else:
        build = first
        model = nnx.eval_shape(lambda: build(0))  # shapes alone: the weights are each seed's
        start = tasks.start_fresh(build)
    task = classification_task(
        model,
        images,
        batch=batch,
        start=start,
        label_smoothing=label_smoothing,
        augment=augment,
        precision=precision,
    )

    def validate(params: PyTree, rest: PyTree) -> Row:
        summary = evaluate(trained(model, params, rest), validation, protocol=protocol).summary()
        return {"validation_accuracy": summary["top1"], "validation_nll": summary["nll"]}

    results = fit(
        task,
        recipes,
        shard=shard,
        validate=validate,
        report=report,
        progress=progress,
        checkpoints=checkpoints,
        save_every=save_every,
    )
    return [
        TrainedClassifier(trained(model, result.params, result.rest), result) for result in results
    ]


def classification_task(
    model: Classifier,
    images: ImageSet,
    *,
    batch: int,
    start: Start | None = None,
    label_smoothing: float = 0.0,
    augment: views.Augment = "flip",
    precision: Precision = "float32",
    resident: bool | None = None,
) -> Task:
    """Cross-entropy on a labelled set; images are augmented inside the step, on the device.

    Args:
      model: the network, left as it is; of `nnx.eval_shape` where `start` gives the variables.
      images: the set.
      batch: images in a step.
      start: each seed's first variables; None, the network's own for all of them.
      label_smoothing: share of the target that is spread over all classes.
      augment: how a face is turned into views; some give several of each.
      precision: what the network computes in; parameters, statistics of BatchNorm, loss and
        optimizer stay float32.
      resident: whether the images stay on the device, where batches are gathered; otherwise Grain
        streams them, in the same order. None keeps a set of up to 2 GiB.

    Raises:
      InputError: the set has no labels, other classes than the network, or fewer images than a
        batch.
    """
    images = labelled(images, model)
    tasks.check_fills_a_batch(images, batch)
    if resident is None:
        resident = int(np.prod(images.images.shape)) <= RESIDENT
    # Training mode is part of the graph definition. A network of the same variables is put into it,
    # so that the caller's stays in its own mode.
    learner = nnx.merge(*nnx.split(model))
    learner.train()
    graphdef, params, rest = nnx.split(learner, nnx.Param, ...)
    pixels = images.images
    labels = np.asarray(images.labels)

    def batches(epoch: int, seed: int, first: int) -> Iterator[PyTree]:
        rows = tasks.epoch_rows(len(images), batch, seed, epoch, first)
        return rows if resident else stream(pixels, labels, rows)

    return Task(
        start=start or (lambda seed: (params, rest)),
        data=(np.asarray(pixels[: len(images)]), labels) if resident else None,
        loss=_classification_loss(graphdef, label_smoothing, augment, precision, resident),
        batches=batches,
        steps=len(images) // batch,
        batch=batch,
    )


@functools.lru_cache(maxsize=8)
def _classification_loss(
    graphdef: nnx.GraphDef,
    label_smoothing: float,
    augment: views.Augment,
    precision: Precision,
    resident: bool,
) -> Loss:
    """The loss of a task; one object for one architecture, so that its step compiles once."""

    def loss(
        params: PyTree, rest: PyTree, data: PyTree, batch: PyTree, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[PyTree, Metrics]]:
        if precision == "bfloat16":
            params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
        # A copy: BatchNorm writes its statistics into the variables, which are the caller's.
        network = nnx.merge(graphdef, params, rest, copy=True)
        view_key, drop_key = jax.random.split(key)
        # A batch is indices of the resident images [B], or what Grain read: (images, labels).
        pixels, labels = (data[0][batch], data[1][batch]) if resident else batch
        if augment == "flip":
            x = network.preprocess(views.mirror(view_key, pixels))
        else:
            gray = to_gray(pixels) if network.config.channels == 1 else pixels
            size = network.config.input_size
            x = network.normalize(views.augment(augment, view_key, to_unit(gray), size))
        x = x.astype(precision)
        if isinstance(network, Vit):  # which has no dropout
            logits, _ = network(x)
        else:
            logits, _ = network(x, rngs=nnx.Rngs(dropout=drop_key))
        logits = logits.astype(jnp.float32)  # [B · V, C]
        # The views of an image lie side by side and share its label.
        labels = jnp.repeat(labels, len(logits) // len(labels))
        target = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
        rest = nnx.state(network, nnx.Not(nnx.Param))
        accuracy = (logits.argmax(axis=-1) == labels).mean()
        cross_entropy = optax.softmax_cross_entropy(logits, target).mean()
        return cross_entropy, (rest, {"accuracy": accuracy})

    return loss


def trained(model: _Network, params: PyTree, rest: PyTree) -> _Network:
    """A network of the same kind with these variables, in eval mode."""
    network = tasks.with_variables(model, params, rest)
    network.eval()
    return network
