"""What a training learns, as pure functions: the contract between the tasks and the loop.

`classifiers` and `contrastive` make tasks, `fit` trains them. Shapes: I images, B batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from emojax.data.image_set import ImageSet
from emojax.errors import InputError

Start = Callable[[int], tuple[PyTree, PyTree]]
Metrics = dict[str, Float[Array, ""]]
Loss = Callable[
    [PyTree, PyTree, PyTree, PyTree, PRNGKeyArray], tuple[Float[Array, ""], tuple[PyTree, Metrics]]
]
_Module = TypeVar("_Module", bound=nnx.Module)


@dataclass(frozen=True)
class Task:
    """What is learnt.

    Attributes:
      start: seed → (parameters, other variables of the network) to begin with.
      data: arrays that stay on the device, or None.
      loss: (parameters, other variables, data, batch, key) → (loss, (other variables, metrics)).
        The program of a step is cached by this function: one object for one architecture.
      batches: (epoch, seed, first step) → the epoch's batches from that step on, pytrees of host
        arrays with the batch along the first axis, all of one shape.
      steps: batches in an epoch.
      batch: images in a batch.
      watch: the validation metric that the best epoch is chosen by; higher is better.
    """

    start: Start
    data: PyTree
    loss: Loss
    batches: Callable[[int, int, int], Iterator[PyTree]]
    steps: int
    batch: int
    watch: str = "validation_accuracy"


def epoch_rows(
    images: int, batch: int, seed: int, epoch: int, first: int = 0
) -> Iterator[Int[np.ndarray, " B"]]:
    """Shuffled batches [B] int32 of image indices, from batch `first` on.

    The order depends on seed and epoch alone, so a resumed epoch goes through the same batches. The
    last images that fill no batch are left out of this epoch.
    """
    order = np.random.default_rng([seed, epoch]).permutation(images).astype(np.int32)
    starts = range(first * batch, images - batch + 1, batch)
    return (order[start : start + batch] for start in starts)


def start_from(model: nnx.Module) -> Start:
    """Every seed begins with the variables of this network."""
    _, params, rest = nnx.split(model, nnx.Param, ...)
    return lambda seed: (params, rest)


def start_fresh(build: Callable[[int], nnx.Module]) -> Start:
    """Every seed begins with its own random network."""
    # Jitted: drawing the weights one array at a time takes ten times as long.
    return lambda seed: start_from(nnx.jit(lambda: build(seed))())(seed)


def with_variables(model: _Module, params: PyTree, rest: PyTree) -> _Module:
    """A network of the same kind with these variables, held in host memory."""
    graphdef = nnx.split(model, nnx.Param, ...)[0]
    return nnx.merge(graphdef, *jax.tree.map(np.asarray, (params, rest)))


def check_fills_a_batch(images: ImageSet, batch: int) -> None:
    """Refuses a batch that the images do not fill.

    Raises:
      InputError: there are fewer images than that.
    """
    if len(images) < batch:
        raise InputError(
            f"{images.name} has {len(images)} images, fewer than a batch; "
            f"--train.batch {batch} is too many"
        )
