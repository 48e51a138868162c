"""Writes what a study of edits found into a run folder: its tables, evidence and edited network."""

from collections.abc import Sequence
from pathlib import Path

from emojax import store
from emojax.data import seen as provenance
from emojax.data.seen import Seen
from emojax.data.weights import save_vgg, with_classes
from emojax.editing.study import Study


def write_study(
    folder: Path,
    study: Study,
    seen: Sequence[Seen] | None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Writes sweep.csv, thresholds.csv, bands.csv, evidence.json and edited.safetensors.

    A table that does not apply is not written. `seen` is what shaped the unedited network; the
    edited one's file adds what its edit was selected on. With None the file does not say. It names
    its classes by `class_names`, those of the network's own file: what was assumed stays out of it.
    """
    tables = {"sweep": study.sweep, "thresholds": study.thresholds, "bands": study.bands}
    for name, table in tables.items():
        if table:
            rows = zip(*table.values(), strict=True)
            store.write_csv(folder / f"{name}.csv", list(table), rows)
    if study.evidence is not None:
        store.write_json(folder / "evidence.json", study.evidence.summary())
    if seen is not None:
        seen = [*seen, *(provenance.of(images, "chosen") for images in study.selected_on)]
    edited = with_classes(study.edited, class_names)
    save_vgg(edited, folder / "edited.safetensors", seen=seen)
