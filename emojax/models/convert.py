"""Filling a module's parameters from arrays under PyTorch names, and back: one table per network.

Weight files reach the models through here. A parameter's PyTorch name is its path in the module,
joined by points, with some parts renamed: that is the network's table. Its axes follow from the
leaf. Every parameter must be found with its exact shape and every given name must be used.
"""

import functools
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

Model = TypeVar("Model", bound=nnx.Module)
Path = tuple[Hashable, ...]  # module names, positions in lists, and the leaf's name last
Arrays = Mapping[str, np.ndarray]

# PyTorch's kernels are [out, in] and [out, in, height, width]; ours are [in, out] and
# [height, width, in, out].
AXES = {2: (1, 0), 4: (2, 3, 1, 0)}
# A part of our path → PyTorch's, or None where PyTorch has no such part.
Table = Mapping[str, str | None]
# Leaves of layers and of BatchNorm.
LEAVES: Table = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
# A table, or a function where names do not follow part by part.
Names = Table | Callable[[Path], str]


def torch_name(path: Path, names: Names) -> str:
    """PyTorch's name of a parameter. Parts that are not in a table keep their names."""
    if callable(names):
        return names(path)
    table = names
    parts = (table.get(str(part), str(part)) for part in path)
    return ".".join(part for part in parts if part is not None)


def fill(
    make: Callable[..., Model],
    config: Hashable,
    arrays: Arrays,
    names: Names,
    *,
    ignore: Callable[[str], bool] = lambda name: False,
    dtype: DTypeLike | None = None,
) -> Model:
    """Builds `make(config, rngs=…)` abstractly and fills it. `dtype`, where given, goes to `make`
    and is that of the parameters.

    Names for which `ignore` is true may be there and are not read.

    Raises:
      ValueError: a name is missing or unknown, a shape differs, or a value is not finite; the
        message lists them.
    """
    graphdef, leaves = _structure(make, config, dtype)
    given = {path: torch_name(path, names) for path in leaves}
    _match(given.values(), [name for name in arrays if not ignore(name)], arrays)

    filled = {}
    for path, name in given.items():
        leaf = leaves[path]
        array = np.asarray(arrays[name])
        axes = _torch_axes(path, len(leaf.shape))
        shape = tuple(leaf.shape[axes.index(i)] for i in range(len(axes)))
        _check(name, array, shape, variance=path[-1] == "var")
        filled[path] = leaf.replace(jnp.asarray(array.transpose(axes), dtype or leaf.dtype))
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


@functools.lru_cache(maxsize=32)
def _structure(
    make: Callable[..., nnx.Module], config: Hashable, dtype: DTypeLike | None
) -> tuple[nnx.GraphDef, Mapping[Path, nnx.Variable]]:
    """The module without its values, and its leaves by path.

    Abstract, because drawing random values only to replace them takes seconds, and kept, because
    even so it takes half a second.
    """
    options = {} if dtype is None else {"dtype": dtype}
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(0), **options)))
    return graphdef, dict(nnx.to_flat_state(state))


def to_torch(model: nnx.Module, names: Names) -> dict[str, np.ndarray]:
    """The module's parameters as contiguous numpy arrays under their PyTorch names and layouts."""
    arrays = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        value = np.asarray(leaf[...])
        axes = _torch_axes(path, value.ndim)
        arrays[torch_name(path, names)] = np.array(value.transpose(np.argsort(axes)), order="C")
    return arrays


def _torch_axes(path: Path, ndim: int) -> tuple[int, ...]:
    """The axes that turn PyTorch's array into ours; only kernels differ."""
    return AXES[ndim] if path[-1] == "kernel" else tuple(range(ndim))


def _match(names: Iterable[str], given: Iterable[str], arrays: Arrays) -> None:
    """Every name of the network is among the arrays, and every given one is of the network."""
    names = set(names)
    missing = names - set(arrays)
    unknown = set(given) - names
    if missing:
        raise ValueError(f"{len(missing)} parameters are missing: {_shorten(missing)}")
    if unknown:
        raise ValueError(f"{len(unknown)} names are not of this network: {_shorten(unknown)}")


def _check(name: str, array: np.ndarray, shape: tuple[int, ...], *, variance: bool) -> None:
    """Shape, kind of numbers and values of one array, all of them reasons to refuse a file."""
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, not {shape}")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} holds {array.dtype}, not floating-point numbers")
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    if not np.isfinite(single).all():
        if array.dtype == np.float64 and np.isfinite(array).all():
            most = array.flat[np.abs(array).argmax()]
            raise ValueError(f"{name} holds {most:g}, which is beyond float32")
        raise ValueError(f"{name} holds values that are not finite")
    if variance and (array < 0).any():
        raise ValueError(f"{name} holds variances below zero")


def _shorten(names: Iterable[str], limit: int = 5) -> str:
    """The first few names, and how many more there are."""
    names = [name[:80] for name in sorted(names)]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
