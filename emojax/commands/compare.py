"""`emojax compare`: two or more runs side by side; the first is what others are compared with."""

from typing import TYPE_CHECKING, Any

from pydantic import Field

from emojax.commands.base import Command, WritesRun, out_folder
from emojax.section import UserPath

if TYPE_CHECKING:
    from emojax.dissection.correspond import Correspondence
    from emojax.report.compare import Comparison


class CompareSettings(WritesRun):
    """Settings of a comparison."""

    runs: tuple[UserPath, ...] = Field(
        default=(), description="run folders; the first is what others are compared with"
    )
    records: tuple[UserPath, ...] = Field(
        default=(),
        description="records of the first two runs' networks on the same images, probed with "
        "--probe.keep-activations: which of their units correspond",
    )
    out: UserPath = out_folder("compare")


def compare(settings: CompareSettings) -> None:
    """Writes the tables and the page of two or more runs side by side."""
    from emojax import store
    from emojax.commands import opening
    from emojax.commands.console import say_written
    from emojax.dissection.correspond import correspond
    from emojax.errors import InputError
    from emojax.probing import record
    from emojax.report import compare as comparing
    from emojax.report import results, write

    for folder in settings.runs:
        if not folder.is_dir():
            raise InputError(f"no run folder {str(folder)!r}")
    runs = [results.read_run(folder) for folder in settings.runs]
    comparison = comparing.compare(runs)
    if len(settings.records) not in (0, 2):
        raise InputError(
            f"--records names {len(settings.records)} records; give two, of the first two runs"
        )
    units = correspond(*map(record.load, settings.records)) if settings.records else None
    with opening.open_run(settings, "compare") as run:
        for folder, result in zip(settings.runs, runs, strict=True):
            # Without what changes when a page is written anew.
            changing = ("files", "page")
            manifest = {name: x for name, x in result.manifest.items() if name not in changing}
            run.inputs[str(folder)] = store.content_key(manifest)
        layers = (["" if value is None else value for value in row] for row in comparison.layers)
        store.write_csv(run.folder / "layers.csv", comparing.LAYER_HEADER, layers)
        header = comparing.changed_header(comparison)
        store.write_csv(run.folder / "labels.csv", header, comparison.changed)
        store.write_csv(run.folder / "accuracy.csv", comparing.ACCURACY_HEADER, comparison.accuracy)
        if units is not None:
            write.write_columns(run.folder / "correspondence.csv", units.columns())
        store.write_text(run.folder / "compare.html", comparing.render(comparison, runs, units))
    _print(comparison, units)
    say_written(settings.out)


def _print(comparison: "Comparison", matched: "Correspondence | None") -> None:
    from rich.table import Table

    from emojax.commands.console import console, say
    from emojax.report.page import number

    for line in comparison.warnings:
        say(line)
    if comparison.layers:
        columns = ("run", "layer", "units", "same label", "Pearson", "Spearman")
        table = Table(*columns, title=f"Against {comparison.names[0]}")
        for name, layer, units, same, share, pearson, spearman in comparison.layers:
            correlations: tuple[Any, ...] = (number(pearson), number(spearman))
            table.add_row(name, layer, str(units), f"{same} ({share:.0%})", *correlations)
        console.print(table)
    if comparison.accuracy:
        table = Table("run", "split", "images", "top-1", "edited", "the edit")
        for name, split, images, _, before, after, finding in comparison.accuracy:
            table.add_row(name, split, str(images), f"{before:.2%}", f"{after:.2%}", finding)
        console.print(table)
    if comparison.layers and not comparison.unrelated:
        say(f"{len(comparison.changed)} units have labels that changed")
    if matched is not None:
        say(
            f"{len(matched.best)} units go with one of the other network by "
            f"{matched.correlation.mean():.2f} on average; {matched.mutual.sum()} pairs are mutual"
        )


COMMAND = Command(
    "compare",
    "two or more runs side by side (emojax compare RUN RUN)",
    CompareSettings,
    compare,
    positional="--runs",
)
