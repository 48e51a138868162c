"""Training views made on the device: box, shift, mirror and rotation in one resampling, then crops.

The draws are those of torchvision's transforms as VGGNet's authors chain them (Khaireddin and Chen
2021): RandomResizedCrop(48, scale 0.8–1.2), translation by up to 20 % (p 0.5), mirror, rotation by
up to 10° (p 0.5), TenCrop(40), RandomErasing(p 0.5) for every crop. They resample up to three
times, to the nearest pixel; here the maps are composed and each view is read once, bilinearly.
Shapes: B images, H height, W width, C channels, S side of the view.
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Num

from emojax.ops.arrays import AnyArray
from emojax.ops.image import grid_sample, ten_crop

Augment = Literal["flip", "affine", "one_crop", "ten_crop"]
CANVAS = 1.2  # side of the whole face over the side of a crop: 48 to 40
_MAX_SHIFT = 0.2  # of the canvas's side
_MAX_ANGLE = math.radians(10)


class Boxes(NamedTuple):
    """Rectangles in pixels, and whether one was found that fits."""

    top: Float[Array, " B"]
    left: Float[Array, " B"]
    height: Float[Array, " B"]
    width: Float[Array, " B"]
    found: Bool[Array, " B"]


class Draw(NamedTuple):
    """What is random about views: a box of the image, shift and turn of the canvas, mirror, corner.

    `box` in pixels of the image; `shift` (x, y) in canvas pixels; `angle` in radians; `corner`
    (x, y), where the view begins on the canvas, in pixels.
    """

    box: Boxes
    shift: Float[Array, "B 2"]
    angle: Float[Array, " B"]
    mirror: Bool[Array, " B"]
    corner: Float[Array, "B 2"]


def random_boxes(
    key: Key[Array, ""],
    count: int,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    *,
    tries: int = 10,
) -> Boxes:
    """Boxes of whole pixels in (height, width): area a share in `scale`, height/width in `ratio`.

    As in torchvision's RandomResizedCrop and RandomErasing: areas are uniform, ratios log-uniform,
    the first of ten tries that fits is taken, corners are uniform. A box that was not found is the
    whole image.
    """
    area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    share = jax.random.uniform(area_key, (count, tries), minval=scale[0], maxval=scale[1])
    area = share * (size[0] * size[1])
    low, high = (math.log(bound) for bound in ratio)
    shape = jnp.exp(jax.random.uniform(ratio_key, (count, tries), minval=low, maxval=high))
    # All tries are drawn at once: a loop until one fits would have no fixed length.
    height = jnp.round(jnp.sqrt(area * shape))
    width = jnp.round(jnp.sqrt(area / shape))
    fits = (height >= 1) & (width >= 1) & (height <= size[0]) & (width <= size[1])
    first = fits.argmax(axis=1)[:, None]
    found = fits.any(axis=1)
    height = jnp.where(found, jnp.take_along_axis(height, first, axis=1)[:, 0], float(size[0]))
    width = jnp.where(found, jnp.take_along_axis(width, first, axis=1)[:, 0], float(size[1]))
    top = jnp.floor(jax.random.uniform(top_key, (count,)) * (size[0] - height + 1))
    left = jnp.floor(jax.random.uniform(left_key, (count,)) * (size[1] - width + 1))
    return Boxes(top, left, height, width, found)


def draw(key: Key[Array, ""], count: int, size: tuple[int, int], canvas: int, side: int) -> Draw:
    """The random part of `view` for `count` images of (height, width)."""
    shifts_key, turns_key, mirror_key, shift_key, box_key, angle_key, corner_key = jax.random.split(
        key, 7
    )
    shifts, turns, mirrors = (
        jax.random.bernoulli(k, shape=(count,)) for k in (shifts_key, turns_key, mirror_key)
    )
    share = jax.random.uniform(shift_key, (count, 2), minval=-_MAX_SHIFT, maxval=_MAX_SHIFT)
    angle = jax.random.uniform(angle_key, (count,), minval=-_MAX_ANGLE, maxval=_MAX_ANGLE)
    corner = jax.random.randint(corner_key, (count, 2), 0, canvas - side + 1)
    return Draw(
        box=random_boxes(box_key, count, size, (0.8, 1.2), (3 / 4, 4 / 3)),
        shift=jnp.where(shifts[:, None], jnp.round(share * canvas), 0.0),
        angle=jnp.where(turns, angle, 0.0),
        mirror=mirrors,
        corner=corner.astype(jnp.float32),
    )


def view(
    images: Float[AnyArray, "B H W C"], drawn: Draw, canvas: int, side: int
) -> Float[Array, "B {side} {side} C"]:
    """Views of the drawn geometry, black where the canvas shows no face.

    Box → canvas (resized) → shifted → mirrored → turned about the centre → cropped at the corner,
    in this order.
    """
    height, width = images.shape[1:3]

    # From a pixel of the view back to the image, so the steps are undone from last to first.
    # Canvas coordinates have their origin at the canvas's centre, where turn and mirror are simple.
    pixels = jnp.arange(side, dtype=jnp.float32) + 0.5 - canvas / 2
    x = _per_image(drawn.corner[:, 0]) + pixels[None, None, :]
    y = _per_image(drawn.corner[:, 1]) + pixels[None, :, None]
    cosine = _per_image(jnp.cos(drawn.angle))
    sine = _per_image(jnp.sin(drawn.angle))
    x, y = cosine * x - sine * y, sine * x + cosine * y
    # Each of torchvision's steps blackens what its own canvas does not hold: a point must lie on
    # the canvas after the turn and again after the shift.
    on_canvas = _inside(x, y, canvas)
    x = jnp.where(_per_image(drawn.mirror), -x, x) - _per_image(drawn.shift[:, 0])
    y = y - _per_image(drawn.shift[:, 1])
    on_canvas &= _inside(x, y, canvas)

    grid_x = _image_coordinate(x, drawn.box.left, drawn.box.width, canvas, width)
    grid_y = _image_coordinate(y, drawn.box.top, drawn.box.height, canvas, height)
    grid = jnp.stack([grid_x, grid_y], axis=-1)
    return grid_sample(images, grid) * on_canvas[..., None].astype(images.dtype)


def _per_image(values: Num[Array, " B"] | Bool[Array, " B"]) -> Array:
    """[B] → [B, 1, 1], against the rows and columns of views."""
    return values[:, None, None]


def _inside(
    x: Float[Array, "B S S"], y: Float[Array, "B S S"], canvas: int
) -> Bool[Array, "B S S"]:
    return (jnp.abs(x) <= canvas / 2) & (jnp.abs(y) <= canvas / 2)


def _image_coordinate(
    position: Float[Array, "B S S"],
    start: Float[Array, " B"],
    length: Float[Array, " B"],
    canvas: int,
    pixels: int,
) -> Float[Array, "B S S"]:
    """Canvas coordinate → where `grid_sample` reads the image, in -1…1.

    Beyond the box's border pixels their centres are read: the resize repeats them, and the image
    beside the box is not shown.
    """
    pixel = _per_image(start) + (position / canvas + 0.5) * _per_image(length)
    first = _per_image(start) + 0.5
    last = _per_image(start + length) - 0.5
    return jnp.clip(pixel, first, last) / pixels * 2 - 1


def erase(key: Key[Array, ""], views: Float[Array, "B S S C"]) -> Float[Array, "B S S C"]:
    """Blackens a random box in every other view: torchvision's RandomErasing(p=0.5)."""
    chance_key, box_key = jax.random.split(key)
    count, height, width = views.shape[:3]
    boxes = random_boxes(box_key, count, (height, width), (0.02, 0.33), (0.3, 3.3))
    chosen = jax.random.bernoulli(chance_key, shape=(count,)) & boxes.found
    rows = _within(height, boxes.top, boxes.height)
    columns = _within(width, boxes.left, boxes.width)
    erased = chosen[:, None, None] & rows[:, :, None] & columns[:, None, :]
    return jnp.where(erased[..., None], 0.0, views)


def _within(
    pixels: int, start: Float[Array, " B"], length: Float[Array, " B"]
) -> Bool[Array, "B {pixels}"]:
    """Which pixels of an axis lie in each box."""
    pixel = jnp.arange(pixels, dtype=jnp.float32)[None, :]
    return (pixel >= start[:, None]) & (pixel < (start + length)[:, None])


def mirror(key: Key[Array, ""], images: Num[AnyArray, "B H W C"]) -> Num[Array, "B H W C"]:
    """Mirrors every other image at random."""
    chosen = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(chosen, images[:, :, ::-1], images)


def augment(
    kind: Augment, key: Key[Array, ""], images: Float[AnyArray, "B H W C"], side: int
) -> Float[Array, "views {side} {side} C"]:
    """Images in [0, 1] → n views of each, those of one image in a row.

    `ten_crop` is the published recipe (n 10); `one_crop` takes one crop, anywhere, of the same
    canvas (n 1); `affine` shows the whole canvas instead of a crop, as the `resize40` protocol does
    (n 1).
    """
    canvas = side if kind == "affine" else round(CANVAS * side)
    shown = canvas if kind == "ten_crop" else side
    draw_key, erase_key = jax.random.split(key)
    height, width = images.shape[1:3]
    drawn = draw(draw_key, len(images), (height, width), canvas, shown)
    views = view(images, drawn, canvas, shown)
    if kind == "ten_crop":
        views = ten_crop(views, side).reshape(-1, side, side, images.shape[-1])
    return erase(erase_key, views)
