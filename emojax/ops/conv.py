"""3×3 convolution whose gradient for the kernel is fast on a CPU.

XLA's CPU backend runs the forward pass and the gradient for the images by matrix products, but the
gradient for the kernel by a loop that is several times slower where maps are large and channels
few: in the first layers, where most of the work of a face network is. Shapes: B batch, H height,
W width, C input channels, U units.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_GROUP = 4  # images to a matrix product: few enough for its operands to stay in the cache


@jax.custom_vjp
def conv3x3(x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C U"]) -> Float[Array, "B H W U"]:
    """The convolution with padding 1, without a bias."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT)


def _forward(x, kernel):
    return conv3x3(x, kernel), (x, kernel)


def _backward(residuals, g):
    x, kernel = residuals
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    dx = jax.lax.conv_general_dilated(g, flipped, (1, 1), "SAME", dimension_numbers=_LAYOUT)
    return dx, kernel_gradient(x, g)


conv3x3.defvjp(_forward, _backward)


def kernel_gradient(
    x: Float[Array, "B H W C"], g: Float[Array, "B H W U"]
) -> Float[Array, "3 3 C U"]:
    batch, height, width, channels = x.shape
    units = g.shape[-1]
    group = _GROUP if batch % _GROUP == 0 else 1
    x = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    g = jnp.pad(g, ((0, 0), (1, 1), (0, 0), (0, 0)))
    x = x.reshape(batch // group, group, height, width + 2, channels)
    g = g.reshape(batch // group, group, height + 2, width, units)

    def add(total, pair):
        a, b = pair
        columns = jnp.concatenate([a[:, :, j : j + width] for j in range(3)], axis=-1)
        rows = jnp.concatenate([b[:, 2 - i : 2 - i + height] for i in range(3)], axis=-1)
        product = jnp.matmul(
            columns.reshape(-1, 3 * channels).T,
            rows.reshape(-1, 3 * units),
            preferred_element_type=total.dtype,
        )
        return total + product, None

    total, _ = jax.lax.scan(add, jnp.zeros((3 * channels, 3 * units), jnp.float32), (x, g))
    return total.reshape(3, channels, 3, units).transpose(2, 0, 1, 3).astype(g.dtype)
