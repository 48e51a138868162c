"""Runs side by side."""

import json

import pytest
from hostile_run import columns, copy_of

import emojax
from emojax import cli, store
from emojax.probing import record
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
    found = compare([read_run(hostile[0]), read_run(other)])
    assert "different networks" in found.warnings[0]
    assert len(found.changed) == 3  # of a network made of the first: the labels still agree

    # Labels that agree no more than by chance: nothing is listed
    rows = columns(other / "dissection.csv")
    names = sorted({row["concept"] for row in rows})
    for place, row in enumerate(rows):
        row["concept"] = names[place % len(names)]
    store.write_csv(other / "dissection.csv", list(rows[0]), ([*row.values()] for row in rows))
    found = compare([read_run(hostile[0]), read_run(other)])
    assert found.changed == []
    assert "hardly more than by chance" in found.warnings[-1]


@pytest.mark.long
def test_units_that_correspond_are_on_the_page(capsys, hostile, tmp_path, tiny_vgg, tiny_clip):
    """The run's network against itself: every unit goes with itself, by 1."""
    layers = ["conv1a", "lin1", "lin2"]
    options = {"layers": layers, "keep_activations": True}
    probed = emojax.probe(tiny_vgg, hostile[1], tiny_clip, **options)
    record.save(probed, tmp_path / "record")
    folders = [str(hostile[0])] * 2
    records = ["--records", *[str(tmp_path / "record")] * 2]
    out = ["--out", str(tmp_path / "both")]
    assert cli.main(["compare", *folders, *records, *out]) == 0
    assert "48 units go with one of the other network by 1.00" in capsys.readouterr().out
    rows = columns(tmp_path / "both" / "correspondence.csv")
    assert len(rows) == 48
    assert all(row["layer"] == row["other_layer"] for row in rows)
    assert all(row["unit"] == row["other_unit"] for row in rows)
    text = (tmp_path / "both" / "compare.html").read_text("utf-8")
    assert "Units that correspond" in text
    assert "<script>alert" not in text
    assert cli.main(["compare", *folders, *records[:2], *out, "--overwrite"]) == 2
    assert "give two, of the first two runs" in capsys.readouterr().err
