"""Hugging Face folders of CLIPs and SigLIPs, from disk or hub, to `ClipEncoder` and back.

`config.json` names the kind of model under `model_type`: `clip`, `siglip` (SigLIP 1, and SigLIP 2
of a fixed resolution) or `siglip2` (SigLIP 2 that keeps the aspect ratio). What all folders have in
common is read by `hf_folder`; of the classes that a folder may name for its tokenizer, only known
ones of transformers are used, and no code of a folder is run.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from emojax import strict
from emojax.data.clip_encoder import (
    CLIP_MEAN,
    CLIP_STD,
    ClipEncoder,
    HfTokenizer,
    Padding,
)
from emojax.data.hf_folder import (
    config_of,
    open_folder,
    read_config,
    read_preprocess,
    read_weights,
    steps_of,
    weights_of,
)
from emojax.errors import InputError
from emojax.models import clip as clip_model
from emojax.models import siglip as siglip_model
from emojax.models.preprocess import Preprocess
from emojax.store import atomic_folder, save_arrays, write_json

TRAINED_ON = "emojax_trained_on"  # entry of a config.json: the only kind of images a CLIP knows
_SIGLIP_TOKENIZERS = ("SiglipTokenizer", "Siglip2Tokenizer", "GemmaTokenizer", "GemmaTokenizerFast")


def load_clip(source: str | Path, *, dtype: str = "float32") -> ClipEncoder:
    """A CLIP or SigLIP from a Hugging Face folder, or from the hub where no such folder exists.

    The folder holds `config.json`, `model.safetensors` (or shards with their index),
    `preprocessor_config.json` and the tokenizer's files.

    Args:
      source: the folder, or a hub name such as `openai/clip-vit-base-patch16`.
      dtype: what the network computes in: float32 or bfloat16.

    Raises:
      InputError: files are missing or damaged, the model is no ViT CLIP or SigLIP, or the hub
        cannot be reached.
    """
    folder = open_folder(source, "CLIP", "--clip.path")
    config = read_config(folder, "CLIP")
    kind = config.get("model_type")
    if kind == "clip":
        clip = _read_clip(folder, config, name=str(source), dtype=dtype)
        known = config.get(TRAINED_ON)
        return replace(clip, trained_on=known) if isinstance(known, str) else clip
    if kind in ("siglip", "siglip2"):
        return _read_siglip(folder, config, name=str(source), dtype=dtype)
    raise InputError(
        f"{folder / 'config.json'}: model_type is {kind!r}, not 'clip', 'siglip' or 'siglip2'"
    )


def _read_clip(folder: Path, raw: dict[str, Any], *, name: str, dtype: str) -> ClipEncoder:
    config = _clip_config(folder / "config.json", raw)
    tokenizer = _clip_tokenizer(folder)
    preprocess = _clip_preprocess(folder, config.image_size)
    with weights_of(folder):
        model = clip_model.from_hf_state_dict(read_weights(folder), config, dtype=jnp.dtype(dtype))
    return ClipEncoder(model, preprocess, tokenizer, name)


def _read_siglip(folder: Path, raw: dict[str, Any], *, name: str, dtype: str) -> ClipEncoder:
    config = _siglip_config(folder / "config.json", raw)
    tokenizer, padding = _siglip_tokenizer(folder)
    preprocess = _siglip_preprocess(folder, config, fits_grid=raw["model_type"] == "siglip2")
    with weights_of(folder):
        model = siglip_model.from_hf_state_dict(
            read_weights(folder), config, dtype=jnp.dtype(dtype)
        )
    if not 0 <= padding.token < config.vocabulary:
        raise InputError(
            f"{folder}: the tokenizer pads with {padding.token}, outside the vocabulary of "
            f"{config.vocabulary}"
        )
    return ClipEncoder(model, preprocess, tokenizer, name, padding)


# Reading what a CLIP's folder says of itself


def _clip_config(path: Path, raw: dict[str, Any]) -> clip_model.ClipConfig:
    from transformers import CLIPConfig

    with config_of(path, "a ViT CLIP"):
        return clip_model.ClipConfig.from_hf(CLIPConfig(**raw).to_dict())


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


# Reading what a SigLIP's folder says of itself


def _siglip_config(path: Path, raw: dict[str, Any]) -> siglip_model.SiglipConfig:
    from transformers import Siglip2Config, SiglipConfig

    kind = Siglip2Config if raw["model_type"] == "siglip2" else SiglipConfig
    with config_of(path, "a ViT SigLIP"):
        return siglip_model.SiglipConfig.from_hf(kind(**raw).to_dict())


def _siglip_preprocess(
    folder: Path, config: siglip_model.SiglipConfig, *, fits_grid: bool
) -> Preprocess:
    """The preprocessing; `fits_grid` for a Siglip2Model, whose processor states a grid of patches.

    A square image fills that grid; the processor resizes it to the grid's whole side.
    """
    path = folder / "preprocessor_config.json"
    side = config.image_size
    if fits_grid:
        stated, preprocess = _grid_preprocess(path, side)
        agrees = stated == ((side // config.patch_size) ** 2, config.patch_size)
    else:
        preprocess = read_preprocess(folder)
        stated = preprocess.resize
        agrees = stated == (side, side) and preprocess.crop in (None, stated)
    if not agrees:
        raise InputError(
            f"{path}: resizes to {stated}, but config.json says images of {side} in patches of "
            f"{config.patch_size}"
        )
    return preprocess


def _grid_preprocess(path: Path, side: int) -> tuple[tuple[int, int], Preprocess]:
    """Patches in the grid and pixels of a patch's side, as a Siglip2Model's processor states them.

    Also the preprocessing of square images to that grid, `side` pixels wide.
    """
    if not path.is_file():
        raise InputError(f"{path.parent}: no preprocessor_config.json in it")
    from transformers import Siglip2ImageProcessorPil

    try:
        strict.read_json(path.read_text("utf-8"))  # transformers takes what is refused there
        processor = Siglip2ImageProcessorPil.from_pretrained(path.parent, local_files_only=True)
        settings = processor.to_dict()
        square = {
            "size": {"height": side, "width": side},
            "kind": "Siglip2",
            "do_center_crop": False,
        }
        preprocess = replace(steps_of(settings | square), square=True)
        return (settings["max_num_patches"], settings["patch_size"]), preprocess
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise InputError(f"{path}: {error}") from None


def _siglip_tokenizer(folder: Path) -> tuple[HfTokenizer, Padding]:
    """The tokenizer, and how it pads: SigLIP 1 has sentencepiece's, SigLIP 2 that of Gemma."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "spiece.model")):
        raise InputError(f"{folder}: no tokenizer.json (or spiece.model) in it")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the tokenizers' C++ and Rust raise many kinds
        raise InputError(f"{folder}: its tokenizer cannot be read ({error})") from None
    kind = type(tokenizer).__name__
    if kind not in (*_SIGLIP_TOKENIZERS, "TokenizersBackend"):
        known = ", ".join(_SIGLIP_TOKENIZERS)
        raise InputError(f"{folder}: its tokenizer is a {kind}, not one of {known}")
    if tokenizer.pad_token_id is None:
        raise InputError(f"{folder}: its tokenizer has no pad_token, which SigLIP's texts need")
    padding = Padding(tokenizer.pad_token_id, left=tokenizer.padding_side == "left")
    return HfTokenizer(tokenizer), padding


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
