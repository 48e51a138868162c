"""Weights files to networks and back: VGGNet, Deep-Emotion, torchvision's ResNets and VGGs.

They are safetensors or PyTorch files. Nothing is ever unpickled: PyTorch files are read by torch
with `weights_only=True`, and only when torch is installed. Hugging Face's folders are read by
`network_folder` and `clip_folder`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from flax import nnx

from emojax.data import classes as class_names
from emojax.data.provenance import Use, to_metadata
from emojax.errors import InputError
from emojax.models import compact, deep_emotion, resnet, vgg, vgg16
from emojax.models.classifier import Classifier
from emojax.section import user_path
from emojax.store import save_arrays

_Model = TypeVar("_Model", bound=nnx.Module)
_Classifier = TypeVar("_Classifier", bound=Classifier)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Named arrays of a `.safetensors` file, or of a PyTorch file when torch is installed.

    A PyTorch file may hold the state dict itself or a dict with it under `params` (the published
    VGGNet), `state_dict` or `model`.

    Raises:
      InputError: the file is missing or damaged, or is a PyTorch file and torch is not installed.
    """
    path = user_path(path)
    if not path.is_file():
        raise InputError(f"no weights file {str(path)!r}")
    if path.suffix != ".safetensors":
        return _read_torch(path)
    from safetensors import SafetensorError
    from safetensors.flax import load_file

    try:
        return {name: np.asarray(array) for name, array in load_file(path).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{path} is not .safetensors; reading a PyTorch file needs torch: pip install torch"
        ) from None
    import pickle

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: torch refuses it with weights_only=True ({reason})") from None
    for key in ("params", "state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    is_tensors = isinstance(loaded, Mapping) and all(
        isinstance(value, torch.Tensor) for value in loaded.values()
    )
    if not is_tensors:
        raise InputError(f"{path}: no state dict (names to tensors) in it")
    # NumPy has no bfloat16, so all floats become float32; counters stay integers.
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        for name, tensor in loaded.items()
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
    return _named(_load(path, vgg.from_torch_state_dict), path)


def load_deep_emotion(path: Path | str) -> deep_emotion.DeepEmotion:
    """Deep-Emotion in eval mode, from safetensors in PyTorch's names or a state dict of torch's.

    Raises:
      InputError: the file is refused (see `read_arrays`) or its contents are not a Deep-Emotion.
    """
    return _named(_load(path, deep_emotion.from_torch_state_dict), path)


def load_network(path: Path | str) -> Classifier:
    """Any of the networks in eval mode; the names of the arrays tell which.

    Raises:
      InputError: as `load_vgg`.
    """

    def build(arrays: Mapping[str, np.ndarray]) -> Classifier:
        if "stem.weight" in arrays:
            return compact.from_torch_state_dict(arrays)
        if "fc_loc.0.weight" in arrays:
            return deep_emotion.from_torch_state_dict(arrays)
        if "layer1.0.conv1.weight" in arrays:
            return resnet.from_torchvision_state_dict(arrays)
        if "features.0.weight" in arrays:
            return vgg16.from_torchvision_state_dict(arrays)
        return vgg.from_torch_state_dict(arrays)

    return _named(_load(path, build), path)


def with_classes(model: _Classifier, names: Sequence[str] | None) -> _Classifier:
    """The network with these names for its outputs, in order; None: they are not known.

    Raises:
      InputError: another number of names than outputs, or two that mean the same.
    """
    if names is not None:
        if len(names) != model.config.classes:
            raise InputError(
                f"the network has {model.config.classes} outputs, not {len(names)} "
                f"({class_names.listed(names)}); name each of them once"
            )
        class_names.check(names, "the network")
        names = tuple(names)
    named = nnx.merge(*nnx.split(model))
    config = replace(model.config, class_names=names)
    named.config = config  # pyright: ignore[reportAttributeAccessIssue] - of the model's own class
    return named


def _named(model: _Classifier, path: Path | str) -> _Classifier:
    """The network with the class names that its file carries."""
    return with_classes(model, class_names.read(user_path(path), model.config.classes))


def save_vgg(model: vgg.VggNet, path: Path | str, *, uses: Iterable[Use] | None = None) -> None:
    """Writes safetensors in PyTorch's names.

    torch reads them by `torch_model.load_state_dict(safetensors.torch.load_file(path))`. The file
    also names the classes in the order of the outputs, where the network does (`with_classes`).

    Args:
      model: the network.
      path: the file.
      uses: the image sets that shaped the weights; with None the file does not say.
    """
    _save(model, vgg.to_torch_state_dict(model), path, uses)


def save_deep_emotion(
    model: deep_emotion.DeepEmotion, path: Path | str, *, uses: Iterable[Use] | None = None
) -> None:
    """Writes safetensors in PyTorch's names, as `save_vgg` does."""
    _save(model, deep_emotion.to_torch_state_dict(model), path, uses)


def save_network(model: Classifier, path: Path | str, *, uses: Iterable[Use] | None = None) -> None:
    """Any network under the names of its file, as `save_vgg` does.

    Raises:
      ValueError: it has gains that no parameters carry.
    """
    if isinstance(model, vgg.VggNet):
        save_vgg(model, path, uses=uses)
    elif isinstance(model, compact.CompactNet):
        _save(model, compact.to_torch_state_dict(model), path, uses)
    elif isinstance(model, deep_emotion.DeepEmotion):
        save_deep_emotion(model, path, uses=uses)
    else:
        _save(model, model.state_dict(), path, uses)


def _save(
    model: Classifier,
    arrays: dict[str, np.ndarray],
    path: Path | str,
    uses: Iterable[Use] | None,
) -> None:
    metadata = class_names.to_metadata(model.config.class_names)
    if uses is not None:
        metadata |= to_metadata(uses)
    save_arrays(arrays, path, metadata=metadata or None)
