"""`emojax labels`: how labels depend on the similarity function and its hyperparameters, all tried
in one run.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from emojax import settings
from emojax.commands.base import Command, Probing, out_folder
from emojax.section import UserPath

if TYPE_CHECKING:
    import numpy as np

    from emojax.data.clip_encoder import ClipEncoder
    from emojax.data.concepts import ConceptSet
    from emojax.dissection.label_settings import LabelSetting
    from emojax.dissection.labels import Dissection
    from emojax.probing.record import ProbeRecord
    from emojax.store import Run


class LabelsSettings(Probing):
    """Settings of a comparison of label settings."""

    concepts: settings.Concepts = settings.Concepts()
    labels: settings.Labels = settings.Labels()
    record: UserPath | None = Field(
        default=None,
        description="record folder of a probe run to score, instead of data and network",
    )
    out: UserPath = out_folder("labels")


def labels(settings: LabelsSettings) -> None:
    """Labels every unit by every combination of settings, and compares the labels."""
    from emojax.commands import opening, steps
    from emojax.commands.console import say_written
    from emojax.data.concepts import load_concepts
    from emojax.dissection import label_settings

    tried = settings.labels
    grid = label_settings.grid(
        tried.similarity, a=tried.a, lam=tried.lam, top_k=tried.top_k, prior=tried.prior
    )
    concepts = load_concepts(settings.concepts.path)
    clip = opening.open_clip(settings.clip)
    if settings.record is not None:
        record = steps.open_record(settings.record)
        with opening.open_run(settings, "labels") as run:
            run.inputs["record"] = record.key or ""
            _compare(settings, run, record, concepts, clip, grid)
    else:
        model = opening.open_target(settings.target)
        images = opening.open_probe_set(settings.data)
        with opening.open_run(settings, "labels") as run:
            record = steps.probe(settings, run, model, images, clip)
            _compare(settings, run, record, concepts, clip, grid)
    say_written(settings.out)


def _compare(
    settings: LabelsSettings,
    run: "Run",
    record: "ProbeRecord",
    concepts: "ConceptSet",
    clip: "ClipEncoder",
    grid: "Sequence[LabelSetting]",
) -> None:
    """Labels by every setting of the grid, beside the default's; written and printed."""
    from emojax.commands.console import working
    from emojax.dissection import label_settings
    from emojax.dissection.dissect import embed_concepts
    from emojax.dissection.options import DEFAULT, DEFAULT_PRIOR, SoftWpmi

    texts = embed_concepts(clip, concepts, settings.cache)
    # The default's lists are as long as the record's, if these are shorter.
    longest = min(SoftWpmi().top_k, record.top.values.shape[2], record.images)
    (default,) = label_settings.grid([DEFAULT], prior=[DEFAULT_PRIOR], top_k=[longest])
    with run.timed("labels"), working("labels"):
        reference = next(label_settings.dissect_by(record, concepts, texts, [default]))
        tables = _Tables(reference, settings.labels.tau)
        dissections = label_settings.dissect_by(record, concepts, texts, grid)
        for setting, dissection in zip(grid, dissections, strict=True):
            tables.add(setting, dissection)
    tables.write(run, record)
    tables.show()


class _Tables:
    """The tables of the run folder in the making: a row per setting, and labels per unit."""

    def __init__(self, default: "Dissection", tau: float):
        self._default = default
        self._tau = tau
        self._settings: list[dict[str, Any]] = []
        self._layers: list[list[Any]] = []
        self._labels: list[np.ndarray] = []

    def add(self, setting: "LabelSetting", dissection: "Dissection") -> None:
        """A setting's row, its Table 1, and its labels."""
        import numpy as np

        from emojax.dissection.table import interpretability

        number = len(self._settings)
        names = dissection.concepts.concepts
        confidence = dissection.confidence
        description = dissection.description
        holds = None if confidence is None else confidence.holds(dissection.labels)
        held_out = None if confidence is None else confidence.held_out
        trusted = dissection.trusted
        hubs = dissection.hubs
        self._settings.append(
            {"setting": number}
            | setting.cells()
            | {
                "interpretable": int((dissection.best > self._tau).sum()),
                "description_accuracy": (
                    "" if description is None else float(description.accuracy.mean())
                ),
                "chance": "" if description is None else float(description.chance.mean()),
                "effective_labels": hubs.effective,
                "most_frequent": names[hubs.concept],
                "most_frequent_share": hubs.share,
                "halves_agree": "" if holds is None else float(holds.mean()),
                "held_out": "" if held_out is None else float(held_out.correlation.mean()),
                "labelled": "" if trusted is None else float(trusted.mean()),
                "same_as_default": float(np.mean(dissection.labels == self._default.labels)),
            }
        )
        for row in interpretability(dissection, self._tau):
            self._layers.append([number, *("" if x is None else x for x in vars(row).values())])
        self._labels.append(dissection.labels)

    def write(self, run: "Run", record: "ProbeRecord") -> None:
        """`settings.csv`, `interpretability.csv`, `units.csv` and the figure."""
        from dataclasses import fields

        from emojax import store
        from emojax.dissection.label_settings import shares
        from emojax.dissection.table import LayerSummary
        from emojax.report import figures
        from emojax.tables import unit_columns

        header = list(self._settings[0])
        store.write_csv(
            run.folder / "settings.csv", header, (list(row.values()) for row in self._settings)
        )
        header = ["setting", *(field.name for field in fields(LayerSummary))]
        store.write_csv(run.folder / "interpretability.csv", header, self._layers)
        share = shares(self._labels, self._default.labels)
        names = self._default.concepts.concepts
        units = unit_columns(record.layers).values()
        rows = zip(*units, (names[label] for label in self._default.labels), share, strict=True)
        store.write_csv(
            run.folder / "units.csv", ["layer", "unit", "concept", "share_of_settings"], rows
        )
        store.write_json(
            run.folder / "summary.json",
            {
                "settings": self._settings,
                "images": record.images,
                "concepts": len(names),
                "mean_share_of_settings": float(share.mean()),
            },
        )
        figure = figures.plot_label_settings(self._settings)
        store.write_binary(
            run.folder / "figures" / "label_settings.png",
            lambda file: figures.save(figure, file),
        )

    def show(self) -> None:
        """Prints the settings, those that agree most with the default first."""
        from rich.table import Table

        from emojax.commands.console import console

        table = Table("labels by", title="Label settings", title_justify="left")
        columns = {
            "held_out": "held out",
            "halves_agree": "halves",
            "effective_labels": "labels",
            "same_as_default": "as default",
        }
        for title in columns.values():
            table.add_column(title, justify="right")
        for row in sorted(self._settings, key=lambda row: -row["same_as_default"]):
            cells = (row[name] for name in columns)
            table.add_row(_name(row), *("–" if x == "" else f"{x:.2f}" for x in cells))
        console.print(table)


def _name(row: dict[str, Any]) -> str:
    """A setting as the table names it."""
    values: Sequence[str] = [
        f"{name} {row[name]}" for name in ("prior", "a", "lam", "top_k") if row[name] != ""
    ]
    return ", ".join([row["similarity"], *values])


COMMAND = Command(
    "labels",
    "how labels depend on the similarity function and its hyperparameters",
    LabelsSettings,
    labels,
    short={
        f"--dissect.{name}": f"--labels.{name}"
        for name in ("similarity", "a", "lam", "top-k", "prior", "tau")
    },
)
