"""`emojax demo`: the whole chain on rendered faces."""

import json

import pytest
from commands_in_process import rows_of, run

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_demo_runs_the_chain(capsys, tmp_path):
    flags = ("--images", "200", "--out", tmp_path / "demo", "--cache", tmp_path / "cache")
    code, out, err = run(capsys, "demo", *flags)
    assert (code, err) == (0, "")
    assert "What was found" in out
    names = {p.name for p in (tmp_path / "demo").iterdir()}
    tables = {"dissection.csv", "interpretability.csv", "sweep.csv", "thresholds.csv", "truth.csv"}
    pages = {"report.html", "figures", "units.npz", "bands.csv"}
    assert names == tables | pages | {
        "summary.json",
        "manifest.json",
        "evidence.json",
        "edited.safetensors",
        "explanations.csv",
        "explanations.json",
        "simulated.npz",
    }
    page = (tmp_path / "demo" / "report.html").read_text("utf-8")
    assert "Labels against the truth" in page
    assert '"truth":{"names":[' in page  # of every unit, beside its label
    assert 'class="pack"' in page  # rendered faces are shown
    assert "faces of people" not in page
    assert len(rows_of(tmp_path / "demo" / "sweep.csv")) == 72
    truths = rows_of(tmp_path / "demo" / "truth.csv")
    assert len(truths) == len(rows_of(tmp_path / "demo" / "dissection.csv"))
    for name in ("soft_wpmi", "soft_wpmi_images", "correlation"):
        assert all(float(row[f"{name}_label_auroc"]) <= float(row["auroc"]) for row in truths)
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text("utf-8"))
    assert summary["labels_right"].keys() == {"auroc", "enrichment", "among_three", "certain_half"}
    assert all(0 <= share <= 1 for share in summary["labels_right"].values())
    assert summary["certainty"][-1]["labelled"] == 1.0
    named = summary["edit_by_concept"]
    assert (named["concept"], named["images"]) == ("Glasses", 200)
    assert 0 <= named["gained"] + named["lost"] <= 200
    assert named["finding"].split()[0] in named["verdict"].lower()
    code, _, err = run(capsys, "demo", *flags)
    assert (code, err.count("\n")) == (2, 1)
    assert (
        "holds a run already (manifest.json); pass --overwrite to replace it, or name another "
        "folder" in err
    )


def test_too_few_images_are_refused(inputs):
    inputs.refused(["demo", "--images", "10"], "greater than or equal to 200")
