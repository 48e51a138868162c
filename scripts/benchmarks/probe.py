"""One pass for all layers against PyTorch's pass for each."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from common import OnDevice, Results, rate
from networks import clip_config, generated_set, random_clip, random_vgg, torch_vgg

# Sizes for a first look.
QUICK = "--images 256 --torch-images 64 --clip tiny --batch 32"


@dataclasses.dataclass
class Options(OnDevice):
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


def measure(options: Options) -> Results:
    """Images per second of one pass, of the network alone, and of the torch passes that they stand
    for.
    """
    import jax

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

    few = np.asarray(images.images[0 : options.torch_images])
    both, vgg_only, clip_only = _torch_rates(few, clip.model.config.image_size, options)
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


def _torch_rates(few: np.ndarray, side: int, options: Options) -> tuple[float, float, float]:
    """Images per second of torch's passes: both networks, the VGGNet, CLIP with Pillow's resizing.

    Args:
      few: faces, uint8 [N, 48, 48, 1].
      side: of CLIP's input, in pixels.
      options: of the benchmark.
    """
    import torch
    from PIL import Image
    from transformers import CLIPModel

    from emojax.models.vgg import VggConfig

    where = "cuda" if options.device == "gpu" else "cpu"
    config = VggConfig.paper()
    vgg = torch_vgg(config).to(where)
    clip = CLIPModel(clip_config(options.clip)).eval().to(where)

    def run_vgg(chunk: np.ndarray) -> None:
        x = torch.from_numpy(chunk).permute(0, 3, 1, 2).float().div(255).to(where)
        vgg(torch.nn.functional.interpolate(x, (config.input_size,) * 2, mode="bilinear"))

    def run_clip(chunk: np.ndarray) -> None:
        faces = [
            Image.fromarray(face[..., 0]).convert("RGB").resize((side, side), 3) for face in chunk
        ]
        y = torch.from_numpy(np.stack([np.asarray(face) for face in faces])).permute(0, 3, 1, 2)
        clip.get_image_features(y.float().div(255).sub(0.46).div(0.27).to(where))

    def torch_pass(*networks: Callable[[np.ndarray], None]) -> float:
        kept = []
        hooked = vgg[0].register_forward_hook(lambda m, x, y: kept.append(y.mean((2, 3)).cpu()))
        start = time.perf_counter()
        with torch.inference_mode():
            for at in range(0, len(few), options.batch):
                for network in networks:
                    network(few[at : at + options.batch])
        if where == "cuda":
            torch.cuda.synchronize()
        hooked.remove()
        return len(few) / (time.perf_counter() - start)

    torch_pass(run_vgg, run_clip)  # warms up
    return torch_pass(run_vgg, run_clip), torch_pass(run_vgg), torch_pass(run_clip)
