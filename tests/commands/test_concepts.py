"""`emojax concepts`: the files, answers and CLIP folders that it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from damage import edited, replaced, rewritten, with_value
from refusals import table


@pytest.mark.parametrize(
    ("content", "message"),
    table(
        ("a folder", None, "cannot read"),
        ("nothing in it", "\n", "no concept in it"),
        ("a bad line", "concept,emotions\nSmile\n", "1 columns"),
    ),
)
def test_files_to_review_are_refused(inputs, content, message):
    path = inputs.here if content is None else inputs.put("c.txt", content)
    inputs.refused(["concepts", path], message)


@pytest.mark.parametrize(
    ("content", "message"),
    table(
        ("no emotions", "Wide Open Eyes\n", "is not of the form"),
        ("an emotion not asked for", "Smile: joy\n", "no emotion 'joy'"),
        ("a phrase twice", "Smile: happy\nSmile: sad\n", "comes twice"),
        ("no phrase", ": happy\n", "is not of the form"),
        ("nothing", "", "no concept in it"),
    ),
)
def test_answers_are_refused(inputs, content, message):
    inputs.refused(["concepts", "--answer", inputs.put("a.txt", content)], message)


def inner(part: str, **values) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config[part] |= values
        path.write_text(json.dumps(config))

    return write


def sharded(weight_map: object) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return write


def clip_arrays(change: Callable[[dict], object]) -> Callable[[Path], object]:
    return lambda folder: rewritten(change)(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    table(
        ("an empty folder", lambda f: [p.unlink() for p in f.iterdir()], "no config.json"),
        ("settings that are a list", replaced("config.json", "[]"), "model_type is None"),
        ("settings that are a number", replaced("config.json", "3"), "model_type is None"),
        ("settings that are empty", replaced("config.json", "{}"), "model_type is None"),
        (
            "settings that are not UTF-8",
            replaced("config.json", b"\xff\xfe"),
            "config.json: not readable",
        ),
        ("settings nested deep", replaced("config.json", "[" * 100_000), "config.json"),
        ("another model", edited("config.json", model_type="bert"), "model_type is 'bert'"),
        (
            "no towers",
            replaced("config.json", '{"model_type": "clip", "vision_config": 3}'),
            "config.json",
        ),
        ("a width that is a word", inner("vision_config", hidden_size="wide"), "config.json"),
        ("a width of zero", inner("vision_config", hidden_size=0), "config.json"),
        ("a width below zero", inner("text_config", hidden_size=-32), "config.json"),
        ("no heads", inner("vision_config", num_attention_heads=0), "config.json"),
        (
            "heads that do not divide the width",
            inner("vision_config", num_attention_heads=5),
            "config.json",
        ),
        ("a patch of zero", inner("vision_config", patch_size=0), "config.json"),
        (
            "a patch larger than the image",
            inner("vision_config", patch_size=64),
            "do not fit into images of 32",
        ),
        ("an unknown activation", inner("text_config", hidden_act="swish"), "swish"),
        (
            "more layers than weights",
            inner("vision_config", num_hidden_layers=3),
            "parameters are missing",
        ),
        (
            "fewer layers than weights",
            inner("vision_config", num_hidden_layers=1),
            "not of this network",
        ),
        ("no layers", inner("text_config", num_hidden_layers=0), "clip"),
        ("a smaller vocabulary", inner("text_config", vocab_size=100), "outside the vocabulary"),
        ("a context of zero", inner("text_config", max_position_embeddings=0), "clip"),
        (
            "an end token outside the vocabulary",
            inner("text_config", eos_token_id=9999),
            "eos_token_id",
        ),
        ("an embedding of zero", edited("config.json", projection_dim=0), "config.json"),
        (
            "preprocessing that is no JSON",
            replaced("preprocessor_config.json", "{"),
            "preprocessor_config.json",
        ),
        (
            "preprocessing that is a list",
            replaced("preprocessor_config.json", "[]"),
            "preprocessor_config.json",
        ),
        (
            "a mean of two numbers",
            edited("preprocessor_config.json", image_mean=[0.5, 0.5]),
            "preprocessor_config.json",
        ),
        (
            "a deviation of zero",
            edited("preprocessor_config.json", image_std=[0.0, 0.5, 0.5]),
            "preprocessor_config.json",
        ),
        (
            "a mean that is a word",
            edited("preprocessor_config.json", image_mean="gray"),
            "preprocessor_config.json",
        ),
        ("an empty tokenizer", replaced("tokenizer.json", ""), "tokenizer cannot be read"),
        (
            "a tokenizer that is a list",
            replaced("tokenizer.json", "[]"),
            "tokenizer cannot be read",
        ),
        (
            "a tokenizer that is not UTF-8",
            replaced("tokenizer.json", b"\xff"),
            "tokenizer cannot be read",
        ),
        (
            "weights that are empty",
            replaced("model.safetensors", b""),
            "not a readable safetensors",
        ),
        (
            "NaN in the weights",
            clip_arrays(with_value("logit_scale", np.nan)),
            "logit_scale holds values that are not finite",
        ),
        (
            "a wrong shape",
            clip_arrays(
                lambda a: a.update({"text_projection.weight": np.ones((2, 2), np.float32)})
            ),
            "has shape",
        ),
        (
            "a name too many",
            clip_arrays(lambda a: a.update(extra=np.ones(2, np.float32))),
            "not of this network: extra",
        ),
        (
            "an index that is a list",
            lambda f: [
                (f / "model.safetensors").unlink(),
                replaced("model.safetensors.index.json", "[]")(f),
            ],
            "not a readable index",
        ),
        ("an index without shards", sharded({}), "parameters are missing"),
        ("a shard that is not there", sharded({"a": "model-1.safetensors"}), "no weights file"),
        (
            "a shard outside the folder",
            sharded({"a": "../vgg.safetensors"}),
            "lies outside the folder",
        ),
        ("a shard by its full path", sharded({"a": "/etc/passwd"}), "lies outside the folder"),
        ("a shard that is a number", sharded({"a": 3}), "not a readable index"),
        ("a shard that is a list", sharded({"a": ["x"]}), "not a readable index"),
        ("a shard that is the folder", sharded({"a": ".."}), "lies outside the folder"),
        (
            "a pickle for weights",
            lambda f: [
                pytest.importorskip("torch", reason="needs the oracle extra"),
                (f / "model.safetensors").unlink(),
                replaced("pytorch_model.bin", b"cos\nsystem\n(S'touch pwned'\ntR.")(f),
            ],
            "torch refuses it",
        ),
    ),
)
def test_clip_folders_are_refused(inputs, change, message):
    inputs.refused(["concepts", "paper25", "--clip.path", inputs.copy("clip", change)], message)


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "/",
        "a b/c",
        "https://example.org/x",
        "owner/name/more",
        "../../etc",
        "owner/na\nme",
    ],
)
def test_names_of_clips_are_refused(inputs, name):
    message = "CLIP folder" if name not in ("..", "/") else "no config.json"
    inputs.refused(["concepts", "paper25", "--clip.path", name], message)
