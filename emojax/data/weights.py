"""Weights from the disk or the hub to networks, and back: VGGNet and Deep-Emotion files, Hugging Face CLIP folders.

Nothing is ever unpickled: PyTorch files are read by torch with `weights_only=True`, and only when torch is installed.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emojax.data.seen import Seen, to_metadata
from emojax.errors import InputError
from emojax.models import clip as clip_model
from emojax.models import compact, deep_emotion, vgg
from emojax.ops import image
from emojax.store import atomic_folder, content_key, save_arrays, write_json

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TEXT_BATCH = 64
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of OpenAI's images
Classifier = vgg.VggNet | deep_emotion.DeepEmotion | compact.CompactNet
_Model = TypeVar("_Model", bound=nnx.Module)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Named arrays of a `.safetensors` file, or of a PyTorch file when torch is installed.

    A PyTorch file may hold the state dict itself or a dict with it under `params` (the published VGGNet), `state_dict`
    or `model`.

    Raises:
      InputError: the file is missing or damaged, or is a PyTorch file and torch is not installed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"no weights file {str(path)!r}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.flax import load_file

        try:
            return {name: np.asarray(array) for name, array in load_file(path).items()}
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{path}: not a readable safetensors file ({error})") from None
    return _read_torch(path)


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise InputError(f"{path} is not .safetensors; reading a PyTorch file needs torch: pip install torch") from None
    import pickle

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: torch refuses it with weights_only=True ({reason})") from None
    for key in ("params", "state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise InputError(f"{path}: no state dict (names to tensors) in it")
    return {
        name: tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy() for name, tensor in loaded.items()
    }


def _load(path: Path | str, build: Callable[[Mapping[str, np.ndarray]], _Model]) -> _Model:
    arrays = read_arrays(Path(path))
    try:
        return build(arrays)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def load_vgg(path: Path | str) -> vgg.VggNet:
    """VGGNet in eval mode from safetensors in PyTorch's names or from the published checkpoint.

    Raises:
      InputError: the file is refused (see `read_arrays`) or its contents are not a VGGNet.
    """
    return _load(path, vgg.from_torch_state_dict)


def load_deep_emotion(path: Path | str) -> deep_emotion.DeepEmotion:
    """Deep-Emotion in eval mode from safetensors in PyTorch's names or from a state dict that torch saved.

    Raises:
      InputError: the file is refused (see `read_arrays`) or its contents are not a Deep-Emotion.
    """
    return _load(path, deep_emotion.from_torch_state_dict)


def load_network(path: Path | str) -> Classifier:
    """A classifier in eval mode; which one, the file's names tell.

    Raises:
      InputError: as `load_vgg`.
    """

    def build(arrays: Mapping[str, np.ndarray]) -> Classifier:
        if "stem.weight" in arrays:
            return compact.from_torch_state_dict(arrays)
        either = deep_emotion if "fc_loc.0.weight" in arrays else vgg
        return either.from_torch_state_dict(arrays)

    return _load(path, build)


def save_vgg(model: vgg.VggNet, path: Path | str, *, seen: Iterable[Seen] | None = None) -> None:
    """Writes safetensors in PyTorch's names: `torch_model.load_state_dict(safetensors.torch.load_file(path))`.

    `seen` are the images that shaped the weights; with None the file does not say.
    """
    _save(vgg.to_torch_state_dict(model), path, seen)


def save_deep_emotion(model: deep_emotion.DeepEmotion, path: Path | str, *, seen: Iterable[Seen] | None = None) -> None:
    """Writes safetensors in PyTorch's names, as `save_vgg` does."""
    _save(deep_emotion.to_torch_state_dict(model), path, seen)


def save_network(model: Classifier, path: Path | str, *, seen: Iterable[Seen] | None = None) -> None:
    """Any classifier, as `save_vgg` does."""
    modules = {vgg.VggNet: vgg, deep_emotion.DeepEmotion: deep_emotion, compact.CompactNet: compact}
    _save(modules[type(model)].to_torch_state_dict(model), path, seen)


def _save(arrays: dict[str, np.ndarray], path: Path | str, seen: Iterable[Seen] | None) -> None:
    save_arrays(arrays, path, metadata=None if seen is None else to_metadata(seen))


@dataclass(frozen=True)
class Preprocess:
    """CLIP's image preprocessing, from `preprocessor_config.json`: short side, crop, mean and standard deviation."""

    resize: int
    crop: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: jax.Array) -> jax.Array:
        """uint8 [B, H, W, C] → float32 [B, crop, crop, 3]."""
        return image.clip_preprocess(images, resize=self.resize, crop=self.crop, mean=self.mean, std=self.std)


@dataclass(frozen=True)
class ClipEncoder:
    """A CLIP ready for use: network, image preprocessing, tokenizer.

    Attributes:
      model: the flax network.
      preprocess: uint8 images → the network's input, on the device.
      tokenizer: texts → lists of token ids, unpadded, with start and end tokens.
      name: folder or hub name, for messages and reports.
    """

    model: clip_model.Clip
    preprocess: Preprocess
    tokenizer: Callable[[Sequence[str]], list[list[int]]]
    name: str = "clip"

    @cached_property
    def key(self) -> str:
        """Content key of the weights, the settings and the preprocessing."""
        weights = {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(self.model))}
        return content_key([weights, repr(self.model.config), repr(self.preprocess)])

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids [C, L] int32, padded with zeros behind the end token, L a multiple of 8 or the context length.

        Raises:
          InputError: a text is longer than the context.
        """
        rows, context = self.tokenizer(list(texts)), self.model.config.context
        for text, row in zip(texts, rows, strict=True):
            if len(row) > context:
                raise InputError(f"{text!r} is {len(row)} tokens long, {self.name} takes {context}; shorten it")
        length = min(context, -(-max(map(len, rows)) // 8) * 8)
        ids = np.zeros((len(rows), length), np.int32)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = row
        return ids

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit embeddings [C, D] float32 of texts as they are: no template, as CLIP-Dissect does."""
        return self._embed(clip_model.Clip.text_features, self.tokenize(texts), _TEXT_BATCH)

    def embed_images(self, images: Any, *, batch: int = 512) -> np.ndarray:
        """Unit embeddings [I, D] float32 of uint8 images [I, H, W, C], a batch at a time."""
        return self._embed(lambda model, chunk: model.image_features(self.preprocess(chunk)), images, batch)

    def _embed(self, features: Callable[[clip_model.Clip, jax.Array], jax.Array], rows: Any, batch: int) -> np.ndarray:
        """Unit rows of what a tower gives, in batches of one shape; the last is filled with copies of its last row."""
        graphdef, state = nnx.split(self.model)

        @jax.jit
        def embed(state: Any, chunk: jax.Array) -> jax.Array:
            with jax.default_matmul_precision("highest"):
                return unit_rows(features(nnx.merge(graphdef, state), chunk))

        parts = []
        for start in range(0, rows.shape[0], batch):
            chunk = np.asarray(rows[start : start + batch])
            fill = [(0, batch - len(chunk))] + [(0, 0)] * (chunk.ndim - 1)
            parts.append(np.asarray(embed(state, np.pad(chunk, fill, mode="edge")))[: len(chunk)])
        return np.concatenate(parts)


def unit_rows(features: jax.Array) -> jax.Array:
    """Rows [B, D] scaled to length one, in float32."""
    features = features.astype(jnp.float32)
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def load_clip(source: str | Path, *, dtype: str = "float32") -> ClipEncoder:
    """A CLIP from a local Hugging Face folder, or from the hub when `source` is a hub name and no such folder exists.

    The folder holds `config.json`, `model.safetensors` (or shards with their index), `preprocessor_config.json` and the
    tokenizer's files. `dtype` is what it computes in: float32 or bfloat16.

    Raises:
      InputError: files are missing or damaged, the model is no ViT CLIP, or the hub cannot be reached.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = _from_hub(str(source))
    config, tokenizer = _hf_config(folder), _hf_tokenizer(folder)
    preprocess = _hf_preprocess(folder, config.image_size)
    try:
        model = clip_model.from_hf_state_dict(_hf_weights(folder), config, dtype=jnp.dtype(dtype))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{folder}: {error}") from None
    return ClipEncoder(model, preprocess, tokenizer, str(source))


def _from_hub(name: str) -> Path:
    local = f"no CLIP folder {name!r}"
    if not _HUB_NAME.fullmatch(name):
        raise InputError(f"{local}; pass --clip.path a folder with config.json and model.safetensors, or a hub name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    wanted = ["*.json", "*.safetensors", "*.txt", "pytorch_model.bin"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{local}, and the hub gave nothing ({reason}); download it elsewhere and pass --clip.path its folder"
        ) from None


def _hf_config(folder: Path) -> clip_model.ClipConfig:
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder}: no config.json in it; is this a Hugging Face CLIP folder?") from None
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: not readable JSON ({error})") from None
    if not isinstance(raw, dict) or raw.get("model_type") != "clip":
        kind = raw.get("model_type") if isinstance(raw, dict) else None
        raise InputError(f"{path}: model_type is {kind!r}, not 'clip'")
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CLIPConfig

    try:
        return clip_model.ClipConfig.from_hf(CLIPConfig(**raw).to_dict())
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError, StrictDataclassError) as error:
        raise InputError(f"{path}: not the settings of a ViT CLIP ({error})") from None


def _hf_preprocess(folder: Path, image_size: int) -> Preprocess:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise InputError(f"{folder}: no preprocessor_config.json in it")
    from transformers import CLIPImageProcessorPil

    try:
        settings = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True).to_dict()
        steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
        off = [step for step in steps if not settings.get(step)]
        if off or settings["resample"] != 3 or abs(settings["rescale_factor"] - 1 / 255) > 1e-9:
            raise ValueError("only bicubic resize, centre crop, division by 255 and normalisation are supported")
        size, crop = dict(settings["size"]), dict(settings["crop_size"])
        if "shortest_edge" not in size or not size["shortest_edge"]:
            raise ValueError(f"size is {size}, not a shortest_edge")
        made = Preprocess(
            resize=size["shortest_edge"],
            crop=(crop["height"], crop["width"]),
            mean=tuple(settings["image_mean"]),
            std=tuple(settings["image_std"]),
        )
        if not all(len(each) == 3 and np.isfinite(each).all() for each in (made.mean, made.std)) or min(made.std) <= 0:
            raise ValueError(f"image_mean {made.mean} and image_std {made.std} are not three numbers each, std above zero")
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise InputError(f"{path}: {error}") from None
    if made.crop != (image_size, image_size) or made.resize < image_size:
        raise InputError(f"{path}: crops {made.crop} from {made.resize}, but config.json says images of {image_size}")
    return made


def _hf_tokenizer(folder: Path) -> Callable[[Sequence[str]], list[list[int]]]:
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        raise InputError(f"{folder}: no tokenizer.json (or vocab.json and merges.txt) in it")
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the Rust tokenizer raises bare Exception for a damaged file
        raise InputError(f"{folder}: its tokenizer cannot be read ({error})") from None
    return lambda texts: tokenizer(list(texts), padding=False, truncation=False)["input_ids"]


def _hf_weights(folder: Path) -> dict[str, np.ndarray]:
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return read_arrays(folder / "model.safetensors")
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
            if not all(isinstance(shard, str) for shard in shards):
                raise ValueError("a shard's name is no text")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
            raise InputError(f"{index}: not a readable index of shards ({error})") from None
        arrays: dict[str, np.ndarray] = {}
        for shard in shards:
            if Path(shard).name != shard or shard == "..":
                raise InputError(f"{index}: shard {shard!r} lies outside the folder")
            arrays |= read_arrays(folder / shard)
        return arrays
    if (folder / "pytorch_model.bin").is_file():
        return read_arrays(folder / "pytorch_model.bin")
    raise InputError(f"{folder}: no model.safetensors in it, nor shards with model.safetensors.index.json")


def save_clip(folder: Path, model: clip_model.Clip, hf_config: Any, tokenizer: Any) -> None:
    """Writes a Hugging Face CLIP folder: settings, weights, tokenizer and CLIP's usual preprocessing.

    `hf_config` is a transformers CLIPConfig, `tokenizer` a CLIPTokenizer.
    """
    size = model.config.image_size
    with atomic_folder(Path(folder)) as building:
        hf_config.save_pretrained(building)
        tokenizer.save_pretrained(building)
        save_arrays(clip_model.to_hf_state_dict(model), building / "model.safetensors", metadata={"format": "pt"})
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
