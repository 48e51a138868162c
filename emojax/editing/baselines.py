"""Gains learned from labels: what the best gains on a layer's units could do, as a yardstick for gains from concepts.

Shapes: I images, U units, T tile.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from emojax.distributed.mesh import batch_sharded, make_mesh, put_replicated, put_sharded, replicated
from emojax.editing.activations import LayerInputs, Progress
from emojax.ops import gains as ops
from emojax.ops.gains import Scope


def learn_gains(
    inputs: LayerInputs,
    *,
    scope: Scope = "weights",
    pull: float = 1.0,
    epochs: int = 10,
    batch: int = 512,
    rate: float = 0.01,
    seed: int = 0,
    progress: Progress | None = None,
) -> np.ndarray:
    """Fits one gain per unit [U] on a training set by gradient, everything else left as it is.

    Minimises mean NLL + pull · mean(log² gain) with Adam on the logarithms, which keeps gains positive; the pull holds at 1
    what the labels do not ask for. Batches are drawn by `seed`; what is left over of an epoch is dropped.
    """
    mesh, total = make_mesh(), len(inputs.labels)
    batch = max(1, min(batch, total) // mesh.size) * mesh.size
    steps = max(1, total // batch)
    optimizer = optax.adam(rate)

    def loss(logs: jax.Array, params: jax.Array, values: jax.Array, labels: jax.Array) -> jax.Array:
        logits = inputs.after(params, values, ops.with_scope(jnp.exp(logs), scope))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean() + pull * jnp.mean(logs**2)

    def step(state, params, values, labels):
        logs, moments = state
        with jax.default_matmul_precision("highest"):
            gradient = jax.grad(loss)(logs, params, values, labels)
        change, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(logs, change), moments

    whole, parts = replicated(mesh), batch_sharded(mesh)
    train = jax.jit(step, in_shardings=(whole, whole, parts, parts), out_shardings=whole, donate_argnums=0)
    logs = jnp.zeros(inputs.units)
    state, params = put_replicated(mesh, ((logs, optimizer.init(logs)), inputs.params))
    rng = np.random.default_rng(seed)
    for epoch in range(epochs):
        order = rng.permutation(total)
        for at in range(steps):
            rows = np.resize(order[at * batch : (at + 1) * batch], batch)
            state = train(state, params, *put_sharded(mesh, (inputs.values[rows], inputs.labels[rows])))
        if progress is not None:
            progress(epoch + 1, epochs)
    return np.exp(np.asarray(state[0]))
