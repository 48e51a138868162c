"""What the commands that edit share: the study's stages timed and shown, its files, its lines.

The commands themselves call `run_study` between `begin_study` and `finish_study`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from rich.table import Table
from rich.text import Text

from emojax import store
from emojax.commands.base import Studying
from emojax.commands.console import console, progress, say, warn
from emojax.data.image_set import ImageSet
from emojax.data.provenance import Use
from emojax.dissection.labels import Dissection
from emojax.editing import study_result
from emojax.editing.activations import Progress
from emojax.editing.search import Edit
from emojax.editing.stages import Stage
from emojax.editing.study_result import Study
from emojax.evidence.verdict import Evidence
from emojax.report.write_study import write_study
from emojax.training.evaluate import Protocol


def timed_stages(run: store.Run) -> Stage:
    """Stages of a study: their seconds go to the manifest, their progress to the terminal."""

    @contextmanager
    def stage(name: str, unit: str) -> Iterator[Progress]:
        with run.timed(name), progress(name, unit) as bar:
            yield bar

    return stage


class StudyOptions(TypedDict):
    """Keywords of `run_study`."""

    options: Edit
    protocol: Protocol
    batch: int
    cache: Path
    stage: Stage


def begin_study(
    settings: Studying, run: store.Run, dissection: Dissection, tests: Sequence[ImageSet]
) -> StudyOptions:
    """What the settings say about a study; notes its test sets.

    Warns of thresholds that the similarities do not reach, or all exceed: their scale differs by
    similarity function and prior.
    """
    run.inputs |= {test.name: test.key for test in tests}
    low, high = np.quantile(dissection.best, [0.05, 0.95])
    edit = settings.edit
    others = edit.by_concept or edit.top_fraction or edit.continuous or edit.gains
    if not others and not any(low <= tau < high for tau in settings.edit.tau):
        warn(
            f"no threshold of --edit.tau lies among the units' similarities by "
            f"{dissection.method} ({low:.3g} to {high:.3g} for nine units in ten), so every "
            "setting scales nearly all units alike; give --edit.tau values in between, or the "
            "paper's scores with --dissect.prior units"
        )
    return StudyOptions(
        options=settings.edit,
        protocol=settings.evaluate.protocol,
        batch=settings.evaluate.batch,
        cache=settings.cache / "edits",
        stage=timed_stages(run),
    )


def finish_study(run: store.Run, study: Study, like: str | None = None) -> dict[str, Any]:
    """Writes and prints a study; returns its part of summary.json.

    `like` is the Hugging Face folder or hub name that the network is from.
    """
    seen = run.target.get("seen")
    uses = None if seen is None else [Use(**entry) for entry in seen]
    write_study(run.folder, study, uses, run.target.get("classes"), like)
    print_study(study)
    return study.summary.as_json()


def print_study(study: Study) -> None:
    """The edit's accuracy before and after, and the verdict."""
    summary = study.summary
    if study.evidence is None:
        say(
            "edit: the best cell, selected on these very images; evidence needs "
            "--evaluate.protocol resize40"
        )
        return
    which = study.evidence.named or study.evidence.setting
    if summary.tested is not None and summary.baseline is not None:
        name = list(summary.baseline)[-1]
        before = summary.baseline[name]
        after = summary.edited[name]
        where = f"{name} test splits" if name == "all" else name
        if name == "all" and study.evidence.named is None:
            where += ", that of the selection too"
        say(
            f"edit of {which}: {before.correct} → {after.correct} of "
            f"{before.images} correct on {where}, top-1 {before.top1:.3%} → {after.top1:.3%}, "
            f"NLL {before.nll:.4f} → {after.nll:.4f}"
        )
    print_evidence(study.evidence)
    _print_units(study.edited_units)


def print_evidence(evidence: Evidence) -> None:
    """What the edit did to each measure, as a table, and the verdict in a sentence."""
    level = 100 * (1 - evidence.alpha)
    where = f"Before and after the edit, on the {evidence.total:,} images of the test"
    table = Table("", title=where, title_justify="left")
    for column in ("before", "after", "change", f"{level:g} % interval"):
        table.add_column(column, justify="right")
    table.add_column("finding")
    styles = {"worse": "red", "better": "green"}
    for row in evidence.measured:
        *cells, finding = (cell.removesuffix(" points") for cell in row)  # 80 columns are few
        shown = finding if finding in styles else "not shown"
        table.add_row(*cells, Text(shown, style=styles.get(finding, "")))
    if evidence.measured:  # of gains from a file only the counts are known
        console.print(table)
    say(f"evidence: {evidence.sentence} All of it in words: evidence.json")


def _print_units(table: study_result.Table) -> None:
    """The units of an edit by concepts, the first twenty; `edited_units.csv` has all."""
    if not table:
        return
    count = len(table["unit"])
    for row in range(min(count, 20)):
        layer, unit, names, _, gain, *changes = (column[row] for column in table.values())
        by_class = zip(list(table)[6:], changes[1:], strict=True)
        costs = [f"{name.removeprefix('change_')} {change:+d}" for name, change in by_class]
        say(f"  {layer} {unit} ({names}) × {gain:g}: {changes[0]:+d} images: {', '.join(costs)}")
    if count > 20:
        say(f"  and {count - 20} more in edited_units.csv")
