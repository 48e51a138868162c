"""What Hugging Face folders have in common, on the disk or from the hub: config, weights, images.

`clip_folder` and `network_folder` read encoders and networks with it. Weights are read by
`weights.read_arrays`, so nothing is ever unpickled, and no file names a class that is imported.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from emojax import strict
from emojax.data.decode import MOST_TEXT, check_regular
from emojax.data.weights import read_arrays
from emojax.errors import InputError
from emojax.models.preprocess import Preprocess
from emojax.ops.image import Kernel
from emojax.section import user_path

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# All that is asked of the hub: no code, no archive. torch reads `pytorch_model.bin` safely.
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "pytorch_model.bin"]
# What is read of a folder, by us or by transformers, which would wait for a pipe for ever.
_TEXTS = (".json", ".txt", ".model", ".jinja")
_WEIGHTS = (".safetensors", ".bin")
_TEMPLATES = "additional_chat_templates"  # where transformers looks below the folder
_KERNELS: dict[int, Kernel] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
# The image processors whose steps `Preprocess` knows.
PROCESSORS = ("ViT", "DeiT", "Bit", "ConvNext", "CLIP", "Siglip")
_STEPS = ("resize", "center_crop", "rescale", "normalize")


@contextmanager
def config_of(path: Path, what: str) -> Iterator[None]:
    """Around the reading of a config by transformers, whose values may be anything.

    Raises:
      InputError: transformers, or the network, does not take them.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        ZeroDivisionError,
        StrictDataclassError,
    ) as error:
        raise InputError(f"{path}: not the settings of {what} ({error})") from None


@contextmanager
def weights_of(folder: Path) -> Iterator[None]:
    """Around the reading of weights, which may be of another network.

    Raises:
      InputError: names, shapes or values do not fit.
    """
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{folder}: {error}") from None


def open_folder(source: str | Path, what: str, flag: str) -> Path:
    """The folder itself, or its download where no such folder exists.

    Nothing in it is opened here; after it, every file of the kinds that are read can be opened.

    Args:
      source: a folder, or a hub name such as `openai/clip-vit-base-patch16`.
      what: what it holds, for messages.
      flag: the setting that names it, for messages.

    Raises:
      InputError: there is no such folder, and the hub cannot be reached or has no such model; or
        what would be read is no regular file, or a text of more bytes than any has.
    """
    folder = user_path(source)
    if not folder.is_dir():
        folder = _from_hub(str(source), what, flag)
    try:
        files = sorted([*folder.iterdir(), *(folder / _TEMPLATES).glob("*")])
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}") from None
    for file in files:
        is_text = file.suffix in _TEXTS
        if is_text or file.suffix in _WEIGHTS:
            check_regular(file, limit=MOST_TEXT if is_text else None, missing_ok=True)
    return folder


def _from_hub(name: str, what: str, flag: str) -> Path:
    missing = f"no {what} folder {name!r}"
    if not _HUB_NAME.fullmatch(name):
        raise InputError(
            f"{missing}; pass {flag} a folder with config.json and model.safetensors, or a hub name"
        )
    if Path(name).parent.is_dir():  # a path with a typing error must not reach the network
        raise InputError(f"{missing} in {Path(name).parent}; pass {flag} one that is there")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, OSError, ValueError) as error:
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise InputError(
            f"{missing}, and the hub gave nothing ({reason}); "
            f"download it elsewhere and pass {flag} its folder"
        ) from None


def read_config(folder: Path, what: str) -> dict[str, Any]:
    """The folder's `config.json`; empty where that holds no names.

    Raises:
      InputError: it is missing or no JSON.
    """
    path = folder / "config.json"
    try:
        config = strict.read_json(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{folder}: no config.json in it; is this a Hugging Face {what} folder?"
        ) from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not readable JSON ({error})") from None
    return config if isinstance(config, dict) else {}


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of one safetensors file, of shards named by an index, or of a PyTorch file.

    Raises:
      InputError: there is none of these, or it is damaged.
    """
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
        shards = sorted(set(strict.read_json(index.read_text("utf-8"))["weight_map"].values()))
        if not all(isinstance(shard, str) for shard in shards):
            raise ValueError("a shard's name is no text")
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InputError(f"{index}: not a readable index of shards ({error})") from None
    for shard in shards:
        if Path(shard).name != shard or shard == "..":
            raise InputError(f"{index}: shard {shard!r} lies outside the folder")
    return shards


def read_preprocess(folder: Path) -> Preprocess:
    """What the folder's `preprocessor_config.json` does to images.

    Raises:
      InputError: it is missing or damaged, or asks for a step that is not supported.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise InputError(f"{folder}: no preprocessor_config.json in it")
    try:
        raw = strict.read_json(path.read_text("utf-8"))
        return steps_of(_with_defaults(raw))
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise InputError(f"{path}: {error}") from None


def _with_defaults(raw: dict[str, Any]) -> dict[str, Any]:
    """The settings, with what transformers takes where the file says nothing.

    Raises:
      ValueError: the file names no processor, or one that is not supported.
    """
    import transformers

    kind = raw.get("image_processor_type") or raw.get("feature_extractor_type")
    if not isinstance(kind, str):
        raise ValueError("it names no image_processor_type")
    name = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", kind)
    if name not in PROCESSORS:
        raise ValueError(f"{kind} is not supported; supported are those of {', '.join(PROCESSORS)}")
    processor = getattr(transformers, f"{name}ImageProcessorPil")
    return processor(**raw).to_dict() | {"kind": name}


def steps_of(settings: dict[str, Any], *, half_even: bool = False) -> Preprocess:
    """The preprocessing that complete settings of transformers describe; margins as `Preprocess`.

    Raises:
      ValueError: they ask for another step, or for one with other numbers.
    """
    does = {step: _is_asked(settings, f"do_{step}") for step in _STEPS}
    if _is_asked(settings, "do_pad"):
        raise ValueError("padding is not supported; only resize, crop, rescale and normalize are")
    kernel: Kernel = "bicubic"
    resize: int | tuple[int, int] | None = None
    crop = _pair(settings["crop_size"], "crop_size") if does["center_crop"] else None
    if does["resize"]:
        resample = settings["resample"]
        if isinstance(resample, bool) or resample not in _KERNELS:
            names = ", ".join(_KERNELS.values())
            raise ValueError(f"resample {resample} is not supported, only {names}")
        kernel = _KERNELS[resample]
        size = {name: value for name, value in dict(settings["size"]).items() if value}
        if set(size) == {"shortest_edge"}:
            resize = _whole(size["shortest_edge"], "shortest_edge")
        else:
            resize = _pair(size, "size")
        if settings["kind"] == "ConvNext":
            resize, crop = _convnext(size, settings["crop_pct"], crop)
    scale = 1.0
    if does["rescale"]:
        (scale,) = _numbers(settings, "rescale_factor", 1e-6, 1e3)
    scale = 1 / 255 if abs(scale - 1 / 255) < 1e-9 else scale
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if does["normalize"]:
        mean = _numbers(settings, "image_mean", -1e4, 1e4, count=3)
        std = _numbers(settings, "image_std", 1e-4, 1e4, count=3)
    return Preprocess(resize, crop, mean, std, kernel, scale, half_even=half_even)


def settings_of(steps: Preprocess) -> dict[str, Any]:
    """What `preprocessor_config.json` says of a resize to one size without a crop, for a ViT.

    Raises:
      ValueError: other steps.
    """
    if not isinstance(steps.resize, tuple) or steps.crop is not None:
        raise ValueError("only a resize to one size, without a crop, is written")
    height, width = steps.resize
    kernels = {kernel: number for number, kernel in _KERNELS.items()}
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": kernels[steps.kernel],
        "do_rescale": True,
        "rescale_factor": steps.scale,
        "do_normalize": True,
        "image_mean": list(steps.mean),
        "image_std": list(steps.std),
    }


def _is_asked(settings: dict[str, Any], name: str) -> bool:
    """Whether a step is asked for; a text such as "false" would count as true."""
    value = settings.get(name)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, not true or false")
    return bool(value)


def _numbers(
    settings: dict[str, Any], name: str, least: float, most: float, count: int | None = None
) -> tuple[float, ...]:
    """One number, or a list of `count`, that pixels can be computed with in float32."""
    value = settings[name]
    values = [value] if count is None else list(value) if isinstance(value, list | tuple) else []
    sound = all(type(each) in (int, float) and least <= each <= most for each in values)
    if not sound or len(values) != (count or 1):
        what = f"{count} numbers" if count else "a number"
        raise ValueError(f"{name} is {value!r}, not {what} from {least:g} to {most:g}")
    return tuple(map(float, values))


def _convnext(
    size: dict[str, Any], crop_share: object, crop: tuple[int, int] | None
) -> tuple[int | tuple[int, int], tuple[int, int]]:
    """Resize and crop of ConvNeXt: below 384 pixels a share of a larger square, else all of it."""
    if set(size) != {"shortest_edge"} or crop is not None:
        raise ValueError(f"size is {size}, not a shortest_edge without a crop_size")
    side = _whole(size["shortest_edge"], "shortest_edge")
    if side >= 384:
        return (side, side), (side, side)
    if (
        isinstance(crop_share, bool)
        or not isinstance(crop_share, int | float)
        or not 0 < crop_share <= 1
    ):
        raise ValueError(f"crop_pct {crop_share!r} is not a share of 1")
    return int(side / crop_share), (side, side)


def _pair(size: Any, name: str) -> tuple[int, int]:
    """Height and width."""
    size = {side: value for side, value in dict(size).items() if value}
    if set(size) != {"height", "width"}:
        raise ValueError(f"{name} is {size}, not a height and a width (or a shortest_edge)")
    return _whole(size["height"], name), _whole(size["width"], name)


def _whole(value: object, name: str) -> int:
    """A number of pixels that an image can have."""
    if type(value) is not int or not 0 < value <= 4096:
        raise ValueError(f"{name} is {value!r}, not a number of pixels from 1 to 4096")
    return value
