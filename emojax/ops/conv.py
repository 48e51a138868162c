"""3×3 convolution with padding 1 whose gradient for the kernel is fast on a CPU.

XLA's CPU backend turns the forward pass and the gradient for the images into matrix products, but
the gradient for the kernel into a loop that is several times slower where maps are large and
channels few: in the first layers, where most of a face network's work is. Here that gradient is
made of matrix products, too. Shapes: B batch, H height, W width, C input channels, U units.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# Pixels in a matrix product: few enough for both operands to stay in the cache, and enough for the
# sum of the products not to be read and written too often.
_PIXELS = 3200


@jax.custom_vjp
def conv3x3(x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C U"]) -> Float[Array, "B H W U"]:
    """The convolution, without a bias."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return conv3x3(x, kernel), (x, kernel)


def _backward(residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    # The gradient for the images is a convolution again: with the kernel turned by 180° and its
    # channels exchanged.
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    for_images = jax.lax.conv_general_dilated(g, turned, (1, 1), "SAME", dimension_numbers=_LAYOUT)
    for_kernel = jax.lax.platform_dependent(x, g, cpu=kernel_gradient, default=plain_gradient)
    return for_images, for_kernel


conv3x3.defvjp(_forward, _backward)


def plain_gradient(
    x: Float[Array, "B H W C"], g: Float[Array, "B H W U"]
) -> Float[Array, "3 3 C U"]:
    """XLA's own gradient for the kernel: other backends have fast programs for it."""

    def convolve(kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT)

    kernel = jax.ShapeDtypeStruct((3, 3, x.shape[3], g.shape[3]), g.dtype)
    return jax.linear_transpose(convolve, kernel)(g)[0]


def kernel_gradient(
    x: Float[Array, "B H W C"], g: Float[Array, "B H W U"]
) -> Float[Array, "3 3 C U"]:
    """The gradient for the kernel by matrix products, of images x and the output's gradient g.

    Its part at row i and column j of the kernel is the sum over pixels (h, w) of
    x[h + i, w + j]ᵀ g[h, w], x being padded: nine products. With x shifted sideways by j and g
    shifted downwards by i, the sum is x[h, w + j]ᵀ g[h − i, w], and all nine parts are one product
    of the three shifts of x, joined [.., 3C], and the three of g, joined [.., 3U].
    """
    batch, height, width, channels = x.shape
    units = g.shape[3]
    # A batch that is sharded over the devices keeps its axis of devices: each device adds up its
    # own images, and only the sums [3C, 3U] travel.
    shards = math.gcd(batch, jax.device_count())
    power = max(1, _PIXELS // (height * width)).bit_length() - 1
    group = math.gcd(batch // shards, 2**power)
    x = x.reshape(shards, -1, group, height, width, channels)
    g = g.reshape(shards, -1, group, height, width, units)

    def add(total: Array, images: tuple[Array, Array]) -> tuple[Array, None]:
        # Padded here, in the cache: to pad all images first is a pass over memory for each operand.
        x = jnp.pad(images[0], [(0, 0), (0, 0), (0, 0), (1, 1), (0, 0)])
        g = jnp.pad(images[1], [(0, 0), (0, 0), (1, 1), (0, 0), (0, 0)])
        sideways = [x[:, :, :, j : j + width] for j in range(3)]
        down = [g[:, :, 2 - i : 2 - i + height] for i in range(3)]
        left = jnp.concatenate(sideways, axis=-1).reshape(shards, -1, 3 * channels)
        right = jnp.concatenate(down, axis=-1).reshape(shards, -1, 3 * units)
        product = jnp.einsum("dnc,dnu->dcu", left, right, preferred_element_type=total.dtype)
        return total + product, None

    # Sums of bfloat16 products are kept in float32.
    exact = jnp.float64 if g.dtype == jnp.float64 else jnp.float32
    start = jnp.zeros((shards, 3 * channels, 3 * units), exact)
    total, _ = jax.lax.scan(add, start, (x.swapaxes(0, 1), g.swapaxes(0, 1)))
    parts = total.sum(axis=0).reshape(3, channels, 3, units)  # by column, then row of the kernel
    return parts.transpose(2, 0, 1, 3).astype(g.dtype)
