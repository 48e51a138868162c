"""The code blocks of the docs run as they stand."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from emojax import cli

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"


def test_ten_lines_with_a_torch_network(tiny_clip):
    torch = pytest.importorskip("torch", reason="the oracle extra (torch) is not installed")
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 5), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)]
    layers += [torch.nn.Flatten(), torch.nn.Linear(8, 16)]
    images = np.random.default_rng(0).integers(0, 256, (120, 24, 24, 3), dtype=np.uint8)
    names = {"network": torch.nn.Sequential(*layers), "clip": tiny_clip, "images": images}
    text = (DOCS / "networks.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(import emojax\n.*?)^```$", text, re.S | re.M)
    exec(compile(code, "networks.md", "exec"), names)
    assert names["found"].record.layers == {"conv": 8, "dense": 16}
    assert len(names["found"].labels) == 24


def test_tutorial(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    blocks = re.findall(
        r"^```(python|sh)\n(.*?)^```$", (DOCS / "tutorial.md").read_text("utf-8"), re.S | re.M
    )
    assert [kind for kind, _ in blocks].count("python") >= 7
    for kind, code in blocks:
        if kind == "python":
            exec(compile(code, "tutorial.md", "exec"), names)
            continue
        for line in code.format(clip_folder=names["clip_folder"]).splitlines():
            program, *args = shlex.split(line)
            assert (program, cli.main(args)) == ("emojax", 0), capsys.readouterr().err
    pages = {str(p) for p in Path().rglob("*.html")}
    assert pages == {"runs/mine/report.html", "runs/vgg/report.html", "runs/both/compare.html"}
    assert "faces of people" in Path("runs/vgg/report.html").read_text("utf-8")
    assert "faces of people" not in Path("runs/mine/report.html").read_text("utf-8")
    assert Path("similarities.png").stat().st_size > 1000
