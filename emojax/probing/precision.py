"""What the networks of a probe compute in: the tiers of precision, and a module in bfloat16.

Sums and lists are float32 in all of them; how many labels a tier changes is measured on a sample
(`commands.tiers`), not promised.
"""

from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

Precision = Literal["exact", "high", "bfloat16"]
# How float32 products are made. In the third tier the networks make none; what remains float32 are
# the sums.
PRODUCTS = {"exact": "highest", "high": "high", "bfloat16": "highest"}
_Module = TypeVar("_Module", bound=nnx.Module)


def in_bfloat16(model: _Module) -> _Module:
    """The same module computing in bfloat16: its parameters rounded, its layers told so.

    Statistics (BatchNorm's) stay as they are. Parameters may be shapes. The model is left alone.
    """
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    rounded = nnx.merge(graphdef, jax.tree.map(_rounded, params), rest)
    for _, module in nnx.iter_modules(rounded):
        if hasattr(module, "dtype"):  # flax's layers promote to it
            setattr(module, "dtype", jnp.bfloat16)  # noqa: B010 - no type has it
    return rounded


def _rounded(leaf: Any) -> Any:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=leaf.sharding)
    return jnp.asarray(leaf, jnp.bfloat16)
