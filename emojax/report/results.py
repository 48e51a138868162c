"""A run folder read back: its tables as columns, its evidence as it was assessed.

Everything in a run folder may have passed through other hands, so nothing of it is believed before
it was checked.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from emojax import strict
from emojax.brief import brief
from emojax.data.decode import MOST_TEXT, check_regular
from emojax.dissection.labels import Dissection
from emojax.dissection.table import LayerSummary
from emojax.editing.study_result import StudySummary
from emojax.errors import InputError
from emojax.evidence.verdict import RENAMED, Evidence
from emojax.report import explanations as explained
from emojax.report import judgement as judged
from emojax.report import schema, units
from emojax.report.explanations import UnitExplanations
from emojax.report.judgement import Judgement
from emojax.report.units import Details
from emojax.section import user_path
from emojax.store import MANIFEST, restore_numbers, unguarded
from emojax.tables import Tabular

# What a run of each command cannot lack.
NEEDED = {
    "dissect": ("summary.json", "dissection.csv", "interpretability.csv"),
    "sweep": ("summary.json", "sweep.csv"),
    "run": ("summary.json", "dissection.csv", "interpretability.csv", "sweep.csv"),
    "demo": ("summary.json", "dissection.csv", "interpretability.csv", "sweep.csv", "truth.csv"),
}
_WORDS = {
    "layer",
    "concept",
    "responds_to",
    "runner_up",
    "halves_agree",
    "labelled",
    "kind",
    "file",
    "split",
    "label",
    "reason",
    "detail",
}
# Columns that each table of a run must have.
_COLUMNS = {
    "dissection": ("layer", "unit", "concept", "similarity"),
    "interpretability": tuple(field.name for field in fields(LayerSummary)),
    "sweep": ("layer", "kind", "tau", "factor", "images", "correct", "accuracy"),
    "thresholds": ("layer", "factor", "units_above", "accuracy"),
    "bands": ("layer", "factor", "units_above", "mean", "low", "high"),
    "truth": ("layer", "unit", "responds_to", "auroc"),
}
Table = dict[str, np.ndarray]
DAMAGED = "it is damaged, or of another version"


@brief
@dataclass(frozen=True)
class Labels:
    """The labels of all units of all layers in a row: what figures and tables need of a dissection,
    [U] each.

    Attributes:
      layers: units of each layer, in order.
      concept: the label's text; `similarity` its score.
      accuracy: share of a unit's top 10 images whose class its label speaks for; NaN where unknown.
        `chance` likewise.
    """

    layers: dict[str, int]
    concept: np.ndarray
    similarity: np.ndarray
    accuracy: np.ndarray
    chance: np.ndarray

    @classmethod
    def of(cls, labelled: "Dissection | Labels") -> "Labels":
        """The labels of a dissection."""
        if isinstance(labelled, Labels):
            return labelled
        names = np.array(labelled.concepts.concepts, dtype=object)
        known = labelled.description
        unknown = np.full(len(labelled.best), np.nan)
        accuracy, chance = (unknown, unknown) if known is None else (known.accuracy, known.chance)
        return cls(
            dict(labelled.record.layers), names[labelled.labels], labelled.best, accuracy, chance
        )

    @property
    def layer_of(self) -> np.ndarray:
        """Layer name of each unit [U]."""
        return np.repeat(np.array(list(self.layers), dtype=object), list(self.layers.values()))


@brief
@dataclass(frozen=True)
class Results(Tabular):
    """What a run folder holds; None, or an empty table, for what its command does not make.

    Attributes:
      folder: where it was read.
      manifest: settings, versions, keys; `summary` the results as numbers.
      study: the summary's part on the edit.
      units: `dissection.csv` by column; `labels` what figures need of it; `details` what
        `units.npz` adds.
      table1: the rows of Table 1.
      sweep: `sweep.csv` by column; so are `thresholds`, `bands` (random units) and `audit` (flagged
        images).
      evidence: the evidence for the chosen edit.
      explanations: of the units, as weighted sums of concepts; `judgement` of explanations.
    """

    folder: Path
    manifest: dict[str, Any]
    summary: dict[str, Any]
    study: StudySummary | None
    units: Table
    labels: Labels | None
    details: Details | None
    table1: list[LayerSummary]
    sweep: Table
    thresholds: Table
    bands: Table
    truth: Table
    audit: Table
    evidence: Evidence | None
    explanations: UnitExplanations | None = None
    judgement: Judgement | None = None

    def columns(self) -> Table:
        """`dissection.csv`, a row per unit; `sweep.csv` of a run that labelled none."""
        return self.units or self.sweep

    @property
    def command(self) -> str:
        """The command that wrote the folder."""
        return self.manifest["verb"]

    @property
    def rendered(self) -> bool:
        """Whether the images are rendered faces, of nobody."""
        return self.command == "demo" or self.settings.get("data", {}).get("kind") == "faces"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that were in force; a demo's own are few, those of its chain many."""
        return self.manifest["settings"].get("effective", self.manifest["settings"])


def read_run(
    folder: Path | str,
    audit: Path | None = None,
    explanations: Path | None = None,
    judgement: Path | None = None,
) -> Results:
    """Reads a run folder of `run`, `demo`, `dissect` or `sweep`.

    `audit` is an `audit.csv`, or the folder that holds it; the run folder's own when None.
    `explanations` is a folder of `emojax explain`, the run folder itself when None; `judgement` one
    of `emojax judge`.

    Raises:
      InputError: the folder is not such a run, lacks a file, or holds a damaged one.
    """
    folder = user_path(folder)
    manifest = _manifest(folder)
    command = manifest["verb"]
    _check_whole(folder, command)
    summary, study = _summary(folder, dissected="dissection.csv" in NEEDED[command])
    audit = _audit_file(folder, audit)
    tables = {name: _table(folder / f"{name}.csv", names) for name, names in _COLUMNS.items()}
    labels = _labels(tables["dissection"])
    details = _details(folder, labels, command)
    shown = _explanations(folder, explanations, labels)
    file = folder / "evidence.json"
    evidence = _valid(file, Evidence, _json(file)) if file.is_file() else None
    return Results(
        folder=folder,
        manifest=manifest,
        summary=summary,
        study=study,
        units=tables["dissection"],
        labels=labels,
        details=details,
        table1=_table1(tables["interpretability"]),
        sweep=tables["sweep"],
        thresholds=tables["thresholds"],
        bands=tables["bands"],
        truth=_of_units(tables["truth"], labels, folder / "truth.csv"),
        audit=_table(audit, ("file", "reason")),
        evidence=evidence,
        explanations=shown,
        judgement=None if judgement is None else judged.read(judgement),
    )


def read_page(folder: Path) -> schema.Page | None:
    """What the page of a run showed; None where it has none, or is of an older version.

    Raises:
      InputError: the folder is no run, or its manifest is damaged.
    """
    manifest = _json(folder / MANIFEST, f"{folder} is not an emojax run: it has no {MANIFEST}")
    return _valid(folder / MANIFEST, schema.Manifest, manifest).page


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run that has a page."""
    manifest = _json(folder / MANIFEST, f"{folder} is not an emojax run: it has no {MANIFEST}")
    _valid(folder / MANIFEST, schema.Manifest, manifest)
    command = manifest["verb"]
    if command not in NEEDED:
        raise InputError(
            f"{folder} is a run of `{command}`, which has no page; give one of {', '.join(NEEDED)}"
        )
    return manifest


def _check_whole(folder: Path, command: str) -> None:
    """Refuses a run that lacks a file of its command."""
    lacking = [name for name in NEEDED[command] if not (folder / name).is_file()]
    if lacking == ["sweep.csv"] and _is_unsearched(_json(folder / "summary.json")):
        return
    if lacking:
        raise InputError(
            f"{folder} is half a run: {', '.join(lacking)} missing; run `emojax {command}` again"
        )


def _summary(folder: Path, *, dissected: bool) -> tuple[dict[str, Any], StudySummary | None]:
    """The summary and its part on the edit; `dissected` runs have more in it that is checked."""
    path = folder / "summary.json"
    summary = _json(path)
    if dissected:
        _valid(path, schema.Summary, summary)
    _rename_finding(summary)
    edited = schema.MaybeEdit if dissected else schema.EditOnly
    return summary, _valid(path, edited, summary).edit


def _audit_file(folder: Path, audit: Path | None) -> Path:
    """The audit that was named, a file or its folder; else the run's own, which need not exist."""
    if audit is None:
        return folder / "audit.csv"
    path = audit / "audit.csv" if audit.is_dir() else audit
    if not path.is_file():
        raise InputError(
            f"no audit at {str(path)!r}; pass the audit.csv that `emojax audit` wrote, or its "
            "folder"
        )
    return path


def _details(folder: Path, labels: Labels | None, command: str) -> Details | None:
    """The details of the labelled units; None where the run has none, or no labels."""
    details = units.load(folder)
    if details is None or labels is None:
        return None
    sizes = dict(zip(details.layers.tolist(), details.sizes.tolist(), strict=True))
    if sizes != labels.layers:
        raise InputError(
            f"{folder / units.FILE} is of other units than dissection.csv; run `emojax "
            f"{command}` again"
        )
    return details


def _explanations(
    folder: Path, named: Path | None, labels: Labels | None
) -> UnitExplanations | None:
    """The labelled units' explanations in the folder that was named, or in the run's own."""
    explanations = None
    if labels is not None:
        explanations = explained.read(folder if named is None else named, labels.layers)
    if named is not None and explanations is None:
        raise InputError(f"no {explained.TABLE} in {str(named)!r} for units of {folder}")
    return explanations


def _is_unsearched(summary: dict[str, Any]) -> bool:
    """Whether the edit's gains were given, by a file or by concepts, so that there is no sweep."""
    edit = summary.get("edit")
    setting = edit.get("setting") if isinstance(edit, dict) else None
    return isinstance(setting, dict) and setting.get("kind") in ("file", "concepts", "erased")


def _rename_finding(summary: dict[str, Any]) -> None:
    """Calls the finding of an older version what it is called now."""
    edit = summary.get("edit")
    if isinstance(edit, dict) and isinstance(finding := edit.get("finding"), str):
        edit["finding"] = RENAMED.get(finding, finding)


def _json(path: Path, missing: str = "") -> dict[str, Any]:
    check_regular(path, limit=MOST_TEXT, missing_ok=True)
    try:
        value = strict.read_json(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(missing or f"{path} is missing") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise InputError(f"{path}: not JSON; {DAMAGED}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not an object of names and values; {DAMAGED}")
    try:
        return restore_numbers(value)
    except ValueError as error:
        raise InputError(f"{path}: {error}; {DAMAGED}") from None


def _valid(path: Path, kind: Any, values: dict[str, Any]) -> Any:
    """The model or dataclass that a file's values make."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{'.'.join(map(str, first['loc']))}: " if first["loc"] else ""
        raise InputError(f"{path}: {where}{first['msg']}; {DAMAGED}") from None


def _table(path: Path, columns: Sequence[str]) -> Table:
    """A csv by column: text where the column's name says so, else float64 with NaN for blanks;
    empty without the file.
    """
    if not path.exists():
        return {}
    check_regular(path, limit=MOST_TEXT)
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [[unguarded(cell) for cell in row] for row in csv.reader(file)]
        header, *lines = rows or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a csv file ({error})") from None
    lacking = [name for name in columns if name not in header]
    if lacking or len(set(header)) != len(header):
        raise InputError(
            f"{path}: {'no column ' + lacking[0] if lacking else 'columns of one name'}; {DAMAGED}"
        )
    for number, line in enumerate(lines, 2):
        if len(line) != len(header):
            raise InputError(
                f"{path}, line {number}: {len(line)} values for {len(header)} columns; {DAMAGED}"
            )
    return {
        name: _column(path, name, [line[position] for line in lines])
        for position, name in enumerate(header)
    }


def _column(path: Path, name: str, values: list[str]) -> np.ndarray:
    if name in _WORDS or name.endswith("_label"):
        return np.array(values, dtype=object)
    try:
        return np.array([float(value) if value else math.nan for value in values], np.float64)
    except ValueError as error:
        raise InputError(f"{path}: column {name}: {error}; {DAMAGED}") from None


def _of_units(table: Table, labels: Labels | None, file: Path) -> Table:
    """The table, whose rows are the labelled units in their order.

    Raises:
      InputError: they are others.
    """
    if table and (labels is None or table["layer"].tolist() != labels.layer_of.tolist()):
        raise InputError(f"{file} is of other units than dissection.csv; run `emojax demo` again")
    return table


def _labels(table: Table) -> Labels | None:
    if not table:
        return None
    layers: dict[str, int] = {}
    for name in table["layer"]:
        layers[name] = layers.get(name, 0) + 1
    nothing = np.full(len(table["layer"]), np.nan)
    known = (table.get(name, nothing) for name in ("description_accuracy", "chance"))
    return Labels(layers, table["concept"], table["similarity"], *known)


def _table1(table: Table) -> list[LayerSummary]:
    def value(name: str, x: Any) -> Any:
        if name == "layer":
            return x
        return None if math.isnan(x) else int(x) if name.endswith("interpretable") else float(x)

    lines = zip(*table.values(), strict=True) if table else ()
    return [
        LayerSummary(**{name: value(name, x) for name, x in zip(table, line, strict=True)})
        for line in lines
    ]
