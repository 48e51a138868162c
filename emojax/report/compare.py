"""Runs side by side: labels that changed, how scores agree, accuracies.

Each run is compared with the first.

Units are matched by layer and number, which means something only where the runs dissected one
network, or one that was made of the other. Of others `dissection/correspond.py` says which units
correspond.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from emojax.dissection.correspond import Correspondence
from emojax.errors import InputError
from emojax.report import page
from emojax.report.results import Results

MOST = 500  # rows of a table on the page; the file has all
_RELATED = 0.2  # agreement of labels beyond chance from which units of two networks correspond


@dataclass(frozen=True)
class Comparison:
    """Tables of plain values.

    Attributes:
      names: of the runs.
      layers: (run, layer, units, same labels, their share, Pearson's and Spearman's correlation of
        maximum similarities).
      changed: (layer, unit, label in each run …, maximum similarity in each run …) where some label
        differs. Empty for different networks whose labels agree hardly more than by chance: their
        units have nothing to do with each other.
      accuracy: (run, split, images, correct, top-1, top-1 after the edit, what was found of the
        edit).
      warnings: what makes the comparison less than it seems.
      unrelated: runs whose units have nothing to do with the first run's.
    """

    names: list[str]
    layers: list[list[Any]]
    changed: list[list[Any]]
    accuracy: list[list[Any]]
    warnings: list[str]
    unrelated: list[str] = field(default_factory=list)


def compare(runs: Sequence[Results], names: Sequence[str] | None = None) -> Comparison:
    """Compares two or more runs.

    Raises:
      InputError: fewer than two runs.
    """
    if len(runs) < 2:
        raise InputError("compare takes two or more run folders: emojax compare RUN RUN")
    names = list(names or _names(runs))
    first = runs[0]
    warnings = []
    for key, what in (
        ("target", "networks"),
        ("images", "probe images"),
        ("clip", "CLIPs"),
        ("concepts", "concept sets"),
    ):
        keys = {run.manifest.get("inputs", {}).get(key) for run in runs if run.labels is not None}
        if len(keys - {None}) > 1:
            extra = (
                "; units of different networks have nothing to do with each other"
                if key == "target"
                else ""
            )
            warnings.append(f"The runs have different {what}{extra}.")
    similarities = {run.summary.get("similarity") for run in runs if run.labels is not None}
    if len(similarities) > 1:
        warnings.append(
            "The runs have different similarity functions: "
            f"{', '.join(sorted(map(str, similarities)))}."
        )
    layers = [
        line
        for run, name in zip(runs[1:], names[1:], strict=True)
        for line in _layers(first, run, name)
    ]
    changed = _changed(runs)
    unrelated = [
        name for run, name in zip(runs[1:], names[1:], strict=True) if _is_unrelated(first, run)
    ]
    if unrelated and changed:
        warnings.append(
            f"The labels of {', '.join(unrelated)} agree with the first run's hardly more than by "
            f"chance, so changed labels are not listed ({len(changed):,} units); --records says "
            "which units correspond."
        )
        changed = []
    return Comparison(names, layers, changed, _accuracy(runs, names), warnings, unrelated)


def _is_unrelated(first: Results, other: Results) -> bool:
    """Whether the runs are of different networks and units of one number share no more labels than
    units at random (Cohen's kappa).
    """
    keys = [run.manifest.get("inputs", {}).get("target") for run in (first, other)]
    if first.labels is None or other.labels is None or keys[0] == keys[1]:
        return False
    rows, other_rows = _by_unit(first), _by_unit(other)
    both = [
        (first.labels.concept[i], other.labels.concept[other_rows[unit]])
        for unit, i in rows.items()
        if unit in other_rows
    ]
    if not both:
        return True
    same = sum(a == b for a, b in both) / len(both)
    shares = [Counter(labels) for labels in zip(*both, strict=True)]
    chance = sum(shares[0][name] * shares[1][name] for name in shares[0]) / len(both) ** 2
    return chance < 1 and (same - chance) / (1 - chance) < _RELATED


def _names(runs: Sequence[Results]) -> list[str]:
    """Folder names, with the folder above where two are alike, and numbers where that does not tell
    them apart.
    """
    short = [run.folder.resolve().name for run in runs]
    long = [
        f"{run.folder.resolve().parent.name}/{name}" for run, name in zip(runs, short, strict=True)
    ]
    names = [
        name if short.count(name) == 1 else more for name, more in zip(short, long, strict=True)
    ]
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def _by_unit(run: Results) -> dict[tuple[str, int], int]:
    return {
        (layer, int(unit)): i
        for i, (layer, unit) in enumerate(zip(run.units["layer"], run.units["unit"], strict=True))
    }


def _layers(first: Results, other: Results, name: str) -> list[list[Any]]:
    if first.labels is None or other.labels is None:
        return []
    from scipy.stats import rankdata  # comes with jax

    rows = _by_unit(first)
    other_rows = _by_unit(other)
    lines = []
    for layer in first.labels.layers:
        pairs = np.array(
            [
                (i, other_rows[unit])
                for unit, i in rows.items()
                if unit[0] == layer and unit in other_rows
            ]
        )
        if not len(pairs):
            continue
        a = first.labels.similarity[pairs[:, 0]]
        b = other.labels.similarity[pairs[:, 1]]
        same = int((first.labels.concept[pairs[:, 0]] == other.labels.concept[pairs[:, 1]]).sum())
        lines.append(
            [
                name,
                layer,
                len(pairs),
                same,
                same / len(pairs),
                _pearson(a, b),
                _pearson(rankdata(a), rankdata(b)),
            ]
        )
    return lines


def _pearson(a: np.ndarray, b: np.ndarray) -> float | None:
    """None where one of them does not vary."""
    a = a - a.mean()
    b = b - b.mean()
    spread = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / spread if spread > 0 else None


def _changed(runs: Sequence[Results]) -> list[list[Any]]:
    """Units of all runs whose labels are not all the same, in the first run's order."""
    labelled = [run.labels for run in runs if run.labels is not None]
    if len(labelled) < len(runs):
        return []
    places = [_by_unit(run) for run in runs]
    lines = []
    for unit in places[0]:
        if all(unit in place for place in places):
            rows = [place[unit] for place in places]
            labels = [
                labels_of_run.concept[i] for labels_of_run, i in zip(labelled, rows, strict=True)
            ]
            if len(set(labels)) > 1:
                lines.append(
                    [
                        *unit,
                        *labels,
                        *(
                            float(labels_of_run.similarity[i])
                            for labels_of_run, i in zip(labelled, rows, strict=True)
                        ),
                    ]
                )
    return lines


def _accuracy(runs: Sequence[Results], names: Sequence[str]) -> list[list[Any]]:
    lines = []
    for run, name in zip(runs, names, strict=True):
        study = run.study
        if study is None or study.baseline is None:
            continue
        for split, before in study.baseline.items():
            if split not in study.edited:
                continue
            after = study.edited[split].top1
            accuracy = [before.images, before.correct, before.top1, after]
            lines.append([name, split, *accuracy, study.finding or ""])
    return lines


LAYER_HEADER = ["run", "layer", "units", "same_label", "share", "pearson", "spearman"]
ACCURACY_HEADER = ["run", "split", "images", "correct", "top1", "top1_edited", "finding"]


def changed_header(comparison: Comparison) -> list[str]:
    """The columns of `changed`."""
    return [
        "layer",
        "unit",
        *(f"label in {n}" for n in comparison.names),
        *(f"similarity in {n}" for n in comparison.names),
    ]


def render(
    comparison: Comparison, runs: Sequence[Results], units: Correspondence | None = None
) -> str:
    """The comparison as a page; `units` are those of the first two runs that correspond."""
    tables = [
        ("runs", "Runs"),
        ("accuracy", "Accuracy"),
        ("layers", "Labels by layer"),
        ("changed", "Labels that changed"),
        ("correspond", "Units that correspond"),
    ]
    filled = {
        "runs": True,
        "accuracy": comparison.accuracy,
        "layers": comparison.layers,
        "changed": comparison.changed,
        "correspond": units,
    }
    count = len(comparison.names)
    shown = (
        f"The first {MOST:,} of {len(comparison.changed):,}; labels.csv has all."
        if len(comparison.changed) > MOST
        else ""
    )
    return page.fill(
        "compare.html.j2",
        ("theme.js", "compare.js"),
        title="emojax compare",
        emotions=page.speaks_of_emotions(runs),
        version=runs[0].manifest.get("versions", {}).get("emojax", "of an unknown version"),
        sections=[(anchor, name) for anchor, name in tables if filled[anchor]],
        warnings=comparison.warnings,
        run_header=["command", "started", "network", "concepts", "similarity"],
        runs=[_run_row(name, run) for name, run in zip(comparison.names, runs, strict=True)],
        accuracy_header=["run", "split", "images", "correct", "top-1", "top-1 edited", "the edit"],
        accuracy=[_accuracy_row(row) for row in comparison.accuracy],
        layer_header=["run", "layer", "units", "same label", "share", "Pearson", "Spearman"],
        layers=[_layer_row(row) for row in comparison.layers],
        changed_header=changed_header(comparison),
        changed=[
            [*row[: 2 + count], *map(page.number, row[2 + count :])]
            for row in comparison.changed[:MOST]
        ],
        changed_line=shown or f"{len(comparison.changed):,} units.",
        pair=comparison.names[:2],
        **_corresponding(units, runs),
    )


def _corresponding(units: Correspondence | None, runs: Sequence[Results]) -> dict[str, Any]:
    """What the page's section on units that correspond has, those that do most first."""
    if units is None:
        return {"units": [], "matrix": [], "layer_names": [], "units_line": "", "units_header": []}
    labels = [_label_of(run) for run in runs[:2]]
    table = units.columns()
    order = np.argsort(-units.correlation, kind="stable")[:MOST]
    rows = []
    for i in order:
        one = str(table["layer"][i]), int(table["unit"][i])
        other = str(table["other_layer"][i]), int(table["other_unit"][i])
        names = [labels[0].get(one, "–"), labels[1].get(other, "–")]
        cells = [f"{one[0]} {one[1]}", names[0], f"{other[0]} {other[1]}", names[1]]
        cells += [page.number(float(units.correlation[i])), "yes" if units.mutual[i] else "no"]
        rows.append(cells)
    count = len(units.best)
    first = f"The first {MOST:,} of {count:,}; correspondence.csv has all." if count > MOST else ""
    return {
        "units": rows,
        "units_header": ["unit", "label", "goes with", "label", "correlation", "mutual"],
        "units_line": f"{first or f'{count:,} units.'} {int(units.mutual.sum()):,} are mutual.",
        "layer_names": ["layer", *units.second],
        "matrix": [
            [name, *(page.number(float(x)) for x in row)]
            for name, row in zip(units.first, units.layers, strict=True)
        ],
    }


def _label_of(run: Results) -> dict[tuple[str, int], str]:
    """The label of each (layer, unit); empty for a run without labels."""
    if run.labels is None:
        return {}
    return {unit: str(run.labels.concept[i]) for unit, i in _by_unit(run).items()}


def _run_row(name: str, run: Results) -> list[str]:
    inputs = run.manifest.get("inputs", {})
    keys = [inputs.get(name, "–")[:12] for name in ("target", "concepts")]
    started = run.manifest.get("started", "–")
    return [name, run.command, started, *keys, run.summary.get("similarity", "–")]


def _accuracy_row(row: list[Any]) -> list[str]:
    name, split, images, correct, before, after, finding = row
    return [name, split, f"{images:,}", f"{correct:,}", _percent(before), _percent(after), finding]


def _layer_row(row: list[Any]) -> list[str]:
    name, layer, units, same, share, *correlations = row
    counts = [f"{units:,}", f"{same:,}", f"{share:.1%}"]
    return [name, layer, *counts, *map(page.number, correlations)]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"
