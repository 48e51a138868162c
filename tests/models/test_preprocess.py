import numpy as np
import pytest
from PIL import Image

from emojax.models.preprocess import Preprocess

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@pytest.mark.slow
def test_golden_clip(golden):
    data = np.load(golden / "preprocess.npz")
    got = np.asarray(Preprocess(224, (224, 224), MEAN, STD)(data["images_uint8"][..., None]))
    # The stored values are rounded to float16: pixels are still exact.
    stored = data["clip224_bicubic_pil_uint8"].astype(np.float32)
    pixels = [np.rint((x * np.array(STD) + np.array(MEAN)) * 255) for x in (got, stored)]
    np.testing.assert_array_equal(*pixels)
    # float16 holds numbers between 2 and 4 to 2⁻¹⁰; a white pixel is 2.2 in the third channel.
    np.testing.assert_allclose(got, stored, rtol=0, atol=2**-10 + 2e-6)


@pytest.mark.slow
def test_the_long_side_is_cropped():
    images = np.random.default_rng(3).integers(0, 256, (2, 40, 64, 3), dtype=np.uint8)
    got = Preprocess(32, (32, 32), MEAN, STD)(images)
    bicubic = Image.Resampling.BICUBIC
    resized = np.stack([np.asarray(Image.fromarray(x).resize((51, 32), bicubic)) for x in images])
    expected = (resized[:, :, 9:41] / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(got, expected, atol=2e-6)
