"""`emojax prepare`: FER2013 as downloaded becomes a data set that is read by index."""

from typing import TYPE_CHECKING

from pydantic import Field

from emojax.commands.base import Command, WritesRun, out_folder
from emojax.section import UserPath

if TYPE_CHECKING:
    import numpy as np


class PrepareSettings(WritesRun):
    """Settings of the preparation."""

    source: UserPath | None = Field(
        default=None, description="fer2013.csv, or the folder with train/ and test/"
    )
    out: UserPath = out_folder("prepare")


def prepare(settings: PrepareSettings) -> None:
    """Builds FER2013 from the csv or the image folder."""
    from emojax.commands import opening
    from emojax.commands.console import say_written
    from emojax.data import fer2013
    from emojax.errors import InputError

    forms = "fer2013.csv or the folder with train/ and test/"
    source = opening.needed(settings.source, "--source", forms)
    if not source.exists():
        raise InputError(f"no FER2013 at {str(source)!r}; pass --source {forms}")
    with opening.open_run(settings, "prepare") as run:
        with run.timed("read"):
            faces = list(fer2013.read(source))
        with run.timed("write"):
            counts = fer2013.prepare(faces, run.folder)
    _print(counts)
    say_written(settings.out)


def _print(counts: "dict[str, np.ndarray]") -> None:
    """Images per class and split."""
    from rich.table import Table

    from emojax.commands.console import console
    from emojax.data.fer2013 import CLASSES

    table = Table("class", *counts)
    for number, name in enumerate(CLASSES):
        per_split = (str(per_class[number]) for per_class in counts.values())
        table.add_row(f"{number} {name}", *per_split)
    table.add_section()
    table.add_row("images", *(str(per_class.sum()) for per_class in counts.values()))
    console.print(table)


COMMAND = Command(
    "prepare", "build FER2013 from fer2013.csv or the image folder", PrepareSettings, prepare
)
