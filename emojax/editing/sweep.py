"""Thousands of edits of one layer: the network before it runs once, and what follows is repeated.

For a dense layer that feeds the logits, an edit by mask and factor leaves every unit one of two
outputs, whatever the other units do, so the logits are affine in the mask. Thousands of masks are
then one matrix product, and every threshold on a score is a running sum over units in order of
score. Any other layer is finished once per setting.

Sums of thousands of terms round differently in different orders, so where an image's two best
classes are as good as equal, these paths and a plain evaluation may name different ones.
`Outcomes.near_ties` counts those images, and `correct` is exact up to that number;
`Sweep.evaluate` is the plain arithmetic for the one setting that matters.
Shapes: I images, U units, C classes, S settings.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int, PyTree

from emojax.brief import brief
from emojax.distributed.data_parallel import data_parallel, default_tile
from emojax.distributed.mesh import (
    batch_sharded,
    make_mesh,
    placed_shapes,
    put_replicated,
    replicated,
)
from emojax.editing import kernels
from emojax.editing.activations import Batch, Head, PreBiasActivations, Progress, batch_size
from emojax.editing.edit import gains_of, mask_of
from emojax.editing.outcomes import Outcomes
from emojax.editing.search import Scope, Setting
from emojax.errors import InputError
from emojax.ops import gains as ops
from emojax.store import cached, content_key
from emojax.training.evaluate import Evaluation

_FORMAT = 3  # of what is cached on disk; part of its key
_CHUNK = 512  # settings computed together
_SLOW_CHUNK = 32  # the same where each takes seconds: what is lost when a run is stopped
# Images of a tile that keep a device busy, as multiples of an evaluation's: the more cheaply a
# kernel goes through its settings, the more.
_TILES_OF_MASKS = 4
_TILES_OF_CUTS = 8
# Behind a dense layer that does not feed the logits come large kernels, read anew for every tile.
_TILES_BEFORE_DENSE = 8


@functools.lru_cache(maxsize=64)
def program_of(
    kernel: Callable[..., PyTree], fixed: tuple[object, ...], mesh: Mesh, tile: int
) -> Callable[..., PyTree]:
    """A kernel over tiles of images, sharded over the mesh; compiled once per shape of settings."""
    function = functools.partial(kernel, *fixed)
    return data_parallel(function, mesh, replicated=2, sharded=1, tile=tile)


PARTS = {"product": "product", "count": "count"}  # the named scopes of what masks cost


class MaskStep(NamedTuple):
    """A chunk of masks over one batch, to be compiled: the program and shapes of its arguments."""

    program: Callable[..., kernels.Tally]
    arguments: tuple[PyTree, ...]
    images: int


def mask_step(mesh: Mesh, units: int, classes: int, images: int) -> MaskStep:
    """What `Sweep.masks` runs for a layer that feeds the logits, without its arrays.

    Args:
      mesh: the devices, which need not be there.
      units: of the layer.
      classes: of the network.
      images: of the set.
    """
    tile = default_tile(mesh) * _TILES_OF_MASKS
    program = program_of(kernels.by_masks, ("weights", kernels.count_hits), mesh, tile)

    def array(*shape: int, kind: Any = np.float32) -> Any:  # stands where an array is expected
        return jax.ShapeDtypeStruct(shape, kind)

    head = Head(array(units), array(units, classes), array(classes), array())
    masks = kernels.Masks(array(_CHUNK, units, kind=np.bool_), array())
    size = batch_size(images, 4 * units, mesh, tile)
    batch = Batch(array(size, units), array(size, kind=np.int32))
    whole = placed_shapes(replicated(mesh), (head, masks))
    return MaskStep(program, (*whole, placed_shapes(batch_sharded(mesh), batch)), size)


@brief
@dataclass(frozen=True)
class Thresholds:
    """Every threshold on the scores of a layer's units, with one factor.

    Attributes:
      factor: of the units above the threshold.
      scores: the units' scores in falling order [U].
      outcomes: of U + 1 settings; number k has the k units of the highest scores above the
        threshold.
    """

    factor: float
    scores: Float[np.ndarray, " U"]
    outcomes: Outcomes

    def cut(self, tau: float) -> int:
        """The number of the setting with this threshold: how many scores exceed tau."""
        return int((self.scores > np.float32(tau)).sum())

    def reachable(self) -> Bool[np.ndarray, " U_plus_1"]:
        """Which settings some threshold gives: those that do not part equal scores."""
        return np.concatenate([[True], self.scores[1:] < self.scores[:-1], [True]])


class _Chunk(NamedTuple):
    """Settings computed together: the content key of their outcomes, and what counts them."""

    key: str
    compute: Callable[[], dict[str, np.ndarray]]


@brief
@dataclass(frozen=True, eq=False)
class Sweep:
    """Edits of one layer, tried on one labelled set.

    Attributes:
      activations: the layer's, on the set.
      scope: what a gain scales.
      mesh: devices; None takes all.
      cache: a folder in which every finished chunk of settings is cached, so that a sweep that was
        stopped resumes after the last of them.
    """

    activations: PreBiasActivations
    _: KW_ONLY
    scope: Scope = "weights"
    mesh: Mesh | None = None
    cache: Path | None = None

    def gains(
        self,
        gains: np.ndarray | jax.Array,
        *,
        full: bool = True,
        progress: Progress | None = None,
    ) -> Outcomes:
        """What each of S settings of gains [S, U] gives, on any layer.

        `full=False` counts hits only; `progress` hears of settings.

        Raises:
          InputError: the gains do not fit the layer, or are not finite.
        """
        rows = np.asarray(gains, np.float32)
        _check_rows(self.activations, "gains", rows)
        if not np.isfinite(rows).all():
            raise InputError(f"the gains for layer {self.activations.layer} are not all finite")
        chunks = self.chunks(rows, None, full, progress)
        return Outcomes.join([Outcomes(**cached(self.cache, *chunk)) for chunk in chunks])

    def masks(
        self,
        masks: np.ndarray,
        factor: float,
        *,
        full: bool = True,
        progress: Progress | None = None,
    ) -> Outcomes:
        """What ×factor on the units of each of S masks [S, U], and ÷factor on the others, gives.

        Raises:
          InputError: the masks do not fit the layer, or the factor is not positive.
        """
        rows = np.asarray(masks, bool)
        _check_rows(self.activations, "masks", rows)
        _check_factor(factor)
        chunks = self.chunks(rows, float(factor), full, progress)
        return Outcomes.join([Outcomes(**cached(self.cache, *chunk)) for chunk in chunks])

    def thresholds(
        self,
        scores: np.ndarray,
        factors: Sequence[float],
        *,
        full: bool = True,
        progress: Progress | None = None,
    ) -> list[Thresholds]:
        """All U + 1 outcomes of thresholding the scores [U], for each factor.

        Raises:
          InputError: the scores do not fit the layer or are not finite, or a factor is not
            positive.
        """
        layer = self.activations
        scores = np.asarray(scores, np.float32)
        _check_rows(self.activations, "scores", scores[None])
        if not np.isfinite(scores).all():
            raise InputError(f"the scores for layer {layer.layer} are not all finite")
        for factor in factors:
            _check_factor(factor)
        order = np.argsort(-scores, kind="stable")
        settings = layer.units + 1
        masks = np.argsort(order)[None, :] < np.arange(settings)[:, None]
        thresholds = []
        for done, factor in enumerate(factors, start=1):
            if layer.feeds_logits:
                chunks = [self._cuts(order, float(factor), full)]
            else:
                chunks = self.chunks(masks, float(factor), full)
            outcomes = [Outcomes(**cached(self.cache, *chunk)) for chunk in chunks]
            thresholds.append(Thresholds(factor, scores[order], Outcomes.join(outcomes)))
            if progress is not None:
                progress(done, len(factors))
        return thresholds

    def evaluate(self, gains: np.ndarray | jax.Array) -> Evaluation:
        """One setting of gains [U] by the plain arithmetic, with its logits.

        Raises:
          InputError: the gains do not fit the layer.
        """
        layer = self.activations
        gains = np.asarray(gains, np.float32)
        _check_rows(layer, "gains", gains[None])
        return Evaluation(self._logits(kernels.logits_of, gains), layer.labels, layer.classes)

    def evaluate_each(self, gains: np.ndarray | jax.Array) -> list[Evaluation]:
        """Several settings of gains [S, U] by the plain arithmetic, with their logits [I, C] each.

        Raises:
          InputError: the gains do not fit the layer.
        """
        layer = self.activations
        gains = np.asarray(gains, np.float32)
        _check_rows(layer, "gains", gains)
        logits = self._logits(kernels.logits_of_each, gains)
        return [
            Evaluation(logits[:, number], layer.labels, layer.classes)
            for number in range(len(gains))
        ]

    def _logits(self, kernel: Callable[..., jax.Array], gains: np.ndarray) -> np.ndarray:
        """The logits of all images, which come first."""
        layer = self.activations
        mesh = self.mesh or make_mesh()
        tile = default_tile()
        program = program_of(kernel, (layer.after, self.scope), mesh, tile)
        params = layer.params_on(mesh)
        settings = put_replicated(mesh, gains)
        logits = []
        for batch in layer.batches(mesh, tile):
            logits.append(np.asarray(program(params, settings, batch.values)))
        return np.concatenate(logits)[: len(layer.labels)]

    def chunks(
        self,
        rows: np.ndarray,
        factor: float | None,
        full: bool,
        progress: Progress | None = None,
    ) -> Iterator[_Chunk]:
        """Gains [S, U], or masks [S, U] with their factor, in chunks of one shape.

        The caller counts a chunk before it takes the next, which is when `progress` hears of it.
        """
        layer = self.activations
        if factor is not None and not layer.feeds_logits:
            rows = np.asarray(ops.from_mask(jnp.asarray(rows), factor))
            factor = None
        kernel, tiles = kernels.by_gains, 1
        if factor is not None:
            kernel, tiles = kernels.by_masks, _TILES_OF_MASKS
        elif layer.values.ndim == 2 and not layer.feeds_logits:
            tiles = _TILES_BEFORE_DENSE
        # A power of two at most: few shapes, hence few compilations. The last chunk is padded.
        largest = _CHUNK if layer.feeds_logits else _SLOW_CHUNK
        size = min(largest, 1 << (len(rows) - 1).bit_length())
        for start in range(0, len(rows), size):
            chunk = rows[start : start + size]
            settings = np.pad(chunk, ((0, size - len(chunk)), (0, 0)))
            if factor is not None:
                settings = kernels.Masks(settings, np.float32(factor))
            factors = [] if factor is None else [factor]
            key = [kernel.__name__, layer.key, chunk, factors, self.scope, full]
            count = functools.partial(self._count, kernel, tiles, settings, len(chunk), full)
            yield _Chunk(content_key([_FORMAT, key]), count)
            if progress is not None:
                progress(start + len(chunk), len(rows))

    def _cuts(self, order: np.ndarray, factor: float, full: bool) -> _Chunk:
        """All cuts of an order of units [U], which are one chunk."""
        kernel = kernels.by_cuts
        settings = kernels.Order(order.astype(np.int32), np.float32(factor))
        key = [kernel.__name__, self.activations.key, order, factor, self.scope, full]
        cuts = len(order) + 1
        count = functools.partial(self._count, kernel, _TILES_OF_CUTS, settings, cuts, full)
        return _Chunk(content_key([_FORMAT, key]), count)

    def _count(
        self,
        kernel: Callable[..., kernels.Tally],
        tiles: int,
        settings: np.ndarray | kernels.Masks | kernels.Order,
        number: int,
        full: bool,
    ) -> dict[str, np.ndarray]:
        """Runs a kernel over all images and adds up its tallies: the arrays of `Outcomes`.

        `number` is that of the settings; what follows them is padding.
        """
        layer = self.activations
        mesh = self.mesh or make_mesh()
        tile = default_tile() * tiles
        count = kernels.count_all if full else kernels.count_hits
        fixed = (self.scope, count)
        if kernel is kernels.by_gains:
            fixed = (layer.after, *fixed)
        program = program_of(kernel, fixed, mesh, tile)
        params = layer.params_on(mesh)
        settings = put_replicated(mesh, settings)
        tallies = [program(params, settings, batch) for batch in layer.batches(mesh, tile)]

        def joined(field: str) -> np.ndarray:
            # Before settings come a device's tiles, or, of predictions, its images.
            return np.concatenate([np.asarray(getattr(tally, field)) for tally in tallies])

        arrays = {
            "hits": joined("hits").sum(axis=0)[:number],
            "sizes": np.bincount(layer.labels, minlength=len(layer.classes)),
        }
        if full:
            images = len(layer.labels)
            # Tiles add up in float64, or the sum would depend on how many there are.
            nll = joined("nll").sum(axis=0, dtype=np.float64) / images
            arrays["nll"] = nll[:number]
            arrays["near_ties"] = joined("near_ties").sum(axis=0)[:number]
            arrays["predictions"] = joined("predictions")[:images, :number].T
        return arrays


def try_settings(
    sweeps: Mapping[str, Sweep],
    settings: Sequence[Setting],
    scores: Sequence[np.ndarray],
    *,
    full: bool = True,
    progress: Progress | None = None,
) -> Outcomes:
    """What settings of several layers give, each with its own scores [U], in their order.

    Masks of one layer and factor are tried together, whatever made them; so are continuous gains,
    and all gains of a layer that does not feed the logits. Settings that come to the same are tried
    once: above all thresholds at either end, and all of factor 1, which edits nothing.

    Args:
      sweeps: of the settings' layers, on the same images.
      settings: one after the other.
      scores: of the units of each setting's layer.
      full: False counts hits only.
      progress: hears of the settings of layers where each takes seconds.

    Raises:
      InputError: scores that do not fit a layer.
    """
    groups: dict[tuple[str, float | None], list[int]] = {}  # numbers by layer and factor
    for number, setting in enumerate(settings):
        quick = sweeps[setting.layer].activations.feeds_logits
        factor = float(setting.factor) if quick and setting.kind != "continuous" else None
        groups.setdefault((setting.layer, factor), []).append(number)
    outcomes = []
    for (layer, factor), numbers in groups.items():
        sweep = sweeps[layer]
        rows = np.stack(
            [_row(settings[number], scores[number], factor is not None) for number in numbers]
        )
        _check_rows(sweep.activations, "scores", rows)
        if factor == 1:
            rows[:] = True  # whatever the mask
        distinct, copies = _distinct(rows)
        told = None if sweep.activations.feeds_logits else progress
        chunks = sweep.chunks(distinct, factor, full, told)
        tried = Outcomes.join([Outcomes(**cached(sweep.cache, *chunk)) for chunk in chunks])
        outcomes.append(tried.select(copies))
    in_order = np.argsort(np.concatenate(list(groups.values())))
    return Outcomes.join(outcomes).select(in_order)


def _row(setting: Setting, scores: np.ndarray, masked: bool) -> np.ndarray:
    """The mask that a setting makes of scores [U], or its gains where they are asked for."""
    mask = mask_of(setting, scores) if masked else None
    return gains_of(setting, scores) if mask is None else mask


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, Int[np.ndarray, " S"]]:
    """The different rows in the order of their first, and for each row the number of its like."""
    numbers: dict[bytes, int] = {}
    copies = [numbers.setdefault(row.tobytes(), len(numbers)) for row in rows]
    first = np.unique(copies, return_index=True)[1]
    return rows[first], np.array(copies)


def _check_rows(layer: PreBiasActivations, name: str, rows: np.ndarray) -> None:
    if rows.ndim != 2 or rows.shape[1] != layer.units or not len(rows):
        raise InputError(
            f"layer {layer.layer} has {layer.units} units, the {name} have shape {rows.shape}"
        )


def _check_factor(factor: float) -> None:
    if not 0 < factor < float("inf"):
        raise InputError(f"a factor is a positive number, not {factor}")
