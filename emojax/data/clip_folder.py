"""Hugging Face folders of CLIPs, on the disk or from the hub, to `ClipEncoder` and back.

`config.json` names the kind of model under `model_type`; `load_clip` is where a kind that is not
`clip` gets its reader: one function from a folder to an encoder, beside `_read_clip`. What all
folders have in common is read by `hf_folder`.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from emojax.data.clip_encoder import CLIP_MEAN, CLIP_STD, ClipEncoder, HfTokenizer
from emojax.data.hf_folder import open_folder, read_config, read_preprocess, read_weights
from emojax.errors import InputError
from emojax.models import clip as clip_model
from emojax.models.preprocess import Preprocess
from emojax.store import atomic_folder, save_arrays, write_json


def load_clip(source: str | Path, *, dtype: str = "float32") -> ClipEncoder:
    """A CLIP from a Hugging Face folder, or from the hub where no such folder exists.

    The folder holds `config.json`, `model.safetensors` (or shards with their index),
    `preprocessor_config.json` and the tokenizer's files.

    Args:
      source: the folder, or a hub name such as `openai/clip-vit-base-patch16`.
      dtype: what the network computes in: float32 or bfloat16.

    Raises:
      InputError: files are missing or damaged, the model is no ViT CLIP, or the hub cannot be
        reached.
    """
    folder = open_folder(source, "CLIP", "--clip.path")
    config = read_config(folder, "CLIP")
    kind = config.get("model_type")
    if kind != "clip":
        raise InputError(f"{folder / 'config.json'}: model_type is {kind!r}, not 'clip'")
    return _read_clip(folder, config, name=str(source), dtype=dtype)


def _read_clip(folder: Path, raw: dict[str, Any], *, name: str, dtype: str) -> ClipEncoder:
    config = _clip_config(folder / "config.json", raw)
    tokenizer = _clip_tokenizer(folder)
    preprocess = _clip_preprocess(folder, config.image_size)
    try:
        arrays = read_weights(folder)
        model = clip_model.from_hf_state_dict(arrays, config, dtype=jnp.dtype(dtype))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{folder}: {error}") from None
    return ClipEncoder(model, preprocess, tokenizer, name)


# Reading what a CLIP's folder says of itself


def _clip_config(path: Path, raw: dict[str, Any]) -> clip_model.ClipConfig:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CLIPConfig

    try:
        return clip_model.ClipConfig.from_hf(CLIPConfig(**raw).to_dict())
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        ZeroDivisionError,
        StrictDataclassError,
    ) as error:
        raise InputError(f"{path}: not the settings of a ViT CLIP ({error})") from None


def _clip_preprocess(folder: Path, image_size: int) -> Preprocess:
    """The folder's preprocessing, which must give the size of image that the network takes."""
    preprocess = read_preprocess(folder)
    crop = preprocess.crop
    if crop is None:
        crop = preprocess.resize
    size = (image_size, image_size)
    if crop != size or (isinstance(preprocess.resize, int) and preprocess.resize < image_size):
        raise InputError(
            f"{folder / 'preprocessor_config.json'}: crops {crop} from {preprocess.resize}, "
            f"but config.json says images of {image_size}"
        )
    return preprocess


def _clip_tokenizer(folder: Path) -> HfTokenizer:
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        raise InputError(f"{folder}: no tokenizer.json (or vocab.json and merges.txt) in it")
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the Rust tokenizer raises bare Exception for a damaged file
        raise InputError(f"{folder}: its tokenizer cannot be read ({error})") from None
    return HfTokenizer(tokenizer)


# Writing


def save_clip(folder: Path, model: clip_model.Clip, hf_config: Any, tokenizer: Any) -> None:
    """Writes a Hugging Face CLIP folder: settings, weights, tokenizer, CLIP's usual preprocessing.

    `hf_config` is a transformers CLIPConfig, `tokenizer` a CLIPTokenizer.

    Raises:
      InputError: the folder holds something already.
    """
    size = model.config.image_size
    with atomic_folder(Path(folder)) as building:
        hf_config.save_pretrained(building)
        tokenizer.save_pretrained(building)
        arrays = clip_model.to_hf_state_dict(model)
        save_arrays(arrays, building / "model.safetensors", metadata={"format": "pt"})
        write_json(
            building / "preprocessor_config.json",
            {
                "image_processor_type": "CLIPImageProcessor",
                "do_resize": True,
                "size": {"shortest_edge": size},
                "resample": 3,
                "do_center_crop": True,
                "crop_size": {"height": size, "width": size},
                "do_rescale": True,
                "rescale_factor": 1 / 255,
                "do_normalize": True,
                "image_mean": list(CLIP_MEAN),
                "image_std": list(CLIP_STD),
                "do_convert_rgb": True,
            },
        )
