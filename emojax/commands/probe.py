"""`emojax probe`: one pass of network and CLIP over the probe set, to be scored later."""

from emojax.commands.base import Command, Probing, out_folder
from emojax.section import UserPath


class ProbeSettings(Probing):
    """Settings of a probe."""

    out: UserPath = out_folder("probe")


def probe(settings: ProbeSettings) -> None:
    """Runs the network and CLIP over the probe split and keeps the record."""
    from emojax.commands import opening, steps
    from emojax.commands.console import say_written
    from emojax.probing import record as records

    model = opening.open_target(settings.target)
    clip = opening.open_clip(settings.clip, settings.data)
    images = opening.open_probe_set(settings.data)
    with opening.open_run(settings, "probe") as run:
        record = steps.probe(settings, run, model, images, clip)
        records.save(record, run.folder / "record")
    say_written(settings.out)


COMMAND = Command(
    "probe",
    "run network and CLIP over the probe set once, keep the statistics",
    ProbeSettings,
    probe,
)
