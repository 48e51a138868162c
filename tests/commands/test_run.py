"""`emojax run` on files."""

import json

import pytest
from commands_in_process import UNKNOWN, rows_of, run

from emojax.data.opening import open_split
from emojax.data.weights import load_vgg
from emojax.report.results import read_run
from emojax.training.evaluate import evaluate


def test_run_on_files(capsys, tmp_path, sources):
    network, probing = sources
    args = [
        *network,
        *probing,
        "--edit.layers",
        "lin2",
        "--edit.tau",
        "0",
        "--edit.factor",
        "1",
        "2",
    ]
    args += [
        "--edit.permutations",
        "19",
        "--edit.masks",
        "50",
        "--edit.choose-on",
        "all_splits",
        "--edit.learned",
    ]
    code, out, err = run(capsys, "run", *args, "--out", tmp_path / "run")
    assert code == 0
    weak, warning, seen = err.splitlines()
    assert "of 120 images into the right class by the class names alone" in weak  # a random CLIP
    assert warning.startswith("warning: no threshold of --edit.tau lies among the units' simil")
    assert seen == f"warning: vgg.safetensors {UNKNOWN} FER2013 public_test, FER2013 private_test"
    assert "120 images, 10 layers" in out
    units = rows_of(tmp_path / "run" / "dissection.csv")
    assert len(units) == 100
    assert all(float(u["margin"]) >= 0 for u in units)
    grid = rows_of(tmp_path / "run" / "sweep.csv")
    assert [(g["tau"], g["factor"]) for g in grid] == [("0", "1"), ("0", "2")]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["edit"]["selected_on_test"] is True
    assert summary["edit"]["setting"] == {
        "layer": "lin2",
        "kind": "threshold",
        "tau": 0.0,
        "factor": 2.0,
        "concepts": None,
    }
    best = grid[1]
    assert int(best["correct"]) == summary["edit"]["edited"]["all"]["correct"]
    assert int(grid[0]["correct"]) == summary["edit"]["baseline"]["all"]["correct"]
    edited = load_vgg(tmp_path / "run" / "edited.safetensors")
    tests = [open_split(tmp_path / "fer", split) for split in ("public_test", "private_test")]
    assert int(best["correct"]) == sum(
        evaluate(edited, test).summary()["correct"] for test in tests
    )
    evidence = json.loads((tmp_path / "run" / "evidence.json").read_text())
    assert evidence["total"] == 14
    assert evidence["controls"]["random_masks"]["draws"] == 50
    assert "learned" in evidence["controls"]
    assert read_run(tmp_path / "run").evidence.sentence in out
    assert "calibration" in out
    cuts = rows_of(tmp_path / "run" / "thresholds.csv")
    assert [int(row["units_above"]) for row in cuts] == list(range(21))
    above_zero = sum(float(unit["similarity"]) > 0 for unit in units if unit["layer"] == "lin2")
    assert cuts[above_zero]["correct"] == best["correct"]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert {"target", "clip", "images", "concepts", "record"} <= set(manifest["inputs"])

    code, out, _ = run(capsys, "dissect", *network, *probing, "--out", tmp_path / "again")
    assert code == 0
    assert "reusing the record" in out
    assert (tmp_path / "again" / "dissection.csv").read_text() == (
        tmp_path / "run" / "dissection.csv"
    ).read_text()
    code, out, _ = run(capsys, "sweep", *args, "--out", tmp_path / "sweep")
    assert code == 0
    assert (tmp_path / "sweep" / "sweep.csv").read_text() == (
        tmp_path / "run" / "sweep.csv"
    ).read_text()


@pytest.mark.long
def test_lin3_with_the_seven_classes(capsys, tmp_path, sources):
    network, probing = sources
    args = ["--probe.layers", "lin3", "--concepts.path", "classes7", "--out", tmp_path / "lin3"]
    assert run(capsys, "dissect", *network, *probing, *args)[0] == 0
    assert len(rows_of(tmp_path / "lin3" / "dissection.csv")) == 7


def test_late_refusals_leave_nothing_behind(capsys, tmp_path, sources):
    network, probing = sources
    for args, message in (
        (["--probe.layers", "conv9"], "no layer 'conv9'; did you mean 'conv"),
        (
            ["--dissect.top-k", "500"],
            "the top 500 images of each unit, and",
        ),
        (
            ["--dissect.similarity", "cos_similarity", "--dissect.a", "3"],
            "--dissect.a is not a setting of cos_similarity",
        ),
        (["--data.probe-split", "train"], "no split 'train'; did you mean 'training'?"),
        (["--edit.layers", "lin9"], "no layer 'lin9'; did you mean 'lin"),
        (["--probe.layers", "lin1", "--edit.layers", "lin2"], "no layer 'lin2'"),
        (
            ["--edit.permutations", "10"],
            "--edit.permutations 10 cannot reach p ≤ 0.05; give at least 19",
        ),
        (
            ["--data.test-splits", "public_test", "public_test"],
            "are the same images; name different ones",
        ),
        (
            ["--data.test-splits", "training", "--edit.learned"],
            "which is also a test split; probe another split",
        ),
        (
            ["--edit.gains", "gains.txt"],
            "--edit.gains are those of one layer; name it with --edit.layers",
        ),
        (
            ["--edit.factor", "1"],
            "--edit.factor has only 1, which edits nothing; give another factor",
        ),
    ):
        code, _, err = run(capsys, "run", *network, *probing, *args, "--out", tmp_path / "out")
        assert (code, err.count("\n")) == (2, 1), err
        assert message in err
        assert not (tmp_path / "out").exists()
        assert not [p for p in tmp_path.iterdir() if p.name.startswith(".out")]


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--data.kind", "hub", "invalid choice 'hub'"),
        ("--data.limit", "0", "greater than 0"),
        ("--data.limit", "1.5", "1.5"),
        ("--data.size", "-3", "greater than 0"),
        ("--data.size", "big", "big"),
        ("--probe.top-k", "0", "greater than 0"),
        ("--probe.tile", "0", "greater than 0"),
        ("--probe.save-every", "-1", "greater than or equal to 0"),
        ("--probe.save-every", "nan", "finite"),
        ("--probe.taps", "bn", "invalid choice 'bn'"),
        ("--clip.dtype", "float16", "invalid choice 'float16'"),
        ("--dissect.similarity", "wpm", "invalid choice 'wpm'"),
        ("--dissect.a", "inf", "finite"),
        ("--dissect.lam", "x", "x"),
        ("--dissect.tau", "nan", "finite"),
        ("--dissect.null-sets", "-1", "greater than or equal to 0"),
        ("--edit.scope", "bias", "invalid choice 'bias'"),
        ("--edit.factor", "0", "greater than or equal to 0.000001"),
        ("--edit.factor", "-2", "greater than or equal to 0.000001"),
        ("--edit.tau", "nan", "finite"),
        ("--edit.top-fraction", "1", "less than 1"),
        ("--edit.continuous", "0", "greater than or equal to 0.000001"),
        ("--edit.choose-on", "test", "invalid choice 'test'"),
        ("--edit.alpha", "0", "greater than or equal to 0.000001"),
        ("--edit.alpha", "1", "less than 1"),
        ("--edit.permutations", "-1", "greater than or equal to 0"),
        ("--edit.masks", "-1", "greater than or equal to 0"),
        ("--edit.learned", "maybe", "maybe"),
        ("--evaluate.protocol", "fivecrop", "invalid choice 'fivecrop'"),
        ("--evaluate.batch", "0", "greater than 0"),
    ],
)
def test_settings_out_of_range_are_refused(inputs, flag, value, message):
    inputs.refused(["run", flag, value], message)
