"""From a layer's output to one number per image and unit: mean or max over space, token 0 of a
transformer.
"""

from typing import Literal

import jax
import jax.numpy as jnp

Pool = Literal["avg", "max"]


def pool(outputs: jax.Array, how: Pool = "avg") -> jax.Array:
    """Pools a layer's outputs to [I, U] as CLIP-Dissect does (arXiv 2204.10965, section 3).

    [I, H, W, U] (convolution) is averaged or maximised over space, [I, tokens, U] (transformer)
    gives its class token, token 0, and [I, U] (dense) passes through.
    """
    match outputs.ndim:
        case 2:
            return outputs
        case 3:
            return outputs[:, 0]
        case 4:
            return jnp.max(outputs, axis=(1, 2)) if how == "max" else jnp.mean(outputs, axis=(1, 2))
        case _:
            raise ValueError(
                "a layer's output has 2, 3 or 4 axes ([I, U], [I, L, U], [I, H, W, U]); got "
                f"{outputs.shape}"
            )
