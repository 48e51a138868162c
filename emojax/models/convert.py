"""Filling a module's parameters from arrays under PyTorch names, and back: one rule, checked
against the shapes.

A module offers `torch_names(path)`: for each parameter path of ours the PyTorch name and the axes
that turn PyTorch's array into ours. Every parameter must be found with its exact shape and every
given name must be used.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

Model = TypeVar("Model", bound=nnx.Module)
Path = tuple[str | int, ...]
# PyTorch's kernels are [out, in] and [out, in, height, width]; ours are [in, out] and [height,
# width, in, out].
AXES = {2: (1, 0), 4: (2, 3, 1, 0)}
# Leaves of flax's convolutions, dense layers and BatchNorms under PyTorch's names.
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def _torch_axes(path: Path, ndim: int) -> tuple[int, ...]:
    return AXES[ndim] if path[-1] == "kernel" else tuple(range(ndim))


def _shorten(names: Iterable[str], limit: int = 5) -> str:
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def fill(
    make: Callable[[], Model],
    arrays: Mapping[str, np.ndarray],
    torch_name: Callable[[Path], str],
    *,
    ignore: Callable[[str], bool] = lambda name: False,
    dtype: jnp.dtype | None = None,
) -> Model:
    """Builds `make()` abstractly and fills it; floating parameters take `dtype` when given.

    Raises:
      ValueError: a name is missing or unknown, a shape differs, or a value is not finite; the
        message lists them.
    """
    graphdef, state = nnx.split(nnx.eval_shape(make))
    leaves = dict(nnx.to_flat_state(state))
    wanted = {path: torch_name(path) for path in leaves}
    missing = set(wanted.values()) - set(arrays)
    unknown = {name for name in arrays if not ignore(name)} - set(wanted.values())
    if missing:
        raise ValueError(f"{len(missing)} parameters are missing: {_shorten(missing)}")
    if unknown:
        raise ValueError(f"{len(unknown)} names are not of this network: {_shorten(unknown)}")

    filled = {}
    for path, name in wanted.items():
        array, leaf = np.asarray(arrays[name]), leaves[path]
        axes = _torch_axes(path, len(leaf.shape))
        shape = tuple(leaf.shape[axes.index(i)] for i in range(len(axes)))
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}, not {shape}")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} holds {array.dtype}, not floating-point numbers")
        if not np.isfinite(array.astype(np.float32)).all():
            raise ValueError(f"{name} holds values that are not finite")
        if path[-1] == "var" and (array < 0).any():
            raise ValueError(f"{name} holds variances below zero")
        filled[path] = leaf.replace(jnp.asarray(array.transpose(axes), dtype or leaf.dtype))
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def to_torch(model: nnx.Module, torch_name: Callable[[Path], str]) -> dict[str, np.ndarray]:
    """The module's parameters as contiguous numpy arrays under their PyTorch names and layouts."""
    arrays = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        value = np.asarray(leaf[...])
        axes = _torch_axes(path, value.ndim)
        arrays[torch_name(path)] = np.array(value.transpose(np.argsort(axes)), order="C")
    return arrays
