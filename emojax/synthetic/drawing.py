"""Draws gray faces from numbers: signed distances, antialiased, one pure function per face, mapped over many.

`faces.py` says which numbers; this module only knows how they look. Coordinates are those of the face: x to the viewer's
right, y down, the head about one unit in half-width, so that pose and size are a change of coordinates.
Shapes: N faces, S side in pixels.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

SIDE = 48

Numbers = Mapping[str, jax.Array]
Shade = Callable[[jax.Array, jax.Array, jax.Array | float], jax.Array]


@functools.partial(jax.jit, static_argnames="side")
def draw(numbers: Numbers, seeds: jax.Array, side: int = SIDE) -> jax.Array:
    """Faces [N, S, S] uint8 from numbers [N] by name (see `faces.Faces`) and noise seeds uint32 [N]."""
    return jax.vmap(functools.partial(_face, side=side))(dict(numbers), seeds)


def _cover(distance: jax.Array, soft: jax.Array | float) -> jax.Array:
    """How much of a pixel lies inside: 1 below −soft, 0 above soft, smooth between."""
    inside = jnp.clip(0.5 - 0.5 * distance / soft, 0.0, 1.0)
    return inside * inside * (3.0 - 2.0 * inside)


def _ellipse(
    x: jax.Array,
    y: jax.Array,
    rx: jax.Array | float,
    ry: jax.Array | float,
    square: jax.Array | float = 0.0,
) -> jax.Array:
    """Approximate signed distance to an ellipse or, with `square` 1, to a box with round corners (fourth powers)."""
    across, down = (x / rx) ** 2, (y / ry) ** 2
    radius = jnp.sqrt(across + down + 1e-6)
    if not isinstance(square, float) or square:
        boxy = jnp.sqrt(jnp.sqrt(across**2 + down**2 + 1e-6))
        radius = radius + square * (boxy - radius)
    return (radius - 1.0) * jnp.minimum(rx, ry)


def _stroke(
    x: jax.Array,
    y: jax.Array,
    width: jax.Array | float,
    bend: jax.Array | float,
    thick: jax.Array | float,
) -> jax.Array:
    """Signed distance to a bent stroke from −width to width: y = bend·(1 − (x/width)²), tapering to its ends."""
    along = x / width
    middle = bend * (1.0 - jnp.minimum(along**2, 1.5))
    steep = jnp.sqrt(1.0 + (2.0 * bend * along / width) ** 2)
    body = jnp.abs(y - middle) / steep - thick * jnp.sqrt(jnp.maximum(1.0 - 0.75 * along**2, 0.05))
    return jnp.maximum(body, (jnp.abs(along) - 1.0) * width)


def _over(image: jax.Array, cover: jax.Array, tone: jax.Array | float) -> jax.Array:
    """Paints a tone where `cover` is 1."""
    return image + cover * (tone - image)


def _face(p: Numbers, seed: jax.Array, side: int) -> jax.Array:
    """One face [S, S] uint8."""
    ticks = (jnp.arange(side) + 0.5) / side * 2.0 - 1.0
    px, py = ticks[None, :], ticks[:, None]
    u, v = (px - p["shift_x"]) / p["scale"], (py - p["shift_y"]) / p["scale"]
    cos, sin = jnp.cos(p["roll"]), jnp.sin(p["roll"])
    x, y = cos * u + sin * v, -sin * u + cos * v
    soft = 2.0 / side / p["scale"] * 0.75  # about a pixel

    key_noise, key_texture = jax.random.split(jax.random.key(seed))
    coarse = jax.image.resize(jax.random.normal(key_texture, (7, 7)), (side, side), "cubic")
    image = p["background"] + p["backdrop"] * (px * jnp.cos(p["light"]) - py * 0.5) + 0.06 * coarse

    # The jaw drops with the mouth; the face is a rounded box below and an ellipse above.
    drop = 0.16 * p["jaw"] + 0.10 * p["opening"]
    fx, fy = p["face_width"], p["face_height"] + jnp.where(y > 0, drop, 0.0)
    head = _ellipse(x, y, fx, fy, jnp.where(y > 0, 0.55 * p["square_jaw"], 0.0))
    hair_back = _ellipse(x, y + 0.12, fx * 1.16, 1.06 + 0.75 * p["hair_long"], 0.25)
    image = _over(image, _cover(hair_back, soft) * p["hair"], p["hair_tone"])
    neck = jnp.maximum(jnp.abs(x) - 0.42 * fx, 0.4 - y)
    image = _over(image, _cover(neck, soft), p["skin"] * 0.62)
    ear = _ellipse(jnp.abs(x + 0.12 * p["yaw"]) - fx * 1.02, y - 0.02, 0.09, 0.19)
    image = _over(image, _cover(ear, soft) * (1.0 - p["hair_long"] * p["hair"]), p["skin"] * 0.8)

    bulge = jnp.sqrt(jnp.maximum(1.0 - jnp.minimum((x / fx) ** 2 + (y / fy) ** 2, 1.0), 0.0))
    lit = 1.0 + p["contrast"] * (x * jnp.cos(p["light"]) + y * jnp.sin(p["light"]))
    skin = p["skin"] * lit * (0.62 + 0.42 * bulge) + 0.02 * coarse
    image = _over(image, _cover(head, soft), skin)
    inside = _cover(head, soft)

    def shade(image: jax.Array, cover: jax.Array, by: jax.Array | float) -> jax.Array:
        """Darkens the skin by a share; never outside the face."""
        return image * (1.0 - inside * cover * by)

    turn = p["yaw"] * 0.22  # features slide towards where the head looks
    fx_, fy_ = x - turn, y - p["nod"] * 0.12
    image = _brows(image, shade, p, fx_, fy_, soft)
    image = _eyes(image, shade, p, fx_, fy_, soft)
    image = _nose(image, shade, p, fx_ - 0.3 * turn, fy_, soft)
    image = _mouth(image, shade, p, fx_, fy_, soft)
    image = _hair_and_things(image, p, x, y, fx_, fy_, soft)

    # Camera: exposure, blur, noise.
    image = _blur(image * p["exposure"], p["blur"])
    image = image + p["noise"] * jax.random.normal(key_noise, image.shape)
    return jnp.clip(jnp.round(image * 255.0), 0, 255).astype(jnp.uint8)


# The parts. Both halves of a face are drawn at once: `away` is the distance from its middle line, `sign` the half.


def _brows(
    image: jax.Array, shade: Shade, p: Numbers, x: jax.Array, y: jax.Array, soft: jax.Array
) -> jax.Array:
    """Brows with their height, slant and furrow; lines on the forehead and between the brows."""
    away, sign = jnp.abs(x), jnp.where(x < 0, -1.0, 1.0)
    height = -0.40 - 0.155 * p["brow_raise"] + 0.03 * p["furrow"] - 0.05 * p["asymmetry"] * sign
    along = away - (p["eye_gap"] + 0.02 - 0.075 * p["furrow"])
    tilt = 0.30 * p["brow_slant"] + 0.05  # positive: the outer end lower
    bow = -0.045 - 0.05 * jnp.maximum(p["brow_raise"], 0.0)
    brow = _stroke(along, y - height - tilt * along, 0.215, bow, p["brow_thick"])
    image = _over(image, _cover(brow, soft) * 0.92, p["brow_tone"] * image)
    crease = _stroke(away - 0.065, (y + 0.40) * 0.2, 0.022, 0.0, 0.035)
    image = shade(image, _cover(crease, soft * 0.8), 0.62 * p["furrow"])
    fold = _stroke(
        x, jnp.abs(y + 0.77) - 0.05, 0.42, -0.02, 0.012
    )  # raised brows fold the forehead
    return shade(
        image, _cover(fold, soft), 0.42 * jnp.clip(p["brow_raise"], 0.0, 1.0) * p["wrinkles"]
    )


def _eyes(
    image: jax.Array, shade: Shade, p: Numbers, x: jax.Array, y: jax.Array, soft: jax.Array
) -> jax.Array:
    """Sockets, whites, irises, lids, crow's feet and tears."""
    opening = jnp.clip(p["eye_open"], 0.0, 1.6)
    half = p["eye_size"] * (0.018 + 0.085 * opening)
    half_up = half * (1.0 + 0.55 * p["lids"])
    half_low = half * (1.0 - 0.45 * p["squint"])
    away, sign = jnp.abs(x), jnp.where(x < 0, -1.0, 1.0)
    ex, ey = away - p["eye_gap"], y + 0.155
    image = shade(image, jnp.exp(-((ex / 0.24) ** 2) - ((ey + 0.03) / 0.15) ** 2), 0.24)
    along = jnp.clip(1.0 - (ex / 0.165) ** 2, 0.0, 1.0)
    sag = 0.03 * p["squint"] * (1.0 - along)
    upper, lower = -half_up * along + sag, half_low * along + sag
    ball = jnp.maximum(jnp.maximum(upper - ey, ey - lower), jnp.abs(ex) - 0.165)
    white = _cover(ball, soft * 0.7) * jnp.clip(opening * 6.0, 0.0, 1.0)
    image = _over(image, white, jnp.minimum(0.52 + 0.38 * p["skin"], 0.92))
    centre = x - sign * p["eye_gap"] - 0.05 * p["gaze"]
    image = _over(
        image, white * _cover(_ellipse(centre, ey + 0.006, 0.073, 0.073), soft * 0.7), p["iris"]
    )
    image = _over(
        image,
        white * _cover(_ellipse(centre + 0.025, ey + 0.03, 0.02, 0.02), soft * 0.6) * 0.8,
        0.95,
    )
    lid = jnp.maximum(jnp.abs(ey - upper) - 0.013, jnp.abs(ex) - 0.18)
    image = shade(image, _cover(lid, soft * 0.9), 0.75)
    lash = _stroke(ex, ey - 0.005, 0.17, 0.05, 0.022)  # a closed eye: the lid's edge curves down
    image = shade(image, _cover(lash, soft) * jnp.clip(1.0 - 6.0 * opening, 0.0, 1.0), 0.8)
    crease = _stroke(ex, ey + half_up + 0.05, 0.16, -0.03, 0.009)
    image = shade(image, _cover(crease, soft), 0.28 * (1.0 - 0.8 * p["lids"]))
    pouch = _stroke(ex, ey - half_low - 0.05, 0.16, 0.035, 0.014)
    image = shade(image, _cover(pouch, soft), 0.16 + 0.42 * p["squint"])
    fan = jnp.minimum(
        jnp.abs(ey - 0.01), jnp.abs(jnp.abs(ey - 0.01) - 0.45 * (ex - 0.16))
    )  # three crow's feet
    feet = _stroke(ex - 0.265, fan, 0.075, 0.0, 0.014)
    image = shade(image, _cover(feet, soft), 0.62 * p["squint"])
    trail = _stroke(ey - 0.26, ex - 0.03 * jnp.sin(9.0 * ey), 0.18, 0.0, 0.024)
    wet = jnp.minimum(p["skin"] * 1.5 + 0.16, 1.0)
    image = _over(image, _cover(trail, soft) * p["tears"] * 0.75, wet)
    image = shade(
        image, _cover(_ellipse(ex - 0.01, ey - 0.43, 0.062, 0.078), soft), 0.35 * p["tears"]
    )
    image = _over(
        image, _cover(_ellipse(ex - 0.01, ey - 0.42, 0.045, 0.062), soft) * p["tears"], wet
    )
    brim = _ellipse(ex, ey - half_low * 0.8, 0.12, 0.02)
    return _over(
        image, _cover(brim, soft) * p["tears"] * 0.7 * jnp.clip(opening * 4.0, 0.0, 1.0), 0.95
    )


def _nose(
    image: jax.Array, shade: Shade, p: Numbers, x: jax.Array, y: jax.Array, soft: jax.Array
) -> jax.Array:
    """Ridge, tip, nostrils and the wrinkle beside a flared nose."""
    flare, away = p["nostrils"], jnp.abs(x)
    tip = 0.20 + 0.10 * (p["nose_long"] - 1.0)
    lit_side = jnp.where(jnp.cos(p["light"]) < 0, -0.06, 0.06)
    image = shade(image, jnp.exp(-(((x - lit_side) / 0.045) ** 2) - ((y - 0.02) / 0.20) ** 2), 0.20)
    image = image * (1.0 + 0.10 * jnp.exp(-((x / 0.06) ** 2) - ((y - tip + 0.06) / 0.09) ** 2))
    image = shade(image, jnp.exp(-((x / 0.13) ** 2) - ((y - tip - 0.075) / 0.035) ** 2), 0.26)
    hole = _ellipse(
        away - 0.075 - 0.055 * flare,
        y - tip + 0.005 + 0.03 * flare,
        0.030 + 0.034 * flare,
        0.022 + 0.030 * flare,
    )
    image = shade(image, _cover(hole, soft), 0.62 + 0.2 * flare)
    wing = (
        jnp.abs(_ellipse(away - 0.095, y - tip + 0.03, 0.075 + 0.055 * flare, 0.07 + 0.03 * flare))
        - 0.008
    )
    image = shade(image, _cover(jnp.maximum(wing, 0.095 - away), soft), 0.30 + 0.35 * flare)
    wrinkle = _stroke((y - 0.02) * 0.5 + away * 0.2, away - 0.10 - 0.2 * y, 0.05, 0.0, 0.012)
    return shade(image, _cover(wrinkle, soft), 0.55 * flare * p["wrinkles"])


def _mouth(
    image: jax.Array, shade: Shade, p: Numbers, x: jax.Array, y: jax.Array, soft: jax.Array
) -> jax.Array:
    """Lips, teeth, the open mouth, folds beside it, tense jaw, raised chin."""
    curve, opening, press, tension = p["mouth_curve"], p["opening"], p["press"], p["tension"]
    smile, down, away = jnp.maximum(curve, 0.0), jnp.maximum(-curve, 0.0), jnp.abs(x)
    round_ = 0.22 * opening * (curve < 0.3)
    width = p["mouth_width"] * (1.0 + 0.20 * smile + 0.16 * tension - round_ - 0.08 * press)
    base = 0.47 + 0.05 * p["jaw"] - 0.055 * p["chin"] + 0.03 * down
    along = x / width
    arc = 1.0 - jnp.minimum(along**2, 1.4)
    shape, edge = jnp.sqrt(jnp.maximum(arc, 0.0)), (jnp.abs(along) - 1.0) * width
    line = base + 0.125 * curve * (arc - 0.5) + 0.02 * p["asymmetry"] * along
    gap = jnp.clip(opening, 0.0, 1.2) * 0.20 + 0.02 * p["jaw"]
    top, bottom = line - 0.28 * gap * shape, line + gap * shape
    lips = p["lips"] * (1.0 - 0.78 * press) * (1.0 - 0.35 * tension) * shape
    flesh = jnp.maximum(jnp.maximum(top - 0.062 * lips - y, y - bottom - 0.085 * lips), edge)
    image = shade(image, _cover(flesh, soft), p["lip_dark"])
    hole = jnp.maximum(jnp.maximum(top - y, y - bottom), edge)
    apart = jnp.clip(gap * 18.0, 0.0, 1.0)
    image = _over(image, _cover(hole, soft * 0.8) * apart, 0.07)
    bared = jnp.clip(curve + tension, 0.0, 1.0)
    teeth = jnp.maximum(hole, y - top - (0.055 + 0.06 * tension) * (0.35 + bared) * shape)
    image = _over(
        image, _cover(teeth, soft * 0.8) * apart * jnp.clip(0.25 + curve + tension, 0.0, 1.0), 0.86
    )
    seam = jnp.maximum(jnp.abs(y - line) - (0.012 + 0.012 * press), edge)
    image = shade(image, _cover(seam, soft) * (1.0 - 0.7 * apart), 0.60 + 0.25 * press)
    pale = jnp.maximum(
        jnp.abs(jnp.abs(y - line) - 0.065) - 0.018, edge * 0.9
    )  # pressed lips whiten their rim
    image = _over(image, _cover(pale, soft) * press * 0.45, p["skin"] * 1.12)
    below = _stroke(x, y - (base + 0.135 + gap + 0.05 * p["jaw"]), 0.16, -0.02, 0.02)
    image = shade(image, _cover(below, soft * 1.6), 0.20)
    corner = _ellipse(away - width, y - line, 0.035, 0.03 + 0.03 * press)
    image = shade(
        image, _cover(corner, soft * 1.3), 0.28 + 0.35 * jnp.maximum(jnp.abs(curve), press)
    )
    # Folds from the nose to the corners: a smile bows them outward, tension draws them straight and deep.
    fold = _stroke(
        (y - 0.36) * 0.9,
        away - width * 0.98 - 0.02 - 0.03 * (y - 0.2),
        0.17,
        0.04 * curve + 0.03,
        0.014,
    )
    image = shade(
        image, _cover(fold, soft * 1.2), jnp.clip(0.14 + 0.40 * smile + 0.42 * tension, 0.0, 0.75)
    )
    sunk = _stroke(
        y - base - 0.14, away - width - 0.02 - 0.12 * (y - base), 0.11, 0.0, 0.016
    )  # corners pulled down
    image = shade(image, _cover(sunk, soft * 1.1), 0.50 * down)
    jaw = _ellipse(away - 0.78 * p["face_width"], y - 0.46, 0.10, 0.16)
    image = image * (1.0 + 0.24 * tension * _cover(jaw, soft * 2.5))
    cord = _stroke(y - 0.46, away - 0.58 * p["face_width"], 0.19, 0.02, 0.020)
    image = shade(image, _cover(cord, soft * 1.3), 0.58 * tension)
    image = image * (
        1.0 + 0.14 * smile * _cover(_ellipse(away - 0.42, y - 0.16, 0.17, 0.13), soft * 3.0)
    )
    # A raised chin bunches up: a bright ball with a dark arc above it and pits in it.
    chin_y = 0.78 + 0.10 * p["jaw"] + 0.08 * opening - 0.06 * p["chin"]
    ball = _cover(_ellipse(x, y - chin_y, 0.20, 0.12), soft * 2.0)
    image = image * (1.0 + (0.06 + 0.22 * p["chin"]) * ball)
    image = shade(
        image, _cover(_stroke(x, y - chin_y + 0.13, 0.20, -0.05, 0.022), soft), 0.62 * p["chin"]
    )
    return image * (1.0 + 0.16 * p["chin"] * ball * jnp.sin(46.0 * x) * jnp.sin(46.0 * y))


def _hair_and_things(
    image: jax.Array,
    p: Numbers,
    x: jax.Array,
    y: jax.Array,
    fx: jax.Array,
    fy: jax.Array,
    soft: jax.Array,
) -> jax.Array:
    """Hair over the forehead, beard shadow, glasses, and a hand before the face."""
    width, away = p["face_width"], jnp.abs(fx)
    line = -0.74 - 0.10 * p["hairline"] + 0.22 * x * p["parting"] + 0.16 * x**2
    cap = jnp.maximum(_ellipse(x, y + 0.10, width * 1.12, 1.02, 0.2), y - line)
    strands = 1.0 + 0.25 * jnp.sin(9.0 * x + 5.0 * p["parting"])
    image = _over(image, _cover(cap, soft * 1.2) * p["hair"], p["hair_tone"] * strands)
    stubble = jnp.clip((y - 0.40) * 5.0, 0.0, 1.0) * _cover(_ellipse(x, y, width, 0.98), soft * 3)
    image = image * (1.0 - 0.34 * p["beard"] * stubble)
    rim = jnp.abs(_ellipse(away - p["eye_gap"], fy + 0.145, 0.235, 0.185, 0.3)) - 0.020
    arm = jnp.maximum(jnp.abs(fy + 0.19) - 0.018, jnp.maximum(0.50 - away, away - width))
    frame = jnp.minimum(jnp.minimum(rim, arm), _stroke(fx, fy + 0.17, 0.09, -0.03, 0.018))
    image = _over(image, _cover(frame, soft) * p["glasses"] * 0.95, 0.08)
    # A hand: a palm and four fingers, from one side.
    hx, hy = x * p["hand_side"] - p["hand_x"], y - p["hand_y"]
    palm = _ellipse(hx - 0.42, hy - 0.30, 0.34, 0.36, 0.4)
    finger = jnp.clip(jnp.round((hy + 0.20) / 0.15), 0.0, 3.0)
    along = hx - 0.10 - 0.05 * (finger - 1.5) ** 2
    fingers = _ellipse(along, hy + 0.20 - 0.15 * finger, 0.36, 0.072, 0.6)
    hand = jnp.minimum(palm, fingers)
    tone = (
        1.0
        - 0.45 * _cover(jnp.abs(fingers) - 0.02, 0.03)
        - 0.2 * _cover(jnp.abs(hand) - 0.02, 0.04)
    )
    return _over(image, _cover(hand, soft) * p["hand"], 0.95 * p["skin"] * tone)


def _blur(image: jax.Array, amount: jax.Array) -> jax.Array:
    """A [w, 1, w] blur along both axes, w = amount in 0…1, as matrix products: XLA would draw shifted copies anew."""
    side = image.shape[0]
    near = np.eye(side, k=1) + np.eye(side, k=-1)
    near[0, 0] = near[-1, -1] = 1.0  # the border repeats
    blur = (np.eye(side, dtype=np.float32) + amount * near.astype(np.float32)) / (
        1.0 + 2.0 * amount
    )
    return jnp.matmul(jnp.matmul(blur, image, precision="highest"), blur.T, precision="highest")
