"""`emojax sweep` with gains from a file."""

import json

import numpy as np
from commands_in_process import UNKNOWN, run

from emojax.data.weights import load_vgg

NETWORK = "vgg.safetensors"


def test_gains_from_a_file(capsys, tmp_path, sources):
    network, probing = sources
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
    assert f"evidence: {evidence['verdict'].split('. ')[0]}." in out
    edited = load_vgg(tmp_path / "given" / "edited.safetensors").lin2.kernel[...]
    np.testing.assert_allclose(
        edited, load_vgg(tmp_path / "vgg.safetensors").lin2.kernel[...] * 1.5, rtol=1e-6
    )
    (tmp_path / "gains.txt").write_text("1 2 3")
    code, _, err = run(capsys, "sweep", *args, "--out", tmp_path / "bad")
    assert (code, err.count("\n")) == (2, 1)
    assert "gains.txt holds 3 numbers, the layer has 20 units" in err
    assert not (tmp_path / "bad").exists()


def test_an_edit_by_concepts(capsys, tmp_path, sources):
    """A concept is erased, or its units are silenced; other words are refused with near ones."""
    network, probing = sources
    args = [*network, *probing, "--probe.layers", "lin*", "--edit.masks", "19"]
    args += ["--dissect.similarity", "correlation"]
    code, _, err = run(
        capsys, "sweep", *args, "--edit.suppress", "Smiles", "--out", tmp_path / "no"
    )
    assert (code, err) == (2, "emojax: paper25 has no concept 'Smiles'; near ones: 'Smile'\n")
    everything = [*args, "--edit.rule", "score", "--edit.least", "-1", "--edit.suppress", "Smile"]
    code, out, _ = run(capsys, "sweep", *everything, "--out", tmp_path / "all")
    assert code == 0
    assert (
        "units are scaled, nothing is erased, since --edit.rule, --edit.least are of units" in out
    )
    assert "20 units for 'Smile' × 0" in out
    evidence = json.loads((tmp_path / "all" / "evidence.json").read_text())
    assert f"evidence: {evidence['verdict'].split('. ')[0]}." in out
    table = (tmp_path / "all" / "edited_units.csv").read_text().splitlines()
    assert table[0].startswith("layer,unit,concepts,similarity,gain,change,change_")
    assert len(table) == 21
    edited = load_vgg(tmp_path / "all" / "edited.safetensors").lin2.kernel[...]
    np.testing.assert_array_equal(edited, 0)
    code, out, _ = run(
        capsys, "sweep", *args, "--edit.suppress", "Smile", "--out", tmp_path / "erased"
    )
    assert code == 0
    assert "edit: 'Smile' erased from the last layer; --edit.method units scales units" in out
    summary = json.loads((tmp_path / "erased" / "summary.json").read_text())
    assert summary["edit"]["setting"]["kind"] == "erased"
    edited, own = (load_vgg(tmp_path / name) for name in ("erased/edited.safetensors", NETWORK))
    np.testing.assert_array_equal(edited.lin2.kernel[...], own.lin2.kernel[...])
    assert not np.array_equal(edited.lin3.kernel[...], own.lin3.kernel[...])
