"""timm's networks from folders and hub names: plain ViTs, ResNets and ConvNeXts.

timm's `config.json` names a function of timm (`architecture`) and how images are prepared
(`pretrained_cfg`). Sizes are read off the arrays. Variants of these networks have parameters under
other names, or a name that is not in `SUPPORTED`, so they are refused.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emojax.data.hf_folder import steps_of
from emojax.errors import InputError
from emojax.models import convnext, resnet, vit
from emojax.models.preprocess import Preprocess
from emojax.models.tapped import TappedNetwork

SUPPORTED = (
    "vit_base_patch16_224 and the like, resnet18 … resnet152, convnext_tiny … convnext_xlarge"
)
_VIT = re.compile(r"(?:vit|deit)_(tiny|small|base|large|huge)_patch\d+_\d+")
_RESNET = re.compile(r"resnet(18|26|34|50|101|152)")
_CONVNEXT = re.compile(r"convnext_(tiny|small|base|large|xlarge)")
_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}
# Arguments of timm's functions that are sizes, which the arrays tell, or of training.
_KNOWN = {
    *("img_size", "in_chans", "num_classes", "global_pool", "drop_rate", "drop_path_rate"),
    *("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias"),
    *("depths", "dims", "layers"),
}
_KERNELS = {"lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is timm's."""
    return isinstance(config.get("architecture"), str) and "architectures" not in config


def is_supported(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is timm's, of a network that can be read."""
    kinds = (_VIT, _RESNET, _CONVNEXT)
    return is_timm(config) and any(kind.fullmatch(config["architecture"]) for kind in kinds)


def build(
    folder: Path, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> TappedNetwork:
    """The network in eval mode, its outputs not named.

    Raises:
      InputError: settings that are not supported, or arrays of another network.
    """
    try:
        _check(config)
        preprocess = preprocess_of(config["pretrained_cfg"])
        name = config["architecture"]
        if _RESNET.fullmatch(name):
            return resnet.from_torchvision_state_dict(arrays, preprocess)
        if _CONVNEXT.fullmatch(name):
            return convnext.from_timm_state_dict(arrays, preprocess)
        (size,) = _VIT.fullmatch(name).groups()  # pyright: ignore[reportOptionalMemberAccess]
        heads = (config.get("model_args") or {}).get("num_heads", _HEADS[size])
        network = vit.from_timm_state_dict(arrays, preprocess, heads=heads)
        side = network.config.image_size
        if preprocess.crop != (side, side):
            raise ValueError(f"input_size is {preprocess.crop}, the positions are of {side}×{side}")
        return network
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{folder}: {error}") from None


def class_names(config: Mapping[str, Any]) -> Mapping[Any, Any]:
    """Class names as `id2label` has them; empty where timm names none."""
    names = config.get("label_names")
    return {str(i): name for i, name in enumerate(names)} if isinstance(names, list) else {}


def _check(config: Mapping[str, Any]) -> None:
    """Refuses arguments by which timm would build another network under the same names.

    Raises:
      ValueError: there are such.
    """
    arguments = config.get("model_args") or {}
    others = set(arguments) - _KNOWN
    if others:
        raise ValueError(f"model_args has {', '.join(sorted(others))}, which is not supported")
    pooling = arguments.get("global_pool", config.get("global_pool"))
    usual = "token" if _VIT.fullmatch(config["architecture"]) else "avg"
    if pooling not in (None, usual):
        raise ValueError(f"global_pool is {pooling!r}, not {usual!r}")


def preprocess_of(config: Mapping[str, Any]) -> Preprocess:
    """What a `pretrained_cfg` does to images: timm's evaluation.

    Raises:
      ValueError: it asks for another step, or for one with other numbers.
      KeyError: a setting is missing.
    """
    channels, height, width = config["input_size"]
    share = config.get("crop_pct") or 0.875
    mode = config.get("crop_mode") or "center"
    kernel = config["interpolation"]
    if channels != 3 or height != width:
        raise ValueError(f"input_size is {config['input_size']}, not three channels of a square")
    if type(share) not in (int, float) or not 0 < share <= 1:
        raise ValueError(f"crop_pct {share!r} is not a share of 1")
    if mode not in ("center", "squash") or kernel not in _KERNELS:
        raise ValueError(f"crop_mode {mode!r} by {kernel!r} is not supported")
    crop = {"height": height, "width": width}
    side = math.floor(height / share)
    size = {"shortest_edge": side} if mode == "center" else {"height": side, "width": side}
    steps = {
        **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), True),
        "kind": "timm",
        "resample": _KERNELS[kernel],
        "size": size,
        "crop_size": crop,
        "rescale_factor": 1 / 255,
        "image_mean": config["mean"],
        "image_std": config["std"],
    }
    return steps_of(steps, half_even=True)
