"""From a layer's output to one number per image and unit, which is what the probe keeps.

And to a map of a few cells, which says where in the image that number comes from.
"""

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from emojax.ops.arrays import AnyArray

Pool = Literal["avg", "max"]  # over space
Tokens = Literal["cls", "mean", "max"]  # over tokens; cls takes the first
_MOST_LEADING = 5  # tokens before those of the patches: a class token, DeiT's second, registers


def pool(
    outputs: Float[AnyArray, "I ..."], how: Pool = "avg", tokens: Tokens = "cls"
) -> Float[AnyArray, "I U"]:
    """Pools a layer's outputs to [I, U] as CLIP-Dissect does (arXiv 2204.10965, section 3).

    [I, H, W, U] (convolution) is averaged or maximised over space. [I, tokens, U] (transformer)
    gives its first token, which is the class token where a network has one, or the mean or maximum
    over all tokens. [I, U] (dense) passes through.

    Raises:
      ValueError: the output has other than 2, 3 or 4 axes.
    """
    match outputs.ndim:
        case 2:
            return outputs
        case 3:
            return over_tokens(outputs, tokens)
        case 4:
            return _over_space(outputs, how)
        case _:
            raise ValueError(
                "a layer's output has 2, 3 or 4 axes ([I, U], [I, L, U], [I, H, W, U]); "
                f"got {outputs.shape}"
            )


def _over_space(outputs: Float[AnyArray, "I H W U"], how: Pool) -> Float[jax.Array, "I U"]:
    return jnp.max(outputs, axis=(1, 2)) if how == "max" else jnp.mean(outputs, axis=(1, 2))


def over_tokens(outputs: Float[AnyArray, "I L U"], how: Tokens) -> Float[AnyArray, "I U"]:
    """The first of a layer's tokens, their mean or their maximum."""
    if how == "cls":
        return outputs[:, 0]
    return outputs.max(axis=1) if how == "max" else outputs.mean(axis=1)


def map_shape(output: Sequence[int], side: int) -> tuple[int, int] | None:
    """Rows and columns of the maps of a layer whose output has this shape; None without places.

    Tokens have places where they make a square after at most five others.
    """
    if len(output) == 4:
        height, width = output[1:3]
    elif len(output) == 3:
        height = width = math.isqrt(output[1])
        if output[1] - height * width > _MOST_LEADING:
            return None
    else:
        return None
    return None if height * width < 2 else (min(height, side), min(width, side))


def cells(outputs: Float[AnyArray, "I ..."], side: int) -> Float[jax.Array, "I h w U"]:
    """Means of a layer's output over at most `side` by `side` cells of equal size.

    For outputs that `map_shape` has a shape for: [I, H, W, U], or [I, tokens, U] whose last tokens
    are the patches, row by row.
    """
    if outputs.ndim == 3:
        square = math.isqrt(outputs.shape[1])
        patches = outputs[:, outputs.shape[1] - square**2 :]
        outputs = patches.reshape(len(outputs), square, square, -1)
    rows, columns = (jnp.asarray(_shares(length, side)) for length in outputs.shape[1:3])
    high = jax.lax.Precision.HIGHEST
    return jnp.einsum("ihwu,rh,cw->ircu", outputs, rows, columns, precision=high)


def _shares(length: int, side: int) -> Float[np.ndarray, "cells length"]:
    """How much each of a row's places counts in each cell's mean; a border splits a place."""
    count = min(length, side)
    edges = np.arange(count + 1) * length / count
    places = np.arange(length)
    ends = np.minimum(edges[1:, None], places + 1)
    overlap = np.clip(ends - np.maximum(edges[:-1, None], places), 0, None)
    return (overlap * count / length).astype(np.float32)
