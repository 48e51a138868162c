"""`emojax report`: the page and the figures of a run folder, written into it."""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from emojax import interruption, settings
from emojax.commands.base import Command
from emojax.errors import InputError
from emojax.section import Section, UserPath

if TYPE_CHECKING:
    from emojax.data.image_set import ImageSet
    from emojax.report.results import Results
    from emojax.report.schema import Page


class ReportSettings(Section):
    """Settings of a page."""

    report: settings.Report = settings.Report()
    run: UserPath | None = Field(default=None, description="run folder")
    audit: UserPath | None = Field(
        default=None, description="audit.csv whose flagged images to show"
    )
    explanations: UserPath | None = Field(
        default=None, description="folder of `emojax explain` whose explanations to show"
    )
    judgement: UserPath | None = Field(
        default=None, description="folder of `emojax judge` whose judgement to show"
    )


def report(settings: ReportSettings) -> None:
    """Writes the page and the figures of a run folder into it."""
    if settings.run is None:
        raise InputError("name a run folder: emojax report RUN")
    if not settings.run.is_dir():
        raise InputError(f"no run folder {str(settings.run)!r}")
    further = (settings.audit, settings.explanations, settings.judgement)
    add(settings.run, settings.report, None, *further)


def complete(folder: Path, options: settings.Report, images: "ImageSet | None") -> None:
    """Adds the page to a run that has just been written; of several processes the main one does.

    Raises:
      InputError: the page cannot be made; the run stays.
    """
    from emojax.distributed.processes import is_main_process
    from emojax.report.write import noting_a_missing_page

    if is_main_process():
        with noting_a_missing_page(folder):
            add(folder, options, images)


def add(
    folder: Path,
    options: settings.Report,
    images: "ImageSet | None",
    audit: Path | None = None,
    explanations: Path | None = None,
    judgement: Path | None = None,
) -> None:
    """Writes `report.html` and `figures/` into a run folder.

    `images` are its probe set where that is at hand; `audit`, `explanations` and `judgement` are
    further results to show, see `results.read_run`. What an earlier page showed stays on it. Of
    several processes the main one writes; all
    of them read the images, which they share the work of.

    Raises:
      InputError: the folder is not a whole run, or the images that are wanted cannot be had.
    """
    from emojax import store
    from emojax.commands.console import say
    from emojax.distributed.processes import is_main_process
    from emojax.report import results
    from emojax.report.write import add_page

    if images is not None and not is_main_process():
        return
    before = results.read_page(folder)
    further = {"audit": audit, "explanations": explanations, "judgement": judgement}
    if before is not None:
        further = {name: path or _shown_before(before, name) for name, path in further.items()}
    run = results.read_run(folder, **further)
    harmless = run.rendered and run.labels is not None
    had_images = harmless if before is None else before.images == "thumbnails"
    wanted = options.images == "thumbnails" or (options.images == "auto" and had_images)
    if wanted and images is None:
        images = _probe_set_of(run)
    if not is_main_process():
        return
    interruption.begin_work()
    shown = images if wanted else None
    page, figures = add_page(run, shown, people=not run.rendered, size=options.size)
    paths = {name: path and str(path.resolve()) for name, path in further.items()}
    store.note(folder, "page", {"images": "thumbnails" if wanted else "none", **paths})
    say(f"report: {page} ({page.stat().st_size / 1e6:.1f} MB), {figures} figures")


def _shown_before(page: "Page", name: str) -> Path | None:
    """A further result that the run's page showed, unless it is gone, which is warned of."""
    from emojax.commands.console import warn

    path = getattr(page, name)
    if path is None or Path(path).exists():
        return path and Path(path)
    warn(f"the page showed the {name} of {path}, which is gone; the new page is without it")
    return None


def _probe_set_of(run: "Results") -> "ImageSet":
    """The probe set of a run, by its settings, which must give the very images that were probed."""
    from emojax.commands.opening import open_probe_set
    from emojax.synthetic.shipped import demo_faces

    if run.command == "demo":
        images = demo_faces(run.manifest["settings"]["images"])[0].image_set("faces")
    else:
        try:
            data = settings.Data.model_validate(run.settings.get("data", {}))
        except ValidationError as error:
            reason = settings.explain(error, settings.Data)
            raise InputError(f"{run.folder}: {reason}") from None
        try:
            images = open_probe_set(data)
        except InputError as error:
            raise InputError(
                f"the images of {run.folder} cannot be shown, {error}; or use --images none"
            ) from None
    if images.key != run.manifest.get("inputs", {}).get("images"):
        raise InputError(
            f"the images that {run.folder}'s settings name are not those that it probed; restore "
            "them or use --images none"
        )
    return images


COMMAND = Command(
    "report",
    "write a run's page and figures (emojax report RUN)",
    ReportSettings,
    report,
    positional="--run",
    short={"--images": "--report.images"},
)
