"""Speeds as ratios to plain PyTorch loops in the same run, for which it needs the `oracle` extra
(torch), and of sweeps.

    python scripts/benchmark.py score                 # similarity functions against a loop over
      units
    python scripts/benchmark.py probe                 # one pass for all layers against a pass for
      each
    python scripts/benchmark.py memory                # peak memory of a probe against the number of
      images
    python scripts/benchmark.py sweep                 # edits of lin2 against full evaluations;
      needs no torch
    python scripts/benchmark.py train                 # steps of training against PyTorch's
    python scripts/benchmark.py all --out NEW         # all of them, each in a process of its own;
      --quick for small sizes
    python scripts/benchmark.py compare OLD NEW       # which ratios fell; exits 1 if any did

Prints a table, and one JSON line per measurement to --out. Sizes are options (`--help`); `--device`
picks the CPU or GPU.
"""

import dataclasses
import functools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table


@dataclasses.dataclass
class _OnDevice:
    device: Literal["cpu", "gpu"] = "cpu"
    out: Path | None = None


@dataclasses.dataclass
class Score(_OnDevice):
    """soft_wpmi, wpmi and rank_reorder from image-concept cosines and activations."""

    units: int = 1024
    concepts: int = 20_000
    images: int = 10_000
    rank_units: int = 8
    """units that rank_reorder is timed on; it costs far more per unit"""
    repeats: int = 5


@dataclasses.dataclass
class Probe(_OnDevice):
    """VGGNet and a ViT CLIP with random weights over images."""

    images: int = 2048
    torch_images: int = 512
    """images that a torch pass is timed on"""
    clip: Literal["tiny", "b32", "b16"] = "b32"
    batch: int = 256
    tile: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    data: Path | None = None
    """prepared FER2013; generated images when absent"""


@dataclasses.dataclass
class Memory:
    """Peak resident memory of a probe over generated images with tiny networks, each size in a
    process of its own.
    """

    images: tuple[int, ...] = (100_000, 1_000_000)
    batch: int = 1024
    out: Path | None = None


@dataclasses.dataclass
class Sweep(_OnDevice):
    """Edits of lin2 of the published VGGNet with random weights, over generated images, against
    full evaluations.
    """

    images: int = 7178
    plain_images: int = 1024
    """images that a full evaluation is timed on, and the first of which its predictions are
    compared on
    """
    masks: int = 1024
    repeats: int = 5
    permutations: int = 199
    """of the evidence for the paper's grid, with 1,000 random masks; 0 leaves it out"""


@dataclasses.dataclass
class Train(_OnDevice):
    """Steps of training the published VGGNet against PyTorch's."""

    batch: int = 64
    repeats: int = 5


@dataclasses.dataclass
class All:
    """Every benchmark, at its own sizes or small ones."""

    out: Path
    quick: bool = False
    """sizes for a first look: minutes instead of an hour; the ratios are lower"""
    device: Literal["cpu", "gpu"] = "cpu"


@dataclasses.dataclass
class Compare:
    """Two result files, measurement by measurement."""

    old: tyro.conf.Positional[Path]
    new: tyro.conf.Positional[Path]
    tolerance: float = 0.25
    """share by which a ratio may fall before it counts; on shared machines they move by that much
    by themselves
    """


@dataclasses.dataclass
class _MemoryOnce:
    """One process of `memory`."""

    images: int
    batch: int


Results = list[dict[str, Any]]


def taking_turns(
    ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int, where: str
) -> tuple[float, float, Any]:
    """Median seconds of either, called in turns after a call of each that warms up, and the result
    of the second.

    In turns, because the speed of a shared machine drifts; the median, because it jumps.
    """
    import jax
    import torch

    jax.block_until_ready(ours())
    theirs()
    times = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(ours())
        middle = time.perf_counter()
        result = theirs()
        if where == "cuda":
            torch.cuda.synchronize()
        times[0].append(middle - start)
        times[1].append(time.perf_counter() - middle)
    return float(np.median(times[0])), float(np.median(times[1])), result


# The plain loops, written from the formulas of the CLIP-Dissect paper


def torch_wpmi_loop(cosines, activations, *, soft: bool):
    """Scores [U, C], one unit at a time."""
    import torch

    top_k, a, lam = (100, 10.0, 1.0) if soft else (28, 2.0, 0.6)
    probs = torch.softmax(a * cosines, dim=1)
    indices = torch.topk(activations, top_k, dim=0).indices
    weights = (0.998 - torch.arange(top_k) / top_k * (0.998 - 0.97))[:, None].to(cosines)
    rows = []
    for unit in range(activations.shape[1]):
        own = probs[indices[:, unit]]
        if soft:
            own = 1 + weights * (own - 1)
        rows.append(torch.log(own + 1e-7).sum(0))
    loglik = torch.stack(rows)
    return loglik - lam * (torch.logsumexp(loglik, 0) - np.log(len(loglik)))


def torch_rank_reorder_loop(cosines, activations):
    """Scores [U, C], one unit at a time."""
    import torch

    n = int(len(activations) * 0.05)
    values, indices = torch.topk(activations, n, dim=0)
    rows = []
    for unit in range(activations.shape[1]):
        own, target = cosines[indices[:, unit]], values[:, unit]
        ascending = target.flip(0)
        shuffled = torch.stack([ascending[torch.randperm(n)] for _ in range(5)], 1)
        baseline = ((ascending[:, None] - shuffled).abs() ** 3).mean()
        rank = own.argsort(0).argsort(0)
        error = ((target[:, None] - ascending[rank]).abs() ** 3).mean(0) / baseline
        rows.append(-error / own.mean(0) ** 0.5)
    return torch.stack(rows)


def float64_scores(
    cosines: np.ndarray, activations: np.ndarray, some: np.ndarray, *, soft: bool
) -> np.ndarray:
    """Scores [U, some concepts] in float64."""
    top_k, a, lam = (100, 10.0, 1.0) if soft else (28, 2.0, 0.6)
    wide = a * cosines.astype(np.float64)
    probs = np.exp(wide[:, some] - np.log(np.exp(wide).sum(1, keepdims=True)))
    order = np.argsort(-activations, axis=0, kind="stable")[:top_k]
    weights = (0.998 - np.arange(top_k) / top_k * (0.998 - 0.97))[:, None] if soft else 1.0
    loglik = np.stack(
        [
            np.log(1 + weights * (probs[order[:, u]] - 1) + 1e-7).sum(0)
            for u in range(order.shape[1])
        ]
    )
    return loglik - lam * (
        np.log(np.exp(loglik - loglik.max(0)).sum(0)) + loglik.max(0) - np.log(len(loglik))
    )


def score(options: Score) -> Results:
    """Times and errors of the similarity functions."""
    import jax
    import jax.numpy as jnp
    import torch
    from jax.sharding import NamedSharding, PartitionSpec

    from emojax.distributed.mesh import AXIS, make_mesh
    from emojax.ops import similarity

    mesh = make_mesh(next(n for n in range(len(jax.devices()), 0, -1) if options.concepts % n == 0))
    by_concept, whole = PartitionSpec(None, AXIS), PartitionSpec()
    rng = np.random.default_rng(0)
    cosines = 0.2 + 0.03 * rng.standard_normal((options.images, options.concepts), dtype=np.float32)
    activations = rng.standard_normal((options.images, options.units), dtype=np.float32)
    where = "cuda" if options.device == "gpu" else "cpu"
    places = [NamedSharding(mesh, spec) for spec in (by_concept, whole)]
    ours = list(jax.device_put((cosines, activations), tuple(places)))
    theirs = [torch.from_numpy(x).to(where) for x in (cosines, activations)]
    some = rng.choice(options.concepts, min(100, options.concepts), replace=False)
    results = []
    for name in ("soft_wpmi", "wpmi", "rank_reorder"):
        if name == "rank_reorder":
            few = options.rank_units
            ours = [jnp.asarray(cosines), jnp.asarray(activations[:, :few])]
            theirs = [theirs[0], theirs[1][:, :few]]
            function = jax.jit(similarity.rank_reorder)
            loop = functools.partial(torch_rank_reorder_loop, *theirs)
        else:
            local = functools.partial(getattr(similarity, name), axis_name=AXIS)
            specs = {"in_specs": (by_concept, whole), "out_specs": by_concept, "check_vma": False}
            function = jax.jit(jax.shard_map(local, mesh=mesh, **specs))
            loop = functools.partial(torch_wpmi_loop, *theirs, soft=name == "soft_wpmi")
        seconds, loop_seconds, reference = taking_turns(
            functools.partial(function, *ours), loop, options.repeats, where
        )
        units = ours[1].shape[1]
        row = {
            "what": name,
            "units": units,
            "concepts": options.concepts,
            "images": options.images,
            "devices": mesh.size,
            "seconds": seconds,
            "torch_loop_seconds": loop_seconds,
            "ratio": loop_seconds / seconds,
            "pairs_per_second": units * options.concepts / seconds,
        }
        if name != "rank_reorder":
            exact = float64_scores(cosines, activations, some, soft=name == "soft_wpmi")
            row["error"] = float(np.abs(np.asarray(function(*ours))[:, some] - exact).max())
            row["torch_loop_error"] = float(np.abs(reference.cpu().numpy()[:, some] - exact).max())
        results.append(row)
    return results


# The networks


def clip_config(size: str):
    """A transformers CLIPConfig of a published or a tiny size."""
    from transformers import CLIPConfig

    small = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    if size == "tiny":
        text = small | {
            "vocab_size": 514,
            "eos_token_id": 513,
            "bos_token_id": 512,
            "max_position_embeddings": 32,
        }
        return CLIPConfig(
            text_config=text,
            vision_config=small | {"image_size": 32, "patch_size": 8},
            projection_dim=64,
        )
    text = {"eos_token_id": 49407, "bos_token_id": 49406}
    return CLIPConfig(
        text_config=text, vision_config={"patch_size": int(size[1:]), "image_size": 224}
    )


def random_clip(size: str, dtype: str = "float32"):
    """A ClipEncoder with random weights and no real tokenizer."""
    import jax.numpy as jnp
    from flax import nnx

    from emojax.data.clip_encoder import ClipEncoder
    from emojax.models.clip import Clip, ClipConfig
    from emojax.models.preprocess import Preprocess

    config = ClipConfig.from_hf(clip_config(size).to_dict())
    model = nnx.jit(lambda: Clip(config, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)))()
    side = config.image_size
    return ClipEncoder(
        model,
        Preprocess(side, (side, side), (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)),
        lambda texts: [],
    )


def random_vgg(config):
    """A VGGNet with random weights in eval mode."""
    from flax import nnx

    from emojax.models.vgg import VggNet

    model = nnx.jit(lambda: VggNet(config, rngs=nnx.Rngs(0)))()
    model.eval()
    return model


class Generated:
    """Noise images by slice, the same for the same rows, never all in memory."""

    def __init__(self, count: int):
        self.shape = (count, 48, 48, 1)

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        rng = np.random.default_rng(start)
        return rng.integers(0, 256, (stop - start, 48, 48, 1), dtype=np.uint8)


def generated_set(count: int):
    """An unlabelled image set of noise."""
    from emojax.data.image_set import ImageSet

    class Ids:
        def __getitem__(self, at):
            return f"noise/{at}"

    return ImageSet(Generated(count), None, (), Ids(), f"noise {count}", "noise")


def torch_vgg(config):
    """The same network in torch, eval mode."""
    import torch

    layers, inputs = [], 1
    for at, width in enumerate(config.widths):
        layers += [
            torch.nn.Conv2d(inputs, width, 3, padding=1),
            torch.nn.BatchNorm2d(width),
            torch.nn.ReLU(),
        ]
        layers += [torch.nn.MaxPool2d(2)] if at % 2 else []
        inputs = width
    layers.append(torch.nn.Flatten())
    inputs *= (config.input_size // 16) ** 2
    for width in config.hidden:
        layers += [torch.nn.Linear(inputs, width), torch.nn.ReLU()]
        inputs = width
    return torch.nn.Sequential(*layers, torch.nn.Linear(inputs, config.classes)).eval()


def probe(options: Probe) -> Results:
    """Images per second of one pass, of the network alone, and of the torch passes that they stand
    for.
    """
    import jax
    import torch
    from PIL import Image
    from transformers import CLIPModel

    from emojax.data.map_images import map_images
    from emojax.data.opening import open_split
    from emojax.models.vgg import LAYERS, VggConfig
    from emojax.ops.pooling import pool
    from emojax.probing import network
    from emojax.probing import probe as engine

    config, layers = VggConfig.paper(), LAYERS[:-1]
    images = (
        generated_set(options.images)
        if options.data is None
        else open_split(options.data, "training")
    )
    images = images.first(options.images)
    model, clip = random_vgg(config), random_clip(options.clip, options.dtype)

    # Compilation is left out: the clock starts when the first batch is back.
    marks: list[tuple[int, float]] = []

    def note(done: int, total: int) -> None:
        marks.append((done, time.perf_counter()))

    common = {"batch": options.batch, "tile": options.tile, "progress": note}
    record = engine.probe(model, images, clip, layers=layers, **common)
    ours = rate(marks)
    marks.clear()
    wrapped = network.as_network(model)

    def pooled(params, chunk):
        taps = wrapped.apply(params, wrapped.preprocess(chunk))[1]
        return {name: pool(taps[name]) for name in layers}

    map_images(pooled, wrapped.params, images, **common)
    alone = rate(marks)

    where = "cuda" if options.device == "gpu" else "cpu"
    vgg, clip_torch = (
        torch_vgg(config).to(where),
        CLIPModel(clip_config(options.clip)).eval().to(where),
    )
    side = clip.model.config.image_size
    few = np.asarray(images.images[0 : options.torch_images])

    def torch_pass(with_vgg: bool, with_clip: bool) -> float:
        kept, hooked = (
            [],
            vgg[0].register_forward_hook(lambda m, x, y: kept.append(y.mean((2, 3)).cpu())),
        )
        start = time.perf_counter()
        with torch.inference_mode():
            for at in range(0, len(few), options.batch):
                chunk = few[at : at + options.batch]
                if with_vgg:
                    x = torch.from_numpy(chunk).permute(0, 3, 1, 2).float().div(255).to(where)
                    vgg(
                        torch.nn.functional.interpolate(
                            x, (config.input_size,) * 2, mode="bilinear"
                        )
                    )
                if with_clip:
                    faces = [
                        Image.fromarray(face[..., 0]).convert("RGB").resize((side, side), 3)
                        for face in chunk
                    ]
                    y = torch.from_numpy(np.stack([np.asarray(face) for face in faces])).permute(
                        0, 3, 1, 2
                    )
                    clip_torch.get_image_features(y.float().div(255).sub(0.46).div(0.27).to(where))
        if where == "cuda":
            torch.cuda.synchronize()
        hooked.remove()
        return len(few) / (time.perf_counter() - start)

    torch_pass(True, True)
    both, vgg_only, clip_only = (
        torch_pass(True, True),
        torch_pass(True, False),
        torch_pass(False, True),
    )
    count = len(layers)
    return [
        {
            "what": "one pass, all layers, against a torch pass of both networks per layer",
            "images": len(record.embeddings),
            "images_per_second": ours,
            "torch_images_per_second_and_pass": both,
            "ratio": ours / (both / count),
        },
        {
            "what": "the same, against torch passes of the network per layer and one of CLIP",
            "images": len(record.embeddings),
            "images_per_second": ours,
            "torch_images_per_second_and_pass": vgg_only,
            "ratio": ours * (count / vgg_only + 1 / clip_only),
        },
        {
            "what": "the network alone, one pass",
            "images": len(record.embeddings),
            "images_per_second": alone,
            "torch_images_per_second_and_pass": vgg_only,
            "ratio": alone / vgg_only,
        },
        {"what": "devices", "devices": [d.device_kind for d in jax.devices()]},
    ]


def rate(marks: list[tuple[int, float]]) -> float:
    """Images per second between the first and the last batch."""
    (first, start), (last, end) = marks[0], marks[-1]
    return (last - first) / (end - start)


def memory_once(options: _MemoryOnce) -> None:
    """Probes in this process and prints its peak resident memory in bytes."""
    from emojax.models.vgg import VggConfig
    from emojax.probing import probe as engine

    with tempfile.TemporaryDirectory() as cache:
        record = engine.probe(
            random_vgg(VggConfig(widths=(4, 4, 8, 8, 8, 8, 8, 8), hidden=(16, 16))),
            generated_set(options.images),
            random_clip("tiny"),
            batch=options.batch,
            cache=Path(cache),
        )
        assert record.images == options.images
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def memory(options: Memory) -> Results:
    """Peak memory for each number of images, and its ratio to the first."""
    results = []
    for images in options.images:
        command = [
            sys.executable,
            __file__,
            "memory-once",
            "--images",
            str(images),
            "--batch",
            str(options.batch),
        ]
        peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        first = results[0]["peak_bytes"] if results else peak
        results.append(
            {
                "what": "peak memory of a probe",
                "images": images,
                "peak_bytes": peak,
                "ratio": peak / first,
            }
        )
    return results


def sweep(options: Sweep) -> Results:
    """Thresholds and masks per second, how many times a full evaluation's speed that is, and the
    time of the evidence.
    """
    import jax
    from flax import nnx

    from emojax.editing import edit
    from emojax.editing.activations import pre_bias_activations
    from emojax.editing.sweep import Sweep as LayerSweep
    from emojax.evidence import assess as evidence
    from emojax.models.vgg import VggConfig
    from emojax.synthetic import faces
    from emojax.training import evaluate

    rng = np.random.default_rng(0)
    images, model = (
        faces.random_faces(options.images, 0).image_set("faces"),
        random_vgg(VggConfig.paper()),
    )
    units = model.config.hidden[1]
    model.lin2.bias = nnx.Param(jax.numpy.asarray(rng.normal(0, 0.3, units), jax.numpy.float32))
    few = images.first(options.plain_images)

    def plain_seconds() -> float:
        """Of a full evaluation of all images, without compilation."""
        marks: list[tuple[int, float]] = []
        evaluate.evaluate(
            model, few, progress=lambda done, total: marks.append((done, time.perf_counter()))
        )
        return options.images / rate(marks)

    start = time.perf_counter()
    layer = pre_bias_activations(model, images, "lin2")
    read_seconds = time.perf_counter() - start

    tried = LayerSweep(layer)
    scores, factor = rng.standard_normal(units).astype(np.float32), 1.5
    masks = rng.random((options.masks, units)) < 0.5
    calls = {
        "every threshold": (units + 1, lambda: tried.thresholds(scores, [factor])[0].outcomes),
        "masks": (len(masks), lambda: tried.masks(masks, factor)),
        "gains": (32, lambda: tried.gains(0.5 + masks[:32])),
    }
    results, seen = [], {}
    for name, (settings, call) in calls.items():
        seen[name] = call()
        times, plain = [], [plain_seconds()]
        for _ in range(options.repeats):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        plain.append(
            plain_seconds()
        )  # before and after, because the speed of a shared machine drifts
        seconds = float(np.median(times))
        results.append({
            "what": f"lin2, {name}",
            "images": options.images,
            "settings": settings,
            "seconds": seconds,
            "settings_per_second": settings / seconds,
            "full_evaluation_seconds": plain,
            "near_ties_per_setting": float(seen[name].near_ties.mean()),
            "ratio": min(plain) * settings / seconds,
        })  # fmt: skip

    # The same predictions as edited networks
    different = 0
    rank = np.argsort(np.argsort(-scores, kind="stable"))
    for name, at, mask in (
        ("every threshold", units // 3, rank < units // 3),
        ("masks", 1, masks[1]),
    ):
        edited = edit.edit(
            model, "lin2", np.where(mask, np.float32(factor), np.float32(1) / np.float32(factor))
        )
        want = evaluate.evaluate(edited, few).predictions
        different += int((seen[name].predictions[at, : len(few)] != want).sum())
    results.append(
        {
            "what": "predictions unlike the edited network's",
            "images": 2 * len(few),
            "different": different,
        }
    )
    results.append(
        {
            "what": "inputs of lin2, with compilation",
            "images": options.images,
            "seconds": read_seconds,
        }
    )
    if options.permutations:
        start = time.perf_counter()
        subject = evidence.Subject({"lin2": scores}, {"lin2": layer})
        found = evidence.assess([subject], permutations=options.permutations)
        seconds = time.perf_counter() - start
        draws = {
            "permutations": options.permutations,
            "random_masks": found.controls["random_masks"]["draws"],
        }
        results.append(
            {
                "what": "the paper's grid with all controls",
                "images": found.total,
                "seconds": seconds,
            }
            | draws
        )
    return results


def train(options: Train) -> Results:
    """Seconds of a training step, ours and PyTorch's."""
    import jax
    import torch
    from flax import nnx

    from emojax.distributed.mesh import make_mesh, put_replicated, put_sharded, replicated
    from emojax.models.vgg import VggConfig, VggNet
    from emojax.synthetic import faces
    from emojax.training import classifiers, tasks
    from emojax.training import step as steps
    from emojax.training.recipe import Recipe

    where, mesh = "cuda" if options.device == "gpu" else "cpu", make_mesh()
    images = faces.random_faces(4 * options.batch, 0).image_set("faces")
    recipe = Recipe(epochs=1, optimizer="sgd", learning_rate=0.01)

    config = VggConfig(dropout=0.0)
    task = classifiers.classification_task(
        nnx.eval_shape(lambda: VggNet(config, rngs=nnx.Rngs(0))),
        images,
        batch=options.batch,
        start=tasks.start_fresh(lambda seed: VggNet(config, rngs=nnx.Rngs(seed))),
    )
    state = put_replicated(mesh, steps.first_state(task, recipe))
    step = steps.make_step(task.loss, recipe, mesh, jax.tree.map(lambda _: replicated(mesh), state))
    rows = put_sharded(mesh, next(task.batches(0, 0, 0)))
    data, key = put_replicated(mesh, task.data), jax.random.key(0)
    states = [state]

    def our_step() -> Any:
        states[0], metrics = step(states[0], data, rows, np.float32(0.01), key, np.int32(0))
        return metrics

    theirs = torch_vgg(config).to(where).train()
    optimizer = torch.optim.SGD(
        theirs.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    x = torch.rand(options.batch, 1, 40, 40, device=where)
    labels = torch.randint(0, 7, (options.batch,), device=where)

    def torch_step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(theirs(x), labels).backward()
        optimizer.step()

    ours, plain, _ = taking_turns(our_step, torch_step, options.repeats, where)
    rates = {
        "images_per_second": options.batch / ours,
        "torch_images_per_second": options.batch / plain,
    }
    return [
        {
            "what": "training step of VGGNet",
            "batch": options.batch,
            "seconds": ours,
            **rates,
            "ratio": plain / ours,
        }
    ]


QUICK = {
    "score": [
        "--units",
        "128",
        "--concepts",
        "2000",
        "--images",
        "2000",
        "--rank-units",
        "2",
        "--repeats",
        "3",
    ],
    "probe": ["--images", "256", "--torch-images", "64", "--clip", "tiny", "--batch", "32"],
    "memory": ["--images", "5000", "20000"],
    "sweep": [
        "--images",
        "1024",
        "--plain-images",
        "768",
        "--masks",
        "128",
        "--repeats",
        "3",
        "--permutations",
        "19",
    ],
    "train": ["--batch", "16", "--repeats", "3"],
}


def run_all(options: All) -> None:
    """Runs every benchmark in a process of its own, for none to warm another's caches."""
    for name, sizes in QUICK.items():
        device = [] if name == "memory" else ["--device", options.device]
        command = [
            sys.executable,
            __file__,
            name,
            "--out",
            str(options.out),
            *device,
            *(sizes if options.quick else []),
        ]
        subprocess.run(command, check=True)


def compare(options: Compare) -> int:
    """Prints the ratios of two files side by side; 1 where one got worse by more than the
    tolerance, else 0.
    """
    old, new = (_last_ratios(path) for path in (options.old, options.new))
    table, worse = Table("what", "sizes", "old", "new", "change"), 0
    for name in sorted(old.keys() & new.keys()):
        change = new[name] / old[name] - 1
        fell = (
            -change if name[0].startswith("peak memory") else change
        ) < -options.tolerance  # less memory is better
        worse += fell
        table.add_row(
            *name,
            f"{old[name]:.3g}",
            f"{new[name]:.3g}",
            f"{change:+.0%}{' worse' if fell else ''}",
        )
    Console().print(table)
    for name in sorted(old.keys() ^ new.keys()):
        print(f"only in {options.old if name in old else options.new}: {name[0]} ({name[1]})")
    return 1 if worse else 0


def _last_ratios(path: Path) -> dict[tuple[str, str], float]:
    """The last ratio of every measurement at its sizes, which are the whole numbers of its line."""
    found = {}
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        if "ratio" in row:
            sizes = [
                f"{k} {v}"
                for k, v in row.items()
                if isinstance(v, int) and k not in ("cores", "peak_bytes")
            ]
            found[row["what"], ", ".join(sizes)] = row["ratio"]
    return found


def report(results: Results, out: Path | None) -> None:
    """Prints a table and appends JSON lines that name the machine and the versions."""
    import jax

    about = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
    }
    table = Table("what", "measurement", "ratio")
    for row in results:
        rest = {key: value for key, value in row.items() if key not in ("what", "ratio")}
        shown = ", ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in rest.items()
        )
        table.add_row(row["what"], shown, f"{row['ratio']:.3f}" if "ratio" in row else "")
    Console().print(table)
    if out is not None:
        with open(out, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(about | row) + "\n" for row in results)


Commands = (
    Annotated[Score, tyro.conf.subcommand("score")]
    | Annotated[Probe, tyro.conf.subcommand("probe")]
    | Annotated[Memory, tyro.conf.subcommand("memory")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[All, tyro.conf.subcommand("all")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[_MemoryOnce, tyro.conf.subcommand("memory-once")]
)


def main() -> None:
    """Runs a benchmark."""
    options = tyro.cli(Commands, description=__doc__)
    if getattr(options, "device", "cpu") == "cpu":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from emojax.distributed.mesh import use_all_cores

    use_all_cores()
    match options:
        case Score():
            report(score(options), options.out)
        case Probe():
            report(probe(options), options.out)
        case Memory():
            report(memory(options), options.out)
        case Sweep():
            report(sweep(options), options.out)
        case Train():
            report(train(options), options.out)
        case All():
            run_all(options)
        case Compare():
            sys.exit(compare(options))
        case _MemoryOnce():
            memory_once(options)


if __name__ == "__main__":
    main()
