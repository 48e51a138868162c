"""Gains learned from labels: what the best gains on a layer's units could do.

They are a yardstick for gains from concepts, which see no label.
Shapes: I images, U units, B batch.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from emojax.distributed.mesh import (
    batch_sharded,
    make_mesh,
    put_replicated,
    put_sharded,
    replicated,
)
from emojax.editing.activations import After, PreBiasActivations, Progress
from emojax.editing.search import Scope
from emojax.ops import gains as ops


class _State(NamedTuple):
    """Logarithms of the gains [U], and the optimizer's moments."""

    logs: jax.Array
    moments: optax.OptState


@functools.lru_cache(maxsize=8)
def _step(
    after: After, scope: Scope, pull: float, rate: float, mesh: Mesh
) -> Callable[..., _State]:
    """A step of Adam on a batch, its images sharded over the mesh; compiled once per shape."""
    optimizer = optax.adam(rate)

    def loss(
        logs: Float[Array, " U"],
        params: PyTree,
        values: Float[Array, "B *inner U"],
        labels: Int[Array, " B"],
    ) -> Float[Array, ""]:
        logits = after(params, values, ops.with_scope(jnp.exp(logs), scope))
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return nll + pull * jnp.mean(logs**2)

    def step(state: _State, params: PyTree, values: jax.Array, labels: jax.Array) -> _State:
        with jax.default_matmul_precision("highest"):
            gradient = jax.grad(loss)(state.logs, params, values, labels)
        change, moments = optimizer.update(gradient, state.moments)
        logs = jnp.asarray(optax.apply_updates(state.logs, change))
        return _State(logs, moments)

    whole = replicated(mesh)
    rows = batch_sharded(mesh)
    return jax.jit(
        step, in_shardings=(whole, whole, rows, rows), out_shardings=whole, donate_argnums=0
    )


def learn_gains(
    activations: PreBiasActivations,
    *,
    scope: Scope = "weights",
    pull: float = 1.0,
    epochs: int = 10,
    batch: int = 512,
    rate: float = 0.01,
    seed: int = 0,
    progress: Progress | None = None,
) -> Float[np.ndarray, " U"]:
    """Fits one gain per unit on a training set by gradient, everything else left as it is.

    Minimises mean NLL + pull · mean(log² gain) with Adam on the logarithms, which keeps gains
    positive; the pull holds at 1 what the labels do not ask for. Batches are drawn by `seed`; what
    is left over of an epoch is dropped. `progress` hears of epochs.
    """
    mesh = make_mesh()
    total = len(activations.labels)
    batch = max(1, min(batch, total) // mesh.size) * mesh.size
    steps = max(1, total // batch)
    step = _step(activations.after, scope, pull, rate, mesh)
    logs = jnp.zeros(activations.units)
    state = put_replicated(mesh, _State(logs, optax.adam(rate).init(logs)))
    params = activations.params_on(mesh)
    rng = np.random.default_rng(seed)
    for epoch in range(epochs):
        order = rng.permutation(total)
        for number in range(steps):
            # A set smaller than the devices are many repeats its images to fill a batch.
            rows = np.resize(order[number * batch : (number + 1) * batch], batch)
            chosen = (activations.values[rows], activations.labels[rows])
            # A step at a time: queued programs whose devices wait for each other starve a CPU.
            state = jax.block_until_ready(step(state, params, *put_sharded(mesh, chosen)))
        if progress is not None:
            progress(epoch + 1, epochs)
    return np.exp(np.asarray(state.logs))
