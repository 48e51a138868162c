"""What the commands that edit share: the study's stages timed and shown, its files, its lines."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from emojax import store
from emojax.commands.base import Studying
from emojax.commands.console import progress, say
from emojax.data.image_set import ImageSet
from emojax.data.provenance import Use
from emojax.dissection.labels import Dissection
from emojax.dissection.table import LayerSummary
from emojax.editing.activations import FEEDS_LOGITS, Progress
from emojax.editing.search import Edit
from emojax.editing.study import Stage, Study, layers_to_edit, run_study
from emojax.models.classifier import Editable
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


def study_edits(
    settings: Studying,
    run: store.Run,
    model: Editable,
    dissection: Dissection,
    table1: Sequence[LayerSummary],
    images: ImageSet,
    tests: Sequence[ImageSet],
) -> dict[str, Any]:
    """Selects an edit, tests it, writes and prints it; returns its part of summary.json."""
    run.inputs |= {test.name: test.key for test in tests}
    protocol = settings.evaluate.protocol
    warn_of_slow_layers(settings.edit, table1, protocol)
    study = run_study(
        model,
        dissection,
        table1,
        images,
        tests,
        settings.edit,
        protocol=protocol,
        batch=settings.evaluate.batch,
        cache=settings.cache / "edits",
        stage=timed_stages(run),
    )
    return finish_study(run, study)


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
            "edit: the best cell, chosen on these very images; evidence needs --evaluate.protocol "
            "resize40"
        )
        return
    if summary.tested is not None and summary.baseline is not None:
        name = list(summary.baseline)[-1]
        before = summary.baseline[name]
        after = summary.edited[name]
        where = f"{name} test splits, that of the choice too" if name == "all" else name
        say(
            f"edit of {study.evidence.setting}: {before.correct} → {after.correct} of "
            f"{before.images} correct on {where}, top-1 {before.top1:.3%} → {after.top1:.3%}, "
            f"NLL {before.nll:.4f} → {after.nll:.4f}"
        )
    say(f"evidence: {summary.verdict}")
