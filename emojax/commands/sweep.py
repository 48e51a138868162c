"""`emojax sweep`: the grid of edits alone, on labels from the cached or a new probe record."""

from emojax.commands.base import Command, Studying, out_folder
from emojax.section import UserPath


class SweepSettings(Studying):
    """Settings of a sweep."""

    out: UserPath = out_folder("sweep")


def sweep(settings: SweepSettings) -> None:
    """Tries every setting of the search, chooses one and tests it."""
    from emojax import store
    from emojax.commands import classes, opening, steps
    from emojax.commands.study import begin_study, finish_study
    from emojax.dissection.dissect import dissect
    from emojax.dissection.table import interpretability
    from emojax.editing.study import run_study

    inputs = opening.open_study(settings)
    weights = opening.name_of(settings.target)
    with opening.open_run(settings, "sweep") as run:
        warnings = opening.note_provenance(run, weights, inputs.tests, inputs.class_names)
        model = steps.check_study_inputs(settings, inputs)
        record = steps.probe(settings, run, model, inputs.images, inputs.clip)
        asked = steps.scoring(settings, run, inputs.concepts, inputs.clip)
        with run.timed("dissect"):
            dissection = dissect(record, inputs.concepts, **asked)
        table1 = interpretability(dissection, settings.dissect.tau)
        options = begin_study(settings, run, dissection, inputs.tests)
        study = run_study(model, dissection, table1, inputs.images, inputs.tests, **options)
        edit = finish_study(run, study, settings.target.path)
        store.write_json(run.folder / "summary.json", {"edit": edit})
        warnings += classes.overflowed(weights, edit["baseline"])
        warnings += classes.shuffled(weights, edit["baseline"])
    opening.end_with(settings.out, warnings)


COMMAND = Command(
    "sweep", "edit by labels: every tau with every factor, tested", SweepSettings, sweep
)
