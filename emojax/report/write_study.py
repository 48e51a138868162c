"""Writes what a study of edits found into a run folder: its tables, evidence and edited network."""

from collections.abc import Sequence
from pathlib import Path

from emojax import store
from emojax.data.network_folder import save_network as save_folder
from emojax.data.provenance import Use, use_of
from emojax.data.weights import save_network, with_classes
from emojax.editing.study_result import Study
from emojax.models.tapped import Scaled


def write_study(
    folder: Path,
    study: Study,
    uses: Sequence[Use] | None,
    class_names: Sequence[str] | None = None,
    like: str | None = None,
) -> None:
    """Writes the study's tables as csv files, evidence.json and the edited network.

    That is edited.safetensors, or, of a network from the Hugging Face folder or hub name `like`,
    such a folder, `edited`.

    A table that does not apply is not written. `uses` is what shaped the unedited network; the
    edited one's file adds what its edit was selected on. With None the file does not say. It names
    its classes by `class_names`, those of the network's own file: what was assumed stays out of it.
    """
    tables = {"sweep": study.sweep, "thresholds": study.thresholds, "bands": study.bands}
    tables["edited_units"] = study.edited_units
    for name, table in tables.items():
        if table:
            rows = zip(*table.values(), strict=True)
            store.write_csv(folder / f"{name}.csv", list(table), rows)
    if study.evidence is not None:
        store.write_json(folder / "evidence.json", study.evidence.summary())
    if uses is not None:
        uses = [*uses, *(use_of(images, "chosen") for images in study.selected_on)]
    if isinstance(study.edited, Scaled):
        return  # its gains are on outputs that no parameters carry alone, so no file has a place
    if like is not None:
        setting = study.summary.setting
        what = setting.concepts or f"{setting.kind.replace('_', ' ')} of layer {setting.layer}"
        words = f"{what}. {study.summary.verdict or ''}"
        save_folder(study.edited, folder / "edited", like=like, uses=uses, edit=words)
        return
    edited = with_classes(study.edited, class_names)
    save_network(edited, folder / "edited.safetensors", uses=uses)
