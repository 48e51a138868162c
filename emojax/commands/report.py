"""The report of a run folder, and runs side by side: what `emojax report` and `emojax compare` do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.table import Table

from emojax import settings as config
from emojax import store
from emojax.commands import demo as verbs_demo
from emojax.commands.console import console, say, say_written
from emojax.data.loader import ImageSet
from emojax.distributed.processes import is_main_process
from emojax.errors import InputError
from emojax.report import results
from emojax.report.results import Results
from emojax.report.write import add_page, noting_a_missing_page

Open = Callable[[config.Data, str], ImageSet]


def complete(folder: Path, options: config.Report, images: ImageSet, opener: Open) -> None:
    """Adds the page to a run that has just been written; of several processes the first does.

    Raises:
      InputError: the page cannot be made; the run stays.
    """
    if is_main_process():
        with noting_a_missing_page(folder):
            add(folder, options, images, opener)


def add(folder: Path, options: config.Report, images: ImageSet | None, opener: Open, audit: Path | None = None) -> None:
    """Writes `report.html` and `figures/` into a run folder; `images` are its probe set where that is at hand.

    Of several processes the first does.

    Raises:
      InputError: the folder is not a whole run, or the images that are wanted cannot be had.
    """
    if images is not None and not is_main_process():
        return  # the run folder is the first process's
    found = results.read_run(folder, audit)
    rendered = found.verb == "demo" or found.settings.get("data", {}).get("kind") == "faces"
    wanted = options.images == "thumbnails" or (options.images == "auto" and rendered and found.labels is not None)
    shown = (_images(found, opener) if images is None else images) if wanted else None
    if not is_main_process():
        return
    written, drawn = add_page(found, shown, people=not rendered, size=options.size)
    say(f"report: {written} ({written.stat().st_size / 1e6:.1f} MB), {drawn} figures")


def _images(found: Results, opener: Open) -> ImageSet:
    """The probe set of a run, by its settings, which must give the very images that were probed."""
    if found.verb == "demo":
        images = verbs_demo.worlds(found.manifest["settings"]["images"])[0].image_set("faces")
    else:
        try:
            data = config.Data.model_validate(found.settings.get("data", {}))
        except ValidationError as error:
            raise InputError(f"{found.folder}: {config.explain(error, config.Data)}") from None
        try:
            images = opener(data, data.probe_split)
        except InputError as error:
            raise InputError(f"the images of {found.folder} cannot be shown, {error}; or use --images none") from None
    if images.key != found.manifest.get("inputs", {}).get("images"):
        raise InputError(
            f"the images that {found.folder}'s settings name are not those that it probed; restore them or use --images none"
        )
    return images


def report(settings: Any, opener: Open) -> None:
    """Writes the page and the figures of a run folder into it."""
    if settings.run is None:
        raise InputError("name a run folder: emojax report RUN")
    if not settings.run.is_dir():
        raise InputError(f"no run folder {str(settings.run)!r}")
    add(settings.run, settings.report, None, opener, settings.audit)


def compare(settings: Any) -> None:
    """Writes the tables and the page of two or more runs side by side."""
    from emojax.report import compare as comparing  # with jinja2 and matplotlib
    from emojax.report.page import number

    for folder in settings.runs:
        if not folder.is_dir():
            raise InputError(f"no run folder {str(folder)!r}")
    runs = [results.read_run(folder) for folder in settings.runs]
    found = comparing.compare(runs)
    with store.run_folder(settings.out, "compare", settings.model_dump(mode="json"), overwrite=settings.overwrite) as run:
        # Without the list of files, which changes when a page is written anew
        told = [{name: value for name, value in each.manifest.items() if name != "files"} for each in runs]
        run.inputs |= {str(f): store.content_key(each) for f, each in zip(settings.runs, told, strict=True)}
        blank = lambda row: ["" if value is None else value for value in row]  # noqa: E731
        store.write_csv(run.folder / "layers.csv", comparing.LAYER_HEADER, map(blank, found.layers))
        store.write_csv(run.folder / "labels.csv", comparing.changed_header(found), found.changed)
        store.write_csv(run.folder / "accuracy.csv", comparing.ACCURACY_HEADER, found.accuracy)
        store.write_text(run.folder / "compare.html", comparing.render(found, runs))
    for line in found.warnings:
        say(line)
    if found.layers:
        table = Table(*("run", "layer", "units", "same label", "Pearson", "Spearman"), title=f"Against {found.names[0]}")
        for name, layer, units, same, share, pearson, spearman in found.layers:
            table.add_row(name, layer, str(units), f"{same} ({share:.0%})", number(pearson), number(spearman))
        console.print(table)
    if found.accuracy:
        table = Table("run", "split", "images", "top-1", "edited", "the edit")
        for name, split, images, _, before, after, finding in found.accuracy:
            table.add_row(name, split, str(images), f"{before:.2%}", f"{after:.2%}", finding)
        console.print(table)
    say(f"{len(found.changed)} units have labels that changed")
    say_written(settings.out)
