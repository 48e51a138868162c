"""Images on the device: Pillow's bicubic to the bit, torchvision's bilinear, crops, normalisation,
affine resampling.

Shapes: I images, H height, W width, C channels. Images are channel-last; uint8 in 0…255 before
`to_unit`, float32 in [0, 1] after it. Resizing is separable, so every resize is two small matrix
products, which suits every backend.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

_PRECISION_BITS = (
    22  # Pillow's fixed point for 8-bit images: 32 bits less 8 for the pixel and 2 of headroom
)


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic with a = -0.5, the kernel of Pillow's BICUBIC."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


@functools.lru_cache(maxsize=64)
def _weights(source: int, target: int, kernel: str, antialias: bool) -> np.ndarray:
    """Resampling matrix [target, source] in float64, rows summing to one.

    Pixel centres sit at half integers; with `antialias` the kernel widens by the downsampling
    ratio, as in Pillow. Without it, samples beyond the border repeat the border pixel, as in
    torch's `interpolate`.
    """
    function, radius = {"bicubic": (_bicubic, 2.0), "bilinear": (_triangle, 1.0)}[kernel]
    scale = source / target
    stretch = max(scale, 1.0) if antialias else 1.0
    weights = np.zeros((target, source))
    for row in range(target):
        centre = (row + 0.5) * scale
        if antialias:
            low = max(int(centre - radius * stretch + 0.5), 0)
            high = min(int(centre + radius * stretch + 0.5), source)
            taps = np.arange(low, high)
            values = function((taps - centre + 0.5) / stretch)
            weights[row, taps] = values / values.sum()
        else:
            first = math.floor(centre - 0.5 - radius) + 1
            taps = np.arange(first, first + int(2 * radius))
            np.add.at(weights[row], np.clip(taps, 0, source - 1), function(taps - (centre - 0.5)))
    return weights


@functools.lru_cache(maxsize=64)
def _fixed_point_digits(source: int, target: int) -> tuple[np.ndarray, int]:
    """Pillow's integer bicubic weights, split into digits [digits, target, source] that float32
    products keep exact.

    A sum of `taps` products of an 8-bit pixel with a digit of b bits stays below 2^24, the integers
    that float32 holds, when taps · 2^8 · 2^(b-1) ≤ 2^24. So the resize runs on the matrix unit and
    is still exact.
    """
    weights = _weights(source, target, "bicubic", True) * (1 << _PRECISION_BITS)
    fixed = np.trunc(weights + np.where(weights < 0, -0.5, 0.5)).astype(np.int64)
    taps = int((fixed != 0).sum(axis=1).max())
    bits = 17 - math.ceil(math.log2(taps)) if taps > 1 else 17
    half = 1 << (bits - 1)
    digits = []
    while np.any(fixed):
        digit = ((fixed + half) & ((1 << bits) - 1)) - half  # balanced digit in [-half, half)
        digits.append(digit)
        fixed = (fixed - digit) >> bits
    return np.stack(digits).astype(np.float32), bits


def _resample_exact(pixels: jax.Array, axis: int, target: int) -> jax.Array:
    """One fixed-point pass of Pillow's bicubic along an axis; integer-valued float32 in and out."""
    digits, bits = _fixed_point_digits(pixels.shape[axis], target)
    moved = jnp.moveaxis(pixels, axis, -1)
    total = jnp.full((*moved.shape[:-1], target), 1 << (_PRECISION_BITS - 1), jnp.int32)
    for place, digit in enumerate(digits):
        part = jnp.matmul(moved, jnp.asarray(digit.T), precision=jax.lax.Precision.HIGHEST)
        total += part.astype(jnp.int32) << (bits * place)
    clipped = jnp.clip(total >> _PRECISION_BITS, 0, 255).astype(jnp.float32)
    return jnp.moveaxis(clipped, -1, axis)


def resize_bicubic_pil(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes uint8 images [I, H, W, C] or [I, H, W] to (height, width), equal to Pillow's bicubic
    pixel for pixel.

    Pillow (13) rounds to 8 bits between its two passes, so their order shows. The width goes first,
    unless the height shrinks by more than twice as many pixels as the width. An axis that keeps its
    size is left alone.
    """
    if images.dtype != jnp.uint8:
        raise TypeError(f"resize_bicubic_pil takes uint8 images, not {images.dtype}")
    cut_height, cut_width = images.shape[1] - size[0], images.shape[2] - size[1]
    height_first = cut_height > 0 and cut_height > 2 * cut_width
    pixels = images.astype(jnp.float32)
    for axis in (1, 2) if height_first else (2, 1):
        if pixels.shape[axis] != size[axis - 1]:
            pixels = _resample_exact(pixels, axis, size[axis - 1])
    return pixels.astype(jnp.uint8)


def resize_bilinear(
    images: jax.Array, size: tuple[int, int], *, antialias: bool = False
) -> jax.Array:
    """Resizes float images [I, H, W, C] to (height, width) as torchvision does on tensors (corners
    not aligned).
    """
    rows = jnp.asarray(_weights(images.shape[1], size[0], "bilinear", antialias), images.dtype)
    columns = jnp.asarray(_weights(images.shape[2], size[1], "bilinear", antialias), images.dtype)
    return jnp.einsum(
        "ph,qw,ihwc->ipqc", rows, columns, images, precision=jax.lax.Precision.HIGHEST
    )


def to_unit(images: jax.Array) -> jax.Array:
    """uint8 in 0…255 to float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255.0


def to_gray(images: jax.Array) -> jax.Array:
    """uint8 [I, H, W, C] to one channel: ITU-R 601 luma in Pillow's fixed point (`convert("L")`);
    gray passes through.
    """
    if images.shape[-1] == 1:
        return images
    red, green, blue = jnp.moveaxis(images.astype(jnp.int32), -1, 0)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(jnp.uint8)[..., None]


def center_crop(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The central (height, width) of images [I, H, W, C]; an odd margin leaves the extra pixel at
    the far side.
    """
    top, left = ((have - want) // 2 for have, want in zip(images.shape[1:3], size, strict=True))
    return images[:, top : top + size[0], left : left + size[1]]


def ten_crop(images: jax.Array, size: int) -> jax.Array:
    """The four corners and the centre, then the same of the mirrored image: [I, H, W, C] → [I, 10,
    size, size, C].

    The order is torchvision's `TenCrop`: top left, top right, bottom left, bottom right, centre.
    Its centre rounds an odd margin half to even, so the crops agree with a network that was trained
    and tested with it.
    """

    def five(x: jax.Array) -> list[jax.Array]:
        bottom, right = x.shape[1] - size, x.shape[2] - size
        middle = (round(bottom / 2), round(right / 2))
        corners = ((0, 0), (0, right), (bottom, 0), (bottom, right), middle)
        return [x[:, top : top + size, left : left + size] for top, left in corners]

    return jnp.stack(five(images) + five(images[:, :, ::-1]), axis=1)


def clip_preprocess(
    images: jax.Array,
    *,
    resize: int,
    crop: tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> jax.Array:
    """CLIP's preprocessing: short side to `resize` (bicubic), centre crop, to [0, 1], normalise;
    uint8 → float32 RGB.

    Gray images are resized as one channel and broadcast afterwards: the same pixels for a third of
    the work.
    """
    height, width = images.shape[1:3]
    short = min(height, width)
    resized = resize_bicubic_pil(
        images, (int(resize * height / short), int(resize * width / short))
    )
    unit = to_unit(center_crop(resized, crop))
    shape = (1, 1, 1, len(mean))
    mean_c, std_c = (
        jnp.reshape(jnp.asarray(mean, jnp.float32), shape),
        jnp.reshape(jnp.asarray(std, jnp.float32), shape),
    )
    return (jnp.broadcast_to(unit, (*unit.shape[:-1], len(mean))) - mean_c) / std_c


def affine_grid(theta: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Where each pixel of a (height, width) output looks: [I, 2, 3] → points (x, y) [I, height,
    width, 2].

    As torch's `affine_grid` with align_corners=False: -1 and 1 are the image's outer edges, so
    pixel j of n has its centre at (2j + 1) / n - 1. Written as sums, so no backend's reduced matrix
    precision moves the points.
    """
    y, x = (jnp.asarray((2 * np.arange(n) + 1) / n - 1, theta.dtype) for n in size)
    of_x, of_y, shift = (theta[:, None, None, :, i] for i in range(3))
    return of_x * x.reshape(1, 1, -1, 1) + of_y * y.reshape(1, -1, 1, 1) + shift


def grid_sample(images: jax.Array, grid: jax.Array) -> jax.Array:
    """Images [I, H, W, C] read bilinearly at points (x, y) [I, h, w, 2] → [I, h, w, C]; zero
    outside the image.

    As torch's `grid_sample` with its defaults (bilinear, zero padding, align_corners=False), and as
    differentiable: where a point falls on a pixel's centre, the slope is the one towards the next
    pixel.
    """
    height, width = images.shape[1:3]
    padded = jnp.pad(
        images, ((0, 0), (1, 1), (1, 1), (0, 0))
    )  # the border of zeros stands for all that is outside

    def neighbours(points: jax.Array, length: int) -> list[tuple[jax.Array, jax.Array]]:
        """Index into `padded` and weight of the two nearest pixels along one axis."""
        at = jnp.clip(((points + 1) * length - 1) / 2, -2, length + 1)
        first, far = jnp.floor(at), at - jnp.floor(at)
        index = first.astype(jnp.int32) + 1
        return [
            (jnp.clip(index, 0, length + 1), 1 - far),
            (jnp.clip(index + 1, 0, length + 1), far),
        ]

    read = jax.vmap(lambda image, row, column: image[row, column])
    columns = neighbours(grid[..., 0], width)
    return sum(
        (across * down)[..., None] * read(padded, row, column)
        for row, down in neighbours(grid[..., 1], height)
        for column, across in columns
    )
