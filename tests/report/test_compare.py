"""Runs side by side."""

import json

import pytest
from hostile_run import columns, copy_of

from emojax import cli, store
from emojax.report.compare import compare
from emojax.report.results import read_run


def test_compare(capsys, hostile, tmp_path):
    other = copy_of(hostile[0], tmp_path, "other")
    rows = columns(other / "dissection.csv")
    for row in rows[:3]:
        row["concept"] = "Something Else"
    for row in rows:
        row["similarity"] = str(-2 * float(row["similarity"]) + 1)
    store.write_csv(other / "dissection.csv", list(rows[0]), ([*row.values()] for row in rows))
    found = compare([read_run(hostile[0]), read_run(other)])
    assert [row[:4] for row in found.layers][:2] == [
        ["other", "conv1a", 4, 1],
        ["other", "lin1", 24, 24],
    ]
    assert all(row[5] == pytest.approx(-1) and row[6] == pytest.approx(-1) for row in found.layers)
    assert [row[:2] for row in found.changed] == [["conv1a", 0], ["conv1a", 1], ["conv1a", 2]]
    assert found.changed[0][3] == "Something Else"
    assert found.warnings == []
    summary = json.loads((other / "summary.json").read_text())
    assert [row[:5] for row in found.accuracy if row[0] == "other"] == [
        ["other", split, r["images"], r["correct"], r["top1"]]
        for split, r in summary["edit"]["baseline"].items()
    ]
    assert cli.main(["compare", str(hostile[0]), str(other), "--out", str(tmp_path / "both")]) == 0
    assert "3 units have labels that changed" in capsys.readouterr().out
    names = {p.name for p in (tmp_path / "both").iterdir()}
    assert names == {"accuracy.csv", "compare.html", "labels.csv", "layers.csv", "manifest.json"}
    text = (tmp_path / "both" / "compare.html").read_text("utf-8")
    assert "<script>alert" not in text
    assert "Something Else" in text
    manifest = json.loads((other / "manifest.json").read_text())
    store.write_json(
        other / "manifest.json", manifest | {"inputs": manifest["inputs"] | {"target": "0"}}
    )
    assert "different networks" in compare([read_run(hostile[0]), read_run(other)]).warnings[0]
