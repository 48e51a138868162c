"""From a layer's output to one number per image and unit, which is what the probe keeps."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float

from emojax.ops.arrays import AnyArray

Pool = Literal["avg", "max"]  # over space
Tokens = Literal["cls", "mean", "max"]  # over tokens; cls takes the first


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
