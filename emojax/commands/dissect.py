"""`emojax dissect`: a label for every unit, from a record, or from images by way of a cached or new
one.
"""

from pydantic import Field

from emojax import settings
from emojax.commands.base import Command, Dissecting, out_folder
from emojax.section import UserPath


class DissectSettings(Dissecting):
    """Settings of a dissection."""

    record: UserPath | None = Field(
        default=None,
        description="record folder of a probe run to score, instead of data and network",
    )
    report: settings.Report = settings.Report()
    out: UserPath = out_folder("dissect")


def dissect(settings: DissectSettings) -> None:
    """Labels every unit of every layer, and leaves a page."""
    from emojax.commands import opening, report, steps
    from emojax.commands.console import say_written
    from emojax.data.concepts import load_concepts

    concepts = load_concepts(settings.concepts.path)
    clip = opening.open_clip(settings.clip, None if settings.record else settings.data)
    images = None
    if settings.record is not None:
        record = steps.open_record(settings.record)
        with opening.open_run(settings, "dissect") as run:
            run.inputs["record"] = record.key or ""
            steps.label(settings, run, record, concepts, clip, None)
    else:
        model = opening.open_target(settings.target)
        images = opening.open_probe_set(settings.data)
        with opening.open_run(settings, "dissect") as run:
            steps.check(settings, model, clip, concepts, images)
            record = steps.probe(settings, run, model, images, clip)
            steps.label(settings, run, record, concepts, clip, model, images)
    try:
        report.complete(settings.out, settings.report, images)
    finally:
        say_written(settings.out)


COMMAND = Command(
    "dissect",
    "label every unit of every layer; the paper's Table 1",
    DissectSettings,
    dissect,
    short={"--images": "--report.images"},
)
