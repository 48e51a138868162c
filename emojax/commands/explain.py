"""`emojax explain`: every unit as a short weighted sum of concepts.

From a record, or from images by way of a cached or new one.
"""

from typing import TYPE_CHECKING, Any

from pydantic import Field

from emojax import settings
from emojax.commands.base import Command, Probing, out_folder
from emojax.section import UserPath

if TYPE_CHECKING:
    from emojax.data.concepts import ConceptSet
    from emojax.dissection.explain import Explanations
    from emojax.store import Run


class ExplainSettings(Probing):
    """Settings of explanations."""

    concepts: settings.Concepts = settings.Concepts()
    explain: settings.Explain = settings.Explain()
    calibration: settings.Calibration = settings.Calibration()
    record: UserPath | None = Field(
        default=None,
        description="record folder of a probe run to explain, instead of data and network",
    )
    out: UserPath = out_folder("explain")


def explain(settings: ExplainSettings) -> None:
    """Explains every unit of every layer."""
    from emojax.commands import opening, steps
    from emojax.commands.console import say_written
    from emojax.data.concepts import load_concepts

    concepts = load_concepts(settings.concepts.path)
    clip = opening.open_clip(settings.clip)
    if settings.record is not None:
        record = steps.open_record(settings.record)
        with opening.open_run(settings, "explain") as run:
            run.inputs |= {"record": record.key or "", "clip": record.clip_key}
            _explain(settings, run, record, concepts, clip)
    else:
        model = opening.open_target(settings.target)
        images = opening.open_probe_set(settings.data)
        clip.tokenize(concepts.concepts)  # refuses before the probe what it would refuse after it
        if settings.calibration.pair is not None:
            probe = settings.probe.model_copy(update={"keep_activations": True})
            settings = settings.model_copy(update={"probe": probe})
        with opening.open_run(settings, "explain") as run:
            record = steps.probe(settings, run, model, images, clip)
            _explain(settings, run, record, concepts, clip)
    say_written(settings.out)


def _explain(
    settings: ExplainSettings, run: "Run", record: Any, concepts: "ConceptSet", clip: Any
) -> None:
    from emojax.commands.console import working
    from emojax.dissection.dissect import embed_concepts
    from emojax.dissection.explain import explain as explain_record

    with run.timed("embed concepts"), working("embed concepts"):
        texts = embed_concepts(clip, concepts, settings.cache)
    with run.timed("explain"), working("explain"):
        explanations = explain_record(
            record,
            concepts,
            most=settings.explain.most,
            tolerance=settings.explain.tolerance,
            calibration=settings.calibration,
            clip=clip,
            text_embeddings=texts,
        )
    write(run, explanations)


def write(run: "Run", explanations: "Explanations", **further: float) -> dict[str, Any]:
    """Writes `explanations.csv`, its means as `explanations.json` and, where the activations are
    known, `simulated.npz` for the page; says the means.

    `further` goes into the means, which are returned.
    """
    import numpy as np

    from emojax import store
    from emojax.commands.console import say

    rows = explanations.rows()
    store.write_csv(run.folder / "explanations.csv", explanations.header(), rows)
    summary = {
        "units": len(rows),
        "concepts": len(explanations.concepts),
        "calibration": explanations.calibration.pair,
        "correlation": float(explanations.correlation.mean()),
        "label_correlation": float(explanations.label_correlation.mean()),
        "length": float(explanations.lengths.mean()),
        **further,
    }
    store.write_json(run.folder / "explanations.json", summary)
    sample = explanations.sample()
    if sample is not None:
        real, simulated = sample
        store.write_binary(
            run.folder / "simulated.npz",
            lambda file: np.savez_compressed(file, real=real, simulated=simulated),
        )
    say(
        f"explanations: mean held-out correlation {summary['correlation']:.3f} with "
        f"{summary['length']:.1f} of {summary['concepts']} concepts a unit, "
        f"{summary['label_correlation']:.3f} with the best single one ({summary['units']} units)"
    )
    return summary


COMMAND = Command(
    "explain",
    "every unit as a short weighted sum of concepts, tested on held-out images",
    ExplainSettings,
    explain,
)
