"""The networks and images that several benchmarks run."""

import numpy as np


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
