"""Thousands of edits of one layer: the network before it runs once, and what follows is repeated.

For a dense layer that feeds the logits, an edit by mask and factor leaves every unit one of two
outputs, whatever the other units do, so the logits are affine in the mask. Thousands of masks are
then one matrix product, and every threshold on a score is a running sum over units in order of
score. Any other layer is finished once per setting.

Sums of thousands of terms round differently in different orders, so where an image's two best
classes are as good as equal, these paths and a plain evaluation may name different ones.
`Outcomes.near_ties` counts those images, and `correct` is exact up to that number;
`Sweep.evaluate` is the plain arithmetic for the one setting that matters.
Shapes: I images, U units, C classes, S settings, T tile.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8

from emojax.distributed.data_parallel import data_parallel, default_tile
from emojax.distributed.mesh import make_mesh, put_replicated
from emojax.editing.activations import After, Head, PreBiasActivations, Progress, unit_outputs
from emojax.editing.edit import gains_of, mask_of
from emojax.editing.search import Scope, Setting
from emojax.errors import InputError
from emojax.ops import gains as ops
from emojax.store import cached, content_key
from emojax.training.evaluate import Evaluation

_FORMAT = 2  # of what is cached on disk; part of its key
_CHUNK = 512  # settings computed together
_SLOW_CHUNK = 32  # the same where each takes seconds: what is lost when a run is stopped
_BLOCK = 32  # units whose running sums are one small matrix product
_NEAR = 1e-5  # of logits' size: float32 sums over 4,096 units stay well within


@dataclass(frozen=True)
class Outcomes:
    """What each of S settings gave on a labelled set.

    Attributes:
      hits: correct images per class [S, C].
      sizes: images per class [C].
      nll: mean negative log-likelihood [S] float64.
      near_ties: images [S] whose two best logits are too close for float32 to order; `correct` is
        exact up to these.
      predictions: predicted class [S, I].

    The last three are None where only hits were asked for.
    """

    hits: Int[np.ndarray, "S C"]
    sizes: Int[np.ndarray, " C"]
    nll: Float[np.ndarray, " S"] | None = None
    near_ties: Int[np.ndarray, " S"] | None = None
    predictions: UInt8[np.ndarray, "S I"] | None = None

    def __len__(self) -> int:
        return len(self.hits)

    @property
    def correct(self) -> Int[np.ndarray, " S"]:
        """Correct images."""
        return self.hits.sum(axis=1)

    @property
    def accuracy(self) -> Float[np.ndarray, " S"]:
        """Share of correct images."""
        return self.correct / self.sizes.sum()

    @property
    def macro_recall(self) -> Float[np.ndarray, " S"]:
        """Mean recall of the classes that have images."""
        present = self.sizes > 0
        return (self.hits[:, present] / self.sizes[present]).mean(axis=1)

    def select(self, rows: np.ndarray | slice) -> "Outcomes":
        """The outcomes of some settings, or of all in another order."""
        named = vars(self).items()
        arrays = {name: array[rows] for name, array in named if _has_settings(name, array)}
        return replace(self, **arrays)

    @staticmethod
    def join(chunks: Sequence["Outcomes"]) -> "Outcomes":
        """The outcomes of several chunks of settings on the same set."""
        first = chunks[0]
        arrays = {
            name: np.concatenate([getattr(chunk, name) for chunk in chunks])
            for name, array in vars(first).items()
            if _has_settings(name, array)
        }
        return replace(first, **arrays)


def _has_settings(name: str, array: np.ndarray | None) -> bool:
    """Whether an array of `Outcomes` is there and has a row per setting."""
    return array is not None and name != "sizes"


class _Tally(NamedTuple):
    """Counts of a tile of images; where only hits are counted, the rest is None.

    Attributes:
      hits: [1, S, C].
      nll: sums of losses [1, S].
      near_ties: [1, S].
      predictions: [T, S].
    """

    hits: jax.Array
    nll: jax.Array | None = None
    near_ties: jax.Array | None = None
    predictions: jax.Array | None = None


Count = Callable[[jax.Array, jax.Array], _Tally]

# The kernels: pure functions of a tile of images. Their first arguments are fixed at compilation.


def _predicted(logits: Float[Array, "S C T"]) -> Int[Array, "S T"]:
    """The class of the largest logit; ties go to the lower class, as `argmax` has it."""
    classes = jnp.arange(logits.shape[1])[:, None]
    best = logits.max(axis=1)
    # Unlike argmax, a comparison and a minimum are vectorised on a CPU.
    return jnp.where(logits == best[:, None], classes, logits.shape[1]).min(axis=1)


def _count_hits(logits: Float[Array, "S C T"], labels: Int[Array, " T"]) -> _Tally:
    """Hits per class; a label of −1 is padding and no class's hit."""
    classes = jnp.arange(logits.shape[1])[:, None]
    own = (classes == labels).astype(logits.dtype)
    right = (_predicted(logits) == labels).astype(logits.dtype)
    return _Tally((right @ own.T).astype(jnp.int32)[None])


def _count_all(logits: Float[Array, "S C T"], labels: Int[Array, " T"]) -> _Tally:
    """Hits, losses, near ties and predictions; a shift of all logits of an image changes none."""
    classes = jnp.arange(logits.shape[1])[:, None]
    best = logits.max(axis=1)
    predictions = _predicted(logits)
    second = jnp.where(classes == predictions[:, None], -jnp.inf, logits).max(axis=1)
    # Sums round in proportion to the size of the logits, not of their difference.
    size = 1.0 + jnp.abs(logits - logits[:, :1]).max(axis=1)
    near = (best - second <= _NEAR * size) & (labels >= 0)
    own = (classes == labels).astype(logits.dtype)
    loss = jnp.log(jnp.exp(logits - best[:, None]).sum(axis=1)) + best - (logits * own).sum(axis=1)
    nll = jnp.where(labels >= 0, loss, 0.0).sum(axis=1)
    return _Tally(
        hits=_count_hits(logits, labels).hits,
        nll=nll[None],
        near_ties=near.sum(axis=1)[None],
        predictions=predictions.astype(jnp.uint8).T,
    )


def _logits(
    after: After, scope: Scope, params: PyTree, gain: Float[Array, " U"], values: jax.Array
) -> Float[Array, "T C"]:
    """Logits of one setting of gains."""
    return after(params, values, ops.with_scope(gain, scope))


def _each_logits(
    after: After, scope: Scope, params: PyTree, gains: Float[Array, "S U"], values: jax.Array
) -> Float[Array, "T S C"]:
    """Logits of several settings of gains."""

    def one(gain: Float[Array, " U"]) -> Float[Array, "T C"]:
        return after(params, values, ops.with_scope(gain, scope))

    return jax.lax.map(one, gains).swapaxes(0, 1)


def _by_gains(
    after: After,
    scope: Scope,
    count: Count,
    params: PyTree,
    gains: Float[Array, "S U"],
    values: jax.Array,
    labels: Int[Array, " T"],
) -> _Tally:
    """Any gains on any layer: what follows the layer is repeated."""

    def one(gain: Float[Array, " U"]) -> Float[Array, "C T"]:
        return after(params, values, ops.with_scope(gain, scope)).T

    return count(jax.lax.map(one, gains), labels)


class _TwoOutputs(NamedTuple):
    """The two outputs that a unit can have, as all that masks need.

    Attributes:
      weight: [U, C − 1], relative to the first class's, which saves a class.
      base: relative logits [T, C − 1] with no unit in the mask.
      change: by how much each unit's output differs when it is in the mask [T, U].
    """

    weight: jax.Array
    base: jax.Array
    change: jax.Array


def _two_outputs(
    scope: Scope, head: Head, factor: Float[Array, ""], values: Float[Array, "T U"]
) -> _TwoOutputs:
    # Predictions, losses and near ties depend on differences of logits only.
    weight = jnp.asarray(head.weight[:, 1:] - head.weight[:, :1])
    offset = head.offset[1:] - head.offset[:1]
    inside = unit_outputs(head, values, ops.with_scope(factor, scope))
    outside = unit_outputs(head, values, ops.with_scope(1.0 / factor, scope))
    return _TwoOutputs(weight, outside @ weight + offset, inside - outside)


def _with_first_class(relative: Float[Array, "S C_less_1 T"]) -> Float[Array, "S C T"]:
    """Logits relative to the first class, and its own, which are 0."""
    return jnp.pad(relative, ((0, 0), (1, 0), (0, 0)))


class _Masks(NamedTuple):
    """Masks [S, U] of the units that `factor` multiplies; it divides the others."""

    rows: jax.Array | np.ndarray
    factor: jax.Array | np.float32


class _Order(NamedTuple):
    """An order of units [U]; cut k multiplies the first k by `factor` and divides the others."""

    units: jax.Array | np.ndarray
    factor: jax.Array | np.float32


def _by_masks(
    scope: Scope,
    count: Count,
    head: Head,
    masks: _Masks,
    values: Float[Array, "T U"],
    labels: Int[Array, " T"],
) -> _Tally:
    """logits = base + mask · (change × weight): one matrix product for all masks and classes."""
    weight, base, change = _two_outputs(scope, head, jnp.asarray(masks.factor), values)
    terms = change[None] * weight.T[:, None]  # [C − 1, T, U]
    sums = jnp.asarray(masks.rows).astype(terms.dtype) @ terms.reshape(-1, terms.shape[-1]).T
    return count(_with_first_class(sums.reshape(-1, *base.T.shape) + base.T), labels)


def _by_cuts(
    scope: Scope,
    count: Count,
    head: Head,
    order: _Order,
    values: Float[Array, "T U"],
    labels: Int[Array, " T"],
) -> _Tally:
    """Every cut of an order of units, U + 1 settings: running sums of each unit's change.

    A running sum would add U terms one after the other. Instead units pass in blocks: the running
    sums within a block are one product with a triangle of ones, and a scan carries the logits from
    block to block.
    """
    weight, base, change = _two_outputs(scope, head, jnp.asarray(order.factor), values)
    units = len(order.units)
    # To whole blocks, with at least one unit of no weight: the cut after the last unit is its row.
    pad = -(units + 1) % _BLOCK + 1
    changes = jnp.pad(change.T[order.units], ((0, pad), (0, 0)))
    weights = jnp.pad(weight[order.units], ((0, pad), (0, 0)))
    changes = changes.reshape(-1, _BLOCK, len(labels))
    weights = weights.reshape(-1, _BLOCK, weight.shape[1])
    before = jnp.tril(jnp.ones((_BLOCK, _BLOCK)), -1)  # row k sums the units before the k-th

    def block(
        logits: Float[Array, "C_less_1 T"], of_units: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, _Tally]:
        change, weight = of_units
        terms = change[:, None, :] * weight[:, :, None]  # [block, C − 1, T]
        cuts = logits + (before @ terms.reshape(_BLOCK, -1)).reshape(terms.shape)
        return cuts[-1] + terms[-1], count(_with_first_class(cuts), labels)

    tallies = jax.lax.scan(block, base.T, (changes, weights))[1]

    def in_order(array: jax.Array) -> jax.Array:
        # [blocks, rows, block, ..] → [rows, settings, ..], without the padding
        joined = jnp.moveaxis(array, 0, 1).reshape(array.shape[1], -1, *array.shape[3:])
        return joined[:, : units + 1]

    return jax.tree.map(in_order, tallies)


# × the tile of an evaluation: rows that keep a device busy
_TILES = {_by_gains: 1, _by_masks: 4, _by_cuts: 8, _logits: 1, _each_logits: 1}
# Behind a dense layer that does not feed the logits come large kernels, read anew for every tile.
_TILES_BEFORE_DENSE = 8


@functools.lru_cache(maxsize=64)
def _program(
    kernel: Callable[..., PyTree], fixed: tuple[object, ...], sharded: int, mesh: Mesh, tile: int
) -> Callable[..., PyTree]:
    """A kernel over tiles of images, sharded over the mesh; compiled once per shape of settings."""
    function = functools.partial(kernel, *fixed)
    return data_parallel(function, mesh, replicated=2, sharded=sharded, tile=tile)


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


def _row(setting: Setting, scores: np.ndarray) -> np.ndarray:
    """The mask that a setting makes of scores [U], or its gains where they are continuous."""
    mask = mask_of(setting, scores)
    return gains_of(setting, scores) if mask is None else mask


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, Int[np.ndarray, " S"]]:
    """The different rows in the order of their first, and for each row the number of its like."""
    numbers: dict[bytes, int] = {}
    copies = [numbers.setdefault(row.tobytes(), len(numbers)) for row in rows]
    first = np.unique(copies, return_index=True)[1]
    return rows[first], np.array(copies)


def _joined(cache: Path | None, chunks: Iterable[_Chunk], settings: int) -> Outcomes:
    """The outcomes of so many settings from those of their chunks, the last one padded.

    A chunk that is in the cache is read, any other counted and cached.
    """
    outcomes = [Outcomes(**cached(cache, key, count)) for key, count in chunks]
    return Outcomes.join(outcomes).select(slice(settings))


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
        self._check("gains", rows)
        if not np.isfinite(rows).all():
            raise InputError(f"the gains for layer {self.activations.layer} are not all finite")
        chunks = self._chunks(rows, None, full, progress)
        return _joined(self.cache, chunks, len(rows))

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
        self._check("masks", rows)
        _check_factor(factor)
        chunks = self._chunks(rows, float(factor), full, progress)
        return _joined(self.cache, chunks, len(rows))

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
        self._check("scores", scores[None])
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
                chunks = self._chunks(masks, float(factor), full)
            outcomes = _joined(self.cache, chunks, settings)
            thresholds.append(Thresholds(factor, scores[order], outcomes))
            if progress is not None:
                progress(done, len(factors))
        return thresholds

    def settings(
        self,
        settings: Sequence[Setting],
        scores: Sequence[np.ndarray],
        *,
        full: bool = True,
        progress: Progress | None = None,
    ) -> Outcomes:
        """What settings of this layer give, each with its own scores [U], in their order.

        Masks with one factor are tried together, whatever made them; so are continuous gains.
        Settings that come to the same are tried once: above all thresholds at either end, and all
        of factor 1, which edits nothing. `progress` hears of settings where each takes seconds.
        """
        if not self.activations.feeds_logits:
            gains = [gains_of(one, own) for one, own in zip(settings, scores, strict=True)]
            rows = np.stack(gains)
            self._check("scores", rows)
            distinct, copies = _distinct(rows)
            return self.gains(distinct, full=full, progress=progress).select(copies)
        groups: dict[float | None, list[int]] = {}  # numbers of settings by factor
        for number, setting in enumerate(settings):
            factor = None if setting.kind == "continuous" else float(setting.factor)
            groups.setdefault(factor, []).append(number)
        outcomes = []
        for factor, numbers in groups.items():
            rows = np.stack([_row(settings[number], scores[number]) for number in numbers])
            self._check("scores", rows)
            if factor == 1:
                rows[:] = True  # whatever the mask
            distinct, copies = _distinct(rows)
            chunks = self._chunks(distinct, factor, full)
            outcomes.append(_joined(self.cache, chunks, len(distinct)).select(copies))
        back = np.argsort(np.concatenate(list(groups.values())))
        return Outcomes.join(outcomes).select(back)

    def evaluate(self, gains: np.ndarray | jax.Array) -> Evaluation:
        """One setting of gains [U] by the plain arithmetic, with its logits.

        Raises:
          InputError: the gains do not fit the layer.
        """
        gains = np.asarray(gains, np.float32)
        self._check("gains", gains[None])
        layer = self.activations
        return Evaluation(self._run_logits(_logits, gains), layer.labels, layer.classes)

    def evaluate_each(self, gains: np.ndarray | jax.Array) -> list[Evaluation]:
        """Several settings of gains [S, U] by the plain arithmetic, with their logits [I, C] each.

        Raises:
          InputError: the gains do not fit the layer.
        """
        gains = np.asarray(gains, np.float32)
        self._check("gains", gains)
        layer = self.activations
        logits = self._run_logits(_each_logits, gains)
        return [
            Evaluation(logits[:, number], layer.labels, layer.classes)
            for number in range(len(gains))
        ]

    def _run_logits(self, kernel: Callable[..., jax.Array], gains: np.ndarray) -> np.ndarray:
        """The logits of all images, which come first."""
        layer = self.activations
        mesh = self.mesh or make_mesh()
        tile = default_tile() * _TILES[kernel]
        program = _program(kernel, (layer.after, self.scope), 1, mesh, tile)
        params = layer.params_on(mesh)
        settings = put_replicated(mesh, gains)
        logits = []
        for values, _ in layer.batches(mesh, tile):
            logits.append(np.asarray(program(params, settings, values)))
        return np.concatenate(logits)[: len(layer.labels)]

    def _chunks(
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
        kernel = _by_gains if factor is None else _by_masks
        # A power of two at most: few shapes, hence few compilations.
        largest = _CHUNK if layer.feeds_logits else _SLOW_CHUNK
        size = min(largest, 1 << (len(rows) - 1).bit_length())
        for start in range(0, len(rows), size):
            chunk = rows[start : start + size]
            settings = np.pad(chunk, ((0, size - len(chunk)), (0, 0)))
            if factor is not None:
                settings = _Masks(settings, np.float32(factor))
            factors = [] if factor is None else [factor]
            key = [kernel.__name__, layer.key, chunk, factors, self.scope, full]
            count = functools.partial(self._count, kernel, settings, full)
            yield _Chunk(content_key([_FORMAT, key]), count)
            if progress is not None:
                progress(min(start + size, len(rows)), len(rows))

    def _cuts(self, order: np.ndarray, factor: float, full: bool) -> _Chunk:
        """All cuts of an order of units [U], which are one chunk."""
        settings = _Order(order.astype(np.int32), np.float32(factor))
        key = [_by_cuts.__name__, self.activations.key, order, factor, self.scope, full]
        count = functools.partial(self._count, _by_cuts, settings, full)
        return _Chunk(content_key([_FORMAT, key]), count)

    def _count(
        self,
        kernel: Callable[..., _Tally],
        settings: np.ndarray | _Masks | _Order,
        full: bool,
    ) -> dict[str, np.ndarray]:
        """Runs a kernel over all images and adds up its tallies: the arrays of `Outcomes`."""
        layer = self.activations
        mesh = self.mesh or make_mesh()
        tile = default_tile() * _TILES[kernel]
        if kernel is _by_gains and layer.values.ndim == 2 and not layer.feeds_logits:
            tile *= _TILES_BEFORE_DENSE
        count = _count_all if full else _count_hits
        fixed = (layer.after, self.scope, count) if kernel is _by_gains else (self.scope, count)
        program = _program(kernel, fixed, 2, mesh, tile)
        params = layer.params_on(mesh)
        settings = put_replicated(mesh, settings)
        tallies: list[_Tally] = []
        for values, labels in layer.batches(mesh, tile):
            tallies.append(program(params, settings, values, labels))
        fields = [field for field in _Tally._fields if getattr(tallies[0], field) is not None]
        joined = {
            field: np.concatenate([np.asarray(getattr(tally, field)) for tally in tallies])
            for field in fields
        }
        arrays = {
            "hits": joined["hits"].sum(axis=0),
            "sizes": np.bincount(layer.labels, minlength=len(layer.classes)),
        }
        if full:
            images = len(layer.labels)
            # Tiles add up in float64, or the sum would depend on how many there are.
            arrays["nll"] = joined["nll"].sum(axis=0, dtype=np.float64) / images
            arrays["near_ties"] = joined["near_ties"].sum(axis=0)
            arrays["predictions"] = joined["predictions"][:images].T
        return arrays

    def _check(self, name: str, rows: np.ndarray) -> None:
        layer = self.activations
        if rows.ndim != 2 or rows.shape[1] != layer.units or not len(rows):
            raise InputError(
                f"layer {layer.layer} has {layer.units} units, the {name} have shape {rows.shape}"
            )


def _check_factor(factor: float) -> None:
    if not 0 < factor < float("inf"):
        raise InputError(f"a factor is a positive number, not {factor}")
