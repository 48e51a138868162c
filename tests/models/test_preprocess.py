import numpy as np

from emojax.models.preprocess import Preprocess

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def test_golden_clip(golden):
    data = np.load(golden / "preprocess.npz")
    got = np.asarray(Preprocess(224, (224, 224), MEAN, STD)(data["images_uint8"][..., None]))
    # The stored values are rounded to float16: pixels are still exact.
    stored = data["clip224_bicubic_pil_uint8"].astype(np.float32)
    pixels = [np.rint((x * np.array(STD) + np.array(MEAN)) * 255) for x in (got, stored)]
    np.testing.assert_array_equal(*pixels)
    np.testing.assert_allclose(got, stored, atol=1e-3)
