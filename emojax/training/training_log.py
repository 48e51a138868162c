"""What a training knows beside its arrays: metrics, the best epochs, the plateaus of its schedule.

`fit` fills it step by step; a checkpoint holds it as JSON, from which the training resumes.
"""

import copy
import time
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import ReduceLROnPlateauState

from emojax.training.tasks import Metrics

Row = dict[str, int | float]


class Plateau:
    """PyTorch's ReduceLROnPlateau(mode="max", factor=0.75, patience=5), by optax.

    PyTorch lowers the rate when more than `patience` epochs are no better, optax when as many are.
    PyTorch's threshold of 1e-4 of the best is less than one image of any set below 10,000. What
    `numbers` gave restores the state.
    """

    def __init__(self, numbers: Sequence[float] | None = None):
        self._rule = optax.contrib.reduce_on_plateau(factor=0.75, patience=6, rtol=0.0, atol=1e-7)
        self._state = cast(ReduceLROnPlateauState, self._rule.init({}))
        if numbers is not None:
            values = zip(numbers, self._state, strict=True)
            arrays = [jnp.asarray(number, jnp.asarray(like).dtype) for number, like in values]
            self._state = ReduceLROnPlateauState(*arrays)

    def scale(self, value: float) -> float:
        """What the peak rate is multiplied by after an epoch that reached this value."""
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it
            _, state = self._rule.update({}, self._state, value=jnp.float32(-value))
        self._state = cast(ReduceLROnPlateauState, state)
        return float(np.asarray(self._state.scale))

    def numbers(self) -> list[float]:
        """The state, for a checkpoint."""
        return [float(np.asarray(number, np.float32)) for number in self._state]


class TrainingLog:
    """The log of a training of several members (networks), or of one.

    Attributes:
      steps: done since the beginning of the training.
      history: of each member, a row of metrics per finished epoch.
      best_epoch: of each member, counted from 1.
      rate_scales: of each member, what the recipe's learning rates are multiplied by (plateau).
    """

    def __init__(self, members: int):
        self.steps = 0
        self.history: list[list[Row]] = [[] for _ in range(members)]
        self.best_epoch = [0] * members
        self.rate_scales = [1.0] * members
        self._best_value: list[float | None] = [None] * members
        self._plateaus = [Plateau() for _ in range(members)]
        # Of the running epoch: each metric's sum over its steps, and the seconds until it stopped.
        self._sums: dict[str, list[float]] = {}
        self._seconds_before = 0.0
        self._clock = 0.0

    def start_clock(self) -> None:
        """Starts the clock of an epoch, or of the rest of one that resumes."""
        self._clock = time.perf_counter()

    def add(self, metrics: Sequence[Metrics]) -> None:
        """Adds a step's metrics, of every member; waits for the device that computes them."""
        for member, values in enumerate(metrics):
            for name, value in values.items():
                sums = self._sums.setdefault(name, [0.0] * len(self.history))
                sums[member] += float(value)

    def progress_note(self, epoch_steps: int) -> str:
        """Means over the running epoch and the members, for a progress bar."""
        added = max(1, (self.steps - 1) % epoch_steps)  # the last step's are not fetched yet
        means = {name: np.mean(sums) / added for name, sums in self._sums.items()}
        return ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())

    def end_epoch(self, epoch_steps: int, batch: int, rates: Sequence[float]) -> list[Row]:
        """The finished epoch's row of every member; the sums begin anew.

        Args:
          epoch_steps: steps in an epoch.
          batch: images in a step.
          rates: each member's learning rate in the last step.
        """
        members = len(self.history)
        seconds = self._seconds_before + time.perf_counter() - self._clock
        speed = epoch_steps * batch * members / seconds
        rows: list[Row] = []
        for member, rate in enumerate(rates):
            row: Row = {"epoch": len(self.history[member]) + 1}
            row |= {name: sums[member] / epoch_steps for name, sums in self._sums.items()}
            row |= {"learning_rate": rate, "seconds": seconds, "images_per_second": speed}
            rows.append(row)
        self._sums = {}
        self._seconds_before = 0.0
        return rows

    def add_epoch(self, rows: Sequence[Row], watch: str, *, plateau: bool) -> list[int]:
        """Takes in the rows of an epoch with their validation.

        Args:
          rows: of every member.
          watch: the metric that the best epoch is chosen by; higher is better.
          plateau: lower the rates of members whose metric no longer improves.

        Returns:
          The members that improved; all of them where the metric is not measured.
        """
        improved = []
        for member, row in enumerate(rows):
            self.history[member].append(row)
            value = row.get(watch)
            best = self._best_value[member]
            if value is None or best is None or value > best:
                improved.append(member)
                self._best_value[member] = value
                self.best_epoch[member] = int(row["epoch"])
            if plateau and value is not None:
                self.rate_scales[member] = self._plateaus[member].scale(value)
        return improved

    def to_json(self) -> dict[str, Any]:
        """All of it, as a copy: it is written in the background, while the training continues."""
        running = time.perf_counter() - self._clock if self._sums else 0.0
        return copy.deepcopy(
            {
                "steps": self.steps,
                "history": self.history,
                "best_epoch": self.best_epoch,
                "best_value": self._best_value,
                "rate_scales": self.rate_scales,
                "plateaus": [plateau.numbers() for plateau in self._plateaus],
                "sums": self._sums,
                "seconds": self._seconds_before + running,
            }
        )

    def restore(self, values: dict[str, Any]) -> None:
        """Continues where `to_json` was called."""
        self.steps = values["steps"]
        self.history = values["history"]
        self.best_epoch = values["best_epoch"]
        self.rate_scales = values["rate_scales"]
        self._best_value = values["best_value"]
        self._plateaus = [Plateau(numbers) for numbers in values["plateaus"]]
        self._sums = values["sums"]
        self._seconds_before = values["seconds"]
