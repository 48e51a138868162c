"""`emojax demo`: the main job on rendered faces with the shipped networks, where the truth is
known.

Everything goes through the code that real data and networks take; only afterwards are the labels
compared with the truth.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from emojax import settings
from emojax.commands.base import Command, Studying, WritesRun, out_folder
from emojax.dissection.options import DEFAULT, Prior
from emojax.editing.search import Edit
from emojax.section import UserPath

if TYPE_CHECKING:
    from emojax.data.image_set import ImageSet
    from emojax.dissection.labels import Dissection
    from emojax.dissection.options import Similarity
    from emojax.dissection.truth import Agreement, Labelled
    from emojax.models.vgg import VggNet
    from emojax.ops.affinity import Affinity
    from emojax.store import Run
    from emojax.synthetic.faces import Faces

RESPONDS = 0.75  # AUROC from which a unit is said to respond to an attribute
_TEST_SPLITS = ("public_test", "private_test")


class DemoSettings(WritesRun):
    """Settings of the demo."""

    cache: UserPath = settings.CACHE
    report: settings.Report = settings.Report()
    images: int = Field(
        default=3000,
        ge=200,
        lt=2**31,
        description="faces to probe with; half as many per test split",
    )
    out: UserPath = out_folder("demo")


def demo(settings: DemoSettings) -> None:
    """The main job on rendered faces, and its labels compared with the truth."""
    from emojax import store
    from emojax.commands import opening, report, steps
    from emojax.commands.console import progress, say_written
    from emojax.commands.demo_edit import edit_by_concept
    from emojax.commands.study import begin_study, finish_study
    from emojax.data.concepts import load_concepts
    from emojax.data.provenance import read_provenance
    from emojax.editing.study import run_study
    from emojax.synthetic import shipped

    effective = _effective(settings)
    dumped = effective.model_dump(mode="json", exclude={"out", "overwrite"})
    with opening.open_run(settings, "demo", effective=dumped) as run:
        with run.timed("render"), progress("render", "faces") as bar:
            probe_faces, test_faces = shipped.demo_faces(settings.images)
            bar(0, 2 * settings.images)
            images = probe_faces.image_set("faces")
            bar(len(images), 2 * settings.images)
            tests = [
                faces.image_set(name) for faces, name in zip(test_faces, _TEST_SPLITS, strict=True)
            ]
        model, clip = shipped.load_demo()
        uses = read_provenance(shipped.ASSETS / "vgg.safetensors") or ()
        run.target = {
            "seen": [use._asdict() for use in uses],
            "classes": list(model.config.class_names or ()),
        }
        concepts = load_concepts("faces30")
        class_names = model.config.class_names
        inputs = opening.StudyInputs(model, clip, concepts, images, tests, class_names)
        editable = steps.check_study_inputs(effective, inputs)
        record = steps.probe(effective, run, model, images, clip)
        dissection, table1, summary = steps.label(
            effective, run, record, concepts, clip, model, images
        )
        options = begin_study(effective, run, dissection, tests)
        study = run_study(editable, dissection, table1, images, tests, **options)
        summary["edit"] = finish_study(run, study)
        summary |= _compare_with_truth(run, model, dissection, test_faces, tests)
        summary["explanations"] = _explain(run, dissection)
        summary["edit_by_concept"] = edit_by_concept(run, settings.images)
        store.write_json(run.folder / "summary.json", summary)
    try:
        report.complete(settings.out, settings.report, images)
    finally:
        say_written(settings.out)
        _closing(summary, settings.out)


def _effective(demo: DemoSettings) -> Studying:
    """The usual settings of the main job, with what all similarity functions need."""
    from emojax.ops.similarity import rank_reorder_size

    top_k = max(100, rank_reorder_size(demo.images))
    probe = settings.Probe(keep_activations=True, top_k=top_k)
    concepts = settings.Concepts(path="faces30")
    # As many thresholds as the paper's, which are on the scale of the published scores.
    edit = Edit(tau=tuple(12.5 * step for step in range(12)))
    return Studying(probe=probe, concepts=concepts, edit=edit, cache=demo.cache)


# Labels compared with the truth


def _compare_with_truth(
    run: "Run",
    model: "VggNet",
    dissection: "Dissection",
    test_faces: "Sequence[Faces]",
    tests: "Sequence[ImageSet]",
) -> dict[str, Any]:
    """The labels, and those of all other functions, against what units respond to on test faces.

    Writes `truth.csv`, prints the tables; returns them for the summary, with the shares of the
    default's labels that are right and how these grow if fewer units are labelled.
    """
    from dataclasses import asdict

    import numpy as np

    from emojax.commands.console import progress
    from emojax.dissection import truth
    from emojax.dissection.dissect import dissect
    from emojax.ops.affinity import affinity as measure_affinity
    from emojax.probing.network import as_network

    record = dissection.record
    network = as_network(model)
    functions = _other_functions()
    with run.timed("truth"), progress("truth", "functions") as bar:
        layers = list(record.layers)
        responses = np.concatenate([truth.activations(network, test, layers) for test in tests])
        presence = np.concatenate([faces.attributes for faces in test_faces])
        affinity = measure_affinity(responses, presence)
        enriched = truth.enrichment(responses, presence)
        dissections = {DEFAULT: dissection}
        for number, (name, (similarity, prior)) in enumerate(functions.items()):
            bar(number, len(functions))
            dissections[name] = dissect(
                record,
                dissection.concepts,
                similarity=similarity,
                prior=prior,
                null_sets=0,
                trust=False,
            )
        compared = truth.compare(dissections, DEFAULT, affinity.auroc, enriched, least=RESPONDS)
    _write_truth(run, affinity, dissections)
    for title, rows in compared.tables.items():
        _print_truth(title, rows)
    _print_certainty(compared.certainty, compared.abstaining)
    comparison = asdict(compared)
    return {"truth": comparison.pop("tables"), **comparison}


def _other_functions() -> "dict[str, tuple[Similarity, Prior | None]]":
    """Similarity function and prior of each row of the tables below the default's."""
    from typing import get_args

    from emojax.dissection.options import Similarity

    functions: dict[str, tuple[Similarity, Prior | None]] = {
        name: (name, None)  # as published
        for name in get_args(Similarity)
        if name != DEFAULT
    }
    functions["soft_wpmi_images"] = "soft_wpmi", "images"
    functions["wpmi_images"] = "wpmi", "images"
    return functions


def _explain(run: "Run", dissection: "Dissection") -> dict[str, Any]:
    """Units as weighted sums of what faces show; returns what `explanations.json` holds."""
    from emojax.commands import explain
    from emojax.commands.console import working
    from emojax.dissection.dissect import dissect
    from emojax.dissection.explain import explain as explain_record

    record, concepts = dissection.record, dissection.concepts
    with run.timed("explain"), working("explain"):
        explanations = explain_record(record, concepts)
        paper = dissect(record, concepts, similarity="soft_wpmi", null_sets=0, trust=False)
    of_paper = float(explanations.correlation_of(paper.labels).mean())
    return explain.write(run, explanations, soft_wpmi_correlation=of_paper)


def _write_truth(run: "Run", affinity: "Affinity", dissections: "Mapping[str, Dissection]") -> None:
    """`truth.csv`: a row per unit, what it responds to most and every function's label."""
    import numpy as np

    from emojax import store
    from emojax.synthetic.faces import ATTRIBUTES

    header = ["layer", "unit", "responds_to", "auroc", "auprc", "correlation"]
    for name in dissections:
        header += [f"{name}_label", f"{name}_label_auroc"]
    best = np.nanargmax(affinity.auroc, axis=1)

    def rows() -> Iterator[list[Any]]:
        row = 0
        for layer, units in dissections[DEFAULT].record.layers.items():
            for unit in range(units):
                cells = [layer, unit, ATTRIBUTES[best[row]]]
                cells += [measure[row, best[row]] for measure in affinity]
                for dissection in dissections.values():
                    label = dissection.labels[row]
                    cells += [ATTRIBUTES[label], affinity.auroc[row, label]]
                yield cells
                row += 1

    store.write_csv(run.folder / "truth.csv", header, rows())


def _print_truth(title: str, rows: "Mapping[str, Agreement]") -> None:
    from rich.table import Table

    from emojax.commands.console import console

    first = next(iter(rows.values()))
    heading = f"Labels against the truth: {first.units} {title}"
    table = Table("labels by", title=heading, title_justify="left")
    for column in ("best", "among 3", "AUROC", "rank corr."):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        shares = (f"{row.best:.0%}", f"{row.among_three:.0%}")
        table.add_row(name, *shares, f"{row.auroc_of_label:.3f}", f"{row.rank_correlation:.2f}")
    table.add_section()
    chance = (f"{count / first.attributes:.0%}" for count in (1, 3))
    table.add_row("random", *chance, f"{first.auroc_of_random:.3f}", "0.00")
    table.add_row("the truth", "100%", "100%", f"{first.auroc_of_best:.3f}", "1.00")
    console.print(table)


def _print_certainty(curve: "Sequence[Labelled]", by_rule: "Labelled | None") -> None:
    """The curve of share labelled against share right, and the rule's point on it."""
    from rich.table import Table

    from emojax.commands.console import console

    title = f"{DEFAULT}: if only the units with the largest margins are labelled"
    table = Table("units labelled", title=title, title_justify="left")
    table.add_column("labels right", justify="right")
    for point in curve:
        if round(point.labelled * 20) % 5 == 0:
            table.add_row(f"{point.labelled:.0%}", f"{point.right:.0%}")
    if by_rule is not None:
        table.add_section()
        table.add_row(f"those that stand, {by_rule.labelled:.0%}", f"{by_rule.right:.0%}")
    console.print(table)


def _closing(summary: dict[str, Any], out: Path) -> None:
    """The last lines: what was found, and where it lies."""
    from emojax.commands.console import say

    tables = summary["truth"]
    row = tables[list(tables)[-1]][DEFAULT]
    right = summary["labels_right"]
    edit = summary["edit"]
    named = summary["edit_by_concept"]
    before = edit["baseline"]["all"]
    tested = edit["tested"]
    chance = 1 / row["attributes"]
    chance_of_three = 3 / row["attributes"]
    lines = {
        "network": f"{before['top1']:.1%} of {before['images']} rendered test faces in the right "
        "emotion (chance 14.3%)",
        "labels": f"{DEFAULT} names what a unit responds to most in {row['best']:.0%} "
        f"(chance {chance:.0%}) of {row['units']} units with a clear response, one of three in "
        f"{row['among_three']:.0%} (chance {chance_of_three:.0%}); of the most certain half "
        f"{right['certain_half']:.0%}",
        "edit": f"{edit['finding']} (McNemar p = {edit['p_value']:.2g}): {tested['gained']} faces "
        f"gained and {tested['lost']} lost of {tested['images']} that took no part in its "
        f"selection{_other_changes(edit['by_measure'])}",
        "by name": f"of another network, which takes glasses for happiness: {named['concept']!r} "
        f"erased, {named['finding']} (McNemar p = {named['p_value']:.2g}): {named['gained']} faces "
        f"gained and {named['lost']} lost of {named['images']}; worst group "
        f"{named['worst_group']['before']:.0%} → {named['worst_group']['after']:.0%}",
        "files": str(out),
    }
    say("\nWhat was found")
    for name, line in lines.items():
        say(f"  {name:<9} {line}")


def _other_changes(by_measure: dict[str, str]) -> str:
    """Measures that the edit changes beside the correct predictions."""
    from emojax.evidence.verdict import TITLES

    changed = (
        f"{TITLES[name]} {finding}"
        for name, finding in by_measure.items()
        if name != "accuracy" and finding != "no difference shown"
    )
    return "".join(f"; {line}" for line in changed)


COMMAND = Command(
    "demo",
    "the main job offline, on rendered faces with small trained networks; labels against the truth",
    DemoSettings,
    demo,
)
