"""What a trained classifier says of faces, batch by batch: probabilities, and what pushed them.

`emojax predict` writes its table from this. Shapes: B faces of a batch, C classes, U units of the
layer before the logits.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree, UInt8

from emojax.distributed.data_parallel import data_parallel, default_tile
from emojax.distributed.mesh import make_mesh, put_batch, put_replicated
from emojax.models.classifier import Classifier, Cuttable, last_hidden, outgoing_weights
from emojax.probing.network import Network


class Prediction(NamedTuple):
    """What a network says of a batch of faces.

    Attributes:
      probabilities: softmax of the logits; NaN where a logit is not finite.
      pushes: of every unit of the layer before the logits, its output times its weight to the
        predicted class: the unit's part in that logit. None for a network without such a layer.
    """

    probabilities: Float[np.ndarray, "B C"]
    pushes: Float[np.ndarray, "B U"] | None

    @property
    def classes(self) -> Int[np.ndarray, " B"]:
        """Predicted classes; ties go to the lower one."""
        return self.probabilities.argmax(axis=1)

    @property
    def margins(self) -> Float[np.ndarray, " B"]:
        """How far the best class's probability lies above the second's."""
        second, best = np.sort(self.probabilities, axis=1)[:, -2:].T
        return best - second


def predict(
    model: Classifier | Network,
    batches: Iterable[UInt8[np.ndarray, "B H W channels"]],
    *,
    size: int,
) -> Iterator[Prediction]:
    """Predictions for batches of faces, in order; while one is computed the next is fetched.

    Faces pass through the network in tiles of one size, so what it says of a face has the same bits
    for every `size` and whatever else is in the batch.

    Args:
      model: the network, in eval mode.
      batches: at most `size` images each; fewer only in the last.
      size: images computed at once, rounded up to whole tiles on every device.
    """
    mesh = make_mesh()
    tile = default_tile()
    size = batch_size(size)
    outgoing = None
    if isinstance(model, Network):
        params = put_replicated(mesh, model.params)
        program = data_parallel(_logits(model), mesh, replicated=1, sharded=1, tile=tile)
    else:
        graphdef, state = nnx.split(model)
        params = put_replicated(mesh, state)
        program = _program(graphdef, last_hidden(model), mesh, tile)
        weights = outgoing_weights(model)
        outgoing = None if weights is None else np.asarray(weights)
    running: tuple[dict[str, Array], int] | None = None
    for images in batches:
        padding = [(0, size - len(images)), (0, 0), (0, 0), (0, 0)]
        started = program(params, *put_batch(mesh, np.pad(images, padding)))
        if running is not None:
            yield _fetch(*running, outgoing)
        running = (started, len(images))
    if running is not None:
        yield _fetch(*running, outgoing)


def batch_size(size: int) -> int:
    """`size` images, rounded up to whole tiles on every device."""
    grain = make_mesh().size * default_tile()
    return -(-size // grain) * grain


def _logits(network: Network) -> Callable[[PyTree, Array], dict[str, Array]]:
    """(parameters, uint8 images) → logits of a wrapped network."""

    def outputs(params: PyTree, pixels: UInt8[Array, "T H W channels"]) -> dict[str, Array]:
        return {"logits": network.apply(params, network.preprocess(pixels))[0]}

    return outputs


@functools.lru_cache(maxsize=8)
def _program(
    graphdef: nnx.GraphDef, layer: str | None, mesh: jax.sharding.Mesh, tile: int
) -> Callable[..., Any]:
    """(variables, uint8 images) → logits, and the layer's outputs; compiled once for a network."""

    def outputs(state: PyTree, pixels: UInt8[Array, "T H W channels"]) -> dict[str, Array]:
        network = nnx.merge(graphdef, state)
        images = network.preprocess(pixels)
        if layer is None:
            return {"logits": network(images)[0]}
        # Pushes are of what the product reads: of our own networks, outputs after the ReLU.
        choice: dict[str, Any] = {"taps": "relu"} if isinstance(network, Cuttable) else {}
        logits, taps = network(images, **choice)
        return {"logits": logits, "active": taps[layer]}

    return data_parallel(outputs, mesh, replicated=1, sharded=1, tile=tile)


def _fetch(
    outputs: dict[str, Array], count: int, outgoing: Float[np.ndarray, "U C"] | None
) -> Prediction:
    # In float64 and row by row, on the host: no row's bits depend on the others.
    logits = np.asarray(outputs["logits"], np.float64)[:count]
    with np.errstate(invalid="ignore"):  # logits that overflowed have no probabilities: NaN
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
    if outgoing is None:
        return Prediction(probabilities, None)
    active = np.asarray(outputs["active"])[:count]
    return Prediction(probabilities, active * outgoing.T[probabilities.argmax(axis=1)])
