"""The command line, settings, run folders, content keys, and the rule that imports point down."""

import ast
import csv
import functools
import graphlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_fer_csv
from rich.console import Console

import emojax
from emojax import cli, store
from emojax.commands import console
from emojax.data.opening import open_split
from emojax.data.weights import load_vgg, save_vgg
from emojax.errors import InputError
from emojax.settings import Settings, read_settings
from emojax.training.evaluate import evaluate

ROOT = Path(emojax.__file__).parent
# Imports point down this list; packages of one line may use each other as long as no modules form a
# cycle.
LEVELS = (
    {"cli"},
    {"commands"},
    {"settings"},
    {"report"},
    {"editing", "evidence"},
    {"dissection"},
    {"training"},
    {"probing"},
    {"data", "synthetic"},
    {"distributed", "store", "outputs", "interruption"},
    {"models"},
    {"ops", "section"},
)
LEVEL = {package: len(LEVELS) - at for at, packages in enumerate(LEVELS) for package in packages}


UNKNOWN = "does not say what it was trained on, so it counts as having seen"


def imports_of(path):
    """Modules of ours that a file imports, anywhere in it, as (line, dotted name without
    `emojax.`).
    """
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name.removeprefix("emojax.") for name in names if name.startswith("emojax."))


def module_of(name):
    """The module that an imported name is, or lies in."""
    for candidate in (name, name.rpartition(".")[0]):
        path = ROOT / candidate.replace(".", "/")
        if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
            return candidate
    return None


MODULES = {
    path.relative_to(ROOT)
    .with_suffix("")
    .as_posix()
    .replace("/", ".")
    .removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
    if path.parent != ROOT or path.stem not in ("__init__", "__main__", "errors")
}


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    package = name.partition(".")[0]
    for imported in imports_of(MODULES[name]):
        target = imported.partition(".")[0]
        if target not in (package, "errors"):
            assert LEVEL[target] <= LEVEL[package], f"{name} imports {imported}"


def test_no_module_imports_itself_by_way_of_others():
    graph = {
        name: {module_of(each) for each in imports_of(path)} & set(MODULES)
        for name, path in MODULES.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_progress_in_a_terminal(monkeypatch):
    """Bars are silent in the tests' pipes; in a terminal they must not stumble over a speed that is
    not known yet.
    """
    written = io.StringIO()
    terminal = functools.partial(Console, file=written, force_terminal=True, width=100)
    monkeypatch.setattr(console, "Console", lambda stderr: terminal())
    with console.progress("probe") as bar:
        for done in (0, 10, 20):
            bar(done, 20)
    assert "20/20" in written.getvalue()
    assert "probe" in written.getvalue()


def test_home_folder_in_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings().cache == tmp_path / ".cache" / "emojax"
    assert cli.parse(cli.COMMANDS["run"], ["--cache", "~/mine"]).cache == tmp_path / "mine"
    assert cli.parse(cli.COMMANDS["run"], ["--out=~/runs"]).out == tmp_path / "runs"
    assert cli.parse(cli.COMMANDS["train"], ["--task=clip"]).train.task == "clip"


def test_import_is_light():
    heavy = ("jax", "flax", "transformers", "tensorflow_datasets", "matplotlib", "numpy")
    code = f"import sys, emojax, emojax.cli; print([m for m in {heavy!r} if m in sys.modules])"
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert got.stdout.strip() == "[]"


def test_public_names_exist():
    for name in emojax.__all__:
        assert getattr(emojax, name) is not None
    assert emojax.probe.__module__ == "emojax.probing.probe"
    with pytest.raises(AttributeError, match="no attribute 'prob'"):
        emojax.prob  # noqa: B018


def run(capsys, *args):
    code = cli.main([str(arg) for arg in args])
    return code, *capsys.readouterr()


def test_help_lists_the_commands(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(f"  {command} " in out for command in cli.COMMANDS)
    for command in cli.COMMANDS:
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "--help"])
        assert stop.value.code == 0
        assert "default" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["prob"], "no command 'prob'; did you mean 'probe'?"),
        (["run", "--probe.bach", "3"], "--probe.batch"),
        (["run", "--probe.batch", "x"], "--probe.batch: invalid literal"),
        (["run", "--probe.batch", "-1"], "batch Input should be greater than 0"),
        (["run", "--probe.pool", "sum"], "invalid choice 'sum'"),
        (["run", "--config"], "--config needs a file"),
        (["run", "--config", "none.yaml"], "cannot read the settings file none.yaml"),
        (["run"], "--target.weights is needed"),
        (
            ["evaluate", "--target.weights", "none.safetensors"],
            "no weights file 'none.safetensors'",
        ),
        (["prepare"], "--source is needed"),
        (["prepare", "--source", "nowhere"], "no FER2013 at 'nowhere'"),
        (["run", "--concepts.path", "none.txt"], "no concept file 'none.txt'"),
    ],
)
def test_refusals_are_one_line_and_exit_2(capsys, tmp_path, args, message):
    if args[0] in cli.COMMANDS:
        args = [*args, *(["--out", str(tmp_path / "out")] if args[-1] != "--config" else [])]
    code, _, err = run(capsys, *args)
    assert code == 2
    assert message in err
    assert err.startswith("emojax: ")
    assert err.count("\n") == 1
    assert "http" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("probe: {bach: 3}", "probe.bach is not a setting; did you mean 'batch'?"),
        ("prob: {}", "prob is not a setting; did you mean 'probe'?"),
        ("probe: {batch: 0}", "probe.batch is 0: Input should be greater than 0"),
        ("edit: {factor: [1, -2]}", "edit.factor.1 is -2"),
        ("probe: [", "not YAML"),
        ("- 3", "must map section names"),
    ],
)
def test_settings_file_refusals(tmp_path, text, message):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        read_settings(path)
    assert message in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("probe: {batch: 32, top_k: 50}\nedit: {tau: [-1.0, 0.5]}\n")
    settings = cli.parse(
        cli.COMMANDS["run"],
        ["--config", str(path), "--probe.batch", "64", "--edit.factor", "1.0", "2.5"],
    )
    assert (settings.probe.batch, settings.probe.top_k, settings.probe.pool) == (64, 50, "avg")
    assert (settings.edit.tau, settings.edit.factor) == ((-1.0, 0.5), (1.0, 2.5))
    with pytest.raises(ValueError, match="frozen"):
        settings.probe.batch = 3


def test_shipped_configs_are_valid():
    configs = sorted((ROOT.parent / "configs").glob("*.yaml"))
    assert configs
    for path in configs:
        assert isinstance(read_settings(path), Settings)


def test_content_keys():
    base = {"a": np.arange(3), "b": [1, None, "x"]}
    assert store.content_key(base) == store.content_key({"b": [1, None, "x"], "a": np.arange(3)})
    others = [
        {"a": np.arange(3.0), "b": [1, None, "x"]},
        {"a": np.arange(3)[None], "b": [1, None, "x"]},
        {"a": np.arange(3), "b": [1, None, "y"]},
        {"a": np.arange(3), "b": ["1", None, "x"]},
    ]
    assert len({store.content_key(x) for x in [base, *others]}) == 5
    with pytest.raises(TypeError, match="no content key for object"):
        store.content_key(object())


def test_run_folder_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "out"

    def fail_half_way():
        with store.run_folder(out, "x", {}) as half:
            (half.folder / "a").write_text("1")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []
    for text in ("1", "2"):  # a second run replaces the first when it is told to
        with store.run_folder(out, "x", {"s": 1}, overwrite=text == "2") as whole:
            (whole.folder / "a").write_text(text)
            with whole.timed("part"):
                pass
    assert (out / "a").read_text() == "2"
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["settings"] == {"s": 1}
    assert {"versions", "devices", "inputs", "timings", "verb", "started"} <= set(manifest)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_demo_runs_the_chain(capsys, tmp_path):
    flags = ("--images", "300", "--out", tmp_path / "demo", "--cache", tmp_path / "cache")
    code, out, err = run(capsys, "demo", *flags)
    assert (code, err) == (0, "")
    assert "What was found" in out
    names = {p.name for p in (tmp_path / "demo").iterdir()}
    tables = {"dissection.csv", "interpretability.csv", "sweep.csv", "thresholds.csv", "truth.csv"}
    pages = {"report.html", "figures", "units.npz", "bands.csv"}
    explained = {"explanations.csv", "explanations.json", "simulated.npz"}
    assert names == tables | pages | explained | {
        "summary.json",
        "manifest.json",
        "evidence.json",
        "edited.safetensors",
    }
    page = (tmp_path / "demo" / "report.html").read_text("utf-8")
    assert "Labels against the truth" in page
    assert 'class="pack"' in page  # rendered faces are shown
    assert "faces of people" not in page
    assert len(rows_of(tmp_path / "demo" / "sweep.csv")) == 72
    truths = rows_of(tmp_path / "demo" / "truth.csv")
    assert len(truths) == len(rows_of(tmp_path / "demo" / "dissection.csv"))
    assert all(float(row["soft_wpmi_label_auroc"]) <= float(row["auroc"]) for row in truths)
    code, _, err = run(capsys, "demo", *flags)
    assert (code, err.count("\n")) == (2, 1)
    assert (
        "holds a run already (manifest.json); pass --overwrite to replace it, or name another "
        "folder" in err
    )
    code, out, err = run(capsys, "demo", *flags, "--overwrite")
    assert (code, err) == (0, "")
    assert "reusing the record" in out


@pytest.fixture
def world(tmp_path, fer_rows, tiny_vgg, clip_folder):
    """Prepared FER2013 with 120 training images, weights and a CLIP folder: the flags that name
    them.
    """
    rng = np.random.default_rng(1)
    rows = fer_rows + [(i % 7, rng.integers(0, 256, 2304), "Training") for i in range(106)]
    source = write_fer_csv(tmp_path / "fer2013.csv", rows)
    assert cli.main(["prepare", "--source", str(source), "--out", str(tmp_path / "fer")]) == 0
    save_vgg(tiny_vgg, tmp_path / "vgg.safetensors")
    flags = ["--data.path", tmp_path / "fer", "--target.weights", tmp_path / "vgg.safetensors"]
    return [str(f) for f in flags], [
        "--clip.path",
        str(clip_folder),
        "--cache",
        str(tmp_path / "cache"),
    ]


def test_run_on_files(capsys, tmp_path, world):
    network, probing = world
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
    assert (code, err) == (
        0,
        f"warning: vgg.safetensors {UNKNOWN} FER2013 public_test, FER2013 private_test\n",
    )
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
    assert evidence["verdict"] in out
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


def test_gains_from_a_file(capsys, tmp_path, world):
    network, probing = world
    (tmp_path / "gains.txt").write_text(" ".join(["1.5"] * 20))
    args = [
        *network,
        *probing,
        "--probe.layers",
        "lin*",
        "--edit.layers",
        "lin2",
        "--edit.gains",
        tmp_path / "gains.txt",
    ]
    code, out, err = run(capsys, "sweep", *args, "--out", tmp_path / "given")
    assert (code, err) == (
        0,
        f"warning: vgg.safetensors {UNKNOWN} FER2013 public_test, FER2013 private_test\n",
    )
    evidence = json.loads((tmp_path / "given" / "evidence.json").read_text())
    assert evidence["total"] == 14
    assert evidence["verdict"] in out
    edited = load_vgg(tmp_path / "given" / "edited.safetensors").lin2.kernel[...]
    np.testing.assert_allclose(
        edited, load_vgg(tmp_path / "vgg.safetensors").lin2.kernel[...] * 1.5, rtol=1e-6
    )
    (tmp_path / "gains.txt").write_text("1 2 3")
    code, _, err = run(capsys, "sweep", *args, "--out", tmp_path / "bad")
    assert (code, err.count("\n")) == (2, 1)
    assert "gains.txt holds 3 numbers, the layer has 20 units" in err
    assert not (tmp_path / "bad").exists()


def test_probe_and_evaluate(capsys, tmp_path, world):
    network, probing = world
    code, _, _ = run(
        capsys, "probe", *network, *probing, "--probe.layers", "lin*", "--out", tmp_path / "probe"
    )
    assert code == 0
    assert emojax.ProbeRecord is not None
    assert (tmp_path / "probe" / "record" / "record.json").is_file()
    code, _out, _ = run(
        capsys,
        "evaluate",
        *network,
        "--evaluate.protocol",
        "tencrop",
        "--out",
        tmp_path / "evaluate",
    )
    assert code == 0
    summary = json.loads((tmp_path / "evaluate" / "summary.json").read_text())
    assert summary["splits"]["all"]["images"] == 14
    assert sum(map(sum, summary["splits"]["all"]["confusion"])) == 14


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"7,{' '.join(['7'] * 2304)},Training", "row 1: emotion '7' is not a number from 0 to 6"),
        ("1,7 8,Training", "row 1: 2 pixel values, not 2304"),
        (
            f"1,{' '.join(['300'] * 2304)},Training",
            "row 1: pixel value '300' is not a whole number from 0 to 255",
        ),
        ("1,7", "row 1: 2 columns, not 3"),
    ],
)
def test_prepare_refuses_a_bad_csv(capsys, tmp_path, row, message):
    (tmp_path / "fer2013.csv").write_text(f"emotion,pixels,Usage\n{row}\n")
    code, _, err = run(
        capsys, "prepare", "--source", tmp_path / "fer2013.csv", "--out", tmp_path / "fer"
    )
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert [p.name for p in tmp_path.iterdir()] == ["fer2013.csv"]


def test_prepare_refuses_a_bad_image(capsys, tmp_path, fer_folder):
    (fer_folder / "train" / "happy" / "Training_bad.jpg").write_bytes(b"not an image")
    code, _, err = run(capsys, "prepare", "--source", fer_folder, "--out", tmp_path / "fer")
    assert (code, err.count("\n")) == (2, 1)
    assert "Training_bad.jpg: not a readable image" in err
    assert not (tmp_path / "fer").exists()


def test_lin3_with_the_seven_classes(capsys, tmp_path, world):
    network, probing = world
    args = ["--probe.layers", "lin3", "--concepts.path", "classes7", "--out", tmp_path / "lin3"]
    assert run(capsys, "dissect", *network, *probing, *args)[0] == 0
    assert len(rows_of(tmp_path / "lin3" / "dissection.csv")) == 7


def test_late_refusals_leave_nothing_behind(capsys, tmp_path, world):
    network, probing = world
    for args, message in (
        (["--probe.layers", "conv9"], "no layer 'conv9'; did you mean 'conv"),
        (
            ["--dissect.top-k", "500"],
            "top 500 images of each unit are needed, the record holds 120",
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
