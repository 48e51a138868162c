"""What all commands have in common: how one is described, and the settings that several share.

A command is one module: its settings class, its function and its `COMMAND`. Modules of commands are
light, so that `--help` and refused settings answer at once: what loads JAX is imported inside the
function.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from emojax import settings
from emojax.editing.search import Edit
from emojax.section import Section, UserPath


class Command(NamedTuple):
    """A command of the command line.

    Attributes:
      name: what stands after `emojax`.
      purpose: what it is for, for `emojax --help`.
      settings: the class of its settings.
      run: its function.
      positional: the flag that a first argument without dashes is short for.
      short: flags that may be given without their section, and their full names.
    """

    name: str
    purpose: str
    settings: type[Section]
    run: Callable[[Any], None]
    positional: str | None = None
    short: Mapping[str, str] = {}


class WritesRun(Section):
    """Settings of a command that writes a run folder."""

    out: UserPath = Field(default=Path("runs"), description="run folder to write")
    overwrite: bool = Field(
        default=False, description="replace the run that --out holds, if it holds nothing else"
    )


class Testing(WritesRun):
    """Settings of a command that tests a network as it is."""

    data: settings.Data = settings.Data()
    target: settings.Target = settings.Target()
    evaluate: settings.Evaluate = settings.Evaluate()


class Probing(WritesRun):
    """Settings of a command that probes."""

    data: settings.Data = settings.Data()
    target: settings.Target = settings.Target()
    clip: settings.Clip = settings.Clip()
    probe: settings.Probe = settings.Probe()
    cache: UserPath = settings.CACHE


class Dissecting(Probing):
    """Settings of a command that labels units."""

    concepts: settings.Concepts = settings.Concepts()
    dissect: settings.Dissect = settings.Dissect()


class Studying(Dissecting):
    """Settings of a command that edits by labels and tests the edit."""

    edit: Edit = Edit()
    evaluate: settings.Evaluate = settings.Evaluate()


def out_folder(name: str) -> Any:
    """The setting `out` with the usual folder of a command."""
    return Field(default=Path("runs") / name, description="run folder to write")
