"""`emojax shortcuts`: a row for every concept and class, nothing found in noise, a page."""

import csv
import json
import shlex

from commands_in_process import run

from emojax import cli
from emojax.commands.base import Dissecting
from emojax.commands.shortcuts import erasing
from emojax.data.fer2013 import CLASSES
from emojax.editing.shortcuts import UNFINDABLE


def test_shortcuts_of_random_images(capsys, tmp_path, sources):
    network, probing = sources
    args = [*network, *probing, "--dissect.similarity", "correlation"]
    layers = ["--probe.layers", "lin*"]
    fewest = ["--permutations", "139", "--out", tmp_path / "found"]
    code, out, _ = run(capsys, "shortcuts", *args, *layers, *fewest)
    assert code == 0
    with open(tmp_path / "found" / "shortcuts.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    concepts = {row["concept"] for row in rows}
    assert len(rows) == len(CLASSES) * len(concepts) > 0
    assert {row["label"] for row in rows} == set(CLASSES)
    summary = json.loads((tmp_path / "found" / "summary.json").read_text())
    assert (summary["layer"], summary["shortcuts"], summary["images"]) == ("lin2", [], 120)
    assert f"no shortcut found (no q ≤ 0.05). {UNFINDABLE}" in out
    page = (tmp_path / "found" / "shortcuts.html").read_text("utf-8")
    assert "No shortcut was found" in page
    fewer = [*layers, "--permutations", "138"]
    refused = {
        "--probe.layers leaves out lin2": ["--probe.layers", "lin1"],
        "cannot reach q ≤ 0.05 over 7 classes; give at least 139": fewer,
    }
    for message, flags in refused.items():
        code, _, err = run(capsys, "shortcuts", *args, *flags, "--out", tmp_path / "no")
        assert (code, err.count("\n")) == (2, 1)
        assert message in err


def test_the_line_that_erases_has_the_inputs_of_the_search(tmp_path):
    """It is parsed as the settings that were in force, of whatever type they are."""
    words = str(tmp_path / "my words.txt")
    given = ["--data.path", "some 'faces'", "--data.test-splits", "one", "two", "--data.limit", "9"]
    given += ["--concepts.path", words, "--dissect.no-abstain", "--probe.keep-activations"]
    given += ["--out", "found", "--permutations", "200"]
    settings = cli.parse(cli.COMMANDS["shortcuts"], given)
    program, command, *args = shlex.split(" ".join(erasing(settings, "Dark Glasses; rm *")))
    assert (program, command) == ("emojax", "sweep")
    parsed = cli.parse(cli.COMMANDS["sweep"], args)
    for name in Dissecting.model_fields.keys() - {"out"}:
        assert getattr(parsed, name) == getattr(settings, name)
    assert parsed.out.name == "found-without-dark-glasses-rm"
    assert parsed.edit.suppress == ("Dark Glasses; rm *",)
    assert parsed.edit.method == "erase"
