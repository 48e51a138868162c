"""Hugging Face folders of CLIPs and SigLIPs, from disk or hub, to `ClipEncoder` and back.

`config.json` names the kind of model under `model_type`: `clip`, `siglip` (SigLIP 1, and SigLIP 2
of a fixed resolution) or `siglip2` (SigLIP 2 that keeps the aspect ratio). Weights are read by
`weights.read_arrays`, so nothing is ever unpickled; of the classes that a folder may name for its
tokenizer, only known ones of transformers are used, and no code of a folder is run.
"""

import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from emojax.data.clip_encoder import (
    CLIP_MEAN,
    CLIP_STD,
    ClipEncoder,
    HfTokenizer,
    Padding,
    Preprocess,
    SiglipPreprocess,
)
from emojax.data.weights import read_arrays
from emojax.errors import InputError
from emojax.models import clip as clip_model
from emojax.models import siglip as siglip_model
from emojax.ops.image import Resampling
from emojax.store import atomic_folder, save_arrays, write_json

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# All that is asked of the hub: no code, no archive. torch reads `pytorch_model.bin` safely.
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "spiece.model", "pytorch_model.bin"]
_SIGLIP_TOKENIZERS = ("SiglipTokenizer", "Siglip2Tokenizer", "GemmaTokenizer", "GemmaTokenizerFast")
_RESAMPLING: dict[int, Resampling] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


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
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = _from_hub(str(source))
    config = _read_config(folder)
    kind = config.get("model_type")
    if kind == "clip":
        return _read_clip(folder, config, name=str(source), dtype=dtype)
    if kind in ("siglip", "siglip2"):
        return _read_siglip(folder, config, name=str(source), dtype=dtype)
    raise InputError(
        f"{folder / 'config.json'}: model_type is {kind!r}, not 'clip', 'siglip' or 'siglip2'"
    )


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


def _read_siglip(folder: Path, raw: dict[str, Any], *, name: str, dtype: str) -> ClipEncoder:
    config = _siglip_config(folder / "config.json", raw)
    tokenizer, padding = _siglip_tokenizer(folder)
    preprocess = _siglip_preprocess(folder, config, fits_grid=raw["model_type"] == "siglip2")
    try:
        arrays = _read_weights(folder)
        model = siglip_model.from_hf_state_dict(arrays, config, dtype=jnp.dtype(dtype))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{folder}: {error}") from None
    if not 0 <= padding.token < config.vocabulary:
        raise InputError(
            f"{folder}: the tokenizer pads with {padding.token}, outside the vocabulary of "
            f"{config.vocabulary}"
        )
    return ClipEncoder(model, preprocess, tokenizer, name, padding)


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
    mean, std = _mean_and_std(settings)
    return Preprocess(
        resize=size["shortest_edge"],
        crop=(crop["height"], crop["width"]),
        mean=mean,
        std=std,
    )


def _mean_and_std(settings: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each channel.

    Raises:
      ValueError: they are not three numbers each, or none to divide by.
    """
    mean = tuple(settings["image_mean"])
    std = tuple(settings["image_std"])
    sound = all(len(values) == 3 and np.isfinite(values).all() for values in (mean, std))
    if not sound or min(std) <= 0:
        raise ValueError(
            f"image_mean {mean} and image_std {std} are not three numbers each, std above zero"
        )
    return mean, std


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
    from huggingface_hub.errors import StrictDataclassError
    from transformers import Siglip2Config, SiglipConfig

    kind = Siglip2Config if raw["model_type"] == "siglip2" else SiglipConfig
    try:
        return siglip_model.SiglipConfig.from_hf(kind(**raw).to_dict())
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise InputError(f"{path}: not the settings of a ViT SigLIP ({error})") from None


def _siglip_preprocess(
    folder: Path, config: siglip_model.SiglipConfig, *, fits_grid: bool
) -> SiglipPreprocess:
    """The preprocessing; `fits_grid` for a Siglip2Model, whose processor states a grid of patches.

    A square image fills that grid; the processor resizes it to the grid's whole side.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise InputError(f"{folder}: no preprocessor_config.json in it")
    from transformers import Siglip2ImageProcessorPil, SiglipImageProcessorPil

    kind = Siglip2ImageProcessorPil if fits_grid else SiglipImageProcessorPil
    side = config.image_size
    try:
        settings = kind.from_pretrained(folder, local_files_only=True).to_dict()
        if fits_grid:
            stated = (settings["max_num_patches"], settings["patch_size"])
            agrees = stated == ((side // config.patch_size) ** 2, config.patch_size)
            size = (side, side)
        else:
            size = (settings["size"]["height"], settings["size"]["width"])
            stated, agrees = size, size == (side, side)
        preprocess = _siglip_steps(settings, size, square=fits_grid)
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise InputError(f"{path}: {error}") from None
    if not agrees:
        raise InputError(
            f"{path}: resizes to {stated}, but config.json says images of {side} in patches of "
            f"{config.patch_size}"
        )
    return preprocess


def _siglip_steps(
    settings: dict[str, Any], size: tuple[int, int], *, square: bool
) -> SiglipPreprocess:
    """The preprocessing that settings of transformers describe.

    Raises:
      ValueError: they ask for another step, or for one with other numbers.
    """
    all_on = all(settings.get(step) for step in ("do_resize", "do_rescale", "do_normalize"))
    kernel = _RESAMPLING.get(settings["resample"])
    extra = any(settings.get(step) for step in ("do_center_crop", "do_pad"))
    if not all_on or extra or kernel is None or abs(settings["rescale_factor"] - 1 / 255) > 1e-9:
        raise ValueError(
            "only bilinear or bicubic resize, division by 255 and normalisation are supported"
        )
    mean, std = _mean_and_std(settings)
    return SiglipPreprocess(size, kernel, mean, std, square)


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
