"""Stages of a study, for those who time them and show their progress."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

from emojax.editing.activations import Progress

Stage = Callable[[str, str], AbstractContextManager[Progress | None]]
"""(name, unit) → a context around one stage of the work, which gives the stage's progress."""


def untimed(_name: str, _unit: str) -> AbstractContextManager[None]:
    """A stage that nobody watches."""
    return contextlib.nullcontext()
