import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import hf_config, hf_tokenizer
from flax import nnx
from safetensors.numpy import load_file, save_file

from emojax.data.clip_folder import load_clip
from emojax.errors import InputError
from emojax.models import transformer


def torch_parity(config, batch, tmp_path):
    """Largest relative difference of both embeddings to torch's, through a saved folder."""
    torch = pytest.importorskip("torch", reason="the oracle extra (torch) is not installed")
    from transformers import CLIPImageProcessorPil, CLIPModel

    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    model.save_pretrained(tmp_path)
    hf_tokenizer().save_pretrained(tmp_path)
    size = config.vision_config.image_size
    CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    ).save_pretrained(tmp_path)
    ours = load_clip(tmp_path)

    rng, text = np.random.default_rng(0), config.text_config
    images = rng.standard_normal((batch, size, size, 3)).astype(np.float32)
    ids = rng.integers(3, 500, (batch, text.max_position_embeddings))
    ids[np.arange(batch), 2 + np.arange(batch) * 3] = text.eos_token_id
    with torch.no_grad():
        want = (
            model.get_image_features(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())),
            model.get_text_features(torch.from_numpy(ids)),
        )
    want = [getattr(x, "pooler_output", x).numpy() for x in want]
    got = (
        jax.jit(ours.model.image_features)(jnp.asarray(images)),
        jax.jit(ours.model.text_features)(jnp.asarray(ids)),
    )
    return [
        np.abs(np.asarray(g) - w).max() / np.abs(w).max() for g, w in zip(got, want, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_tiny_parity(tmp_path, activation):
    config = hf_config(hidden_act=activation)
    config.text_config.hidden_act = activation
    assert max(torch_parity(config, 3, tmp_path)) <= 1e-5


@pytest.mark.exhaustive
@pytest.mark.slow
def test_vit_b32_parity(tmp_path):
    """The published widths, vocabulary and image size.

    Two blocks of twelve, which are all alike, to save a minute.
    """
    from transformers import CLIPConfig

    text = {"eos_token_id": 49407, "bos_token_id": 49406, "num_hidden_layers": 2}
    config = CLIPConfig(text_config=text, vision_config={"patch_size": 32, "num_hidden_layers": 2})
    assert max(torch_parity(config, 2, tmp_path)) <= 1e-5


@pytest.mark.slow
def test_old_end_token_means_largest_id(tiny_clip):
    """Configs of 2021 say end token 2; transformers then takes the largest id's position."""
    ids = tiny_clip.tokenize(["Raised Brows"])
    graph = tiny_clip.model.text_model
    run = nnx.jit(lambda graph, ids: graph(ids))
    try:
        modern = run(graph, ids)
        graph.end_token = 2
        np.testing.assert_array_equal(run(graph, ids), modern)
    finally:
        graph.end_token = 513


@pytest.mark.slow
def test_text_embedding_ignores_padding(tiny_clip):
    alone = tiny_clip.embed_texts(["Smile"])
    together = tiny_clip.embed_texts(["Smile", "Tightened Facial Muscles around"])
    np.testing.assert_allclose(alone[0], together[0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_tokens_equal_transformers(tiny_clip, clip_folder):
    from transformers import CLIPTokenizer

    texts = ["Raised Brows", "Closed Eyes", "naïve — Smile!"]
    theirs = CLIPTokenizer.from_pretrained(clip_folder)(
        texts, max_length=40, padding="max_length", truncation=True
    )
    ours = tiny_clip.tokenize(texts)
    for mine, ids, mask in zip(ours, theirs["input_ids"], theirs["attention_mask"], strict=True):
        assert mine[: sum(mask)].tolist() == ids[: sum(mask)]


@pytest.mark.slow
def test_bfloat16_is_close(clip_folder, tiny_clip):
    half = load_clip(clip_folder, dtype="bfloat16")
    images = np.random.default_rng(0).standard_normal((4, 32, 32, 3)).astype(np.float32)
    run = nnx.jit(lambda model, images: model.image_features(images))
    whole, rounded = run(tiny_clip.model, images), run(half.model, images)
    assert rounded.dtype == jnp.bfloat16
    a, b = np.asarray(whole), np.float32(rounded)
    assert np.abs(a - b).max() / np.abs(a).max() < 0.03
    assert half.key != tiny_clip.key


def test_sharded_weights_give_the_same_network(clip_folder, tiny_clip, tmp_path):
    folder = tmp_path / "sharded"
    shutil.copytree(clip_folder, folder)
    arrays = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, index = sorted(arrays), {}
    for shard, part in enumerate((names[::2], names[1::2])):
        file = f"model-{shard + 1:05d}-of-00002.safetensors"
        save_file({name: arrays[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert load_clip(folder).key == tiny_clip.key


def break_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_array(folder):
    arrays = load_file(folder / "model.safetensors")
    del arrays["visual_projection.weight"]
    save_file(arrays, folder / "model.safetensors")


def processor(folder, **changes):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: not readable JSON"),
        (lambda f: break_config(f, model_type="bert"), "model_type is 'bert', not 'clip'"),
        (lambda f: break_config(f, projection_dim=25), "has shape"),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
        (
            lambda f: (f / "model.safetensors").write_bytes(b"\0" * 40),
            "not a readable safetensors file",
        ),
        (drop_array, "parameters are missing: visual_projection.weight"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "no preprocessor_config.json"),
        (lambda f: processor(f, resample=5), "resample 5 is not supported, only lanczos"),
        (lambda f: processor(f, image_processor_type="Yolos"), "Yolos is not supported"),
        (lambda f: processor(f, size={"longest_edge": 9}), "not a height and a width"),
        (
            lambda f: processor(f, crop_size={"height": 24, "width": 24}),
            "config.json says images of 32",
        ),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer cannot be read"),
    ],
)
def test_refuses_damaged_folders(clip_folder, tmp_path, damage, message):
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    damage(folder)
    with pytest.raises(InputError, match=message):
        load_clip(folder)


def test_unknown_hub_name_says_how_to_pass_a_folder():
    with pytest.raises(
        InputError, match=r"no CLIP folder 'nobody/no-such-clip'.*pass --clip.path its folder"
    ):
        load_clip("nobody/no-such-clip")
    with pytest.raises(InputError, match=r"pass --clip.path a folder"):
        load_clip("not there")


def test_overlong_text_is_refused(tiny_clip):
    with pytest.raises(InputError, match="is 62 tokens long"):
        tiny_clip.embed_texts(["x" * 60])


def test_unsupported_activation():
    with pytest.raises(ValueError, match="'swish' is not supported"):
        transformer.TowerConfig(8, 8, 1, 2, activation="swish")
