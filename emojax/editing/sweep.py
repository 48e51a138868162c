"""Thousands of edits of one layer: the network before it runs once per image, and only what follows is repeated.

For a dense layer that feeds the logits, an edit by mask and factor leaves every unit one of two outputs, whatever the
other units do, so the logits are affine in the mask. Thousands of masks are then one matrix product, and every
threshold on a score is a running sum over units in order of score. Any other layer is finished once per setting.

Sums of thousands of terms round differently in different orders, so where an image's two best classes are as good as
equal, these paths and a plain evaluation may name different ones. `Outcomes.near_ties` counts those images, and
`correct` is exact up to that number; `evaluate_gains` is the plain arithmetic for the one setting that matters.
Shapes: I images, U units, C classes, S settings, T tile.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from emojax.distributed.data_parallel import default_tile, in_tiles
from emojax.distributed.mesh import AXIS, host_readable, make_mesh, put_replicated
from emojax.editing.activations import After, Head, LayerInputs, Progress, active
from emojax.editing.edit import Setting
from emojax.errors import InputError
from emojax.ops import gains as ops
from emojax.ops.gains import Scope
from emojax.store import cached, content_key
from emojax.training.evaluate import Evaluation

_FORMAT = 2  # of what is kept on disk; part of its key
_CHUNK = 512  # settings computed together
_BLOCK = 32  # units whose running sums are one small matrix product
_NEAR = 1e-5  # of logits' size: float32 sums over 4,096 units stay well within


@dataclass(frozen=True)
class Outcomes:
    """What each of S settings gave on a labelled set.

    Attributes:
      hits: correct images per class [S, C].
      sizes: images per class [C].
      nll: mean negative log-likelihood [S] float64.
      near_ties: images [S] whose two best logits are too close for float32 to order; `correct` is exact up to these.
      predictions: predicted class [S, I] uint8.

    The last three are None where only hits were asked for.
    """

    hits: np.ndarray
    sizes: np.ndarray
    nll: np.ndarray | None = None
    near_ties: np.ndarray | None = None
    predictions: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.hits)

    @property
    def correct(self) -> np.ndarray:
        """Correct images [S]."""
        return self.hits.sum(axis=1)

    @property
    def accuracy(self) -> np.ndarray:
        """Share of correct images [S]."""
        return self.correct / self.sizes.sum()

    @property
    def macro_recall(self) -> np.ndarray:
        """Mean recall of the classes that have images [S]."""
        present = self.sizes > 0
        return (self.hits[:, present] / self.sizes[present]).mean(axis=1)

    def map(self, function: Callable[..., np.ndarray], *others: "Outcomes") -> "Outcomes":
        """Applies a function to every array that has a row per setting."""
        rows = {f.name: [getattr(x, f.name) for x in (self, *others)] for f in fields(self) if f.name != "sizes"}
        return replace(self, **{name: None if x[0] is None else function(*x) for name, x in rows.items()})


_Settings = tuple[jax.Array, jax.Array]  # masks or an order, and a factor


class _Tally(NamedTuple):
    """Of a tile: hits [1, S, C], and when asked for nll and near ties [1, S] and predictions [T, S]."""

    hits: jax.Array
    nll: jax.Array | None = None
    near_ties: jax.Array | None = None
    predictions: jax.Array | None = None


def _tally(logits: jax.Array, labels: jax.Array, full: bool) -> _Tally:
    """Logits [S, C, T], one class as good as any other up to a shift; labels [T], −1 for padding."""
    classes = jnp.arange(logits.shape[1])[:, None]
    best = logits.max(axis=1)
    # As argmax does, ties go to the lower class; this form is vectorised on a CPU, argmax is not.
    predictions = jnp.where(logits == best[:, None], classes, logits.shape[1]).min(axis=1)
    own = (classes == labels).astype(logits.dtype)
    hits = ((predictions == labels).astype(logits.dtype) @ own.T).astype(jnp.int32)
    if not full:
        return _Tally(hits[None])
    second = jnp.where(classes == predictions[:, None], -jnp.inf, logits).max(axis=1)
    size = 1.0 + jnp.abs(logits - logits[:, :1]).max(axis=1)
    near = (best - second <= _NEAR * size) & (labels >= 0)
    loss = jnp.log(jnp.exp(logits - best[:, None]).sum(axis=1)) + best - (logits * own).sum(axis=1)
    nll = jnp.where(labels >= 0, loss, 0.0).sum(axis=1)
    return _Tally(hits[None], nll[None], near.sum(axis=1)[None], predictions.astype(jnp.uint8).T)


def _by_gains(after: After, scope: Scope, full: bool, params: Any, gains: jax.Array, values: jax.Array, labels: jax.Array):
    """Any gains [S, U] on any layer: what follows the layer is repeated."""
    logits = jax.lax.map(lambda gain: after(params, values, ops.with_scope(gain, scope)).T, gains)
    return _tally(logits, labels, full)


def _two_outputs(head: Head, scope: Scope, factor: jax.Array, values: jax.Array) -> tuple[Head, jax.Array, jax.Array]:
    """The two outputs that a unit can have, as all that masks need.

    Returns the head with logits relative to the first class, which saves a class; logits [T, C − 1] with no unit in the
    mask; and by how much each unit's output differs when it is in [T, U].
    """
    head = head._replace(weight=head.weight[:, 1:] - head.weight[:, :1], offset=head.offset[1:] - head.offset[:1])
    gains = (ops.with_scope(gain, scope) for gain in (factor, 1.0 / factor))
    inside, outside = (active(head, values, gain) for gain in gains)
    return head, outside @ head.weight + head.offset, inside - outside


def _with_first(logits: jax.Array) -> jax.Array:
    """Relative logits [S, C − 1, T] → [S, C, T]."""
    return jnp.pad(logits, ((0, 0), (1, 0), (0, 0)))


def _by_masks(
    _: After,
    scope: Scope,
    full: bool,
    head: Head,
    settings: _Settings,
    values: jax.Array,
    labels: jax.Array,
) -> _Tally:
    """Masks [S, U] with one factor: logits = base + mask · (change × weight), one matrix product for all classes."""
    masks, factor = settings
    head, base, change = _two_outputs(head, scope, factor, values)
    terms = change[None] * head.weight.T[:, None]  # [C − 1, T, U]
    sums = masks.astype(terms.dtype) @ terms.reshape(-1, terms.shape[-1]).T
    return _tally(_with_first(sums.reshape(-1, *base.T.shape) + base.T), labels, full)


def _by_cuts(
    _: After,
    scope: Scope,
    full: bool,
    head: Head,
    settings: _Settings,
    values: jax.Array,
    labels: jax.Array,
) -> _Tally:
    """Every cut of an order of units: cut k has the first k of `order` [U] in the mask; U + 1 settings.

    Units pass in blocks. A block's running sums are a product with a triangle of ones; a scan carries the logits on.
    """
    order, factor = settings
    head, base, change = _two_outputs(head, scope, factor, values)
    units = len(order)
    pad = -(units + 1) % _BLOCK + 1  # to whole blocks, and at least one unit of no weight: the cut after the last
    changes = jnp.pad(change.T[order], ((0, pad), (0, 0))).reshape(-1, _BLOCK, len(labels))
    weights = jnp.pad(head.weight[order], ((0, pad), (0, 0))).reshape(-1, _BLOCK, head.weight.shape[1])
    before = jnp.tril(jnp.ones((_BLOCK, _BLOCK)), -1)

    def block(logits: jax.Array, terms: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, _Tally]:
        terms = terms[0][:, None, :] * terms[1][:, :, None]  # [block, C − 1, T]
        cuts = logits + (before @ terms.reshape(_BLOCK, -1)).reshape(terms.shape)
        return cuts[-1] + terms[-1], _tally(_with_first(cuts), labels, full)

    tallies = jax.lax.scan(block, base.T, (changes, weights))[1]  # [blocks, 1, block, ..]; predictions [blocks, T, block]
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, : units + 1], tallies)


def _logits(after: After, scope: Scope, _: bool, params: Any, gain: jax.Array, values: jax.Array, labels: jax.Array):
    """Logits [T, C] of one setting of gains [U]."""
    return after(params, values, ops.with_scope(gain, scope))


_TILES = {_by_gains: 1, _by_masks: 4, _by_cuts: 8, _logits: 1}  # × the tile of an evaluation: what keeps a device busy


@functools.lru_cache(maxsize=64)
def _program(kernel: Callable[..., Any], after: After, scope: Scope, full: bool, mesh: Mesh, tile: int):
    """A kernel over tiles of images, which are split over the mesh; compiled once per shape of the settings."""

    def local(params: Any, settings: Any, values: jax.Array, labels: jax.Array) -> Any:
        with jax.default_matmul_precision("highest"):
            return in_tiles(functools.partial(kernel, after, scope, full, params, settings), tile, values, labels)

    whole, parts = PartitionSpec(), PartitionSpec(AXIS)
    specs = {"in_specs": (whole, whole, parts, parts), "out_specs": parts, "check_vma": False}
    return jax.jit(jax.shard_map(local, mesh=mesh, **specs), out_shardings=host_readable(mesh))


def _run(kernel: Callable[..., Any], inputs: LayerInputs, settings: Any, scope: Scope, full: bool, mesh: Mesh | None) -> Any:
    """The kernel's results over all images, as numpy arrays joined along the first axis."""
    mesh, tile = mesh or make_mesh(), default_tile() * _TILES[kernel]
    program = _program(kernel, inputs.after, scope, full, mesh, tile)
    params, settings = put_replicated(mesh, (inputs.params, settings))
    parts = [program(params, settings, *batch) for batch in inputs.batches(mesh, tile)]
    return jax.tree.map(lambda *x: np.concatenate([np.asarray(part) for part in x]), *parts)


def _count(kernel: Callable[..., Any], inputs: LayerInputs, settings: Any, scope: Scope, full: bool, mesh: Mesh | None):
    """Outcomes of a kernel that tallies."""
    tally = _run(kernel, inputs, settings, scope, full, mesh)
    found = Outcomes(tally.hits.sum(axis=0), np.bincount(inputs.labels, minlength=len(inputs.classes)))
    if not full:
        return found
    nll = tally.nll.sum(axis=0, dtype=np.float64) / len(inputs.labels)
    predictions = tally.predictions[: len(inputs.labels)].T
    return replace(found, nll=nll, near_ties=tally.near_ties.sum(axis=0), predictions=predictions)


def _cached(store: Path | None, key: Any, compute: Callable[[], Outcomes]) -> Outcomes:
    """Outcomes of a chunk from the folder `store`, or computed and cached there."""

    def arrays() -> dict[str, np.ndarray]:
        values = vars(compute())
        return {name: array for name, array in values.items() if array is not None}

    return Outcomes(**cached(store, content_key([_FORMAT, key]), arrays))


def _in_chunks(
    kernel: Callable[..., Any],
    inputs: LayerInputs,
    rows: np.ndarray,
    also: tuple[Any, ...],
    scope: Scope,
    full: bool,
    store: Path | None,
    progress: Progress | None,
    mesh: Mesh | None,
) -> Outcomes:
    """Settings [S, U] in chunks of one shape, each kept as soon as it is done."""
    size = min(_CHUNK, 1 << (len(rows) - 1).bit_length())
    chunks = []
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        padded = np.pad(chunk, ((0, size - len(chunk)), (0, 0)))
        settings = (padded, *map(np.float32, also)) if also else padded
        key = [kernel.__name__, inputs.key, chunk, list(also), scope, full]
        chunks.append(_cached(store, key, functools.partial(_count, kernel, inputs, settings, scope, full, mesh)))
        if progress is not None:
            progress(min(start + size, len(rows)), len(rows))
    return chunks[0].map(lambda *x: np.concatenate(x)[: len(rows)], *chunks[1:])


def try_gains(
    inputs: LayerInputs,
    gains: np.ndarray | jax.Array,
    *,
    scope: Scope = "weights",
    full: bool = True,
    store: Path | None = None,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
) -> Outcomes:
    """What each of S settings of gains [S, U] gives, on any layer.

    `full=False` counts hits only. With `store`, a folder, finished chunks of settings are kept there, and a sweep that
    was stopped goes on after the last of them.

    Raises:
      InputError: the gains do not fit the layer, or are not finite.
    """
    gains = np.asarray(gains, np.float32)
    _check(inputs, "gains", gains)
    if not np.isfinite(gains).all():
        raise InputError(f"the gains for layer {inputs.layer} are not all finite")
    return _in_chunks(_by_gains, inputs, gains, (), scope, full, store, progress, mesh)


def try_masks(
    inputs: LayerInputs,
    masks: np.ndarray,
    factor: float,
    *,
    scope: Scope = "weights",
    full: bool = True,
    store: Path | None = None,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
) -> Outcomes:
    """What ×factor on the units of each of S masks [S, U], and ÷factor on the others, gives; options as `try_gains`.

    Raises:
      InputError: the masks do not fit the layer, or the factor is not positive.
    """
    masks = np.asarray(masks, bool)
    _check(inputs, "masks", masks)
    _check_factor(factor)
    if not inputs.feeds_logits:
        options = {"scope": scope, "full": full, "store": store, "progress": progress, "mesh": mesh}
        return try_gains(inputs, ops.from_mask(masks, factor), **options)
    return _in_chunks(_by_masks, inputs, masks, (float(factor),), scope, full, store, progress, mesh)


@dataclass(frozen=True)
class Thresholds:
    """Every threshold on the scores of a layer's units, with one factor.

    Attributes:
      factor: of the units above the threshold.
      scores: the units' scores in falling order [U].
      outcomes: of U + 1 settings; number k has the k units of the highest scores above the threshold.
    """

    factor: float
    scores: np.ndarray
    outcomes: Outcomes

    def cut(self, tau: float) -> int:
        """The number of the setting with this threshold: how many scores exceed tau."""
        return int((self.scores > np.float32(tau)).sum())

    def reachable(self) -> np.ndarray:
        """Which settings some threshold gives [U + 1]: those that do not part equal scores."""
        return np.concatenate([[True], self.scores[1:] < self.scores[:-1], [True]])


def every_threshold(
    inputs: LayerInputs,
    scores: np.ndarray,
    factors: Sequence[float],
    *,
    scope: Scope = "weights",
    full: bool = True,
    store: Path | None = None,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
) -> list[Thresholds]:
    """All U + 1 outcomes of thresholding the scores [U], for each factor; options as `try_gains`.

    Raises:
      InputError: the scores do not fit the layer or are not finite, or a factor is not positive.
    """
    scores = np.asarray(scores, np.float32)
    _check(inputs, "scores", scores[None])
    if not np.isfinite(scores).all():
        raise InputError(f"the scores for layer {inputs.layer} are not all finite")
    order, units = np.argsort(-scores, kind="stable"), inputs.units
    found = []
    for done, factor in enumerate(factors, start=1):
        _check_factor(factor)
        if inputs.feeds_logits:
            settings = (order.astype(np.int32), np.float32(factor))
            key = [_by_cuts.__name__, inputs.key, order, float(factor), scope, full]
            outcomes = _cached(store, key, functools.partial(_count, _by_cuts, inputs, settings, scope, full, mesh))
        else:
            masks = np.argsort(order)[None, :] < np.arange(units + 1)[:, None]
            outcomes = try_masks(inputs, masks, factor, scope=scope, full=full, store=store, mesh=mesh)
        found.append(Thresholds(factor, scores[order], outcomes))
        if progress is not None:
            progress(done, len(factors))
    return found


def try_settings(
    inputs: Mapping[str, LayerInputs],
    trials: Sequence[tuple[Setting, np.ndarray]],
    *,
    scope: Scope = "weights",
    full: bool = True,
    store: Path | None = None,
    mesh: Mesh | None = None,
) -> Outcomes:
    """What settings with their scores [U] give, in their order; masks of one layer and factor go together.

    `inputs` are those of every layer that the settings edit, on one image set; options as `try_gains`.
    """
    groups: dict[tuple[str, float | None], list[int]] = {}
    for at, (setting, _) in enumerate(trials):
        groups.setdefault((setting.layer, None if setting.kind == "continuous" else setting.factor), []).append(at)
    options, parts = {"scope": scope, "full": full, "store": store, "mesh": mesh}, []
    for (layer, factor), rows in groups.items():
        mine = [trials[at] for at in rows]
        if factor is None:
            gains = np.stack([setting.gains(scores) for setting, scores in mine])
            parts.append(try_gains(inputs[layer], gains, **options))
        else:
            masks = np.stack([setting.mask(scores) for setting, scores in mine])
            parts.append(try_masks(inputs[layer], masks, factor, **options))
    in_order = np.argsort(np.concatenate(list(groups.values())))
    return parts[0].map(lambda *x: np.concatenate(x)[in_order], *parts[1:])


def evaluate_gains(
    inputs: LayerInputs, gains: np.ndarray | jax.Array, *, scope: Scope = "weights", mesh: Mesh | None = None
) -> Evaluation:
    """One setting of gains [U] by the plain arithmetic, with its logits.

    Raises:
      InputError: the gains do not fit the layer.
    """
    gains = np.asarray(gains, np.float32)
    _check(inputs, "gains", gains[None])
    logits = _run(_logits, inputs, gains, scope, True, mesh)
    return Evaluation(logits[: len(inputs.labels)], inputs.labels, inputs.classes)


def _check(inputs: LayerInputs, what: str, rows: np.ndarray) -> None:
    if rows.ndim != 2 or rows.shape[1] != inputs.units or not len(rows):
        raise InputError(f"layer {inputs.layer} has {inputs.units} units, the {what} have shape {rows.shape}")


def _check_factor(factor: float) -> None:
    if not 0 < factor < float("inf"):
        raise InputError(f"a factor is a positive number, not {factor}")
