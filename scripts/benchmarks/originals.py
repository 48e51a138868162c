"""Whole processes against the two ways of the originals, from images on disk to a csv of labels.

One pass: `describe_neurons` hooks all layers, and CLIP sees each batch beside the network. The
notebooks: CLIP's features of the first pass are cached, and the network runs once per layer. Both
are written here in plain torch from their description, read the same files as emojax and write the
same labels. emojax runs twice: for these labels alone (it writes Table 1 and its page, too), and as
it comes, with labels by consensus and a p-value for each.
"""

import csv
import dataclasses
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
from common import OnDevice, Results
from networks import clip_config, random_vgg, torch_vgg

# Sizes for a first look.
QUICK = "--images 300 --repeats 1"

_WAYS = ("one pass", "pass per layer")
# What emojax is told beyond its inputs.
_OURS = {
    "emojax, soft_wpmi alone": {
        "dissect.similarity": "soft_wpmi",
        "dissect.prior": "units",
        "dissect.null-sets": 0,
    },
    "emojax as it comes": {},
}
_CONVS = tuple(f"conv{number}{letter}" for number in range(1, 5) for letter in "ab")
_BATCH = 200
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass
class Options(OnDevice):
    """`emojax dissect` against torch scripts that hook all layers in one pass, and that run a pass
    per layer with CLIP cached; each a process of its own.
    """

    images: int = 3000
    """faces: of --data, or rendered"""
    network: Literal["small", "paper"] = "small"
    """the shipped VGGNet, or the published size with random weights"""
    clip: Literal["small", "b32"] = "small"
    """the shipped CLIP, or ViT-B/32 with random weights"""
    repeats: int = 3
    data: Path | None = None
    """prepared FER2013"""


def measure(options: Options) -> Results:
    """Seconds and CPU seconds of the four, in turns, and labels that differ."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prepare(root, options)
        ways = [*_OURS, *_WAYS]
        wall: dict[str, list[float]] = {way: [] for way in ways}
        cpu: dict[str, list[float]] = {way: [] for way in ways}
        for repeat in range(options.repeats):
            for way in ways:
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                start = time.perf_counter()
                subprocess.run(command(root, way, repeat), check=True, stdout=subprocess.DEVNULL)
                wall[way].append(time.perf_counter() - start)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                cpu[way].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        results = []
        for own in _OURS:
            ours = labels(root / f"{own}-0" / "dissection.csv")
            for way in _WAYS:
                theirs = labels(root / f"{way}.csv")
                results.append(
                    {
                        "what": f"{own}, {options.network} VGGNet, {options.clip} CLIP, whole "
                        f"process, against {way}",
                        "images": options.images,
                        "seconds": float(np.median(wall[own])),
                        "torch_seconds": float(np.median(wall[way])),
                        "cpu_seconds": float(np.median(cpu[own])),
                        "torch_cpu_seconds": float(np.median(cpu[way])),
                        "cpu_ratio": float(np.median(cpu[way]) / np.median(cpu[own])),
                        "units": len(ours),
                        "different_labels": sum(ours[unit] != theirs[unit] for unit in ours),
                        "ratio": float(np.median(wall[way]) / np.median(wall[own])),
                    }
                )
        return results


def prepare(root: Path, options: Options) -> None:
    """Writes images by class, weights and the CLIP's folder, for all to read."""
    import shutil

    from PIL import Image

    from emojax.data.opening import open_split
    from emojax.data.weights import save_vgg
    from emojax.models.vgg import VggConfig
    from emojax.synthetic import faces, shipped

    if options.data is None:
        images = faces.random_faces(options.images, 0).image_set("faces")
    else:
        images = open_split(options.data, "training").first(options.images)
    assert images.labels is not None
    for number, (face, label) in enumerate(
        zip(images.images[0 : options.images], images.labels, strict=True)
    ):
        path = root / "images" / images.classes[label] / f"{number:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(face[..., 0]).save(path)
    model = shipped.load_demo()[0] if options.network == "small" else random_vgg(VggConfig.paper())
    save_vgg(model, root / "vgg.safetensors")
    shutil.copytree(shipped.ASSETS / "clip", root / "clip")
    if options.clip == "b32":
        import torch
        from transformers import CLIPConfig, CLIPModel

        texts = CLIPConfig.from_pretrained(root / "clip").to_dict()["text_config"]
        vision = clip_config("b32").to_dict()["vision_config"]
        torch.manual_seed(0)
        config = CLIPConfig(text_config=texts, vision_config=vision, projection_dim=512)
        CLIPModel(config).save_pretrained(root / "clip")
        settings = (root / "clip" / "preprocessor_config.json").read_text()
        (root / "clip" / "preprocessor_config.json").write_text(settings.replace("48,", "224,"))


def command(root: Path, way: str, repeat: int) -> list[str]:
    """The command line of a process; emojax's has a cache and run folder of its own."""
    if way in _WAYS:
        return [sys.executable, __file__, str(root), way]
    arguments = _OURS[way] | {
        "data.path": root / "images",
        "data.kind": "folder",
        "data.probe-split": "all",
        "target.weights": root / "vgg.safetensors",
        "clip.path": root / "clip",
        "cache": root / f"{way}-{repeat}-cache",
        "out": root / f"{way}-{repeat}",
    }
    flags = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "emojax", "dissect", "--probe.antialias", *flags]


def labels(path: Path) -> dict[tuple[str, str], str]:
    """Each unit's concept, from a csv."""
    with open(path, newline="", encoding="utf-8") as file:
        return {(row["layer"], row["unit"]): row["concept"] for row in csv.DictReader(file)}


# The torch process, which loads neither JAX nor emojax


def label_units(root: Path, way: str) -> None:
    """Labels every unit of the folder's network in one of the two ways, and writes the labels."""
    import torch
    from safetensors.torch import load_file
    from transformers import CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    files = sorted((root / "images").glob("*/*.png"))
    layers = named_layers(load_file(root / "vgg.safetensors"))
    clip = CLIPModel.from_pretrained(root / "clip").eval()
    tokenizer = CLIPTokenizer.from_pretrained(root / "clip")
    with open(concepts_file(), newline="", encoding="utf-8") as file:
        concepts = [row["concept"] for row in csv.DictReader(file)]
    tokens = tokenizer(concepts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        texts = features(clip.get_text_features(**tokens))
        hooked = [name for name in layers.modules if name != "lin3"]
        passes = [hooked] if way == "one pass" else [[name] for name in hooked]
        cosines = None
        rows = []
        for names in passes:
            kept, images = run_pass(layers, names, files, clip if cosines is None else None)
            cosines = images @ texts.T if images is not None else cosines
            for name in names:
                rows += label(name, soft_wpmi(cosines, torch.cat(kept[name])), concepts)
    with open(root / f"{way}.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["layer", "unit", "concept", "similarity"], *rows])


@dataclasses.dataclass
class Layers:
    """The torch network and its layers by name."""

    network: Any
    modules: dict[str, Any]
    side: int = 40


def named_layers(arrays) -> Layers:
    """VGGNet in torch with these weights; its sizes are read off them."""
    sizes = {name: len(arrays[f"{name}.bias"]) for name in (*_CONVS, "lin1", "lin2", "lin3")}
    widths = [sizes[name] for name in _CONVS]
    hidden = [sizes["lin1"], sizes["lin2"]]
    network = torch_vgg(
        SimpleNamespace(widths=widths, hidden=hidden, classes=sizes["lin3"], input_size=40)
    )
    order = []
    for name in sizes:
        order += [name, name.replace("conv", "bn")] if name in _CONVS else [name]
    modules = dict(zip(order, [m for m in network if m.state_dict()], strict=True))
    for name, module in modules.items():
        prefix = f"{name}."
        own = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        module.load_state_dict(own)
    return Layers(network, {name: modules[name] for name in sizes})


def run_pass(layers: Layers, names: list[str], files: list[Path], clip):
    """Pooled raw outputs of some layers, and with a CLIP unit image embeddings (else None)."""
    import torch
    from PIL import Image

    kept = {name: [] for name in names}
    hooks = [
        layers.modules[name].register_forward_hook(
            lambda _module, _inputs, out, name=name: kept[name].append(
                out.mean((2, 3)) if out.ndim == 4 else out
            )
        )
        for name in names
    ]
    embeddings = []
    for start in range(0, len(files), _BATCH):
        faces = [Image.open(path) for path in files[start : start + _BATCH]]
        gray = torch.from_numpy(np.stack([np.asarray(face.convert("L")) for face in faces]))
        size = (layers.side, layers.side)
        resized = torch.nn.functional.interpolate(
            gray[:, None].float() / 255, size, mode="bilinear", antialias=True
        )
        layers.network(resized)
        if clip is not None:
            pixels = torch.stack([clip_input(face, clip.config) for face in faces])
            embeddings.append(features(clip.get_image_features(pixel_values=pixels)))
    for hook in hooks:
        hook.remove()
    return kept, torch.cat(embeddings) if embeddings else None


def clip_input(face, config):
    """A face as CLIP's preprocessing makes it: bicubic by Pillow, normalised."""
    import torch

    side = config.vision_config.image_size
    resized = face.convert("RGB").resize((side, side), 3)
    unit = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (_MEAN, _STD))
    return (unit - mean) / std


def features(output):
    """Unit rows of what a tower gives, which newer versions of transformers wrap."""
    tensor = getattr(output, "pooler_output", output)
    return tensor / tensor.norm(dim=-1, keepdim=True)


def soft_wpmi(cosines, activations):
    """Scores [U, C] of one layer, a unit at a time."""
    import score

    return score.torch_wpmi_loop(cosines, activations, soft=True)


def label(layer: str, scores, concepts: list[str]) -> Iterator[list[object]]:
    """Rows of a layer's csv."""
    best, which = scores.max(dim=1)
    for unit, (similarity, concept) in enumerate(zip(best.tolist(), which.tolist(), strict=True)):
        yield [layer, unit, concepts[concept], similarity]


def concepts_file() -> Path:
    """The paper's 25 concepts, where emojax keeps them; emojax itself is not loaded."""
    return Path(__file__).parents[2] / "emojax" / "data" / "concept_sets" / "paper25.csv"


if __name__ == "__main__":
    label_units(Path(sys.argv[1]), sys.argv[2])
