"""`emojax run`: the main job on the user's network and images, with its page."""

from emojax import settings
from emojax.commands.base import Command, Studying, out_folder
from emojax.section import UserPath


class RunSettings(Studying):
    """Settings of the main job."""

    report: settings.Report = settings.Report()
    out: UserPath = out_folder("run")


def run(settings: RunSettings) -> None:
    """Probe, dissect, Table 1, the grid of edits, the edited network evaluated, the page."""
    from emojax.commands import classes, opening, report, steps
    from emojax.data.concepts import load_concepts

    concepts = load_concepts(settings.concepts.path)
    model, tests, class_names = opening.open_tested(settings)
    clip = opening.open_clip(settings.clip)
    images = opening.open_probe_set(settings.data)
    weights = opening.name_of(settings.target)
    with opening.open_run(settings, "run") as folder:
        warnings = opening.note_provenance(folder, weights, tests, class_names)
        _, summary = steps.chain(settings, folder, model, clip, concepts, images, tests)
        warnings += classes.shuffled(weights, summary["edit"]["baseline"])
    try:
        report.complete(settings.out, settings.report, images)
    finally:  # the warnings are about the results, whatever became of the page
        opening.end_with(settings.out, warnings)


COMMAND = Command(
    "run",
    "all of it: probe, dissect, edit by labels, evaluate",
    RunSettings,
    run,
    short={"--images": "--report.images"},
)
