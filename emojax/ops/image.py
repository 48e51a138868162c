"""Images on the device: Pillow's resizes to the bit, torchvision's bilinear, crops, affine maps.

Every network's preprocessing and every training view is made of these. Resizing is separable, so
every resize is two small matrix products, which suits every backend. Images are channel-last;
uint8 in 0…255 before `to_unit`, float32 in [0, 1] after it.
Shapes: I images, H height, W width, C channels.
"""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Num, UInt8

from emojax.ops.arrays import AnyArray

_PRECISION_BITS = 22  # Pillow's fixed point: 32 bits less 8 for the pixel and 2 of headroom


def _bicubic(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    """Keys' cubic; Pillow's BICUBIC has a = -0.5, torch's -0.75."""
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _triangle(x: np.ndarray) -> np.ndarray:
    """The tent of bilinear interpolation."""
    return np.maximum(1.0 - np.abs(x), 0.0)


def _lanczos(x: np.ndarray) -> np.ndarray:
    """The sinc windowed by its own wider copy, three lobes a side."""
    return np.where(np.abs(x) < 3.0, np.sinc(x) * np.sinc(x / 3.0), 0.0)


Kernel = Literal["bicubic", "bilinear", "lanczos"]  # those of Pillow
# Function and radius of each.
_KERNELS = {
    "bicubic": (_bicubic, 2.0),
    "bilinear": (_triangle, 1.0),
    "lanczos": (_lanczos, 3.0),
    "bicubic_torch": (functools.partial(_bicubic, a=-0.75), 2.0),
}


@functools.lru_cache(maxsize=64)
def _weights(
    source: int, target: int, kernel: Kernel | Literal["bicubic_torch"], antialias: bool
) -> Float[np.ndarray, "{target} {source}"]:
    """Resampling matrix in float64, rows summing to one.

    Pixel centres sit at half integers; with `antialias` the kernel widens by the downsampling
    ratio, as in Pillow. Without it, samples beyond the border repeat the border pixel, as in
    torch's `interpolate`.
    """
    function, radius = _KERNELS[kernel]
    scale = source / target
    stretch = max(scale, 1.0) if antialias else 1.0
    weights = np.zeros((target, source))
    for row in range(target):
        centre = (row + 0.5) * scale
        if antialias:
            # Pillow's bounds, rounded as there; beyond the border it cuts and renormalises.
            low = max(int(centre - radius * stretch + 0.5), 0)
            high = min(int(centre + radius * stretch + 0.5), source)
            columns = np.arange(low, high)
            values = function((columns - centre + 0.5) / stretch)
            weights[row, columns] = values / values.sum()
        else:
            first = math.floor(centre - 0.5 - radius) + 1
            columns = np.arange(first, first + int(2 * radius))
            inside = np.clip(columns, 0, source - 1)
            np.add.at(weights[row], inside, function(columns - (centre - 0.5)))
    return weights


@functools.lru_cache(maxsize=64)
def _fixed_point_digits(
    source: int, target: int, kernel: Kernel
) -> tuple[Float[np.ndarray, "digits {target} {source}"], int]:
    """Pillow's integer weights, split into digits that float32 products keep exact.

    Returns the digits, lowest first, and the bits of each. A sum of `taps` products of an 8-bit
    pixel with a digit of b bits stays below 2^24, the integers that float32 holds, when
    taps · 2^8 · 2^(b-1) ≤ 2^24. So the resize runs on the matrix unit and is still exact.
    """
    weights = _weights(source, target, kernel, True) * (1 << _PRECISION_BITS)
    fixed = np.trunc(weights + np.where(weights < 0, -0.5, 0.5)).astype(np.int64)
    taps = int((fixed != 0).sum(axis=1).max())
    bits = 17 - math.ceil(math.log2(taps)) if taps > 1 else 17
    half = 1 << (bits - 1)
    digits = []
    while np.any(fixed):
        # A balanced digit in [-half, half): one bit less of magnitude than an unsigned one.
        digit = ((fixed + half) & ((1 << bits) - 1)) - half
        digits.append(digit)
        fixed = (fixed - digit) >> bits
    return np.stack(digits).astype(np.float32), bits


def _resample_exact(
    pixels: Float[Array, "..."], axis: int, target: int, kernel: Kernel
) -> Float[Array, "..."]:
    """One fixed-point pass of Pillow along an axis; integer-valued float32 in and out."""
    digits, bits = _fixed_point_digits(pixels.shape[axis], target, kernel)
    moved = jnp.moveaxis(pixels, axis, -1)
    # Pillow rounds by adding half before it shifts the fixed point away.
    total = jnp.full((*moved.shape[:-1], target), 1 << (_PRECISION_BITS - 1), jnp.int32)
    for place, digit in enumerate(digits):
        product = jnp.matmul(moved, jnp.asarray(digit.T), precision=jax.lax.Precision.HIGHEST)
        total += product.astype(jnp.int32) << (bits * place)
    clipped = jnp.clip(total >> _PRECISION_BITS, 0, 255).astype(jnp.float32)
    return jnp.moveaxis(clipped, -1, axis)


def resize_bicubic_pil(
    images: Num[AnyArray, "I H W *C"], size: tuple[int, int]
) -> UInt8[Array, "I {size[0]} {size[1]} *C"]:
    """`resize_pil` with Pillow's BICUBIC."""
    return resize_pil(images, size, "bicubic")


def resize_pil(
    images: Num[AnyArray, "I H W *C"], size: tuple[int, int], kernel: Kernel
) -> UInt8[Array, "I {size[0]} {size[1]} *C"]:
    """Resizes uint8 images [I, H, W, C] or [I, H, W] to (height, width) as Pillow, to the pixel.

    Raises:
      TypeError: the images are not uint8.
    """
    if images.dtype != jnp.uint8:
        raise TypeError(f"resize_pil takes uint8 images, not {images.dtype}")
    # Pillow (13) rounds to 8 bits between its two passes, so their order shows. The width goes
    # first, unless the height shrinks by more than twice as many pixels as the width.
    cut_height = images.shape[1] - size[0]
    cut_width = images.shape[2] - size[1]
    height_first = cut_height > 0 and cut_height > 2 * cut_width
    pixels = jnp.asarray(images).astype(jnp.float32)
    for axis in (1, 2) if height_first else (2, 1):
        if pixels.shape[axis] != size[axis - 1]:  # an axis that keeps its size is left alone
            pixels = _resample_exact(pixels, axis, size[axis - 1], kernel)
    return pixels.astype(jnp.uint8)


def resize_bilinear(
    images: Float[AnyArray, "I H W C"], size: tuple[int, int], *, antialias: bool = False
) -> Float[Array, "I {size[0]} {size[1]} C"]:
    """Resizes to (height, width) as torchvision does on tensors (corners not aligned)."""
    return _resize_float(images, size, "bilinear", antialias)


def resize_bicubic_torch(
    images: Float[AnyArray, "I H W C"], size: tuple[int, int]
) -> Float[Array, "I {size[0]} {size[1]} C"]:
    """Resizes to (height, width) as torch's `interpolate(mode="bicubic")` (corners not aligned)."""
    return _resize_float(images, size, "bicubic_torch", False)


def _resize_float(
    images: Float[AnyArray, "I H W C"],
    size: tuple[int, int],
    kernel: Kernel | Literal["bicubic_torch"],
    antialias: bool,
) -> Float[Array, "I {size[0]} {size[1]} C"]:
    """A resize of both axes by matrix products."""
    rows = _weights(images.shape[1], size[0], kernel, antialias)
    columns = _weights(images.shape[2], size[1], kernel, antialias)
    return jnp.einsum(
        "ph,qw,ihwc->ipqc",
        jnp.asarray(rows, images.dtype),
        jnp.asarray(columns, images.dtype),
        images,
        precision=jax.lax.Precision.HIGHEST,
    )


def to_unit(images: UInt8[AnyArray, "..."]) -> Float[Array, "..."]:
    """uint8 in 0…255 to float32 in [0, 1]."""
    return jnp.asarray(images, jnp.float32) / 255.0


def to_gray(images: UInt8[AnyArray, "I H W C"]) -> UInt8[AnyArray, "I H W 1"]:
    """One channel by ITU-R 601 luma in Pillow's fixed point (`convert("L")`); gray passes."""
    if images.shape[-1] == 1:
        return images
    red, green, blue = jnp.moveaxis(images.astype(jnp.int32), -1, 0)
    luma = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return luma.astype(jnp.uint8)[..., None]


def center_crop(
    images: Num[AnyArray, "I H W C"], size: tuple[int, int], *, half_even: bool = False
) -> Num[AnyArray, "I {size[0]} {size[1]} C"]:
    """The central (height, width); an odd margin leaves the extra pixel at the far side.

    With `half_even`, half a margin is rounded to an even number instead, as in torchvision.
    """
    margins = [own - wanted for own, wanted in zip(images.shape[1:3], size, strict=True)]
    top, left = (round(each / 2) if half_even else each // 2 for each in margins)
    return images[:, top : top + size[0], left : left + size[1]]


def ten_crop(images: Num[AnyArray, "I H W C"], size: int) -> Num[Array, "I 10 {size} {size} C"]:
    """The four corners and the centre, then the same of the mirrored image.

    The order is torchvision's `TenCrop`: top left, top right, bottom left, bottom right, centre.
    Its centre rounds an odd margin half to even, so the crops agree with a network that was trained
    and tested with it.
    """
    bottom = images.shape[1] - size
    right = images.shape[2] - size
    middle = (round(bottom / 2), round(right / 2))
    corners = ((0, 0), (0, right), (bottom, 0), (bottom, right), middle)
    crops = [
        source[:, top : top + size, left : left + size]
        for source in (images, images[:, :, ::-1])
        for top, left in corners
    ]
    return jnp.stack(crops, axis=1)


def halve_by_maximum(x: Float[Array, "B H W U"]) -> Float[Array, "B H//2 W//2 U"]:
    """Maximum over blocks of 2×2 pixels; the last row or column of an odd side is left out.

    As a maximum of four slices: on a CPU its gradient is several times faster than that of a
    reduce-window, which is scattered in a loop. Of equal pixels the first, row by row, has the
    gradient, as in PyTorch.
    """
    height, width = x.shape[1:3]
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    columns = _larger(x[:, :, ::2], x[:, :, 1::2])
    return _larger(columns[:, ::2], columns[:, 1::2])


def _larger(first: Array, second: Array) -> Array:
    """The larger of two; the first, with its gradient, where they are equal. NaN stays NaN."""
    return jnp.where((first >= second) | jnp.isnan(first), first, second)


def pad_or_crop(
    images: Num[AnyArray, "I H W C"], size: tuple[int, int], *, half_even: bool = False
) -> Num[AnyArray, "I {size[0]} {size[1]} C"]:
    """The central (height, width); what lies outside of a smaller image is zero.

    An odd margin leaves the extra pixel where Hugging Face's image processors do: of a cut at the
    far side, of a border at the near one. `half_even` is of `center_crop`.
    """
    short = [max(wanted - own, 0) for wanted, own in zip(size, images.shape[1:3], strict=True)]
    if any(short):
        borders = [((amount + 1) // 2, amount // 2) for amount in short]
        images = jnp.pad(images, ((0, 0), *borders, (0, 0)))
    return center_crop(images, size, half_even=half_even)


def affine_grid(
    theta: Float[AnyArray, "I 2 3"], size: tuple[int, int]
) -> Float[Array, "I {size[0]} {size[1]} 2"]:
    """Where each pixel of a (height, width) output looks: affine maps → points (x, y).

    As torch's `affine_grid` with align_corners=False: -1 and 1 are the image's outer edges, so
    pixel j of n has its centre at (2j + 1) / n - 1.
    """
    theta = jnp.asarray(theta)
    y, x = (jnp.asarray((2 * np.arange(n) + 1) / n - 1, theta.dtype) for n in size)
    # Written as sums and not as a matrix product, so that no backend's reduced matrix precision
    # moves the points.
    of_x, of_y, shift = (theta[:, None, None, :, i] for i in range(3))
    return of_x * x.reshape(1, 1, -1, 1) + of_y * y.reshape(1, -1, 1, 1) + shift


def grid_sample(
    images: Float[AnyArray, "I H W C"], grid: Float[AnyArray, "I h w 2"]
) -> Float[Array, "I h w C"]:
    """Images read bilinearly at points (x, y); zero outside the image.

    As torch's `grid_sample` with its defaults (bilinear, zero padding, align_corners=False), and as
    differentiable: where a point falls on a pixel's centre, the slope is the one towards the next
    pixel.
    """
    height, width = images.shape[1:3]
    # A border of zeros stands for all that is outside, so no read needs a mask.
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    read = jax.vmap(lambda image, row, column: image[row, column])
    columns = _neighbours(grid[..., 0], width)
    corners = [
        (across * down)[..., None] * read(padded, row, column)
        for row, down in _neighbours(grid[..., 1], height)
        for column, across in columns
    ]
    return sum(corners, jnp.zeros((), images.dtype))


def _neighbours(
    points: Float[AnyArray, "I h w"], length: int
) -> list[tuple[Int32[Array, "I h w"], Float[Array, "I h w"]]]:
    """Index into the padded image and weight of the two nearest pixels along one axis."""
    # The clip keeps far points, infinity included, inside what int32 holds; both of their
    # neighbours are in the border of zeros.
    position = jnp.clip(((points + 1) * length - 1) / 2, -2, length + 1)
    floor = jnp.floor(position)
    fraction = position - floor
    index = floor.astype(jnp.int32) + 1
    near = (jnp.clip(index, 0, length + 1), 1 - fraction)
    far = (jnp.clip(index + 1, 0, length + 1), fraction)
    return [near, far]
