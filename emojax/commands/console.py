"""What a person at the terminal sees: lines on stdout, bars on stderr; of several processes, those
of the first.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from emojax import interruption
from emojax.distributed.processes import is_main_process
from emojax.errors import printable


class _Console(Console):
    """Shows texts as they are: names from data may hold brackets, colons and escape sequences."""

    def __init__(self, *, stderr: bool = False):
        super().__init__(highlight=False, markup=False, emoji=False, stderr=stderr)

    def render_str(self, text: str, **options: Any) -> Text:
        """All that is printed and is no `Text`, cells of tables too, comes by here."""
        return super().render_str(printable(text), **options)


console = _Console()


class _Rate(ProgressColumn):
    """Units a second, as soon as there is a speed."""

    def __init__(self, unit: str):
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.0f} {self._unit}/s")


@contextmanager
def progress(what: str, unit: str = "images") -> Iterator[Callable[..., None]]:
    """A bar on stderr with what is done, rate, time left and a note; silent when stderr is no
    terminal.

    Yields `update(done, total, note="")`.
    """
    note = TextColumn("{task.fields[note]}", markup=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeRemainingColumn(),
        note,
    )
    errors = _Console(stderr=True)
    with Progress(
        *columns, console=errors, disable=not errors.is_terminal or not is_main_process()
    ) as bar:
        task = bar.add_task(printable(what), total=None, note="")

        def update(done: int, total: int | None, note: str = "") -> None:
            interruption.check_interrupted()
            bar.update(task, completed=done, total=total, note=printable(note))

        yield update


@contextmanager
def working(what: str) -> Iterator[None]:
    """A turning sign on stderr with the time, for work whose parts cannot be counted; as silent."""
    columns = (
        TextColumn("{task.description}", markup=False),
        SpinnerColumn(),
        TimeElapsedColumn(),
    )
    errors = _Console(stderr=True)
    with Progress(
        *columns, console=errors, disable=not errors.is_terminal or not is_main_process()
    ) as sign:
        task = sign.add_task(printable(what), total=1)
        yield
        sign.update(task, completed=1)


def say(text: str) -> None:
    """One line, whatever the terminal's width."""
    console.print(text, soft_wrap=True)


def warn(text: str) -> None:
    """A line that must not be overlooked, on stderr; of several processes the first says it."""
    if is_main_process():
        _Console(stderr=True).print(f"warning: {text}", style="bold yellow", soft_wrap=True)


def say_written(out: Path) -> None:
    """Names the files of a run folder."""
    if is_main_process():
        say(f"wrote {out}: {', '.join(sorted(p.name for p in out.iterdir()))}")


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        show = warn if record.levelno >= logging.WARNING else say
        show(record.getMessage())


@contextmanager
def log_shown() -> Iterator[None]:
    """Shows what the library logs, which never prints by itself: lines, and warnings as such."""
    log = logging.getLogger("emojax")
    lines = _Lines(logging.INFO)
    level, propagate = log.level, log.propagate
    log.addHandler(lines)
    log.setLevel(logging.INFO)
    log.propagate = False  # or a handler that some library gave the root shows each line again
    try:
        yield
    finally:
        log.removeHandler(lines)
        log.setLevel(level)
        log.propagate = propagate
