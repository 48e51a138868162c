"""`emojax shortcuts`: a row for every concept and class, nothing found in noise."""

import csv
import json

from commands_in_process import run

from emojax.data.fer2013 import CLASSES


def test_shortcuts_of_random_images(capsys, tmp_path, sources):
    network, probing = sources
    args = [*network, *probing, "--probe.layers", "lin*", "--dissect.similarity", "correlation"]
    code, out, _ = run(
        capsys, "shortcuts", *args, "--permutations", "19", "--out", tmp_path / "found"
    )
    assert code == 0
    with open(tmp_path / "found" / "shortcuts.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    concepts = {row["concept"] for row in rows}
    assert len(rows) == len(CLASSES) * len(concepts) > 0
    assert {row["label"] for row in rows} == set(CLASSES)
    # With 19 permutations no p-value is below 0.05, and over seven classes no q-value reaches it.
    summary = json.loads((tmp_path / "found" / "summary.json").read_text())
    assert summary == {"layer": "lin2", "shortcuts": []}
    assert "no shortcut found" in out
    code, _, err = run(
        capsys,
        "shortcuts",
        *[*network, *probing, "--probe.layers", "lin1", "--dissect.similarity", "correlation"],
        *("--out", tmp_path / "no"),
    )
    assert code == 2
    assert "--probe.layers leaves out lin2" in err
