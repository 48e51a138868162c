"""A stand-in world for `emojax demo`: generated images, a small random VGGNet and a small random CLIP, all seeded.

It exercises the whole chain offline. Nothing in it was trained, so labels and accuracies mean nothing.
"""

from collections.abc import Sequence

import numpy as np
from flax import nnx

from emojax.data.fer2013 import CLASSES
from emojax.data.loader import ImageSet
from emojax.data.weights import ClipEncoder, Preprocess
from emojax.models.clip import Clip, ClipConfig, TowerConfig
from emojax.models.vgg import VggConfig, VggNet


def generated_images(count: int, seed: int, name: str) -> ImageSet:
    """Blurred blobs whose number and place depend on the class: uint8 [count, 48, 48, 1] with seven classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), count)
    y, x = np.mgrid[0:48, 0:48]
    images = rng.normal(96, 12, (count, 48, 48))
    for blob in range(len(CLASSES)):
        shown = blob <= labels
        centre = 24 + 14 * np.array([np.sin(blob), np.cos(blob)]) + rng.normal(0, 2, (count, 2))
        distance = (y - centre[:, 0, None, None]) ** 2 + (x - centre[:, 1, None, None]) ** 2
        images += shown[:, None, None] * 110 * np.exp(-distance / 18)
    return ImageSet.from_arrays(np.clip(images, 0, 255).astype(np.uint8), labels, CLASSES, name=name)


def byte_tokens(texts: Sequence[str]) -> list[list[int]]:
    """A start token, the text's bytes, an end token."""
    return [[256, *text.encode(), 257] for text in texts]


def demo_world(count: int) -> tuple[VggNet, ClipEncoder, ImageSet, list[ImageSet]]:
    """Network, CLIP, `count` probe images and two test sets of half as many."""
    model = nnx.jit(lambda: VggNet(VggConfig.small(), rngs=nnx.Rngs(0)))()  # jitted: eager drawing takes ten times as long
    model.eval()
    tower = TowerConfig(width=64, mlp=128, depth=2, heads=4)
    config = ClipConfig(tower, tower, image_size=32, patch_size=8, vocabulary=258, context=64, end_token=257, embedding=32)
    preprocess = Preprocess(resize=32, crop=(32, 32), mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
    network = nnx.jit(lambda: Clip(config, rngs=nnx.Rngs(1)))()
    clip = ClipEncoder(network, preprocess, byte_tokens, "random CLIP")
    tests = [generated_images(count // 2, seed, name) for seed, name in ((3, "public_test"), (4, "private_test"))]
    return model, clip, generated_images(count, 2, "training"), tests
