"""What the commands that edit share: the study's stages timed and shown, its files, its lines.

The commands themselves call `run_study` between `begin_study` and `finish_study`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from emojax import store
from emojax.commands.base import Studying
from emojax.commands.console import progress, say
from emojax.data.image_set import ImageSet
from emojax.data.provenance import Use
from emojax.dissection.table import LayerSummary
from emojax.editing.activations import FEEDS_LOGITS, Progress
from emojax.editing.search import Edit
from emojax.editing.stages import Stage
from emojax.editing.study import layers_to_edit
from emojax.editing.study_result import Study
from emojax.report.write_study import write_study
from emojax.training.evaluate import Protocol


def timed_stages(run: store.Run) -> Stage:
    """Stages of a study: their seconds go to the manifest, their progress to the terminal."""

    @contextmanager
    def stage(name: str, unit: str) -> Iterator[Progress]:
        with run.timed(name), progress(name, unit) as bar:
            yield bar

    return stage


def warn_of_slow_layers(options: Edit, table1: Sequence[LayerSummary], protocol: Protocol) -> None:
    """Says before the study which layers make its evidence slow, and what helps."""
    if options.gains is not None or protocol == "tencrop":
        return
    layers = layers_to_edit(options, table1)
    slow = [layer for layer in layers if layer not in FEEDS_LOGITS]
    if slow:
        runs = len(options.settings(layers)) * (options.permutations + 1) + options.masks
        say(
            f"evidence: {', '.join(slow)} does not feed the logits, so the rest of the network "
            f"runs for each of {runs:,} settings; fewer --edit.permutations are faster"
        )


class StudyOptions(TypedDict):
    """Keywords of `run_study`."""

    options: Edit
    protocol: Protocol
    batch: int
    cache: Path
    stage: Stage


def begin_study(
    settings: Studying, run: store.Run, table1: Sequence[LayerSummary], tests: Sequence[ImageSet]
) -> StudyOptions:
    """What the settings say about a study; notes its test sets, and says what will take long."""
    run.inputs |= {test.name: test.key for test in tests}
    warn_of_slow_layers(settings.edit, table1, settings.evaluate.protocol)
    return StudyOptions(
        options=settings.edit,
        protocol=settings.evaluate.protocol,
        batch=settings.evaluate.batch,
        cache=settings.cache / "edits",
        stage=timed_stages(run),
    )


def finish_study(run: store.Run, study: Study) -> dict[str, Any]:
    """Writes and prints a study; returns its part of summary.json."""
    seen = run.target.get("seen")
    uses = None if seen is None else [Use(**entry) for entry in seen]
    write_study(run.folder, study, uses, run.target.get("classes"))
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
    if summary.tested is not None and summary.baseline is not None:
        name = list(summary.baseline)[-1]
        before = summary.baseline[name]
        after = summary.edited[name]
        where = f"{name} test splits, that of the selection too" if name == "all" else name
        say(
            f"edit of {study.evidence.setting}: {before.correct} → {after.correct} of "
            f"{before.images} correct on {where}, top-1 {before.top1:.3%} → {after.top1:.3%}, "
            f"NLL {before.nll:.4f} → {after.nll:.4f}"
        )
    say(f"evidence: {summary.verdict}")
