"""Trains networks: one jitted step, data-parallel over the mesh, seeded from end to end, resumable to the bit.

A `Task` (training/tasks.py) says what is learnt as pure functions of parameters; `fit` runs its epochs by a `Recipe`, or by
several that differ in seed and learning rate, all in one program. Batches are split over the mesh; as the step is one
program over the whole batch, BatchNorm sees the global batch. Shapes: B batch.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from emojax.distributed.mesh import (
    batch_sharded,
    make_mesh,
    parameter_shardings,
    put,
    put_replicated,
    put_sharded,
    replicated,
)
from emojax.errors import InputError
from emojax.training.checkpoints import Checkpoints
from emojax.training.recipe import Recipe

Row = dict[str, float]


class State(NamedTuple):
    """All that training changes: parameters, other variables (BatchNorm), optimizer, moving average of the parameters."""

    params: Any
    rest: Any
    optimizer: Any
    average: Any


@dataclass(frozen=True)
class Task:
    """What is learnt.

    Attributes:
      start: seed → (parameters, other variables of the network) to begin with.
      data: arrays that stay on the device, or None.
      loss: (params, rest, data, batch, key) → (loss, (rest, metrics as scalars)).
      batches: (epoch, seed, first step) → the epoch's batches from that step on, pytrees of host arrays with the batch
        along the first axis, of one shape.
      steps: batches in an epoch; batch: images in each.
      watch: the metric of `validate` by which the best epoch is chosen, higher is better.
    """

    start: Callable[[int], tuple[Any, Any]]
    data: Any
    loss: Callable[
        [Any, Any, Any, Any, jax.Array], tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]
    ]
    batches: Callable[[int, int, int], Iterator[Any]]
    steps: int
    batch: int
    watch: str = "validation_accuracy"


class Plateau:
    """PyTorch's ReduceLROnPlateau(mode="max", factor=0.75, patience=5), by optax; its state is plain numbers.

    PyTorch lowers the rate when more than `patience` epochs are no better, optax when as many are. PyTorch's threshold
    of 1e-4 of the best is less than one image of any set below 10,000.
    """

    def __init__(self, numbers: Sequence[float] | None = None):
        self._rule = optax.contrib.reduce_on_plateau(factor=0.75, patience=6, rtol=0.0, atol=1e-7)
        state = self._rule.init({})
        if numbers is not None:
            state = type(state)(
                *(jnp.asarray(x, like.dtype) for x, like in zip(numbers, state, strict=True))
            )
        self._state = state

    def scale(self, value: float) -> float:
        """What the peak rate is multiplied by after an epoch that reached this value."""
        _, self._state = self._rule.update({}, self._state, value=jnp.float32(-value))
        return float(self._state.scale)

    def numbers(self) -> list[float]:
        """The state, for a checkpoint."""
        return [float(np.float32(x)) for x in self._state]


@dataclass(frozen=True)
class Result:
    """A trained member.

    Attributes:
      params, rest: variables after the best epoch by the task's watched metric, the last epoch without one.
      last: (params, rest) after the last epoch.
      history: a row of metrics per epoch.
      best_epoch: counted from 1.
    """

    params: Any
    rest: Any
    last: tuple[Any, Any]
    history: list[Row]
    best_epoch: int


def make_step(task: Task, recipe: Recipe, mesh: Mesh, placement: State) -> Callable[..., Any]:
    """The step: (states, data, batches, rates, keys, step number) → (states, metrics), lists over the members.

    Members are worked on in turn, by one jitted function: a loop inside the program (`lax.map`) would be several times
    slower on a CPU, where XLA runs convolutions in loops on one thread. `placement` holds the shardings of a state,
    whose buffers are reused.
    """
    transform = recipe.transform()

    def one(
        state: State, data: Any, batch: Any, rate: jax.Array, key: jax.Array, at: jax.Array
    ) -> Any:
        key = jax.random.fold_in(key, at)
        value, grads = jax.value_and_grad(task.loss, has_aux=True)(
            state.params, state.rest, data, batch, key
        )
        loss, (rest, metrics) = value
        updates, optimizer = transform.update(grads, state.optimizer, state.params)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        average = state.average
        if (
            recipe.average
        ):  # the first steps count more, or the average would remember the random start
            decay = jnp.minimum(recipe.average, (1.0 + at) / (10.0 + at))
            average = jax.tree.map(lambda a, p: a + (1.0 - decay) * (p - a), average, params)
        return State(params, rest, optimizer, average), {"loss": loss, **metrics}

    whole, parts = replicated(mesh), batch_sharded(mesh)
    step = jax.jit(
        one,
        in_shardings=(placement, whole, parts, whole, whole, whole),
        out_shardings=(placement, whole),
        donate_argnums=0,
    )

    def in_turn(
        states: Sequence[State], data: Any, batches: Any, rates: Any, keys: Any, at: Any
    ) -> Any:
        found = [
            step(*own, at)
            for own in zip(states, [data] * len(states), batches, rates, keys, strict=True)
        ]
        return [state for state, _ in found], [metrics for _, metrics in found]

    return in_turn


def fit(
    task: Task,
    recipes: Recipe | Sequence[Recipe],
    *,
    mesh: Mesh | None = None,
    shard: bool = False,
    validate: Callable[[Any, Any], Row] | None = None,
    report: Callable[[Row], None] | None = None,
    progress: Callable[..., None] | None = None,
    checkpoints: Path | None = None,
    save_every: float = 300.0,
) -> list[Result]:
    """Runs one recipe, or several that differ in seed and learning rate; one result for each.

    `validate(params, rest)` gives metrics after each epoch; `report` gets every member's row, with its number when there
    are several. `progress(images done, of, note)` is called for every step. With `shard`, parameters and optimizer are
    split over the devices where a side divides, else every device holds a copy. In the folder `checkpoints` the state is
    kept after every epoch and every `save_every` seconds, written in the background; a run that was killed goes on from
    there and ends with the same bits. Metrics of a step are read only after the next one is on its way, so the device
    never waits.

    Raises:
      InputError: the batch does not divide over the devices, recipes differ in more than seed and rate, a number is not
        finite, or a checkpoint is damaged or from another program.
    """
    recipes = [recipes] if isinstance(recipes, Recipe) else list(recipes)
    mesh, recipe = mesh or make_mesh(), recipes[0]
    same = {"seed": 0, "learning_rate": 1.0}
    if any(each.model_copy(update=same) != recipe.model_copy(update=same) for each in recipes):
        raise InputError(
            "recipes that run in one program may differ in seed and learning rate only"
        )
    if task.batch % mesh.size:
        raise InputError(
            f"a batch of {task.batch} does not divide over {mesh.size} devices; choose a multiple of {mesh.size}"
        )
    total, notes = recipe.epochs * task.steps, _Notes(len(recipes))
    states = [start(task, each) for each in recipes]
    placement = (
        parameter_shardings(mesh, states[0])
        if shard
        else jax.tree.map(lambda _: replicated(mesh), states[0])
    )
    states, data = (
        [put(mesh, state, placement) for state in states],
        put_replicated(mesh, task.data),
    )
    best = [_copy(_shown(state)) for state in states]
    whole = (
        jax.jit(lambda tree: tree, out_shardings=replicated(mesh)) if shard else lambda tree: tree
    )
    keys, rates = (
        [jax.random.key(each.seed) for each in recipes],
        [each.rates(total) for each in recipes],
    )
    with Checkpoints(checkpoints) as store:
        found = store.restore((states, best))
        if found is not None:
            (states, best), kept = found
            notes.read(kept)
        step, saved = make_step(task, recipe, mesh, placement), time.monotonic()
        while notes.done < total:
            epoch, at = divmod(notes.done, task.steps)
            now = [own * np.float32(scale) for own, scale in zip(rates, notes.scales, strict=True)]
            waiting = None
            notes.start()
            for batches in zip(
                *(task.batches(epoch, each.seed, at) for each in recipes), strict=True
            ):
                here = put_sharded(mesh, list(batches))
                states, metrics = step(
                    states, data, here, [own[notes.done] for own in now], keys, np.int32(notes.done)
                )
                notes.add(waiting)
                notes.done, waiting = notes.done + 1, metrics
                if progress is not None:
                    images = task.batch * len(recipes)
                    progress(notes.done * images, total * images, notes.line(task.steps))
                # Several processes would not agree on the time, and all must save together: they save after epochs only.
                due = jax.process_count() == 1 and time.monotonic() - saved > save_every
                if due and notes.done % task.steps:
                    notes.add(waiting)
                    waiting, saved = None, time.monotonic()
                    store.save(notes.done, (states, best), notes.write())
            notes.add(waiting)
            rows = notes.rows(task, [float(own[notes.done - 1]) for own in now], epoch + 1)
            for state, row in zip(states, rows, strict=True):
                if validate is not None:
                    row.update(validate(*whole(_shown(state))))
                _check_finite(row)
            for member in notes.close(rows, task.watch, plateau=recipe.schedule == "plateau"):
                best[member] = _copy(_shown(states[member]))
            store.save(notes.done, (states, best), notes.write())
            saved = time.monotonic()
            for member, row in enumerate(rows if report is not None else ()):
                report(({"member": member} if len(recipes) > 1 else {}) | row)
    last = [whole(_shown(state)) for state in states]
    best = [whole(each) for each in best]
    return [
        Result(*each)
        for each in zip(
            *zip(*best, strict=True), last, notes.history, notes.best_epoch, strict=True
        )
    ]


def start(task: Task, recipe: Recipe) -> State:
    """The first state of a member."""
    params, rest = task.start(recipe.seed)
    # Copies: the step reuses the buffers of its state, and the network that was given keeps its own.
    return _copy(
        State(params, rest, recipe.transform().init(params), params if recipe.average else None)
    )


def _shown(state: State) -> tuple[Any, Any]:
    """What is validated and kept: parameters, their average where there is one, and the other variables."""
    return state.params if state.average is None else state.average, state.rest


def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def _check_finite(row: Row) -> None:
    for name, value in row.items():
        if not np.isfinite(value):
            raise InputError(
                f"the {name.replace('_', ' ')} is {value} in epoch {row['epoch']:.0f}; lower --train.learning-rate"
            )


class _Notes:
    """What the loop remembers beside the arrays: sums of the running epoch, history, the best, plateaus; JSON for a file."""

    def __init__(self, members: int):
        self.done, self.seconds = 0, 0.0
        self._started = 0.0
        self.sums: dict[str, list[float]] = {}
        self.history: list[list[Row]] = [[] for _ in range(members)]
        self.best: list[float | None] = [None] * members
        self.best_epoch = [0] * members
        self.scales = [1.0] * members
        self._plateaus = [Plateau() for _ in range(members)]

    def start(self) -> None:
        """Starts the clock of an epoch, or of the rest of one."""
        self._started = time.perf_counter()

    def add(self, metrics: Sequence[dict[str, jax.Array]] | None) -> None:
        """Adds a step's metrics of every member."""
        for member, found in enumerate(metrics or ()):
            for name, value in found.items():
                self.sums.setdefault(name, [0.0] * len(self.scales))[member] += float(value)

    def line(self, steps: int) -> str:
        """Means of the running epoch, over the members, for the bar."""
        counted = max(1, (self.done - 1) % steps)
        return ", ".join(
            f"{name} {np.mean(values) / counted:.3f}" for name, values in self.sums.items()
        )

    def rows(self, task: Task, rates: Sequence[float], epoch: int) -> list[Row]:
        """The finished epoch's row of every member; empties the sums."""
        seconds = self.seconds + time.perf_counter() - self._started
        speed = task.steps * task.batch * len(self.scales) / seconds
        rows = [
            {"epoch": epoch}
            | {name: values[member] / task.steps for name, values in self.sums.items()}
            | {"learning_rate": rate, "seconds": seconds, "images_per_second": speed}
            for member, rate in enumerate(rates)
        ]
        self.sums, self.seconds = {}, 0.0
        return rows

    def close(self, rows: list[Row], watch: str, *, plateau: bool) -> list[int]:
        """Takes an epoch's rows in; names the members that got better (all of them where nothing is watched)."""
        better = []
        for member, row in enumerate(rows):
            self.history[member].append(row)
            value, best = row.get(watch), self.best[member]
            if value is None or best is None or value > best:
                better.append(member)
                self.best[member], self.best_epoch[member] = value, int(row["epoch"])
            if plateau and value is not None:
                self.scales[member] = self._plateaus[member].scale(value)
        return better

    def write(self) -> dict[str, Any]:
        names = ("done", "sums", "history", "best", "best_epoch", "scales")
        # A copy: it is written in the background, while training goes on.
        kept = copy.deepcopy({name: getattr(self, name) for name in names})
        kept["plateaus"] = [plateau.numbers() for plateau in self._plateaus]
        running = time.perf_counter() - self._started if self.sums else 0.0
        return kept | {"seconds": self.seconds + running}

    def read(self, kept: dict[str, Any]) -> None:
        self._plateaus = [Plateau(numbers) for numbers in kept["plateaus"]]
        for name in kept.keys() - {"plateaus"}:
            setattr(self, name, kept[name])
