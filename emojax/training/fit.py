"""The training loop: runs a task by a recipe, or by several recipes whose networks take turns.

A `Task` (`training.tasks`) says what is learnt, a `Recipe` how. The loop is seeded from end to end
and resumes to the bit from its checkpoints. Shapes: B batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from emojax.distributed.mesh import make_mesh, put, put_replicated, put_sharded
from emojax.errors import InputError
from emojax.training.checkpoints import Checkpoints
from emojax.training.recipe import Recipe
from emojax.training.step import copy_arrays, first_state, gather, make_step, state_shardings
from emojax.training.tasks import Metrics, Task
from emojax.training.training_log import Row, TrainingLog

# Bytes of parameters from which a CPU trains faster as one device than as two: it does with the
# 120 MB of the published VGGNet, not with the 4 MB of a compact network.
_LARGE = 1 << 26

Validate = Callable[[PyTree, PyTree], Row]
Report = Callable[[Row], None]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Result:
    """A trained member.

    Attributes:
      params: parameters after the best epoch by the task's watched metric; after the last epoch
        where it is not measured.
      rest: the other variables then.
      last: (parameters, other variables) after the last epoch.
      history: a row of metrics per epoch.
      best_epoch: counted from 1.
    """

    params: PyTree
    rest: PyTree
    last: tuple[PyTree, PyTree]
    history: list[Row]
    best_epoch: int


def fit(
    task: Task,
    recipes: Recipe | Sequence[Recipe],
    *,
    mesh: Mesh | None = None,
    shard: bool = False,
    validate: Validate | None = None,
    report: Report | None = None,
    progress: Progress | None = None,
    checkpoints: Path | None = None,
    save_every: float = 300.0,
) -> list[Result]:
    """Trains one network, or several that differ in seed and learning rate.

    The members (networks) take turns at every step, by one jitted function. A loop inside the
    program (`lax.map`) would be several times slower on a CPU, where XLA runs convolutions in loops
    on one thread.

    Args:
      task: what is learnt.
      recipes: one, or one for each member.
      mesh: the devices that a batch is sharded over; None, those of `training_mesh`.
      shard: shard parameters and optimizer as well, where a side divides over the devices, instead
        of replicating them.
      validate: (parameters, other variables) → metrics, called for each member after every epoch.
      report: called with every member's row after an epoch; with several, the row has its number.
      progress: called after every step with (images done, images in all, a note).
      checkpoints: folder in which the state is saved after every epoch, in the background; a
        training that was stopped resumes from there and ends with the same bits. None saves
        nothing.
      save_every: seconds after which the state is also saved within an epoch.

    Returns:
      A result for each recipe.

    Raises:
      InputError: the batch does not divide over the devices, recipes differ in more than seed and
        rate, a number is not finite, or a checkpoint is damaged or of another program.
    """
    recipes = [recipes] if isinstance(recipes, Recipe) else list(recipes)
    states = [first_state(task, recipe) for recipe in recipes]
    mesh = mesh or training_mesh(states[0].params, shard=shard)
    _check(task, recipes, mesh)
    total = recipes[0].epochs * task.steps
    images = task.batch * len(recipes)
    keys = [jax.random.key(recipe.seed) for recipe in recipes]
    schedules = [recipe.rates(total) for recipe in recipes]
    shardings = state_shardings(mesh, states[0], shard=shard)
    states = [put(mesh, state, shardings) for state in states]
    best = [copy_arrays(state.shown) for state in states]
    data = put_replicated(mesh, task.data)
    step = make_step(task.loss, recipes[0], mesh, shardings)
    log = TrainingLog(len(recipes))
    with Checkpoints(checkpoints, save_every) as saved:
        states, best = saved.restore((states, best), log)
        while log.steps < total:
            epoch, first = divmod(log.steps, task.steps)
            rates = _scaled(schedules, log.rate_scales)
            unread: list[Metrics] = []
            log.start_clock()
            for batches in _batches(task, recipes, epoch, first):
                number = log.steps
                metrics = []
                for member, batch in enumerate(put_sharded(mesh, list(batches))):
                    rate = rates[member][number]
                    states[member], values = step(
                        states[member], data, batch, rate, keys[member], np.int32(number)
                    )
                    metrics.append(values)
                # Only now that this step is on its way are the previous one's metrics read: reading
                # waits for the device, which must never wait for the host.
                log.add(unread)
                unread = metrics
                log.steps += 1
                if progress is not None:
                    progress(log.steps * images, total * images, log.progress_note(task.steps))
                if saved.due() and log.steps % task.steps:
                    log.add(unread)
                    unread = []
                    saved.save((states, best), log)
            log.add(unread)
            rows = log.end_epoch(
                task.steps, task.batch, [float(rate[log.steps - 1]) for rate in rates]
            )
            for state, row in zip(states, rows, strict=True):
                if validate is not None:
                    row.update(validate(*_whole(mesh, state.shown, shard)))
                _check_finite(row)
            plateau = recipes[0].schedule == "plateau"
            for member in log.add_epoch(rows, task.watch, plateau=plateau):
                best[member] = copy_arrays(states[member].shown)
            saved.save((states, best), log)
            if report is not None:
                _report(rows, report)
    results = []
    for member, state in enumerate(states):
        params, rest = _whole(mesh, best[member], shard)
        last = _whole(mesh, state.shown, shard)
        results.append(Result(params, rest, last, log.history[member], log.best_epoch[member]))
    return results


def training_mesh(params: PyTree, *, shard: bool = False) -> Mesh:
    """All devices; of a CPU's only one where the parameters are large.

    A CPU's devices share its cores and memory: two fill the gaps that XLA leaves in small networks,
    but each updates parameters of its own, which for many takes longer than the gaps.

    Args:
      params: of the network.
      shard: whether each device updates a part of them, not all.
    """
    mesh = make_mesh()
    on_cpu = mesh.devices.flat[0].platform == "cpu" and jax.process_count() == 1
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    return make_mesh(1) if on_cpu and not shard and size > _LARGE else mesh


def _check(task: Task, recipes: Sequence[Recipe], mesh: Mesh) -> None:
    """Refuses what cannot run.

    Raises:
      InputError: recipes differ in more than seed and rate, or the batch does not divide.
    """
    same = {"seed": 0, "learning_rate": 1.0}
    programs = [recipe.model_copy(update=same) for recipe in recipes]
    if any(program != programs[0] for program in programs):
        raise InputError(
            "recipes that run in one program may differ in seed and learning rate only"
        )
    if task.batch % mesh.size:
        raise InputError(
            f"a batch of {task.batch} does not divide over {mesh.size} devices; "
            f"choose a multiple of {mesh.size}"
        )


def _scaled(schedules: Sequence[np.ndarray], scales: Sequence[float]) -> list[np.ndarray]:
    """Every member's learning rates, multiplied by what its plateaus left of them."""
    return [schedule * np.float32(scale) for schedule, scale in zip(schedules, scales, strict=True)]


def _batches(
    task: Task, recipes: Sequence[Recipe], epoch: int, first: int
) -> Iterator[tuple[PyTree, ...]]:
    """Of every step of an epoch from the `first` on, each member's batch.

    Every member has its own order of the images.
    """
    return zip(*(task.batches(epoch, recipe.seed, first) for recipe in recipes), strict=True)


def _report(rows: Sequence[Row], report: Report) -> None:
    """Reports an epoch's row of every member, with its number where there are several."""
    for member, row in enumerate(rows):
        report(row if len(rows) == 1 else {"member": member} | row)


def _whole(mesh: Mesh, variables: tuple[PyTree, PyTree], shard: bool) -> tuple[PyTree, PyTree]:
    """Variables that every process can read."""
    return gather(mesh, variables) if shard else variables


def _check_finite(row: Row) -> None:
    """Ends a training that has diverged.

    Raises:
      InputError: a metric is not finite.
    """
    for name, value in row.items():
        if not np.isfinite(value):
            raise InputError(
                f"the {name.replace('_', ' ')} is {value} in epoch {row['epoch']:.0f}; "
                "lower --train.learning-rate"
            )
