"""`emojax sweep` with gains from a file."""

import json

import numpy as np
from commands_in_process import UNKNOWN, run

from emojax.data.weights import load_vgg


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
