import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from emojax.ops import image

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def pillow(images, size):
    return np.stack(
        [
            np.asarray(Image.fromarray(x).resize(size[::-1], Image.Resampling.BICUBIC))
            for x in images
        ]
    )


SIZES = [
    ((48, 48), (224, 224)),
    ((224, 224), (224, 224)),
    ((300, 500), (37, 61)),  # more than 4 taps a pixel
    ((2000, 30), (2, 60)),  # three digits of fixed point, height first
    ((50, 50), (49, 51)),
    ((57, 22), (10, 4)),
    ((100, 50), (39, 20)),  # the last height that goes first
    ((100, 50), (41, 20)),
    ((40, 60), (80, 30)),
    ((1, 1), (5, 5)),
]


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_bicubic_equals_pillow_on_every_pixel(source, target):
    images = np.random.default_rng(0).integers(0, 256, (2, *source), dtype=np.uint8)
    got = jax.jit(lambda x: image.resize_bicubic_pil(x, target))(images)
    np.testing.assert_array_equal(got, pillow(images, target))


def test_bicubic_colour_and_extremes():
    images = np.random.default_rng(1).choice(np.array([0, 255], np.uint8), (2, 31, 31, 3))
    got = jax.jit(lambda x: image.resize_bicubic_pil(x, (64, 64)))(jnp.asarray(images))
    np.testing.assert_array_equal(got, pillow(images, (64, 64)))


def test_bicubic_refuses_floats():
    with pytest.raises(TypeError, match="uint8"):
        image.resize_bicubic_pil(jnp.ones((1, 4, 4)), (2, 2))


def test_gray_equals_pillow():
    images = np.random.default_rng(2).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    want = np.stack([np.asarray(Image.fromarray(x).convert("L")) for x in images])
    np.testing.assert_array_equal(image.to_gray(jnp.asarray(images))[..., 0], want)


def test_golden_preprocessing(golden):
    data = np.load(golden / "preprocess.npz")
    images = jnp.asarray(data["images_uint8"])[..., None]
    for antialias in (True, False):
        got = image.resize_bilinear(image.to_unit(images), (40, 40), antialias=antialias)[..., 0]
        np.testing.assert_allclose(got, data[f"bilinear40_antialias_{antialias}"], atol=4e-6)
    got = np.asarray(image.clip_preprocess(images, resize=224, crop=(224, 224), mean=MEAN, std=STD))
    stored = data["clip224_bicubic_pil_uint8"].astype(
        np.float32
    )  # rounded to float16: pixels are still exact
    pixels = [np.rint((x * np.array(STD) + np.array(MEAN)) * 255) for x in (got, stored)]
    np.testing.assert_array_equal(*pixels)
    np.testing.assert_allclose(got, stored, atol=1e-3)


def test_clip_preprocess_crops_the_long_side():
    images = np.random.default_rng(3).integers(0, 256, (2, 40, 64, 3), dtype=np.uint8)
    got = image.clip_preprocess(jnp.asarray(images), resize=32, crop=(32, 32), mean=MEAN, std=STD)
    resized = pillow(images, (32, 51))[:, :, 9:41]
    np.testing.assert_allclose(got, (resized / 255 - np.array(MEAN)) / np.array(STD), atol=2e-6)


def test_ten_crop_order():
    x = jnp.arange(48 * 48, dtype=jnp.float32).reshape(1, 48, 48, 1)
    crops = np.asarray(image.ten_crop(x, 40))[0, ..., 0]
    full = np.asarray(x)[0, ..., 0]
    corners = [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]
    for got, (top, left) in zip(crops[:5], corners, strict=True):
        np.testing.assert_array_equal(got, full[top : top + 40, left : left + 40])
    for got, (top, left) in zip(crops[5:], corners, strict=True):
        np.testing.assert_array_equal(got, full[:, ::-1][top : top + 40, left : left + 40])
