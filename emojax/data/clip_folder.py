"""Hugging Face folders of CLIPs, on the disk or from the hub, to `ClipEncoder` and back.

`config.json` names the kind of model under `model_type`; `load_clip` is where a kind that is not
`clip` gets its reader: one function from a folder to an encoder, beside `_read_clip`. Weights are
read by `weights.read_arrays`, so nothing is ever unpickled, and no file names a class that is
imported.
"""

import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from emojax.data.clip_encoder import CLIP_MEAN, CLIP_STD, ClipEncoder, HfTokenizer, Preprocess
from emojax.data.weights import read_arrays
from emojax.errors import InputError
from emojax.models import clip as clip_model
from emojax.store import atomic_folder, save_arrays, write_json

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# All that is asked of the hub: no code, no archive. torch reads `pytorch_model.bin` safely.
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "pytorch_model.bin"]


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
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = _from_hub(str(source))
    config = _read_config(folder)
    kind = config.get("model_type")
    if kind != "clip":
        raise InputError(f"{folder / 'config.json'}: model_type is {kind!r}, not 'clip'")
    return _read_clip(folder, config, name=str(source), dtype=dtype)


def _read_clip(folder: Path, raw: dict[str, Any], *, name: str, dtype: str) -> ClipEncoder:
    config = _clip_config(folder / "config.json", raw)
    tokenizer = _clip_tokenizer(folder)
    preprocess = _clip_preprocess(folder, config.image_size)
    try:
        arrays = _read_weights(folder)
        model = clip_model.from_hf_state_dict(arrays, config, dtype=jnp.dtype(dtype))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{folder}: {error}") from None
    return ClipEncoder(model, preprocess, tokenizer, name)


# Reading what every kind of folder holds


def _from_hub(name: str) -> Path:
    missing = f"no CLIP folder {name!r}"
    if not _HUB_NAME.fullmatch(name):
        raise InputError(
            f"{missing}; pass --clip.path a folder with config.json and model.safetensors, "
            "or a hub name"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, OSError, ValueError) as error:
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise InputError(
            f"{missing}, and the hub gave nothing ({reason}); "
            "download it elsewhere and pass --clip.path its folder"
        ) from None


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{folder}: no config.json in it; is this a Hugging Face CLIP folder?"
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: not readable JSON ({error})") from None
    return config if isinstance(config, dict) else {}


def _read_weights(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of one safetensors file, of shards named by an index, or of a PyTorch file."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return read_arrays(folder / "model.safetensors")
    if index.is_file():
        arrays: dict[str, np.ndarray] = {}
        for shard in _shards(index):
            arrays |= read_arrays(folder / shard)
        return arrays
    if (folder / "pytorch_model.bin").is_file():
        return read_arrays(folder / "pytorch_model.bin")
    raise InputError(
        f"{folder}: no model.safetensors in it, nor shards with model.safetensors.index.json"
    )


def _shards(index: Path) -> list[str]:
    """File names of the shards, all in the index's own folder."""
    try:
        shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        if not all(isinstance(shard, str) for shard in shards):
            raise ValueError("a shard's name is no text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise InputError(f"{index}: not a readable index of shards ({error})") from None
    for shard in shards:
        if Path(shard).name != shard or shard == "..":
            raise InputError(f"{index}: shard {shard!r} lies outside the folder")
    return shards


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
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise InputError(f"{folder}: no preprocessor_config.json in it")
    from transformers import CLIPImageProcessorPil

    try:
        processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        preprocess = _supported_steps(processor.to_dict())
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise InputError(f"{path}: {error}") from None
    if preprocess.crop != (image_size, image_size) or preprocess.resize < image_size:
        raise InputError(
            f"{path}: crops {preprocess.crop} from {preprocess.resize}, "
            f"but config.json says images of {image_size}"
        )
    return preprocess


def _supported_steps(settings: dict[str, Any]) -> Preprocess:
    """The preprocessing that settings of transformers describe.

    Raises:
      ValueError: they ask for another step, or for one with other numbers.
    """
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    all_on = all(settings.get(step) for step in steps)
    bicubic = all_on and settings["resample"] == 3
    if not bicubic or abs(settings["rescale_factor"] - 1 / 255) > 1e-9:
        raise ValueError(
            "only bicubic resize, centre crop, division by 255 and normalisation are supported"
        )
    size = dict(settings["size"])
    crop = dict(settings["crop_size"])
    if "shortest_edge" not in size or not size["shortest_edge"]:
        raise ValueError(f"size is {size}, not a shortest_edge")
    mean = tuple(settings["image_mean"])
    std = tuple(settings["image_std"])
    sound = all(len(values) == 3 and np.isfinite(values).all() for values in (mean, std))
    if not sound or min(std) <= 0:
        raise ValueError(
            f"image_mean {mean} and image_std {std} are not three numbers each, std above zero"
        )
    return Preprocess(
        resize=size["shortest_edge"],
        crop=(crop["height"], crop["width"]),
        mean=mean,
        std=std,
    )


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
