"""`--target.path` and `--target.factory`: the commands on networks of others and own code."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from emojax import cli
from emojax.data.network_folder import load_network

LABELS = {"id2label": {"0": "joy", "1": "calm", "2": "awe"}}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, clip_folder):
    """A ViT folder of three classes, and coloured photos of them in three splits."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch", reason="the oracle extra (torch) is not installed")
    root = tmp_path_factory.mktemp("target")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    patches = {"intermediate_size": 40, "image_size": 16, "patch_size": 4}
    config = transformers.ViTConfig(**sizes, **patches, **LABELS)
    transformers.ViTForImageClassification(config).save_pretrained(root / "vit")
    transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(
        root / "vit"
    )
    rng = np.random.default_rng(0)
    for split in ("probe", "choose", "test"):
        for number in range(24):
            folder = root / "photos" / split / ("awe", "calm", "joy")[number % 3]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def run(inputs, out, command, *flags, target=("--target.path", "vit")):
    shared = ["--data.path", inputs / "photos", "--data.test-splits", "choose", "test"]
    if command != "evaluate":
        shared += ["--data.probe-split", "probe", "--cache", inputs / "cache"]
    target = (target[0], inputs / target[1]) if target[0] == "--target.path" else target
    args = [command, *target, *shared, *flags, "--out", out]
    return cli.main([str(arg) for arg in args])


@pytest.mark.long
def test_probe_and_dissect(inputs, clip_folder, tmp_path, capsys):
    clip = ("--clip.path", clip_folder)
    assert run(inputs, tmp_path / "probe", "probe", *clip, "--probe.top-k", "12") == 0
    assert "2 layers, 48 units" in capsys.readouterr().out  # the states after both blocks
    layers = ("--probe.layers", "*.hidden", "pooled", "--dissect.top-k", "8")
    assert run(inputs, tmp_path / "dissect", "dissect", *clip, *layers) == 0
    with open(tmp_path / "dissect" / "dissection.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == (
        ["block0.hidden"] * 40 + ["block1.hidden"] * 40 + ["pooled"] * 24
    )


@pytest.mark.slow
def test_evaluate_in_the_order_of_the_folder(inputs, tmp_path):
    assert run(inputs, tmp_path / "evaluate", "evaluate") == 0
    summary = json.loads((tmp_path / "evaluate" / "summary.json").read_text())
    assert summary["splits"]["photos test"]["classes"] == ["joy", "calm", "awe"]


@pytest.mark.long
@pytest.mark.parametrize(
    "layer",
    [
        "pooled",
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("block0", "block1.hidden")),
    ],
)
def test_run_edits_by_labels(layer, inputs, clip_folder, tmp_path):
    flags = ["--clip.path", clip_folder, "--probe.layers", "*", "--dissect.top-k", "8"]
    flags += ["--edit.layers", layer, "--edit.permutations", "19", "--edit.masks", "5"]
    flags += ["--edit.tau", "0", "--edit.factor", "1", "2"]
    assert run(inputs, tmp_path / "run", "run", *flags) == 0
    evidence = json.loads((tmp_path / "run" / "evidence.json").read_text())
    assert evidence["total"] == 24
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"sweep.csv", "report.html", "units.npz"} <= written
    assert "edited.safetensors" not in written
    assert ("edited" in written) == (layer != "block0")
    if layer != "block0":
        card = (tmp_path / "run" / "edited" / "README.md").read_text("utf-8")
        assert " ".join(evidence["verdict"].split()) in card
        folder = load_network(tmp_path / "run" / "edited")
        assert folder.config.class_names == ("joy", "calm", "awe")


def test_refusals(inputs, clip_folder, tmp_path, capsys):
    def refused(*args, **options):
        assert run(inputs, tmp_path / "out", *args, **options) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return error

    both = refused("evaluate", "--target.weights", "a.safetensors")
    assert "--target.weights and --target.path name a network each" in both
    assert "no network folder" in refused("evaluate", target=("--target.path", "nowhere"))
    missing = refused("evaluate", target=("--target.factory", "json:no_such"))
    assert "--target.factory json:no_such: module 'json' has no attribute" in missing
    assert "not package.module:function" in refused("evaluate", target=("--target.factory", "x"))
    made = refused("evaluate", target=("--target.factory", "random:random"))
    assert "returned a float, not a model" in made


@pytest.mark.slow
def test_factory(inputs, clip_folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "my_network_of_tests.py").write_text(
        "import jax.numpy as jnp\n"
        "def make():\n"
        "    def run(params, images):\n"
        "        hidden = images.mean((1, 2)) @ params\n"
        "        return hidden, {'hidden': hidden}\n"
        "    return run, jnp.asarray([[1., 2, 0], [0, 1, 1], [3, 0, 1]])\n"
    )
    monkeypatch.chdir(tmp_path)
    target = ("--target.factory", "my_network_of_tests:make")
    clip = ("--clip.path", clip_folder, "--probe.top-k", "12")
    assert run(inputs, tmp_path / "one", "probe", *clip, target=target) == 0
    assert "no --target.key" in capsys.readouterr().out
    keyed = (*target, "--target.key", "v1")
    for out in ("two", "three"):
        assert run(inputs, tmp_path / out, "probe", *clip, target=keyed) == 0
    assert "reusing the record" in capsys.readouterr().out
    assert run(inputs, tmp_path / "four", "evaluate", target=target) == 0
    names = [(tmp_path / out / "record" / "embeddings.npy").read_bytes() for out in ("one", "two")]
    assert names[0] == names[1]
