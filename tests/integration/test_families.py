"""Every kind of network through the commands: evaluate, dissect with its page, sweep, compare,
judge, predict and shortcuts, with classes that are no emotions.

The networks are small, random, and written without torch; what they compute is tested beside their
modules.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from commands_in_process import rows_of, run
from conftest import hf_config, hf_tokenizer
from flax import nnx
from PIL import Image

import emojax
from emojax.data.clip_folder import load_clip, save_clip
from emojax.data.opening import open_split
from emojax.models import convnext, resnet, vgg16, vision_tower, vit
from emojax.models.clip import Clip, ClipConfig
from emojax.models.preprocess import Preprocess
from emojax.probing import record
from emojax.store import save_arrays, write_json

# In another order than the images' folders, which stand in alphabetical order.
CLASSES = ("ship", "cat", "plane")
SIDE = 16
PIXELS = Preprocess((SIDE, SIDE), None, (0.5,) * 3, (0.5,) * 3)
SQUARE = {"height": SIDE, "width": SIDE}
TRANSFORMER = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "image_size": SIDE,
    "patch_size": 8,
}
MLP = {"intermediate_size": 40}
STAGES = {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]}
OWN = """
import jax
from flax import nnx


class Own(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 6, (3, 3), strides=2, rngs=rngs)
        self.dense = nnx.Linear(6, 8, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, images, gains=None):
        gains = gains or {}
        conv = jax.nn.relu(self.conv(images)) * gains.get("conv", 1)
        hidden = jax.nn.relu(self.dense(conv.mean((1, 2)))) * gains.get("hidden", 1)
        return self.last(hidden), {"conv": conv, "hidden": hidden}


def module():
    return Own(nnx.Rngs(0))


def pair():
    graphdef, state = nnx.split(module())
    return lambda params, images: nnx.merge(graphdef, params)(images), state
"""


class Family(NamedTuple):
    """A kind of network.

    Attributes:
      write: (folder) → the flags that name the network, which it writes there.
      inner: a layer within.
      last: the last hidden layer; None where there are no logits.
      editable: whether it can be swept; code that takes no gains cannot.
    """

    write: Callable[[Path], list[str]]
    inner: str
    last: str | None
    editable: bool = True


def folder_of(
    architecture: str, kind: str, build: Callable[..., Any], module: Any, **sizes: Any
) -> Callable[[Path], list[str]]:
    """Writes a folder of transformers; `build` makes the config of a complete dictionary."""

    def write(folder: Path) -> list[str]:
        import transformers

        labels = {"id2label": {str(i): name for i, name in enumerate(CLASSES)}}
        complete = getattr(transformers, f"{kind}Config")(**sizes, **labels).to_dict()
        network = made(module, build(complete, preprocess=PIXELS))
        folder.mkdir()
        write_json(folder / "config.json", complete | {"architectures": [architecture]})
        processor = transformers.ViTImageProcessorPil(size=SQUARE)
        processor.save_pretrained(folder)
        save_arrays(network.state_dict(), folder / "model.safetensors")
        return ["--target.path", str(folder)]

    return write


def made(module: Any, config: Any) -> Any:
    return nnx.jit(lambda: module(config, rngs=nnx.Rngs(0)))()


def weights_of(module: Any, config: Any) -> Callable[[Path], list[str]]:
    """Writes torchvision's state dict."""

    def write(folder: Path) -> list[str]:
        folder.mkdir()
        save_arrays(made(module, config).state_dict(), folder / "network.safetensors")
        flags = ["--target.weights", str(folder / "network.safetensors")]
        return [*flags, "--target.classes", *CLASSES]

    return write


def timm_folder(folder: Path) -> list[str]:
    tower = vit.TowerConfig(width=24, mlp=40, depth=1, heads=3, activation="gelu", epsilon=1e-6)
    config = vit.VitConfig(
        kind="vit",
        tower=tower,
        image_size=SIDE,
        patch_size=8,
        classes=3,
        preprocess=PIXELS,
        timm=True,
    )
    images = {"input_size": [3, SIDE, SIDE], "interpolation": "bicubic", "crop_pct": 1.0}
    folder.mkdir()
    settings = {"architecture": "vit_tiny_patch8_16", "label_names": CLASSES}
    settings["pretrained_cfg"] = images | {"mean": [0.5] * 3, "std": [0.5] * 3}
    write_json(folder / "config.json", settings)
    save_arrays(made(vit.Vit, config).state_dict(), folder / "model.safetensors")
    return ["--target.path", str(folder)]


def factory_of(function: str, *further: str) -> Callable[[Path], list[str]]:
    """Writes a module beside the working folder's files; its outputs are in the images' order."""

    def write(folder: Path) -> list[str]:
        (folder.parent / "own_networks.py").write_text(OWN)
        return ["--target.factory", f"own_networks:{function}", *further]

    return write


def _tower(config: dict[str, Any], *, preprocess: Preprocess) -> vision_tower.VisionTowerConfig:
    return vision_tower.VisionTowerConfig.from_hf(config, preprocess=preprocess, projected=False)


def _teacher(config: dict[str, Any], *, preprocess: Preprocess) -> vit.VitConfig:
    return vit.VitConfig.from_hf(config, preprocess=preprocess, teacher=True)


RESNET = resnet.ResNetConfig(
    stem=4,
    widths=(8, 16),
    depths=(1, 1),
    block="bottleneck",
    classes=3,
    preprocess=PIXELS,
    torchvision=True,
)
VGG = vgg16.Vgg16Config(
    widths=(2,) * 8, hidden=(6, 8), batch_norm=True, classes=3, preprocess=PIXELS
)
_vit = vit.VitConfig.from_hf
FAMILIES = {
    "vit": Family(
        folder_of("ViTForImageClassification", "ViT", _vit, vit.Vit, **TRANSFORMER, **MLP),
        "block0.hidden",
        "pooled",
    ),
    "deit": Family(
        folder_of(
            "DeiTForImageClassificationWithTeacher",
            "DeiT",
            _teacher,
            vit.Vit,
            **TRANSFORMER,
            **MLP,
        ),
        "block0",
        "pooled",
    ),
    "dinov2": Family(
        folder_of("Dinov2ForImageClassification", "Dinov2", _vit, vit.Vit, **TRANSFORMER),
        "block0.attention",
        "pooled",
    ),
    "resnet": Family(
        folder_of(
            "ResNetForImageClassification",
            "ResNet",
            resnet.ResNetConfig.from_hf,
            resnet.ResNet,
            embedding_size=4,
            **STAGES,
        ),
        "stage1.block0.conv0",
        "pooled",
    ),
    "convnext": Family(
        folder_of(
            "ConvNextForImageClassification",
            "ConvNext",
            convnext.ConvNextConfig.from_hf,
            convnext.ConvNext,
            **STAGES,
        ),
        "stage1.block0.hidden",
        "pooled",
    ),
    "clip tower": Family(
        folder_of(
            "CLIPVisionModel",
            "CLIPVision",
            _tower,
            vision_tower.VisionNetwork,
            **TRANSFORMER,
            **MLP,
        ),
        "block0.hidden",
        None,
    ),
    "siglip tower": Family(
        folder_of(
            "SiglipVisionModel",
            "SiglipVision",
            _tower,
            vision_tower.VisionNetwork,
            **TRANSFORMER,
            **MLP,
        ),
        "block0.hidden",
        None,
    ),
    "timm": Family(timm_folder, "block0.hidden", "pooled"),
    "torchvision resnet": Family(
        weights_of(resnet.ResNet, RESNET), "stage1.block0.conv0", "pooled"
    ),
    "torchvision vgg": Family(weights_of(vgg16.Vgg16, VGG), "conv7", "dense1"),
    "own module": Family(factory_of("module", "--target.key", "1"), "conv", "hidden"),
    "own function": Family(factory_of("pair"), "conv", "hidden", editable=False),
}
USUAL = ("own module",)  # the others take these ways too, or those of the commands' own tests


@pytest.fixture(scope="module")
def place(tmp_path_factory, clip_folder) -> Path:
    """photos/ of three classes in two splits, and another encoder to judge with."""
    root = tmp_path_factory.mktemp("families")
    rng = np.random.default_rng(0)
    for split in ("probe", "choose", "test"):
        for number in range(18):
            folder = root / "photos" / split / sorted(CLASSES)[number % 3]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    (root / "concepts.csv").write_text("concept,emotions\nwater,ship\nfur,cat\nwings,plane\n")
    config = hf_config(num_hidden_layers=1)
    model = nnx.jit(lambda: Clip(ClipConfig.from_hf(config.to_dict()), rngs=nnx.Rngs(4)))()
    save_clip(root / "judge", model, config, hf_tokenizer())
    return root


@pytest.fixture
def command(place, clip_folder, tmp_path, monkeypatch, capsys):
    """Runs a command on a family's network; what it says, after checking that it succeeded."""
    monkeypatch.chdir(tmp_path)
    data = ["--data.path", place / "photos", "--data.test-splits", "choose", "test"]
    probing = ["--data.probe-split", "probe", "--clip.path", clip_folder]
    probing += ["--cache", tmp_path / "cache", "--concepts.path", place / "concepts.csv"]
    probing += ["--dissect.top-k", "6", "--dissect.null-sets", "20"]

    def call(name, *args, code=0):
        shared = {"evaluate": data, "judge": data, "dissect": data + probing}
        shared["sweep"] = shared["shortcuts"] = shared["dissect"]
        given = [*args, *shared.get(name, [])]
        if name != "report":
            given += ["--out", tmp_path / ("table.csv" if name == "predict" else name)]
        got, out, err = run(capsys, name, *given)
        assert got == code, err
        return err if code else out

    return call


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        name if name in USUAL else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in FAMILIES
    ],
)
def test_commands_take_every_network(name, place, command, tmp_path):
    family = FAMILIES[name]
    target = family.write(tmp_path / "network")
    order = sorted(CLASSES) if "own" in name else CLASSES
    layers = [family.inner, family.last or "pooled"]

    command("dissect", *target, "--probe.layers", *layers)
    found = rows_of(tmp_path / "dissect" / "dissection.csv")
    assert list(dict.fromkeys(row["layer"] for row in found)) == layers
    page = (tmp_path / "dissect" / "report.html").read_text()
    assert all(known in page for known in CLASSES)
    assert "surprise" not in page
    described = rows_of(tmp_path / "dissect" / "interpretability.csv")
    assert all(0 <= float(row["overall_acc"]) <= 1 for row in described)

    few = ["--judge.resamples", "3", "--judge.alpha", "0.2", "--clip.path", place / "judge"]
    command("judge", tmp_path / "dissect" / "dissection.csv", *target, *few)
    judged = rows_of(tmp_path / "judge" / "judgement.csv")
    assert [(row["layer"], row["unit"]) for row in judged] == [
        (row["layer"], row["unit"]) for row in found
    ]

    photos = [place / "photos" / "test", "--size", "20"]
    if family.last is None:
        assert "the network 0" in command("evaluate", *target, code=2)
        assert "image tower" in command("predict", *photos, *target, code=2)
        return
    command("evaluate", *target)
    splits = json.loads((tmp_path / "evaluate" / "summary.json").read_text())["splits"]
    tested = splits["photos test"]
    assert tested["classes"] == list(order)
    assert len(tested["recall"]) == 3

    labels = [] if "own" in name else ["--labels", tmp_path / "dissect"]
    command("predict", *photos, *target, *labels)
    predicted = rows_of(tmp_path / "table.csv")
    assert len(predicted) == 18
    columns = list(predicted[0])[2:5]
    assert columns == ([f"class {i}" for i in range(3)] if "own" in name else list(order))
    said = [columns.index(row["label"]) for row in predicted]
    counts = np.sum(tested["confusion"], axis=0)
    np.testing.assert_array_equal(np.bincount(said, minlength=3), counts)
    if not family.editable:
        assert "edits are made to" in command("sweep", *target, code=2)
        return
    assert "own" in name or predicted[0]["units"].startswith(f"{family.last}:")

    few = ["--edit.tau", "0", "--edit.factor", "1", "2", "--edit.permutations", "19"]
    few += ["--edit.masks", "5", "--probe.layers", *layers, "--edit.layers", family.last]
    said = command("sweep", *target, *few)
    assert ("does not feed the logits" in said) == ("own" in name)
    evidence = json.loads((tmp_path / "sweep" / "evidence.json").read_text())
    assert evidence["total"] == 18
    command("report", tmp_path / "sweep")
    command("compare", tmp_path / "dissect", tmp_path / "sweep")
    if "own" not in name:
        command("shortcuts", *target, "--probe.layers", *layers, "--permutations", "59")
        found = json.loads((tmp_path / "shortcuts" / "summary.json").read_text())
        assert found["layer"] == family.last


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_collected_record_is_dissected_and_shown(place, clip_folder, command, tmp_path):
    images = open_split(place / "photos", "probe")
    activations = np.random.default_rng(0).standard_normal((18, 5)).astype(np.float32)
    with emojax.collect({"dense": 5}, load_clip(clip_folder), images) as collection:
        collection.add(np.asarray(images.images[:]), {"dense": activations})
    record.save(collection.record, tmp_path / "record")
    command("dissect", "--record", tmp_path / "record")
    page = (tmp_path / "dissect" / "report.html").read_text()
    assert all(known in page for known in CLASSES)
    command("compare", tmp_path / "dissect", tmp_path / "dissect")
