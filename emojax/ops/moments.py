"""Running sums over images: per unit, and crossed with the image embeddings.

The probe keeps them in place of the activations; they are enough for the cosine similarity and for
correlation. Sums are compensated (Ogita, Rump and Oishi 2005): a million images leave no more
rounding behind than a few. A correlation is made of small differences of such sums, so what is
summed are differences from an origin near the values: those of a unit that hardly varies keep their
digits, and those of one that does not vary are 0. Shapes: U units, D embedding, B batch.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from emojax.ops.arrays import AnyArray


class Moments(NamedTuple):
    """Sums over images of activations a and embeddings e.

    They are of a (`total`), a² (`square`), a·e (`cross`), e·e (`gram`) and e (`embedding`). Halves
    of the images share one `Moments` whose arrays have the halves as a first axis.
    """

    total: Float[AnyArray, "... U"]
    square: Float[AnyArray, "... U"]
    cross: Float[AnyArray, "... U D"]
    gram: Float[AnyArray, "... D D"]
    embedding: Float[AnyArray, "... D"]


class UnitSums(NamedTuple):
    """Those of `Moments` that are kept unit by unit."""

    total: Float[AnyArray, "... U"]
    square: Float[AnyArray, "... U"]
    cross: Float[AnyArray, "... U D"]


class EmbeddingSums(NamedTuple):
    """Those of `Moments` that are of embeddings alone."""

    gram: Float[AnyArray, "... D D"]
    embedding: Float[AnyArray, "... D"]


class RunningUnits(NamedTuple):
    """Sums so far, and how much too large rounding made them: the exact sums are `sums - lost`."""

    sums: UnitSums
    lost: UnitSums


class RunningEmbeddings(NamedTuple):
    """Likewise of embeddings."""

    sums: EmbeddingSums
    lost: EmbeddingSums


class Origin(NamedTuple):
    """What was taken off activations and embeddings before they were summed."""

    activations: Float[AnyArray, " U"]
    embeddings: Float[AnyArray, " D"]


def init_units(units: int, embedding: int) -> RunningUnits:
    """All zero, float32."""

    def zeros() -> UnitSums:
        return UnitSums(
            total=jnp.zeros(units, jnp.float32),
            square=jnp.zeros(units, jnp.float32),
            cross=jnp.zeros((units, embedding), jnp.float32),
        )

    return RunningUnits(zeros(), zeros())


def init_embeddings(embedding: int) -> RunningEmbeddings:
    """All zero, float32."""

    def zeros() -> EmbeddingSums:
        return EmbeddingSums(
            gram=jnp.zeros((embedding, embedding), jnp.float32),
            embedding=jnp.zeros(embedding, jnp.float32),
        )

    return RunningEmbeddings(zeros(), zeros())


def update_units(
    state: RunningUnits,
    activations: Float[Array, "B U"],
    embeddings: Float[Array, "B D"],
    valid: Bool[Array, " B"],
) -> RunningUnits:
    """Adds a batch; `valid` is False for padding, which may hold anything, NaN included."""
    a, e = _known(activations, valid), _known(embeddings, valid)
    batch = UnitSums(
        total=a.sum(0),
        square=jnp.square(a).sum(0),
        cross=jnp.matmul(a.T, e, precision=jax.lax.Precision.HIGHEST),
    )
    return RunningUnits(*_add(*state, batch))


def update_embeddings(
    state: RunningEmbeddings, embeddings: Float[Array, "B D"], valid: Bool[Array, " B"]
) -> RunningEmbeddings:
    """Adds a batch, as `update_units` does."""
    e = _known(embeddings, valid)
    gram = jnp.matmul(e.T, e, precision=jax.lax.Precision.HIGHEST)
    return RunningEmbeddings(*_add(*state, EmbeddingSums(gram, embedding=e.sum(0))))


def _known(rows: Float[Array, "B N"], valid: Bool[Array, " B"]) -> Float[Array, "B N"]:
    return jnp.where(valid[:, None], rows.astype(jnp.float32), 0.0)


_Sums = TypeVar("_Sums", UnitSums, EmbeddingSums)


def _add(before: _Sums, lost: _Sums, batch: _Sums) -> tuple[_Sums, _Sums]:
    sums = jax.tree.map(jnp.add, before, batch)

    # A batch's sum is small beside the running one, so adding it drops its last digits. What was
    # dropped of either is a float32 itself (Knuth's two-sum); Kahan's step would round it again
    # as it adds it to the next batch, which is why these are summed apart.
    def add_lost(lost: Array, now: Array, before: Array, new: Array) -> Array:
        new_in_sum = now - before
        return lost - ((before - (now - new_in_sum)) + (new - new_in_sum))

    return sums, jax.tree.map(add_lost, lost, sums, before, batch)


def from_origin(sums: Moments, origin: Origin, images: int) -> Moments:
    """Sums of a − a₀ and e − e₀ over so many images → sums of a and e; on the host, in float64."""
    a, e = (np.asarray(values, np.float64) for values in origin)
    total, square, cross, gram, embedding = (np.asarray(array, np.float64) for array in sums)
    return Moments(
        total=total + images * a,
        square=square + 2.0 * a * total + images * a**2,
        cross=cross + np.outer(total, e) + np.outer(a, embedding) + images * np.outer(a, e),
        gram=gram + np.outer(embedding, e) + np.outer(e, embedding) + images * np.outer(e, e),
        embedding=embedding + images * e,
    )


class Covariances(NamedTuple):
    """Covariances over images: of units (`unit`, a variance), with embeddings, among embeddings.

    Attributes:
      unit: variance of each unit; exactly 0 where it does not vary.
      cross: covariance of each unit with the embeddings.
      gram: covariance matrix of the embeddings.
    """

    unit: Float[np.ndarray, " U"]
    cross: Float[np.ndarray, "U D"]
    gram: Float[np.ndarray, "D D"]


_CONSTANT = 1e-6  # of the root mean square: what varies less does not vary in float32


def variances(sums: Moments, images: int) -> Float[np.ndarray, " U"]:
    """Variance of each unit from sums over so many images; exactly 0 where it does not vary."""
    square = np.asarray(sums.square, np.float64) / images
    variance = square - (np.asarray(sums.total, np.float64) / images) ** 2
    return np.where(variance > _CONSTANT**2 * square, variance, 0.0)


def covariances(sums: Moments, images: int) -> Covariances:
    """Covariances from sums over so many images; on the host, in float64.

    Raises:
      ValueError: there are fewer than two images, which have no variance.
    """
    if images < 2:
        raise ValueError(f"covariances need at least two images, not {images}")
    total, _, cross, gram, embedding = (np.asarray(array, np.float64) / images for array in sums)
    variance = variances(sums, images)
    return Covariances(
        unit=variance,
        cross=np.where(variance[:, None] > 0, cross - np.outer(total, embedding), 0.0),
        gram=gram - np.outer(embedding, embedding),
    )
