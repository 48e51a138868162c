"""Preprocessing as a folder states it, against transformers' own PIL image processors."""

import json

import jax
import numpy as np
import pytest
import transformers

from emojax.data.hf_folder import read_preprocess
from emojax.errors import InputError
from emojax.models.preprocess import Preprocess

SQUARE = {"height": 30, "width": 30}
SETTINGS = {
    "vit": ("ViT", {"size": SQUARE}),
    "vit wide": ("ViT", {"size": {"height": 20, "width": 34}, "image_mean": [0.5] * 3}),
    "vit lanczos": ("ViT", {"size": SQUARE, "resample": 1, "do_normalize": False}),
    "vit unscaled": ("ViT", {"size": SQUARE, "rescale_factor": 1 / 128}),
    "deit": ("DeiT", {"size": {"height": 36, "width": 36}, "crop_size": SQUARE}),
    "dinov2": ("Bit", {"size": {"shortest_edge": 36}, "crop_size": SQUARE}),
    "dinov2 padded": ("Bit", {"size": {"shortest_edge": 17}, "crop_size": SQUARE}),
    "convnext": ("ConvNext", {"size": {"shortest_edge": 30}, "crop_pct": 0.875}),
    "convnext large": ("ConvNext", {"size": {"shortest_edge": 384}}),
    "clip": ("CLIP", {"size": {"shortest_edge": 30}, "crop_size": SQUARE}),
    "siglip": ("Siglip", {"size": SQUARE}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("size", [(41, 57), (25, 19)])
def test_pixels_equal_transformers(name, size, tmp_path):
    kind, settings = SETTINGS[name]
    theirs = getattr(transformers, f"{kind}ImageProcessorPil")(**settings)
    theirs.save_pretrained(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    want = np.stack(
        theirs(list(images), return_tensors="np", input_data_format="channels_last")["pixel_values"]
    ).transpose(0, 2, 3, 1)

    ours = read_preprocess(tmp_path)
    got = np.asarray(jax.jit(ours)(images))
    assert got.shape == want.shape
    assert got.shape[1:3] == ours.output_size(*size)

    # Pixels: what the floats were made of, 0…255.
    def pixels(values):
        return np.rint((values * np.array(ours.std) + np.array(ours.mean)) / ours.scale)

    np.testing.assert_array_equal(np.asarray(jax.jit(ours.pixels)(images)), pixels(want))
    # Floats: a scale, a difference and a quotient, each rounded once in both.
    magnitude = (255 * ours.scale + max(ours.mean)) / min(ours.std)
    np.testing.assert_allclose(got, want, rtol=0, atol=3 * 2**-23 * magnitude)


@pytest.mark.slow
def test_gray_images_become_three_equal_channels(tmp_path):
    transformers.ViTImageProcessorPil(size=SQUARE).save_pretrained(tmp_path)
    ours = read_preprocess(tmp_path)
    gray = np.random.default_rng(1).integers(0, 256, (2, 40, 40, 1), dtype=np.uint8)
    np.testing.assert_array_equal(ours(gray), ours(np.repeat(gray, 3, axis=3)))


def test_old_files_without_a_type_of_size(tmp_path):
    """Files of 2021 give one number for a square, and call the processor a feature extractor."""
    old = {
        "feature_extractor_type": "ViTFeatureExtractor",
        "size": 30,
        "resample": 2,
        "do_resize": True,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    half = (0.5, 0.5, 0.5)
    assert read_preprocess(tmp_path) == Preprocess((30, 30), None, half, half, "bilinear")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_processor_type": "YolosImageProcessor"}, "YolosImageProcessor is not supported"),
        ({"image_processor_type": None}, "names no image_processor_type"),
        ({"resample": 0}, "resample 0 is not supported"),
        ({"size": {"height": 10**9, "width": 4}}, "not a number of pixels from 1 to 4096"),
        ({"image_std": [0.0, 1.0, 1.0]}, "not 3 numbers from 0.0001 to 10000"),
        ({"rescale_factor": -1}, "not a number from 1e-06 to 1000"),
        ({"do_pad": True}, "padding is not supported"),
    ],
)
def test_refusals(changes, message, tmp_path):
    transformers.ViTImageProcessorPil(size=SQUARE).save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=message):
        read_preprocess(tmp_path)
    path.write_text("[]")
    with pytest.raises(InputError, match=r"preprocessor_config\.json"):
        read_preprocess(tmp_path)
