"""One pass over ResNet-50's five layers and CLIP ViT-B/32 against a pass of both per layer.

The second is CLIP-Dissect's way, in torch: for every layer, images are loaded by PIL, preprocessed
one by one and run through both networks, with a forward hook on the layer. That takes as long for
every image, so it is measured on some of them. Weights are random. Also the network alone, in
images a second, in turns with torch's.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
from common import OnDevice, Results, taking_turns

LAYERS = ("stem", "stage0", "stage1", "stage2", "stage3")
# Sizes for a first look.
QUICK = "--images 64 --torch-images 32"
_REPEATS = 5


@dataclasses.dataclass
class Options(OnDevice):
    """ResNet-50 and CLIP from Hugging Face's folders: one pass for five layers, or one for each."""

    images: int = 512
    torch_images: int = 256
    """images of the passes in torch, whose time is scaled to all"""
    batch: int = 32


def make_folders(root: Path) -> None:
    """A ResNet-50 and a CLIP ViT-B/32 of random weights, in Hugging Face's folders."""
    import torch
    import transformers
    from flax import nnx

    from emojax.data.clip_folder import save_clip
    from emojax.models.clip import Clip, ClipConfig

    torch.manual_seed(0)
    transformers.ResNetForImageClassification(transformers.ResNetConfig()).save_pretrained(
        root / "resnet"
    )
    transformers.ConvNextImageProcessorPil(size={"shortest_edge": 224}).save_pretrained(
        root / "resnet"
    )
    config = transformers.CLIPConfig(
        vision_config={"patch_size": 32}, text_config={"num_hidden_layers": 1, "eos_token_id": 513}
    )
    pieces = {f"<{number}>": number for number in range(512)} | {
        "<|startoftext|>": 512,
        "<|endoftext|>": 513,
    }
    model = nnx.jit(lambda: Clip(ClipConfig.from_hf(config.to_dict()), rngs=nnx.Rngs(0)))()
    save_clip(root / "clip", model, config, transformers.CLIPTokenizer(vocab=pieces, merges=[]))


def in_torch(root: Path, files: list[Path], batch: int) -> None:
    """CLIP-Dissect's way: a pass of both networks per layer."""
    import torch
    import transformers
    from PIL import Image

    network = transformers.ResNetForImageClassification.from_pretrained(root / "resnet").eval()
    clip = transformers.CLIPModel.from_pretrained(root / "clip").eval()
    processors = [
        transformers.ConvNextImageProcessorPil.from_pretrained(root / "resnet"),
        transformers.CLIPImageProcessorPil.from_pretrained(root / "clip"),
    ]
    modules = [network.resnet.embedder, *network.resnet.encoder.stages]
    for module in modules:
        kept: list[torch.Tensor] = []
        hook = module.register_forward_hook(
            lambda _m, _i, out, kept=kept: kept.append(out.mean((2, 3)))
        )
        with torch.no_grad():
            for start in range(0, len(files), batch):
                images = [Image.open(file).convert("RGB") for file in files[start : start + batch]]
                network(**processors[0](images, return_tensors="pt"))
                clip.get_image_features(**processors[1](images, return_tensors="pt"))
        hook.remove()


def network_alone(root: Path, images: np.ndarray, batch: int) -> tuple[float, float]:
    """Images a second of the forward pass, ours and torch's: medians of calls in turns."""
    import torch
    import transformers
    from flax import nnx

    import emojax

    ours = emojax.load_network(root / "resnet")
    theirs = transformers.ResNetForImageClassification.from_pretrained(root / "resnet").eval()
    x = np.asarray(ours.preprocess(images[:batch]))
    run = nnx.jit(lambda module, x: module(x)[0])
    channels_first = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())

    def torch_run() -> None:
        with torch.no_grad():
            theirs(channels_first)

    seconds = taking_turns(lambda: run(ours, x), torch_run, _REPEATS, "cpu")
    return batch / seconds[0], batch / seconds[1]


def measure(options: Options) -> Results:
    """The network alone and the probe, in images a second and seconds, with ratios to torch."""
    import transformers
    from PIL import Image

    import emojax

    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_folders(root)
        rng = np.random.default_rng(0)
        files = []
        for number in range(options.images):
            path = root / "photos" / "all" / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(path)
            files.append(path)
        images = emojax.open_split(root / "photos", "all")
        ours, theirs = network_alone(
            root, np.asarray(images.images[0 : options.batch]), options.batch
        )
        start = time.perf_counter()
        network = emojax.load_network(root / "resnet")
        clip = emojax.load_clip(root / "clip")
        record = emojax.probe(network, images, clip, layers=LAYERS, batch=options.batch)
        one_pass = time.perf_counter() - start
        assert len(record.layers) == len(LAYERS)
        start = time.perf_counter()
        some = files[: options.torch_images]
        in_torch(root, some, options.batch)
        passes = (time.perf_counter() - start) * len(files) / len(some)
    return [
        {
            "what": "ResNet-50 alone",
            "batch": options.batch,
            "images_per_s": ours,
            "torch_images_per_s": theirs,
            "ratio": ours / theirs,
        },
        {
            "what": "one pass for five layers, compilation included",
            "images": options.images,
            "torch_images": len(some),
            "seconds": one_pass,
            "torch_seconds": passes,
            "ratio": passes / one_pass,
        },
    ]
