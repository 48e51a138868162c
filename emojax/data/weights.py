"""Weights files to networks and back: VGGNet, Deep-Emotion, torchvision's ResNets and VGGs.

They are safetensors or PyTorch files. Nothing is ever unpickled: PyTorch files are read by torch
with `weights_only=True`, and only when torch is installed. Hugging Face's folders are read by
`network_folder` and `clip_folder`.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
from flax import nnx

from emojax.data import classes as class_names
from emojax.data.provenance import Use, to_metadata
from emojax.errors import InputError
from emojax.models import compact, deep_emotion, resnet, vgg, vgg16
from emojax.models.classifier import Classifier
from emojax.section import user_path
from emojax.store import save_arrays

if TYPE_CHECKING:
    import torch

_Model = TypeVar("_Model", bound=nnx.Module)
_Classifier = TypeVar("_Classifier", bound=Classifier)
# Where a PyTorch file may hold the state dict; the published VGGNet's is under `params`.
_HOLDERS = ("params", "state_dict", "model")
# Numbers that mean what they say. Networks have only floating-point parameters, but files hold
# counters too.
_SAFETENSORS_DTYPES = frozenset(
    ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
)
_TORCH_DTYPES = frozenset(
    (
        *("float64", "float32", "float16", "bfloat16", "bool"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
    )
)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Named arrays of a `.safetensors` file, or of a PyTorch file when torch is installed.

    A PyTorch file may hold the state dict itself or a dict with it under `params` (the published
    VGGNet), `state_dict` or `model`.

    Raises:
      InputError: the file is missing or damaged, holds numbers of another kind than NumPy's and
        bfloat16, or is a PyTorch file and torch is not installed.
    """
    path = user_path(path)
    if not path.is_file():
        raise InputError(f"no weights file {str(path)!r}")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    arrays = {}
    try:
        # NumPy has no bfloat16, and JAX by default no float64.
        with safe_open(path, "np") as file, safe_open(path, "flax") as wide:
            for name in file.keys():  # noqa: SIM118 - it is no dict
                dtype = file.get_slice(name).get_dtype()
                if dtype not in _SAFETENSORS_DTYPES:
                    raise InputError(f"{path}: {_dtype_refused(name, dtype)}")
                of_file = wide if dtype == "BF16" else file
                arrays[name] = np.asarray(of_file.get_tensor(name))
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None
    return arrays


def _dtype_refused(name: str, dtype: object) -> str:
    return (
        f"{name} holds {dtype}, which needs scales that emojax does not know; convert the weights "
        "to float32, float16 or bfloat16"
    )


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{path} is not .safetensors; reading a PyTorch file needs torch: pip install torch"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tensors that are refused below
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # its unpickler stumbles over damaged files in many ways
        raise InputError(
            f"{path}: torch refuses it with weights_only=True ({_why(str(error))})"
        ) from None
    state = _state_dict(path, loaded)
    arrays = {}
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise InputError(f"{path}: the name {name!r} is no text; save model.state_dict()")
        if reason := _tensor_refused(name, tensor):
            raise InputError(f"{path}: {reason}")
        values = tensor.detach().resolve_neg()
        # NumPy has no bfloat16.
        arrays[name] = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return arrays


def _why(message: str) -> str:
    """What torch says of a file, without its advice to unpickle it."""
    if other := re.search(r"Unsupported (?:global: GLOBAL|class) ([\w.]+)", message):
        return f"it holds a {other[1]}; save model.state_dict(), which holds only tensors"
    if "TorchScript" in message:
        return "it is a TorchScript archive; save model.state_dict()"
    return "damaged, or no PyTorch file"


def _state_dict(path: Path, loaded: object) -> "Mapping[object, torch.Tensor]":
    """The tensors by name, wherever in the file they are."""
    import torch

    def is_state(value: object) -> bool:
        return isinstance(value, Mapping) and all(
            isinstance(each, torch.Tensor) for each in value.values()
        )

    while isinstance(loaded, Mapping):
        held = [key for key in _HOLDERS if isinstance(loaded.get(key), Mapping)]
        states = [key for key in held if is_state(loaded[key])]
        if len(states) > 1:
            raise InputError(
                f"{path}: it holds several networks, under {' and '.join(states)}; save the state "
                "dict of one"
            )
        if not held:
            break
        loaded = loaded[(states or held)[0]]
    if not is_state(loaded):
        raise InputError(f"{path}: no state dict (names to tensors) in it")
    return cast("Mapping[object, torch.Tensor]", loaded)


def _tensor_refused(name: str, tensor: "torch.Tensor") -> str | None:
    """Why a tensor's values cannot be read; None if they can."""
    import torch

    kinds = {
        "nested": tensor.is_nested,
        "quantized": tensor.is_quantized,
        "sparse": tensor.layout != torch.strided and not tensor.is_nested,
        "without values (on the meta device)": tensor.is_meta,
    }
    for kind, is_so in kinds.items():
        if is_so:
            return f"{name} is {kind}; save plain tensors"
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _TORCH_DTYPES:
        return _dtype_refused(name, dtype)
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"{name} repeats its values ({tuple(tensor.shape)}); save it by .contiguous()"
    return None


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
