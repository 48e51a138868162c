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
    from emojax import store
    from emojax.commands import classes, opening, report, steps
    from emojax.commands.study import begin_study, finish_study
    from emojax.editing.study import run_study

    inputs = opening.open_study(settings)
    weights = opening.name_of(settings.target)
    with opening.open_run(settings, "run") as folder:
        warnings = opening.note_provenance(folder, weights, inputs.tests, inputs.class_names)
        model = steps.check_study_inputs(settings, inputs)
        record = steps.probe(settings, folder, model, inputs.images, inputs.clip)
        dissection, table1, summary = steps.label(
            settings, folder, record, inputs.concepts, inputs.clip, model, inputs.images
        )
        options = begin_study(settings, folder, dissection, inputs.tests)
        study = run_study(model, dissection, table1, inputs.images, inputs.tests, **options)
        summary["edit"] = finish_study(folder, study, settings.target.path)
        store.write_json(folder.folder / "summary.json", summary)
        warnings += classes.overflowed(weights, summary["edit"]["baseline"])
        warnings += classes.shuffled(weights, summary["edit"]["baseline"])
    try:
        report.complete(settings.out, settings.report, inputs.images)
    finally:  # the warnings are about the results, whatever became of the page
        opening.end_with(settings.out, warnings)


COMMAND = Command(
    "run",
    "all of it: probe, dissect, edit by labels, evaluate",
    RunSettings,
    run,
    short={"--images": "--report.images"},
)
