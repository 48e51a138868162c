"""Networks under study from Hugging Face folders and hub names, and edited ones back to folders.

`ARCHITECTURES` is where a new kind of network is added: its module in `models` has a config made
by `from_hf`, and `from_hf_state_dict`.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emojax.data import classes as class_names
from emojax.data import timm_folder
from emojax.data.hf_folder import (
    config_of,
    open_folder,
    read_config,
    read_preprocess,
    read_weights,
    settings_of,
)
from emojax.data.model_card import card
from emojax.data.named_weights import weights_file
from emojax.data.provenance import Use, to_metadata
from emojax.data.weights import load_network as load_file
from emojax.data.weights import save_network as save_file
from emojax.data.weights import with_classes
from emojax.errors import InputError
from emojax.models import convnext, resnet, vision_tower, vit
from emojax.models.classifier import Classifier
from emojax.models.preprocess import Preprocess
from emojax.models.tapped import TappedNetwork
from emojax.store import atomic_folder, save_arrays, write_json, write_text

Arrays = Mapping[str, np.ndarray]
_FLAG = "--target.path"


class _Architecture(NamedTuple):
    """How a folder of one architecture is read.

    Attributes:
      config: name of transformers' class that knows the defaults of `config.json`.
      build: (complete config, preprocessing, arrays) → the network in eval mode.
      fixed_size: whether images must have the size that the config states.
    """

    config: str
    build: Callable[[dict[str, Any], Preprocess, Arrays], TappedNetwork]
    fixed_size: bool = True


def _vit(config: dict[str, Any], preprocess: Preprocess, arrays: Arrays) -> TappedNetwork:
    return vit.from_hf_state_dict(arrays, vit.VitConfig.from_hf(config, preprocess=preprocess))


def _deit_teacher(config: dict[str, Any], preprocess: Preprocess, arrays: Arrays) -> TappedNetwork:
    settings = vit.VitConfig.from_hf(config, preprocess=preprocess, teacher=True)
    return vit.from_hf_state_dict(arrays, settings)


def _resnet(config: dict[str, Any], preprocess: Preprocess, arrays: Arrays) -> TappedNetwork:
    settings = resnet.ResNetConfig.from_hf(config, preprocess=preprocess)
    return resnet.from_hf_state_dict(arrays, settings)


def _convnext(config: dict[str, Any], preprocess: Preprocess, arrays: Arrays) -> TappedNetwork:
    settings = convnext.ConvNextConfig.from_hf(config, preprocess=preprocess)
    return convnext.from_hf_state_dict(arrays, settings)


def _tower(config: dict[str, Any], preprocess: Preprocess, arrays: Arrays) -> TappedNetwork:
    settings = vision_tower.VisionTowerConfig.from_hf(
        config, preprocess=preprocess, projected="visual_projection.weight" in arrays
    )
    return vision_tower.from_hf_state_dict(arrays, settings)


ARCHITECTURES = {
    "ViTForImageClassification": _Architecture("ViTConfig", _vit),
    "DeiTForImageClassification": _Architecture("DeiTConfig", _vit),
    "DeiTForImageClassificationWithTeacher": _Architecture("DeiTConfig", _deit_teacher),
    "Dinov2ForImageClassification": _Architecture("Dinov2Config", _vit, fixed_size=False),
    "ResNetForImageClassification": _Architecture("ResNetConfig", _resnet, fixed_size=False),
    "ConvNextForImageClassification": _Architecture("ConvNextConfig", _convnext, fixed_size=False),
    "CLIPVisionModel": _Architecture("CLIPVisionConfig", _tower),
    "CLIPVisionModelWithProjection": _Architecture("CLIPVisionConfig", _tower),
    "SiglipVisionModel": _Architecture("SiglipVisionConfig", _tower),
}


def load_network(source: str | Path) -> Classifier:
    """A network in eval mode: `logits, taps = network(images)` on preprocessed images [B, H, W, 3].

    `network.preprocess` makes those of uint8 images on the device, as the folder's
    `preprocessor_config.json` says; `network.config` has the classes, the layers and their units.

    Args:
      source: a Hugging Face folder or hub name of one of `ARCHITECTURES`, or one of timm's
        (`timm_folder`); a weights file: a VGGNet, a Deep-Emotion, a CompactNet, or a torchvision
        ResNet or VGG; or `fer2013-compact`, which ships with emojax.

    Raises:
      InputError: the folder or file is missing, damaged, or of another kind; the message names what
        is supported.
    """
    path = weights_file(Path(source))
    if path.is_file() or path.suffix == ".safetensors":
        return load_file(path)
    folder = open_folder(source, "network", _FLAG)
    raw = read_config(folder, "network")
    _check_supported(folder, raw)
    if timm_folder.is_timm(raw):
        network = timm_folder.build(folder, raw, read_weights(folder))
        named = {"id2label": timm_folder.class_names(raw)}
        return with_classes(network, _class_names(folder, named, network.config.classes))
    architecture = ARCHITECTURES[raw["architectures"][0]]
    config = _complete(folder, raw, architecture)
    preprocess = read_preprocess(folder)
    if architecture.fixed_size:
        _check_size(folder, config, preprocess)
    arrays = read_weights(folder)
    try:
        network = architecture.build(config, preprocess, arrays)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder}: {error}") from None
    return with_classes(network, _class_names(folder, config, network.config.classes))


def save_network(
    network: Classifier,
    path: str | Path,
    *,
    like: str | Path | None = None,
    uses: Iterable[Use] | None = None,
    edit: str = "",
) -> None:
    """Writes a network as a weights file, or as a Hugging Face folder that transformers loads.

    The folder has a model card, README.md, and can be pushed to the hub as it is.

    Args:
      network: one that `load_network` read, or an edit of it.
      path: the file to write; with `like`, the folder, which must not hold anything.
      like: the folder or hub name that it was read from, for all files but the weights. Arrays
        there that the network does not read are kept. None writes a file.
      uses: what the network was trained and chosen on; the weights file names it, and the card.
      edit: what was done to the network, in words, for the card.

    Raises:
      InputError: `like` is no folder of this kind of network.
      ValueError: the network has gains that no parameters carry.
    """
    if like is None:
        return save_file(network, path, uses=uses)
    source = open_folder(like, "network", _FLAG)
    config = read_config(source, "network")
    _check_supported(source, config)
    old = read_weights(source)
    if not isinstance(network, TappedNetwork):
        raise InputError(f"{source} is not the folder of a {type(network).__name__}")
    new = network.state_dict()
    if not any(name.startswith("vision_model.") for name in old):
        new = {name.removeprefix("vision_model."): array for name, array in new.items()}
    unknown = set(new) - set(old)
    if unknown or any(new[name].shape != old[name].shape for name in new):
        raise InputError(f"{source} is not the folder of this network")
    with atomic_folder(Path(path)) as building:
        for file in sorted(source.glob("*.json")):
            if not file.name.endswith(".index.json"):
                shutil.copy(file, building / file.name)
        arrays = {name: np.asarray(new.get(name, old[name]), order="C") for name in old}
        metadata = {"format": "pt"} | ({} if uses is None else to_metadata(uses))
        save_arrays(arrays, building / "model.safetensors", metadata=metadata)
        shares = {name: float((arrays[name] != old[name]).mean()) for name in old}
        changed = {name: share for name, share in shares.items() if share}
        architecture, library = str(config.get("architecture")), "timm"
        if not timm_folder.is_timm(config):
            architecture, library = config["architectures"][0], "transformers"
        text = card(str(like), source, architecture, library, changed, uses, edit)
        write_text(building / "README.md", text)


def save_new(network: vit.Vit, path: str | Path, *, uses: Iterable[Use] | None = None) -> None:
    """Writes a network that was not read from a folder as one, which transformers loads too.

    Args:
      network: a ViT whose classes are named.
      path: the folder, which must not hold anything.
      uses: what the network was trained and chosen on.

    Raises:
      ValueError: another kind of network, or its classes are not named.
    """
    config = network.config.to_hf()
    metadata = {"format": "pt"} | ({} if uses is None else to_metadata(uses))
    with atomic_folder(Path(path)) as building:
        write_json(building / "config.json", config)
        write_json(building / "preprocessor_config.json", settings_of(network.config.preprocess))
        save_arrays(network.state_dict(), building / "model.safetensors", metadata=metadata)


def _check_supported(folder: Path, raw: Mapping[str, Any]) -> None:
    """Refuses a folder whose network nobody here can build, naming what else can be done.

    Raises:
      InputError: transformers' class or timm's function is not among those supported.
    """
    names = raw.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if timm_folder.is_supported(raw) or (isinstance(name, str) and name in ARCHITECTURES):
        return
    given = f"architectures is {names!r}"
    if timm_folder.is_timm(raw):
        given = f"architecture is {raw['architecture']!r}"
    raise InputError(
        f"{folder / 'config.json'}: {given}; supported are {', '.join(ARCHITECTURES)}, and of "
        f"timm {timm_folder.SUPPORTED}; for others there are --target.factory and emojax.collect "
        "(docs/networks.md)"
    )


def _complete(folder: Path, raw: dict[str, Any], architecture: _Architecture) -> dict[str, Any]:
    """The config with transformers' defaults where the file says nothing."""
    import transformers

    with config_of(folder / "config.json", "this network"):
        return getattr(transformers, architecture.config)(**raw).to_dict()


def _check_size(folder: Path, config: Mapping[str, Any], preprocess: Preprocess) -> None:
    """The network's positions are those of one size of images."""
    side = config["image_size"]
    size = preprocess.crop or preprocess.resize
    if size != (side, side):
        raise InputError(
            f"{folder / 'preprocessor_config.json'}: gives images of {size}, but config.json says "
            f"{side}×{side}"
        )


def _class_names(folder: Path, config: Mapping[str, Any], classes: int) -> tuple[str, ...] | None:
    """Names of the outputs, from `id2label`; None where it has only transformers' placeholders.

    ImageNet has two classes called "crane": a name that comes again gets its number.
    """
    labels = config.get("id2label") if classes else None
    if not labels:
        return None
    try:
        names = {int(number): name for number, name in labels.items()}
        ordered = [names[number] for number in range(classes)]
        if not all(map(class_names.is_name, ordered)):
            raise ValueError("a name is no text")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise InputError(
            f"{folder / 'config.json'}: id2label does not name the outputs 0…{classes - 1}"
        ) from None
    if all(name == f"LABEL_{number}" for number, name in enumerate(ordered)):
        return None
    meanings: set[str] = set()
    unique = []
    for number, name in enumerate(ordered):
        same = class_names.meaning(name) in meanings
        meanings.add(class_names.meaning(name))
        unique.append(f"{name} ({number})" if same else name)
    return tuple(unique)
