"""The code blocks of the docs run as they stand."""

import re
import shlex
from pathlib import Path

import pytest

from emojax import cli

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"


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
