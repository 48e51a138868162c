"""The convolution and its gradients against plain loops in float64, whatever the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emojax.distributed.mesh import batch_sharded, make_mesh, replicated
from emojax.ops.conv import conv3x3, kernel_gradient, plain_gradient


def plain(x, kernel, g):
    """Output, gradient for the images and gradient for the kernel, pixel by pixel."""
    height, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    output = np.zeros((*x.shape[:3], kernel.shape[3]))
    for_images = np.zeros(padded.shape)
    for_kernel = np.zeros(kernel.shape)
    for i in range(3):
        for j in range(3):
            window = padded[:, i : i + height, j : j + width]
            output += window @ kernel[i, j]
            for_kernel[i, j] = np.einsum("bhwc,bhwu->cu", window, g)
            for_images[:, i : i + height, j : j + width] += g @ kernel[i, j].T
    return output, for_images[:, 1:-1, 1:-1], for_kernel


@jax.jit
def ours(x, kernel, g):
    """Output and gradients; the kernel's also as a CPU and as other backends take it."""
    output, gradient = jax.vjp(conv3x3, x, kernel)
    return (output, *gradient(g)), [make(x, g) for make in (kernel_gradient, plain_gradient)]


@pytest.mark.parametrize("shape", [(1, 1, 1, 2, 3), (6, 5, 7, 3, 2), (8, 10, 10, 4, 6)])
def test_equals_plain_loops(shape):
    batch, height, width, channels, units = shape
    rng = np.random.default_rng(sum(shape))
    x = rng.normal(size=(batch, height, width, channels))
    kernel = rng.normal(size=(3, 3, channels, units))
    g = rng.normal(size=(batch, height, width, units))
    with jax.enable_x64(True):
        got, either = ours(x, kernel, g)
    want = plain(x, kernel, g)
    for mine, theirs in zip((*got, *either), (*want, want[2], want[2]), strict=True):
        # The longest sum has batch · height · width terms of size about 1.
        np.testing.assert_allclose(mine, theirs, atol=1e-15 * 9 * x.size)


def test_sharded_batch_gives_the_same_gradient():
    rng = np.random.default_rng(0)
    devices = jax.device_count()
    x = np.float32(rng.normal(size=(8 * devices, 6, 6, 4)))
    g = np.float32(rng.normal(size=(8 * devices, 6, 6, 3)))
    mesh = make_mesh()
    sharded = jax.jit(
        kernel_gradient,
        in_shardings=(batch_sharded(mesh), batch_sharded(mesh)),
        out_shardings=replicated(mesh),
    )
    want = plain(np.float64(x), np.zeros((3, 3, 4, 3)), np.float64(g))[2]
    # Rounding of float32 sums of 36 · batch terms, each at most 30 in size.
    np.testing.assert_allclose(sharded(x, g), want, atol=2**-24 * 30 * 36 * len(x))


@pytest.mark.slow
def test_bfloat16_keeps_float32_sums():
    x = jnp.full((64, 8, 8, 1), 1, jnp.bfloat16)
    gradient = kernel_gradient(x, x)
    assert gradient.dtype == jnp.bfloat16
    # 64 · 8 · 8 = 4096 ones: sums in bfloat16 would stop at 256.
    assert gradient[1, 1, 0, 0] == 4096
