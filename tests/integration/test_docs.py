"""The code blocks of the docs run as they stand."""

import doctest
import json
import re
import shlex
import warnings
from pathlib import Path

import numpy as np
import pytest

import emojax
from emojax import cli

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.mark.long
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


@pytest.mark.long
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
    of_runs = {f"runs/{name}/report.html" for name in ("mine", "vgg", "classes")}
    assert pages == of_runs | {"runs/both/compare.html"}
    assert "faces of people" in Path("runs/vgg/report.html").read_text("utf-8")
    assert "faces of people" not in Path("runs/mine/report.html").read_text("utf-8")
    assert Path("similarities.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda path: path.stem
)
def test_names_in_the_prose_exist(path):
    """What a document calls as `emojax.name(…)` is a public name."""
    text = path.read_text("utf-8")
    assert set(re.findall(r"`emojax\.([A-Za-z_]+)\(", text)) <= set(emojax.__all__)


def test_the_readmes_examples(tmp_path, monkeypatch, tiny_vgg, tiny_clip, blobs):
    """The verdict that it prints, and the lines from Python with stand-ins for files."""
    text = (ROOT / "README.md").read_text("utf-8")
    examples = doctest.DocTestParser().get_doctest(
        "".join(re.findall(r"^>>> .*?(?=^```)", text, re.S | re.M)), {}, "README", "README.md", 0
    )
    assert len(examples.examples) >= 2
    assert doctest.DocTestRunner().run(examples).failed == 0
    monkeypatch.chdir(tmp_path)
    emojax.save_vgg(tiny_vgg, "vggnet.safetensors")
    monkeypatch.setattr("emojax.data.clip_folder.load_clip", lambda path: tiny_clip)
    (code,) = re.findall(r"^```python\n(import emojax\n\nclip = .*?)^```$", text, re.S | re.M)
    names = {"model": tiny_vgg, "images": blobs, "gains": np.ones(20, np.float32)}
    exec(compile(code, "README.md", "exec"), names)
    assert names["dissection"].labels.shape == names["explanations"].correlation.shape
    assert Path("edited.safetensors").is_file()


@pytest.mark.long
def test_the_notebook(monkeypatch):
    """As Jupyter runs it; without nbclient its cells one after another, here."""
    pytest.importorskip("pandas", reason="the dataframe extra (pandas) is not installed")
    pytest.importorskip("pyarrow", reason="the dataframe extra (pyarrow) is not installed")
    path = ROOT / "examples" / "tour.ipynb"
    cells = [c for c in json.loads(path.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in cells)  # they belong to nobody's machine
    try:
        import nbclient
        import nbformat
    except ImportError:
        names: dict = {}
        for cell in cells:
            exec(compile("".join(cell["source"]), "tour.ipynb", "exec"), names)
        assert names["page"].is_file()
        return
    notebook = nbformat.read(path, as_version=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Jupyter's own parts about each other
        nbclient.NotebookClient(notebook, timeout=600).execute()
    shown = [o for c in notebook.cells for o in c.get("outputs", ()) if "data" in o]
    assert any("image/png" in output["data"] for output in shown)  # the figure shows itself
    assert "<table" in shown[0]["data"]["text/html"]
