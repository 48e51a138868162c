"""SigLIP's towers, tokenizers and preprocessing against torch and transformers."""

import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emojax.data.clip_folder import load_clip
from emojax.errors import InputError

TEXTS = ["Raised Brows", "a man's closed eyes, tightly!", "x"]
TOWER = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TEXT = TOWER | {"vocab_size": 60, "max_position_embeddings": 40}


def sentencepiece_tokenizer():
    """A SiglipTokenizer with a small vocabulary of its own."""
    import sentencepiece
    from transformers import SiglipTokenizer

    written = io.BytesIO()
    words = ["raised brows", "a mans closed eyes tightly", "smile", "frown", "the quick brown fox"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 20),
        model_writer=written,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=3,
    )
    return written.getvalue(), SiglipTokenizer


def gemma_tokenizer():
    """A Siglip2Tokenizer of single letters: lower case, padded on the left."""
    from transformers import Siglip2Tokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = [*"abcdefghijklmnopqrstuvwxyz'!,", "▁"]
    return Siglip2Tokenizer(vocab={piece: i for i, piece in enumerate(special + letters)})


def save_folder(folder, model, *, resample, size):
    """A folder as transformers writes it, for a SiglipModel or a Siglip2Model."""
    from transformers import Siglip2ImageProcessorPil, SiglipImageProcessorPil, SiglipModel

    model.save_pretrained(folder)
    if isinstance(model, SiglipModel):
        pieces, kind = sentencepiece_tokenizer()
        (folder / "spiece.model").write_bytes(pieces)
        kind(str(folder / "spiece.model")).save_pretrained(folder)
        processor = SiglipImageProcessorPil(size={"height": size, "width": size}, resample=resample)
    else:
        gemma_tokenizer().save_pretrained(folder)
        processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=(size // 8) ** 2)
    processor.save_pretrained(folder)


def torch_model(kind, text=TEXT, vision=None):
    """A random SiglipModel or Siglip2Model whose biases are not zero."""
    torch = pytest.importorskip("torch", reason="the oracle extra (torch) is not installed")
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, kind.replace("Model", "Config"))(
        text_config=text, vision_config=vision or TOWER
    )
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return torch, model


def largest_difference(got, want):
    return np.abs(np.asarray(got) - want).max() / np.abs(want).max()


def features(ours, images, ids):
    return (
        jax.jit(ours.model.image_features)(jnp.asarray(images)),
        jax.jit(ours.model.text_features)(jnp.asarray(ids)),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    _, model = torch_model("SiglipModel", vision=TOWER | {"image_size": 32, "patch_size": 8})
    path = tmp_path_factory.mktemp("siglip") / "tiny"
    save_folder(path, model, resample=2, size=32)
    return path


def check_parity(model, torch, ours, size, batch):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, size, size, 3)).astype(np.float32)
    context = model.config.text_config.max_position_embeddings
    ids = rng.integers(0, model.config.text_config.vocab_size, (batch, context))
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        outputs = model.get_image_features(pixels), model.get_text_features(torch.from_numpy(ids))
    want = [getattr(x, "pooler_output", x).numpy() for x in outputs]
    differences = map(largest_difference, features(ours, images, ids), want)
    assert max(differences) <= 1e-5


@pytest.mark.slow
def test_tiny_parity(folder):
    torch, _ = torch_model("SiglipModel")
    from transformers import SiglipModel

    check_parity(SiglipModel.from_pretrained(folder).eval(), torch, load_clip(folder), 32, 3)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_base_parity(tmp_path):
    """The published widths, vocabulary and image size of siglip-base-patch16-224.

    Two blocks of twelve, which are all alike, to save a minute.
    """
    torch, model = torch_model("SiglipModel", {"num_hidden_layers": 2}, {"num_hidden_layers": 2})
    save_folder(tmp_path, model, resample=3, size=224)
    check_parity(model, torch, load_clip(tmp_path), 224, 2)


@pytest.mark.slow
def test_siglip2_parity(tmp_path):
    """A Siglip2Model on a square image, from uint8 pixels on: its processor cuts the patches."""
    torch, model = torch_model("Siglip2Model", vision=TOWER | {"num_patches": 16, "patch_size": 8})
    save_folder(tmp_path, model, resample=2, size=32)
    ours = load_clip(tmp_path)
    from transformers import Siglip2ImageProcessorPil

    images = np.random.default_rng(2).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
    processor = Siglip2ImageProcessorPil.from_pretrained(tmp_path)
    inputs = processor(list(images), return_tensors="pt")
    ids = ours.tokenize(TEXTS)
    with torch.no_grad():
        outputs = (
            model.get_image_features(**inputs),
            model.get_text_features(torch.from_numpy(ids).long()),
        )
    want = [getattr(x, "pooler_output", x).numpy() for x in outputs]
    got = features(ours, ours.preprocess(images), ids)
    assert max(map(largest_difference, got, want)) <= 1e-5
    with pytest.raises(InputError, match="takes square images, these are 48×40"):
        ours.preprocess(images[:, :, :40])


@pytest.mark.slow
@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("size", [(48, 48), (50, 37)])
def test_preprocessing_equals_transformers(folder, tmp_path, resample, size):
    from transformers import SiglipImageProcessorPil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    change(copy / "preprocessor_config.json", resample=resample)
    ours = load_clip(copy).preprocess
    images = np.random.default_rng(1).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    processor = SiglipImageProcessorPil.from_pretrained(copy)
    want = processor(list(images), return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    got = np.asarray(ours(images))
    to_pixels = lambda x: np.rint((x * 0.5 + 0.5) * 255).astype(int)
    np.testing.assert_array_equal(to_pixels(got), to_pixels(want))
    # Both divide by 255 and by 0.5 in float32, in their own order: two roundings of up to 1.
    np.testing.assert_allclose(got, want, atol=4 * np.finfo(np.float32).eps, rtol=0)


def test_tokens_equal_transformers(folder):
    from transformers import SiglipTokenizer

    theirs = SiglipTokenizer.from_pretrained(folder)(TEXTS, max_length=40, padding="max_length")
    np.testing.assert_array_equal(load_clip(folder).tokenize(TEXTS), theirs["input_ids"])


@pytest.mark.slow
def test_gemma_tokens_equal_transformers(folder, tmp_path):
    """SigLIP 2 of a fixed resolution is a SiglipModel with another tokenizer."""
    from transformers import AutoTokenizer

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for name in ("spiece.model", "tokenizer_config.json", "special_tokens_map.json"):
        (copy / name).unlink(missing_ok=True)
    gemma_tokenizer().save_pretrained(copy)
    tokenizer = AutoTokenizer.from_pretrained(copy)
    theirs = tokenizer(TEXTS, max_length=40, padding="max_length")["input_ids"]
    ours = load_clip(copy)
    np.testing.assert_array_equal(ours.tokenize(TEXTS), theirs)
    assert ours.padding is not None
    assert ours.padding.left == (tokenizer.padding_side == "left")
    assert ours.key != load_clip(folder).key


@pytest.mark.slow
def test_embeddings_do_not_depend_on_the_batch(folder):
    ours = load_clip(folder)
    together = ours.embed_texts(TEXTS)
    np.testing.assert_allclose(ours.embed_texts(TEXTS[:1])[0], together[0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    with pytest.raises(InputError, match="takes 40; shorten it"):
        ours.tokenize(["smile " * 50])


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def vision(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"vision_config": config["vision_config"] | changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: vision(f, vision_use_head=False), "images are not pooled"),
        (lambda f: vision(f, num_attention_heads=5), "does not divide"),
        (lambda f: vision(f, patch_size=16), "has shape"),
        (lambda f: vision(f, image_size=40), "says images of 40"),
        (lambda f: (f / "spiece.model").unlink(), "tokenizer"),
        (lambda f: (f / "spiece.model").write_bytes(b"no"), "its tokenizer cannot be read"),
        (lambda f: change(f / "tokenizer_config.json", tokenizer_class="BertTokenizer"), "tokeniz"),
        (
            lambda f: change(f / "preprocessor_config.json", resample=0),
            "resample 0 is not supported",
        ),
        (lambda f: change(f / "preprocessor_config.json", image_std=[0, 1, 1]), "image_std"),
        (lambda f: change(f / "preprocessor_config.json", size={"height": 8}), "preprocessor"),
    ],
)
def test_damaged_folders_are_refused(folder, tmp_path, damage, message):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    damage(copy)
    with pytest.raises(InputError, match=message) as refusal:
        load_clip(copy)
    assert "\n" not in str(refusal.value)
