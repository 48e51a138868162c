"""`emojax sweep`: the grid of edits alone, on labels from the cached or a new probe record."""

from emojax.commands.base import Command, Studying, out_folder
from emojax.section import UserPath


class SweepSettings(Studying):
    """Settings of a sweep."""

    out: UserPath = out_folder("sweep")


def sweep(settings: SweepSettings) -> None:
    """Tries every setting of the search, chooses one and tests it."""
    from emojax.commands import classes, opening, steps
    from emojax.data.concepts import load_concepts

    concepts = load_concepts(settings.concepts.path)
    model, tests, class_names = opening.open_tested(settings)
    clip = opening.open_clip(settings.clip)
    images = opening.open_probe_set(settings.data)
    weights = opening.name_of(settings.target)
    with opening.open_run(settings, "sweep") as folder:
        warnings = opening.note_provenance(folder, weights, tests, class_names)
        edit = steps.sweep(settings, folder, model, clip, concepts, images, tests)
        warnings += classes.shuffled(weights, edit["baseline"])
    opening.end_with(settings.out, warnings)


COMMAND = Command(
    "sweep", "edit by labels: every tau with every factor, tested", SweepSettings, sweep
)
