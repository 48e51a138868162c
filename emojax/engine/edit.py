"""Edits a network by its labels and measures what the edits do: gains on a layer's units, alone or as a whole grid.

A sweep runs the part of the network before the edited layer once per image; only what follows is repeated per setting.
`engine/sweep.py` does the same for thousands of settings of one layer.
Shapes: I images, U units of the layer, S settings.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emojax.data.loader import ImageSet
from emojax.engine.evaluate import Evaluation, Protocol, labelled, tencrop_views
from emojax.engine.network import map_images
from emojax.errors import InputError, did_you_mean
from emojax.models import vgg
from emojax.models.compact import Editable
from emojax.ops import gains as ops
from emojax.ops.gains import Scope
from emojax.store import read_npy

Kind = Literal["threshold", "top_fraction", "continuous"]


def edit(model: Editable, layer: str, gains: jax.Array | np.ndarray, *, scope: Scope = "weights") -> Editable:
    """A copy of the network with the layer's units scaled by `gains` [U]; the model itself is left alone.

    `scope="weights"` leaves biases as they are, as the paper does.

    Raises:
      InputError: no such layer, the wrong number of gains, or gains that are not finite.
    """
    return edit_layers(model, {layer: gains}, scope=scope)


def edit_layers(model: Editable, gains: Mapping[str, jax.Array | np.ndarray], *, scope: Scope = "weights") -> Editable:
    """As `edit`, for several layers at once: gains [U] by layer."""
    return vgg.with_gains(model, {name: ops.with_scope(_checked(model, name, g), scope) for name, g in gains.items()})


def read_gains(path: Path, units: int, *, factor: float | None = None) -> np.ndarray:
    """Gains [U] from a file of one number per unit: `.npy`, or text with commas, blanks or line breaks between them.

    With a factor the file is a mask of 0 and 1, and the gains are ×factor for the ones and ÷factor for the others.

    Raises:
      InputError: the file cannot be read, or holds other things than that many finite numbers (or zeros and ones).
    """
    try:
        if Path(path).suffix == ".npy":
            values = read_npy(path).astype(np.float32).reshape(-1)
        else:
            values = np.array(Path(path).read_text("utf-8").replace(",", " ").split(), np.float32)
    except OSError as error:
        raise InputError(f"cannot read the gains file {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}; write one number per unit, without a header") from None
    if len(values) != units:
        raise InputError(f"{path} holds {len(values)} numbers, the layer has {units} units; write one number per unit")
    allowed = np.isfinite(values) if factor is None else np.isin(values, (0, 1))
    if not allowed.all():
        at = int(allowed.argmin())
        right = "a finite number" if factor is None else "0 or 1, or leave out the factor to read gains"
        raise InputError(f"{path}: number {at + 1} is {values[at]:g}; write {right}")
    return values if factor is None else np.asarray(ops.from_mask(values == 1, factor))


def _checked(model: Editable, layer: str, gains: jax.Array | np.ndarray) -> jax.Array:
    """Gains [.., U] as float32, after checking that they fit the layer."""
    units = model.config.units()
    if layer not in units:
        raise InputError(f"no layer {layer!r}{did_you_mean(layer, units)}")
    gains = jnp.asarray(gains, jnp.float32)
    if gains.shape[-1:] != (units[layer],):
        raise InputError(f"layer {layer} has {units[layer]} units, the gains have shape {gains.shape}")
    if not bool(jnp.isfinite(gains).all()):
        raise InputError(f"the gains for layer {layer} are not all finite")
    return gains


class Setting(NamedTuple):
    """An edit: of `layer`, by `kind` of gain, where `tau` is the threshold or the fraction (None for continuous)."""

    layer: str
    kind: Kind
    tau: float | None
    factor: float

    def mask(self, scores: np.ndarray) -> np.ndarray | None:
        """Units [U] that are scaled up; None for a continuous gain."""
        match self.kind:
            case "threshold":
                return scores > np.float32(self.tau)
            case "top_fraction":
                return np.asarray(ops.top_fraction(scores, self.tau))
        return None

    def gains(self, scores: np.ndarray) -> np.ndarray:
        """Gains [U]."""
        mask = self.mask(scores)
        return np.asarray(ops.continuous(scores, self.factor) if mask is None else ops.from_mask(mask, self.factor))

    def __str__(self) -> str:
        tau = (
            "" if self.tau is None else f", tau {self.tau:g}" if self.kind == "threshold" else f", best {100 * self.tau:g} %"
        )
        return f"{self.layer}, {self.kind.replace('_', ' ')}{tau}, factor {self.factor:g}"


@dataclass(frozen=True)
class Search:
    """The settings that the choice is made from, the same for every layer; by default the paper's grid."""

    taus: tuple[float, ...] = tuple(x / 4 for x in range(-4, 8))
    factors: tuple[float, ...] = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5)
    fractions: tuple[float, ...] = ()
    """shares of units for `top_fraction`, with every factor"""
    continuous: tuple[float, ...] = ()
    """factors of the continuous gain"""
    scope: Scope = "weights"

    def settings(self, layers: Sequence[str]) -> list[Setting]:
        """All settings, in the order in which the first of equals is chosen; factor 1 is left out, being no edit."""
        factors = [factor for factor in self.factors if factor != 1]
        found = []
        for layer in layers:
            found += [Setting(layer, "threshold", tau, factor) for tau in self.taus for factor in factors]
            found += [Setting(layer, "top_fraction", part, factor) for part in self.fractions for factor in factors]
            found += [Setting(layer, "continuous", None, factor) for factor in self.continuous]
        return found


PAPER = Search()


@dataclass(frozen=True)
class GridCell:
    """A setting of the threshold edit and what it gave."""

    tau: float
    factor: float
    evaluation: Evaluation


def sweep(
    model: Editable,
    images: ImageSet,
    layer: str,
    gains: jax.Array | np.ndarray,
    *,
    scope: Scope = "weights",
    protocol: Protocol = "resize40",
    batch: int = 256,
    tile: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Evaluation]:
    """Evaluates the network under each of S settings of gains [S, U] on one layer.

    Equals evaluating each edited network, without building any: the gain acts on the layer's output before its bias.

    Raises:
      InputError: as `edit`, or the set has no labels or other classes.
    """
    gains = _checked(model, layer, gains)
    labels = labelled(images, model.config.classes)
    graphdef, state = nnx.split(model)
    ten = tencrop_views(model.config.input_size)
    views = model.preprocess if protocol == "resize40" else lambda chunk: model.normalize(ten(chunk))

    def forward(params: Any, chunk: jax.Array) -> jax.Array:
        network, settings = nnx.merge(graphdef, params[0]), params[1]
        x = views(chunk)
        flat = x.reshape(-1, *x.shape[-3:])
        before_bias = network.until(flat, layer)
        logits = jax.lax.map(lambda gain: network.after(before_bias, layer, ops.with_scope(gain, scope)), settings)
        return logits.reshape(len(settings), len(chunk), -1, logits.shape[-1]).mean(axis=2).swapaxes(0, 1)

    logits = map_images(forward, (state, gains), images, batch=batch, tile=tile, progress=progress)
    return [Evaluation(logits[:, setting], labels, images.classes) for setting in range(len(gains))]


def threshold_grid(
    model: Editable,
    images: ImageSet,
    layer: str,
    scores: np.ndarray,
    taus: Sequence[float],
    factors: Sequence[float],
    **options: Any,
) -> list[GridCell]:
    """The paper's grid: every tau with every factor, on the layer's maximum similarities [U]. Options as for `sweep`."""
    cells = [(tau, factor) for tau in taus for factor in factors]
    gains = jnp.stack([ops.threshold(scores, tau, factor) for tau, factor in cells])
    results = sweep(model, images, layer, gains, **options)
    return [GridCell(tau, factor, result) for (tau, factor), result in zip(cells, results, strict=True)]
