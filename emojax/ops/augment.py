"""Training views made on the device: crop, shift, mirror and rotation in one resampling, ten or one crop, erased boxes.

The draws are those of torchvision's transforms as VGGNet's authors chain them (Khaireddin and Chen 2021):
RandomResizedCrop(48, scale 0.8–1.2), translation by up to 20 % (p 0.5), mirror, rotation by up to 10° (p 0.5),
TenCrop(40), RandomErasing(p 0.5) for every crop. They resample up to three times, to the nearest pixel; here the maps are
composed and each view is read once, bilinearly. Shapes: B images, H height, W width, C channels, S side of the view.
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from emojax.ops.image import grid_sample, ten_crop

Augment = Literal["flip", "affine", "one_crop", "ten_crop"]
CANVAS = 1.2  # side of the whole face over the side of a crop: 48 to 40


class Boxes(NamedTuple):
    """Rectangles in pixels, each float32 [B], and whether one was found."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array
    found: jax.Array


class Draw(NamedTuple):
    """What is random about views: a box of the image, shift and turn of the canvas, mirroring, the crop's corner.

    `box` in pixels of the image; `shift` [B, 2] (x, y) in canvas pixels; `angle` [B] in radians; `mirror` [B] bool;
    `corner` [B, 2] (x, y), where the view begins on the canvas, in pixels.
    """

    box: Boxes
    shift: jax.Array
    angle: jax.Array
    mirror: jax.Array
    corner: jax.Array


def random_boxes(
    key: jax.Array,
    count: int,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    *,
    tries: int = 10,
) -> Boxes:
    """Boxes of whole pixels that fit into (height, width): area a share in `scale`, height over width in `ratio`.

    As in torchvision's RandomResizedCrop and RandomErasing: areas are uniform, ratios log-uniform, the first of ten
    tries that fits is taken, corners are uniform. A box that was not found is the whole image.
    """
    area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    area = jax.random.uniform(area_key, (count, tries), minval=scale[0], maxval=scale[1]) * (size[0] * size[1])
    shape = jnp.exp(jax.random.uniform(ratio_key, (count, tries), minval=math.log(ratio[0]), maxval=math.log(ratio[1])))
    height, width = jnp.round(jnp.sqrt(area * shape)), jnp.round(jnp.sqrt(area / shape))
    fits = (height >= 1) & (width >= 1) & (height <= size[0]) & (width <= size[1])
    first, found = fits.argmax(axis=1)[:, None], fits.any(axis=1)
    height = jnp.where(found, jnp.take_along_axis(height, first, axis=1)[:, 0], float(size[0]))
    width = jnp.where(found, jnp.take_along_axis(width, first, axis=1)[:, 0], float(size[1]))
    top = jnp.floor(jax.random.uniform(top_key, (count,)) * (size[0] - height + 1))
    left = jnp.floor(jax.random.uniform(left_key, (count,)) * (size[1] - width + 1))
    return Boxes(top, left, height, width, found)


def draw(key: jax.Array, count: int, size: tuple[int, int], canvas: int, side: int) -> Draw:
    """The random part of `view` for `count` images of (height, width)."""
    keys = jax.random.split(key, 7)
    sometimes = [jax.random.bernoulli(k, shape=(count,)) for k in keys[:3]]
    shift = jnp.round(jax.random.uniform(keys[3], (count, 2), minval=-0.2, maxval=0.2) * canvas)
    turn = math.radians(10)
    return Draw(
        random_boxes(keys[4], count, size, (0.8, 1.2), (3 / 4, 4 / 3)),
        jnp.where(sometimes[0][:, None], shift, 0.0),
        jnp.where(sometimes[1], jax.random.uniform(keys[5], (count,), minval=-turn, maxval=turn), 0.0),
        sometimes[2],
        jax.random.randint(keys[6], (count, 2), 0, canvas - side + 1).astype(jnp.float32),
    )


def view(images: jax.Array, drawn: Draw, canvas: int, side: int) -> jax.Array:
    """Float images [B, H, W, C] → views [B, S, S, C] of the drawn geometry, black where the canvas shows no face.

    Box → canvas (resized) → shifted → mirrored → turned about the centre → cropped at the corner, in this order.
    """
    height, width = images.shape[1:3]
    one = lambda x: x[:, None, None]  # noqa: E731
    # From a pixel of the view back to the image; canvas coordinates have their origin at the canvas's centre.
    pixels = jnp.arange(side) + 0.5 - canvas / 2
    x, y = one(drawn.corner[:, 0]) + pixels[None, None, :], one(drawn.corner[:, 1]) + pixels[None, :, None]
    cosine, sine = one(jnp.cos(drawn.angle)), one(jnp.sin(drawn.angle))
    x, y = cosine * x - sine * y, sine * x + cosine * y
    seen = (jnp.abs(x) <= canvas / 2) & (jnp.abs(y) <= canvas / 2)
    x = jnp.where(one(drawn.mirror), -x, x) - one(drawn.shift[:, 0])
    y = y - one(drawn.shift[:, 1])
    seen &= (jnp.abs(x) <= canvas / 2) & (jnp.abs(y) <= canvas / 2)

    def to_image(at: jax.Array, start: jax.Array, length: jax.Array, total: int) -> jax.Array:
        """Canvas coordinate → where `grid_sample` reads, in -1…1; the box's border pixels stand for all beyond."""
        pixel = one(start) + (at / canvas + 0.5) * one(length)
        return jnp.clip(pixel, one(start) + 0.5, one(start + length) - 0.5) / total * 2 - 1

    grid = jnp.stack(
        [
            to_image(x, drawn.box.left, drawn.box.width, width),
            to_image(y, drawn.box.top, drawn.box.height, height),
        ],
        axis=-1,
    )
    return grid_sample(images, grid) * seen[..., None]


def erase(key: jax.Array, views: jax.Array) -> jax.Array:
    """Blackens a random box in every other view [B, S, S, C]: torchvision's RandomErasing(p=0.5)."""
    chance_key, box_key = jax.random.split(key)
    count, *size = views.shape[:3]
    boxes = random_boxes(box_key, count, tuple(size), (0.02, 0.33), (0.3, 3.3))
    chosen = jax.random.bernoulli(chance_key, shape=(count,)) & boxes.found
    inside = [
        (jnp.arange(n) >= start[:, None]) & (jnp.arange(n) < (start + length)[:, None])
        for n, start, length in zip(size, (boxes.top, boxes.left), (boxes.height, boxes.width), strict=True)
    ]
    gone = chosen[:, None, None] & inside[0][:, :, None] & inside[1][:, None, :]
    return jnp.where(gone[..., None], 0.0, views)


def jitter(key: jax.Array, views: jax.Array, strength: float) -> jax.Array:
    """Changes brightness and contrast of every other view [B, S, S, C] in [0, 1].

    As torchvision's ColorJitter(brightness, contrast) with p 0.5: pixels are multiplied, then drawn to or away from their
    mean, by factors that are uniform in 1 ± strength; the results are clipped.
    """
    chance_key, *factor_keys = jax.random.split(key, 3)
    shape = (len(views), 1, 1, 1)
    brightness, contrast = (1 + strength * jax.random.uniform(k, shape, minval=-1.0) for k in factor_keys)
    changed = jnp.clip(views * brightness, 0.0, 1.0)
    mean = changed.mean(axis=(1, 2, 3), keepdims=True)
    changed = jnp.clip(mean + contrast * (changed - mean), 0.0, 1.0)
    return jnp.where(jax.random.bernoulli(chance_key, shape=shape), changed, views)


def mixup(key: jax.Array, views: jax.Array, targets: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Blends each view [B, S, S, C], and its target [B, classes], with those of another (Zhang et al. 2018).

    The share of the other is drawn for each view from Beta(alpha, alpha), folded to at most one half; partners are the
    batch in reverse, which is in random order already.
    """
    share = jax.random.beta(key, alpha, alpha, (len(views), 1))
    share = jnp.minimum(share, 1.0 - share)
    mixed = views + share[..., None, None] * (views[::-1] - views)
    return mixed, targets + share * (targets[::-1] - targets)


def mirror(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors every other image [B, H, W, C] at random."""
    return jnp.where(jax.random.bernoulli(key, shape=(len(images), 1, 1, 1)), images[:, :, ::-1], images)


def augment(kind: Augment, key: jax.Array, images: jax.Array, side: int, *, contrast: float = 0.0) -> jax.Array:
    """Float images [B, H, W, C] in [0, 1] → views [B·n, side, side, C], those of one image in a row.

    `ten_crop` is the published recipe (n 10); `one_crop` takes one crop, anywhere, of the same canvas (n 1); `affine`
    shows the whole canvas instead of a crop, as the `resize40` protocol does (n 1). `contrast` is the strength of
    `jitter`, 0 for none.
    """
    canvas = side if kind == "affine" else round(CANVAS * side)
    shown = canvas if kind == "ten_crop" else side
    draw_key, erase_key = jax.random.split(key)
    views = view(images, draw(draw_key, len(images), images.shape[1:3], canvas, shown), canvas, shown)
    if kind == "ten_crop":
        views = ten_crop(views, side).reshape(-1, side, side, images.shape[-1])
    if contrast:
        views = jitter(jax.random.fold_in(key, 1), views, contrast)
    return erase(erase_key, views)
