"""Edits a network: gains on the units of its layers, given, read from a file, or made from scores.

`edit` returns a network with new parameters. `editing/sweep.py` applies the same gains to a layer's
output instead, which is how thousands of settings are tried.
Shapes: U units of the layer.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from emojax.data.decode import MOST_TEXT, check_regular
from emojax.editing.search import Scope, Setting
from emojax.errors import InputError, did_you_mean
from emojax.models import tapped, vgg
from emojax.models.classifier import Cuttable, Editable
from emojax.models.tapped import TappedNetwork
from emojax.ops import gains as ops
from emojax.store import read_npy

_LARGEST = 1e6  # a gain of a file


def edit(
    model: Editable, layer: str, gains: jax.Array | np.ndarray, *, scope: Scope = "weights"
) -> Editable:
    """A copy of the network with the layer's units scaled by `gains` [U].

    The model itself is left alone. In a VGGNet, `scope="weights"` leaves biases as they are, as the
    paper does; in other networks a gain scales what the unit gives to the layers behind it, in
    their parameters where these carry that alone, and otherwise on the layer's output.

    Raises:
      InputError: another kind of network, no such layer, the wrong number of gains, gains that are
        not finite, or weights that no longer are.
    """
    return edit_layers(model, {layer: gains}, scope=scope)


def edit_layers(
    model: Editable, gains: Mapping[str, jax.Array | np.ndarray], *, scope: Scope = "weights"
) -> Editable:
    """As `edit`, for several layers at once: gains [U] by layer."""
    if not isinstance(model, Editable):
        raise InputError(
            "edits are made to a VGGNet, a CompactNet or a network of emojax.load_network, and "
            f"this is a {type(model).__name__}; scale the units inside your own function"
        )
    checked = {layer: _checked(model, layer, values) for layer, values in gains.items()}
    if isinstance(model, TappedNetwork):
        edited = tapped.edited(model, checked)
    else:
        scoped = {layer: ops.with_scope(values, scope) for layer, values in checked.items()}
        edited = vgg.with_gains(model, scoped)
    leaves = jax.tree.leaves(nnx.state(edited))
    floats = (leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating))
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in floats):
        raise InputError(
            f"the gains for {', '.join(gains)} make weights larger than float32 holds; "
            "give smaller ones"
        )
    return edited


def with_last_layer(
    model: Cuttable, weight: Float[np.ndarray, "U C"], bias: Float[np.ndarray, " C"]
) -> Cuttable:
    """A copy of the network with another last layer; the model itself is left alone."""
    graphdef, state = nnx.split(model)
    leaves = dict(nnx.to_flat_state(state))
    last = list(model.config.units())[-1]
    for name, values in {"kernel": weight, "bias": bias}.items():
        leaf = leaves[last, name]
        leaves[last, name] = leaf.replace(jnp.asarray(values, leaf[...].dtype))
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))


def mask_of(setting: Setting, scores: Float[np.ndarray, " U"]) -> Bool[np.ndarray, " U"] | None:
    """Units that a setting scales up, by their scores; None for a continuous gain."""
    if setting.tau is None:
        return None
    if setting.kind == "top_fraction":
        return np.asarray(ops.top_fraction(jnp.asarray(scores), setting.tau))
    # In float32, as scores are: a threshold equal to a score must not exceed it by rounding.
    return scores > np.float32(setting.tau)


def gains_of(setting: Setting, scores: Float[np.ndarray, " U"]) -> Float[np.ndarray, " U"]:
    """Gains that a setting makes of the units' scores."""
    mask = mask_of(setting, scores)
    if mask is None:
        return np.asarray(ops.continuous(jnp.asarray(scores), setting.factor))
    return np.asarray(ops.from_mask(jnp.asarray(mask), setting.factor))


def read_gains(path: Path, units: int, *, factor: float | None = None) -> Float[np.ndarray, " U"]:
    """Gains [U] from a file of one number per unit.

    The file is `.npy`, or text with commas, blanks or line breaks between the numbers. With a
    factor it is a mask of 0 and 1, and the gains are ×factor for the ones, ÷factor for the others.

    Raises:
      InputError: the file cannot be read, or holds other things than that many finite numbers (or
        zeros and ones).
    """
    check_regular(Path(path), limit=MOST_TEXT, missing_ok=True)
    try:
        if Path(path).suffix == ".npy":
            values = _vector(read_npy(path))
        else:
            values = np.array(Path(path).read_text("utf-8").replace(",", " ").split(), np.float64)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot read the gains file {path}: {reason}") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}; write one number per unit, without a header") from None
    if len(values) != units:
        raise InputError(
            f"{path} holds {len(values)} numbers, the layer has {units} units; write one number "
            "per unit"
        )
    allowed = np.abs(values) <= _LARGEST if factor is None else np.isin(values, (0, 1))
    if not allowed.all():
        first = int(allowed.argmin())
        cure = f"a number from -{_LARGEST:g} to {_LARGEST:g}"
        if factor is not None:
            cure = "0 or 1, or leave out the factor to read gains"
        raise InputError(f"{path}: number {first + 1} is {values[first]:g}; write {cure}")
    if factor is None:
        return values.astype(np.float32)
    return np.asarray(ops.from_mask(jnp.asarray(values == 1), factor))


def _vector(values: np.ndarray) -> Float[np.ndarray, " U"]:
    """The numbers of an array file, in float64.

    Raises:
      ValueError: they are no real numbers, or not in a row.
    """
    if values.dtype.kind not in "fiub" or max(values.shape, default=1) != values.size:
        raise ValueError(f"holds {values.dtype} of shape {values.shape}, not numbers in a row")
    return values.astype(np.float64).reshape(-1)


def _checked(model: Editable, layer: str, gains: jax.Array | np.ndarray) -> Float[Array, " U"]:
    """Gains as float32, after checking that they fit the layer."""
    units = model.config.units()
    if layer not in units:
        raise InputError(f"no layer {layer!r}{did_you_mean(layer, units)}")
    gains = jnp.asarray(gains, jnp.float32)
    if gains.shape != (units[layer],):
        raise InputError(
            f"layer {layer} has {units[layer]} units, the gains have shape {gains.shape}"
        )
    if not bool(jnp.isfinite(gains).all()):
        raise InputError(f"the gains for layer {layer} are not all finite")
    return gains
