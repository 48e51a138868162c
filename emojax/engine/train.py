"""Trains networks: one jitted step, data-parallel over the mesh, seeded from end to end.

A `Task` says what is learnt as pure functions of parameters; `fit` runs its epochs. Batches are split over the mesh and
parameters copied to every device; as the step is one program over the whole batch, BatchNorm sees the global batch.
Shapes: I images, B batch, S steps.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from emojax.data.loader import ImageSet
from emojax.data.weights import ClipEncoder, unit_rows
from emojax.engine.evaluate import labelled
from emojax.errors import InputError
from emojax.mesh import copied, make_mesh, put_copy, split
from emojax.models.vgg import VggNet

Optimizer = Literal["sgd", "adamw"]


class State(NamedTuple):
    """Everything that training changes: parameters, other variables (BatchNorm), optimizer, average of weights, steps."""

    params: Any
    rest: Any
    optimizer: Any
    average: Any
    step: jax.Array


@dataclass(frozen=True)
class Task:
    """What is learnt.

    Attributes:
      params: parameters to train; rest: other variables of the network.
      data: arrays that stay on the device, or None.
      loss: (params, rest, data, batch, key) → (loss, (rest, metrics as scalars)).
      batches: epoch → batches, pytrees of host arrays with the batch along the first axis, of one shape.
      steps: batches in an epoch; batch: images in each.
    """

    params: Any
    rest: Any
    data: Any
    loss: Callable[[Any, Any, Any, Any, jax.Array], tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]]
    batches: Callable[[int], Iterator[Any]]
    steps: int
    batch: int


@dataclass(frozen=True)
class Recipe:
    """How it is learnt.

    Attributes:
      epochs: passes over the training set.
      optimizer: `sgd` with Nesterov momentum, decay added to the gradient as in PyTorch; or `adamw`.
      learning_rate: its peak.
      warmup: share of the steps over which the rate rises to its peak; it then falls along a cosine to zero.
      weight_decay: on kernels only for adamw, on all parameters for sgd, as in PyTorch.
      momentum: of sgd.
      average: decay of the exponential moving average of the weights that is kept in the end; 0 keeps the last weights.
      seed: of data order, augmentation and dropout.
    """

    epochs: int
    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 1e-4
    momentum: float = 0.9
    average: float = 0.0
    seed: int = 0

    def transform(self) -> optax.GradientTransformation:
        """Gradients to descent directions; the step scales them by the learning rate."""
        if self.optimizer == "sgd":
            return optax.chain(optax.add_decayed_weights(self.weight_decay), optax.trace(self.momentum, nesterov=True))
        return optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(self.weight_decay, mask=_is_kernel))

    def rates(self, steps: int) -> np.ndarray:
        """Learning rate of each of `steps` steps, float32, on the host: nothing in the loop waits for it."""
        rise = int(self.warmup * steps)
        schedule = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, rise, max(steps, rise + 1))
        return np.asarray(jax.vmap(schedule)(jnp.arange(steps) + (rise > 0)), np.float32)


def _is_kernel(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


@dataclass(frozen=True)
class Result:
    """Trained variables and one row of metrics per epoch."""

    params: Any
    rest: Any
    history: list[dict[str, float]]


def make_step(task: Task, recipe: Recipe, mesh: Mesh) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
    """The jitted step: (state, data, batch, learning rate, key) → (state, metrics); the state's buffers are reused."""
    transform = recipe.transform()

    def step(state: State, data: Any, batch: Any, rate: jax.Array, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        key = jax.random.fold_in(key, state.step)
        value, grads = jax.value_and_grad(task.loss, has_aux=True)(state.params, state.rest, data, batch, key)
        loss, (rest, metrics) = value
        updates, optimizer = transform.update(grads, state.optimizer, state.params)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        average = state.average
        if recipe.average:  # the first steps count more, or the average would remember the random start
            decay = jnp.minimum(recipe.average, (1.0 + state.step) / (10.0 + state.step))
            average = jax.tree.map(lambda a, p: a + (1.0 - decay) * (p - a), average, params)
        return State(params, rest, optimizer, average, state.step + 1), {"loss": loss, **metrics}

    whole, parts = copied(mesh), split(mesh)
    return jax.jit(step, in_shardings=(whole, whole, parts, whole, whole), out_shardings=(whole, whole), donate_argnums=0)


def fit(
    task: Task,
    recipe: Recipe,
    *,
    mesh: Mesh | None = None,
    validate: Callable[[Any, Any], dict[str, float]] | None = None,
    report: Callable[[dict[str, float]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Runs the recipe.

    `validate(params, rest)` gives metrics after each epoch, `report` gets each epoch's row. Metrics of a step are read
    only after the next one is on its way, so the device never waits.

    Raises:
      InputError: the batch does not divide over the devices, or the loss is not finite.
    """
    mesh = mesh or make_mesh()
    if task.batch % mesh.size:
        raise InputError(
            f"a batch of {task.batch} does not divide over {mesh.size} devices; choose a multiple of {mesh.size}"
        )
    step, total = make_step(task, recipe, mesh), recipe.epochs * task.steps
    rates, key = recipe.rates(total), jax.random.key(recipe.seed)
    average = jax.tree.map(jnp.copy, task.params) if recipe.average else None
    state = State(task.params, task.rest, recipe.transform().init(task.params), average, jnp.zeros((), jnp.int32))
    state, data = put_copy(mesh, jax.tree.map(jnp.copy, state)), put_copy(mesh, task.data)
    history, done = [], 0
    for epoch in range(recipe.epochs):
        start, sums, waiting = time.perf_counter(), {}, None
        for batch in task.batches(epoch):
            state, metrics = step(state, data, jax.device_put(batch, split(mesh)), rates[done], key)
            done += 1
            _add(sums, waiting)
            waiting = metrics
            if progress is not None:
                progress(done, total)
        _add(sums, waiting)
        row = {"epoch": epoch + 1, **{name: value / task.steps for name, value in sums.items()}}
        row |= {"learning_rate": float(rates[done - 1]), "seconds": time.perf_counter() - start}
        if validate is not None:
            row |= validate(state.params if average is None else state.average, state.rest)
        for name, value in row.items():
            if not np.isfinite(value):
                raise InputError(
                    f"the {name.replace('_', ' ')} is {value} in epoch {epoch + 1}; lower --train.learning-rate"
                )
        history.append(row)
        if report is not None:
            report(row)
    return Result(state.params if average is None else state.average, state.rest, history)


def _add(sums: dict[str, float], metrics: dict[str, jax.Array] | None) -> None:
    for name, value in (metrics or {}).items():
        sums[name] = sums.get(name, 0.0) + float(value)


# Classification


def epoch_rows(images: int, batch: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Shuffled batches [B] int32 of image indices; the last images that fill no batch wait for another epoch's order."""
    order = np.random.default_rng([seed, epoch]).permutation(images).astype(np.int32)
    return (order[at : at + batch] for at in range(0, images - batch + 1, batch))


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors every other image [B, H, W, C] at random."""
    return jnp.where(jax.random.bernoulli(key, shape=(len(images), 1, 1, 1)), images[:, :, ::-1], images)


def classifier(model: VggNet, images: ImageSet, *, batch: int, seed: int, label_smoothing: float = 0.0) -> Task:
    """Cross-entropy on a labelled set that stays on the device; each batch is gathered and mirrored at random there.

    Raises:
      InputError: the set has no labels, other classes than the network, or fewer images than a batch.
    """
    labels = labelled(images, model.config.classes)
    _enough(images, batch)
    model.train()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    model.eval()

    def loss(params: Any, rest: Any, data: Any, rows: jax.Array, key: jax.Array) -> tuple[jax.Array, tuple[Any, Any]]:
        network = nnx.merge(graphdef, params, rest, copy=True)  # a copy: BatchNorm's statistics are written inside
        flip_key, drop_key = jax.random.split(key)
        x = network.preprocess(random_flip(flip_key, data[0][rows]))
        logits, _ = network(x, rngs=nnx.Rngs(dropout=drop_key))
        target = optax.smooth_labels(jax.nn.one_hot(data[1][rows], logits.shape[-1]), label_smoothing)
        accuracy = (logits.argmax(axis=-1) == data[1][rows]).mean()
        return optax.softmax_cross_entropy(logits, target).mean(), (
            nnx.state(network, nnx.Not(nnx.Param)),
            {"accuracy": accuracy},
        )

    resident = (np.asarray(images.images[: len(images)]), np.asarray(labels))
    rows = lambda epoch: epoch_rows(len(images), batch, seed, epoch)  # noqa: E731
    return Task(params, rest, resident, loss, rows, len(images) // batch, batch)


def trained(model: VggNet, result: Result) -> VggNet:
    """The network with trained variables, in eval mode."""
    model = _with(model, result)
    model.eval()
    return model


def _with(model: Any, result: Result) -> Any:
    """A network of the same kind with the result's variables."""
    graphdef = nnx.split(model, nnx.Param, ...)[0]
    return nnx.merge(graphdef, *jax.tree.map(np.asarray, (result.params, result.rest)))


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


def contrastive(encoder: ClipEncoder, pairs: Pairs, *, batch: int, seed: int) -> Task:
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
        faces = encoder.preprocess(random_flip(key, data[rows]))
        image, text = network.image_features(faces), network.text_features(tokens)
        cosines = unit_rows(text) @ unit_rows(image).T
        scale = jnp.exp(jnp.minimum(network.logit_scale[...], jnp.log(100.0)))  # the paper's ceiling
        below = jnp.maximum(_LEAST_COSINE - cosines, 0.0)
        return contrastive_loss(cosines, scale, matches) + 10.0 * (below**2).mean(), (rest, {"scale": scale})

    def batches(epoch: int) -> Iterator[Any]:
        tokens = pairs.tokens(epoch)
        for rows in epoch_rows(len(images), batch, seed, epoch):
            same = np.eye(len(rows), dtype=bool) if pairs.matches is None else pairs.matches(epoch, rows)
            yield rows, tokens[rows], same

    return Task(params, rest, images.images, loss, batches, len(images) // batch, batch)


def trained_clip(encoder: ClipEncoder, result: Result) -> ClipEncoder:
    """The encoder with trained towers."""
    return replace(encoder, model=_with(encoder.model, result))
