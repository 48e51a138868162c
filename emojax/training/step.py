"""The training step: gradients, optimizer, moving average; jitted once for all steps and members.

`fit` calls it for every batch. The step is one program over the whole batch, sharded over the mesh,
so BatchNorm sees the global batch on any number of devices. Shapes: B batch.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from emojax.distributed.mesh import (
    batch_sharded,
    parameter_shardings,
    placed_shapes,
    replicated,
)
from emojax.training.recipe import Recipe
from emojax.training.tasks import Loss, Metrics, Task


class State(NamedTuple):
    """All that training changes.

    Attributes:
      params: the parameters.
      rest: other variables of the network, such as BatchNorm's statistics.
      optimizer: its state.
      average: the moving average of the parameters, or None.
    """

    params: PyTree
    rest: PyTree
    optimizer: PyTree
    average: PyTree

    @property
    def shown(self) -> tuple[PyTree, PyTree]:
        """What is validated and saved: the averaged parameters where they are, other variables."""
        return self.params if self.average is None else self.average, self.rest


Step = Callable[..., tuple[State, Metrics]]


@jax.jit
def copy_arrays(tree: PyTree) -> PyTree:
    """The same arrays in memory of their own."""
    return jax.tree.map(jnp.copy, tree)


def first_state(task: Task, recipe: Recipe) -> State:
    """The state that a recipe's training begins with."""
    params, rest = task.start(recipe.seed)
    average = params if recipe.average else None
    # Copies: the step reuses the memory of its state, and a network that was given keeps its own.
    optimizer = jax.jit(recipe.transform().init)(params)
    return copy_arrays(State(params, rest, optimizer, average))


def shapes(
    mesh: Mesh, params: PyTree, rest: PyTree, recipe: Recipe, *, shard: bool
) -> tuple[State, State]:
    """The state of a training as shapes with shardings, and its shardings, for `make_step`.

    Args:
      mesh: the devices, which need not be there.
      params, rest: the network's variables, or their shapes.
      recipe: how it is trained.
      shard: whether parameters and optimizer are sharded.
    """
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        optimizer = jax.eval_shape(recipe.transform().init, params)
    state = State(params, rest, optimizer, params if recipe.average else None)
    shardings = state_shardings(mesh, state, shard=shard)
    return jax.tree.map(placed_shapes, shardings, state), shardings


def step_shapes(mesh: Mesh, state: State, data: PyTree, batch: PyTree) -> tuple[PyTree, ...]:
    """All arguments of a step as shapes: a state of `shapes`, the task's data and a batch."""
    everywhere = replicated(mesh)
    scalars = jax.eval_shape(
        lambda: (jnp.float32(0), jax.random.key(0), jnp.int32(0))
    )  # rate, key, number
    return (
        state,
        placed_shapes(everywhere, data),
        placed_shapes(batch_sharded(mesh), batch),
        *placed_shapes(everywhere, scalars),
    )


# A step's work by what its scopes contain: what JAX calls the passes of a gradient, and ours.
PARTS = {"transpose": "backward", "jvp": "forward", "optimizer": "optimizer"}


def state_shardings(mesh: Mesh, state: State, *, shard: bool) -> State:
    """Where the arrays of a state lie: sharded where the devices divide a side, or replicated."""
    if shard:
        return parameter_shardings(mesh, state)
    return jax.tree.map(lambda _: replicated(mesh), state)


def make_step(loss: Loss, recipe: Recipe, mesh: Mesh, shardings: State) -> Step:
    """The jitted step: (state, data, batch, rate, key, number) → (state, metrics).

    Its arguments are a member's state, whose memory is reused, the task's data and batch, the
    learning rate [], the member's random key, and the number of the step since the beginning [].

    Called again with what compiles to the same program, it gives the same object: seed, learning
    rate and length of a recipe are no part of it.
    """
    leaves, structure = jax.tree.flatten(shardings)
    program = recipe.model_copy(update={"seed": 0, "learning_rate": 1.0, "epochs": 1})
    return _jitted_step(
        loss,
        program,  # pyright: ignore[reportArgumentType] - pydantic gives frozen models a hash
        mesh,
        structure,
        tuple(leaves),
    )


@functools.lru_cache(maxsize=8)
def _jitted_step(
    loss: Loss,
    recipe: Recipe,
    mesh: Mesh,
    structure: Any,  # a PyTreeDef, which jax gives no type that a checker knows
    sharding_leaves: tuple[jax.sharding.NamedSharding, ...],
) -> Step:
    transform = recipe.transform()

    def step(
        state: State,
        data: PyTree,
        batch: PyTree,
        rate: Float[Array, ""],
        key: PRNGKeyArray,
        number: Int[Array, ""],
    ) -> tuple[State, Metrics]:
        # The step's randomness follows from seed and number alone: a resumed training draws the
        # same.
        key = jax.random.fold_in(key, number)
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, (rest, metrics)), grads = gradient(state.params, state.rest, data, batch, key)
        with jax.named_scope("optimizer"):
            with jax.numpy_dtype_promotion("standard"):  # optax relies on it
                updates, optimizer = transform.update(grads, state.optimizer, state.params)
            params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        average = state.average
        if recipe.average:
            # The decay rises to the recipe's: with few steps behind it, the average would else
            # consist of the random start.
            steps = number.astype(jnp.float32)
            decay = jnp.minimum(recipe.average, (1.0 + steps) / (10.0 + steps))
            average = jax.tree.map(lambda a, p: a + (1.0 - decay) * (p - a), average, params)
        return State(params, rest, optimizer, average), {"loss": value, **metrics}

    shardings = jax.tree.unflatten(structure, sharding_leaves)
    everywhere = replicated(mesh)
    return jax.jit(
        step,
        in_shardings=(
            shardings,
            everywhere,
            batch_sharded(mesh),
            everywhere,
            everywhere,
            everywhere,
        ),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
        compiler_options=_compiler_options(mesh),
    )


# YNNPACK for single matrix products alone. By default it also makes convolutions, those of up to 64
# units on one thread; XLA's other library, Eigen, takes all that a device has.
_CONVOLUTIONS_ON_THREADS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
}


def _compiler_options(mesh: Mesh) -> dict[str, str]:
    """What XLA is told beside the program: something for a CPU whose cores are one device."""
    if mesh.size > 1 or mesh.devices.flat[0].platform != "cpu":
        return {}
    options = _CONVOLUTIONS_ON_THREADS
    return options if _is_known(*options.items()) else {}


@functools.cache
def _is_known(*options: tuple[str, str]) -> bool:
    """Whether this version of XLA takes the options, which are experimental."""
    try:
        jax.jit(jnp.negative, compiler_options=dict(options)).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def gather(mesh: Mesh, tree: PyTree) -> PyTree:
    """A pytree of arrays, sharded or not, with every array whole on every device."""
    return _gather(mesh)(tree)


@functools.lru_cache(maxsize=2)
def _gather(mesh: Mesh) -> Callable[[PyTree], PyTree]:
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
