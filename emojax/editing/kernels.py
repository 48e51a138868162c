"""The kernels of a sweep: pure functions of a tile of images, whatever devices and files do.

Each takes settings of one kind and counts what they give. Arguments before the settings are fixed
when a kernel is compiled (`editing/sweep.py` does that).
Shapes: U units, C classes, S settings, T tile.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from emojax.editing.activations import After, Batch, Head, unit_outputs
from emojax.editing.search import Scope
from emojax.ops import gains as ops

_BLOCK = 32  # units whose running sums are one small matrix product
_NEAR = 1e-5  # of logits' size: float32 sums over 4,096 units stay well within


class Tally(NamedTuple):
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


Count = Callable[[jax.Array, jax.Array], Tally]


def predicted(logits: Float[Array, "S C T"]) -> Int[Array, "S T"]:
    """The class of the largest logit; ties go to the lower class, as `argmax` has it."""
    classes = jnp.arange(logits.shape[1])[:, None]
    best = logits.max(axis=1)
    # Unlike argmax, a comparison and a minimum are vectorised on a CPU.
    return jnp.where(logits == best[:, None], classes, logits.shape[1]).min(axis=1)


def count_hits(logits: Float[Array, "S C T"], labels: Int[Array, " T"]) -> Tally:
    """Hits per class; a label of −1 is padding and no class's hit."""
    classes = jnp.arange(logits.shape[1])[:, None]
    own = (classes == labels).astype(logits.dtype)
    right = (predicted(logits) == labels).astype(logits.dtype)
    return Tally((right @ own.T).astype(jnp.int32)[None])


def count_all(logits: Float[Array, "S C T"], labels: Int[Array, " T"]) -> Tally:
    """Hits, losses, near ties and predictions; a shift of all logits of an image changes none."""
    classes = jnp.arange(logits.shape[1])[:, None]
    best = logits.max(axis=1)
    predictions = predicted(logits)
    second = jnp.where(classes == predictions[:, None], -jnp.inf, logits).max(axis=1)
    # Sums round in proportion to the size of the logits, not of their difference.
    size = 1.0 + jnp.abs(logits - logits[:, :1]).max(axis=1)
    near = (best - second <= _NEAR * size) & (labels >= 0)
    own = (classes == labels).astype(logits.dtype)
    loss = jnp.log(jnp.exp(logits - best[:, None]).sum(axis=1)) + best - (logits * own).sum(axis=1)
    nll = jnp.where(labels >= 0, loss, 0.0).sum(axis=1)
    return Tally(
        hits=count_hits(logits, labels).hits,
        nll=nll[None],
        near_ties=near.sum(axis=1)[None],
        predictions=predictions.astype(jnp.uint8).T,
    )


def logits_of(
    after: After, scope: Scope, params: PyTree, gain: Float[Array, " U"], values: jax.Array
) -> Float[Array, "T C"]:
    """Logits of one setting of gains."""
    return after(params, values, ops.with_scope(gain, scope))


def logits_of_each(
    after: After, scope: Scope, params: PyTree, gains: Float[Array, "S U"], values: jax.Array
) -> Float[Array, "T S C"]:
    """Logits of several settings of gains."""

    def setting(gain: Float[Array, " U"]) -> Float[Array, "T C"]:
        return after(params, values, ops.with_scope(gain, scope))

    return jax.lax.map(setting, gains).swapaxes(0, 1)


def by_gains(
    after: After,
    scope: Scope,
    count: Count,
    params: PyTree,
    gains: Float[Array, "S U"],
    batch: Batch,
) -> Tally:
    """Any gains on any layer: what follows the layer is repeated."""

    def setting(gain: Float[Array, " U"]) -> Float[Array, "C T"]:
        return after(params, batch.values, ops.with_scope(gain, scope)).T

    return count(jax.lax.map(setting, gains), batch.labels)


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


class Masks(NamedTuple):
    """Masks [S, U] of the units that `factor` multiplies; it divides the others."""

    rows: jax.Array | np.ndarray
    factor: jax.Array | np.float32


class Order(NamedTuple):
    """An order of units [U]; cut k multiplies the first k by `factor` and divides the others."""

    units: jax.Array | np.ndarray
    factor: jax.Array | np.float32


def by_masks(
    scope: Scope,
    count: Count,
    head: Head,
    masks: Masks,
    batch: Batch,
) -> Tally:
    """logits = base + mask · (change × weight): one matrix product for all masks and classes.

    A unit outside the mask adds nothing to `base`, one inside adds change · weight to each class's
    logit, whatever the other units do. So with one column of terms per class and image, a row of
    the product with the masks [S, U] is a setting's sums for all of them.
    """
    weight, base, change = _two_outputs(scope, head, jnp.asarray(masks.factor), batch.values)
    with jax.named_scope("product"):
        terms = change[None] * weight.T[:, None]  # [C − 1, T, U]
        sums = jnp.asarray(masks.rows).astype(terms.dtype) @ terms.reshape(-1, terms.shape[-1]).T
    with jax.named_scope("count"):
        return count(_with_first_class(sums.reshape(-1, *base.T.shape) + base.T), batch.labels)


def by_cuts(
    scope: Scope,
    count: Count,
    head: Head,
    order: Order,
    batch: Batch,
) -> Tally:
    """Every cut of an order of units, U + 1 settings: running sums of each unit's change.

    A running sum would add U terms one after the other. Instead units pass in blocks: the running
    sums within a block are one product with a triangle of ones, and a scan carries the logits from
    block to block.
    """
    weight, base, change = _two_outputs(scope, head, jnp.asarray(order.factor), batch.values)
    units = len(order.units)
    # [U, …] → [blocks, block, …], in the given order. Padding makes whole blocks and gives at least
    # one unit of no weight: the cut after the last unit is that one's row.
    pad = -(units + 1) % _BLOCK + 1
    changes = jnp.pad(change.T[order.units], ((0, pad), (0, 0)))
    weights = jnp.pad(weight[order.units], ((0, pad), (0, 0)))
    changes = changes.reshape(-1, _BLOCK, len(batch.labels))
    weights = weights.reshape(-1, _BLOCK, weight.shape[1])
    before = jnp.tril(jnp.ones((_BLOCK, _BLOCK)), -1)  # row k sums the units before the k-th

    def block(
        logits: Float[Array, "C_less_1 T"], of_units: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, Tally]:
        change, weight = of_units
        terms = change[:, None, :] * weight[:, :, None]  # [block, C − 1, T]
        cuts = logits + (before @ terms.reshape(_BLOCK, -1)).reshape(terms.shape)
        # The next block starts from this one's last cut with its last unit inside, too.
        return cuts[-1] + terms[-1], count(_with_first_class(cuts), batch.labels)

    tallies = jax.lax.scan(block, base.T, (changes, weights))[1]

    def in_order(array: jax.Array) -> jax.Array:
        # [blocks, rows, block, ..] → [rows, settings, ..], without the padding
        joined = jnp.moveaxis(array, 0, 1).reshape(array.shape[1], -1, *array.shape[3:])
        return joined[:, : units + 1]

    return jax.tree.map(in_order, tallies)
