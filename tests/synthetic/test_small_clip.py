"""The small CLIP: its tokenizer, and that Hugging Face reads it as one of its own."""

import jax.numpy as jnp
import numpy as np
import pytest

from emojax.data.clip_folder import load_clip, save_clip
from emojax.synthetic import faces
from emojax.synthetic.shipped import ASSETS
from emojax.synthetic.small_clip import small_clip, train_tokenizer


def test_tokenizer(tmp_path):
    texts = faces.random_captions(faces.random_faces(300, 0), 0).texts
    tokenizer = train_tokenizer(texts, merges=256)
    assert tokenizer.tokenize("Wide Open Eyes") == ["wide</w>", "open</w>", "eyes</w>"]
    ids = tokenizer("Ünknown wörds 🙂")["input_ids"]
    assert (
        ids.count(len(tokenizer) - 1) == 1
    )  # nothing is unknown: the end token ends the text and stands nowhere else
    tokenizer.save_pretrained(tmp_path)
    from transformers import CLIPTokenizer

    assert (
        CLIPTokenizer.from_pretrained(tmp_path)(list(texts))["input_ids"]
        == tokenizer(list(texts))["input_ids"]
    )


@pytest.mark.long
@pytest.mark.parametrize("which", ["new", "shipped"])
def test_our_clips_are_hugging_face_clips(tmp_path, which):
    torch = pytest.importorskip("torch", reason="needs the oracle extra")
    from transformers import CLIPModel

    folder = ASSETS / "clip"
    if which == "new":
        new, folder = (
            small_clip(faces.random_captions(faces.random_faces(300, 0), 0).texts, 0),
            tmp_path / "clip",
        )
        save_clip(folder, new.encoder.model, new.hf_config, new.tokenizer)
    theirs = CLIPModel.from_pretrained(folder).eval()
    ours = load_clip(folder)
    pictures = faces.random_faces(4, 0).render()
    ids = ours.tokenize(["smile", "a face with furrowed brows"])
    with torch.no_grad():
        pixels = torch.tensor(np.asarray(ours.preprocess(jnp.asarray(pictures)))).permute(
            0, 3, 1, 2
        )
        image = theirs.visual_projection(theirs.vision_model(pixels).pooler_output).numpy()
        text = theirs.text_projection(
            theirs.text_model(torch.tensor(ids, dtype=torch.long)).pooler_output
        ).numpy()
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    np.testing.assert_allclose(ours.embed_images(pictures), image, atol=2e-6)
    np.testing.assert_allclose(
        ours.embed_texts(["smile", "a face with furrowed brows"]), text, atol=2e-6
    )
