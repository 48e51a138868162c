"""`emojax demo`: the main job on rendered faces with the networks that ship with emojax, where the truth is known.

Everything goes through the code that real data and networks take; only afterwards are labels held against the truth.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rich.table import Table

from emojax import settings as config
from emojax import store
from emojax.commands.console import console, say
from emojax.data.concepts import ConceptSet
from emojax.dissection import truth
from emojax.dissection.dissect import Dissection, Similarity, dissect
from emojax.models.vgg import VggNet
from emojax.ops.similarity import rank_reorder_size
from emojax.probing.network import as_network
from emojax.probing.record import ProbeRecord
from emojax.synthetic import faces as face_data

ATTRIBUTE_SET = ConceptSet(face_data.ATTRIBUTES, name="what faces show")
RESPONDS = 0.75  # AUROC from which a unit is said to respond to an attribute


def settings_for(images: int) -> config.Settings:
    """The usual settings, with what all five similarity functions need."""
    top_k = max(100, rank_reorder_size(images))
    return config.Settings(probe=config.Probe(keep_activations=True, top_k=top_k), concepts=config.Concepts(path="paper25"))


def worlds(images: int) -> tuple[face_data.Faces, list[face_data.Faces]]:
    """Faces to probe with and two test sets of half as many; the shipped networks were trained on none of them."""
    return face_data.random_faces(images, 11), [face_data.random_faces(images // 2, seed) for seed in (12, 13)]


def compare_with_truth(
    run: store.Run, model: VggNet, record: ProbeRecord, tests: Sequence[tuple[face_data.Faces, Any]]
) -> dict[str, Any]:
    """Labels by all five similarity functions against what units respond to on the test faces.

    Writes `truth.csv`, prints the table, returns it for the summary.
    """
    network, layers = as_network(model), list(record.layers)
    with run.timed("truth"):
        responses = np.concatenate([truth.activations(network, images, layers) for _, images in tests])
        presence = np.concatenate([faces.attributes for faces, _ in tests])
        known = truth.affinity(responses, presence)
        found = {name: dissect(record, ATTRIBUTE_SET, similarity=name, null_sets=0) for name in get_args(Similarity)}
        scores = {name: each.scores for name, each in found.items()}
        tables = {
            "units": truth.table(scores, known.auroc),
        }
        if np.nanmax(known.auroc) >= RESPONDS:
            title = f"units that respond to something (AUROC ≥ {RESPONDS})"
            tables[title] = truth.table(scores, known.auroc, least=RESPONDS)
    _write(run, record, known, found)
    for title, rows in tables.items():
        _print(title, rows)
    return {title: {name: asdict(row) for name, row in rows.items()} for title, rows in tables.items()}


def _write(run: store.Run, record: ProbeRecord, known: truth.Affinity, found: dict[str, Dissection]) -> None:
    header = ["layer", "unit", "responds_to", "auroc", "auprc", "correlation"]
    header += [column for name in found for column in (f"{name}_label", f"{name}_label_auroc")]
    names, best = face_data.ATTRIBUTES, np.nanargmax(known.auroc, axis=1)

    def rows() -> Iterator[list[Any]]:
        at = 0
        for layer, units in record.layers.items():
            for unit in range(units):
                affinities = [field[at, best[at]] for field in known]
                labels = [each.labels[at] for each in found.values()]
                told = [value for label in labels for value in (names[label], known.auroc[at, label])]
                yield [layer, unit, names[best[at]], *affinities, *told]
                at += 1

    store.write_csv(run.folder / "truth.csv", header, rows())


def _print(title: str, rows: dict[str, truth.Agreement]) -> None:
    one = next(iter(rows.values()))
    table = Table("labels by", title=f"Labels against the truth: {one.units} {title}", title_justify="left")
    for column in ("best", "among 3", "AUROC", "rank corr."):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(
            name, f"{row.best:.0%}", f"{row.among_three:.0%}", f"{row.auroc_of_label:.3f}", f"{row.rank_correlation:.2f}"
        )
    table.add_section()
    table.add_row("random", f"{1 / one.attributes:.0%}", f"{3 / one.attributes:.0%}", f"{one.auroc_of_random:.3f}", "0.00")
    table.add_row("the truth", "100%", "100%", f"{one.auroc_of_best:.3f}", "1.00")
    console.print(table)


def closing(summary: dict[str, Any], labels: dict[str, Any], out: Path) -> None:
    """The last lines: what was found, and where it lies."""
    row, edit = labels[list(labels)[-1]]["soft_wpmi"], summary["edit"]
    before, tested = edit["baseline"]["all"], edit["tested"]
    chance, chance3 = 1 / row["attributes"], 3 / row["attributes"]
    lines = {
        "network": f"{before['top1']:.1%} of {before['images']} rendered test faces in the right emotion (chance 14.3%)",
        "labels": f"soft_wpmi names what a unit responds to most in {row['best']:.0%} (chance {chance:.0%})"
        f" of {row['units']} units with a clear response, one of three in {row['among_three']:.0%} (chance {chance3:.0%})",
        "edit": f"{edit['finding']} (McNemar p = {edit['p_value']:.2g}): {tested['gained']} faces gained"
        f" and {tested['lost']} lost of {tested['images']} that took no part in its choice",
        "files": str(out),
    }
    say("\nWhat was found")
    for name, line in lines.items():
        say(f"  {name:<9} {line}")
