"""Draws gray faces from numbers: antialiased signed distances, a pure function mapped over faces.

`faces` says which numbers; this module only knows how they look. `p` are a face's parameters, its
numbers by name. Coordinates are those of the face: x to the viewer's right, y down, the head about
one unit in half-width, so that pose and size are a change of coordinates. Shapes: N faces, S side
in pixels.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8, UInt32

SIDE = 48

Picture = Float[Array, "S S"]  # gray in [0, 1]
Plane = Float[Array, "#S #S"]  # something of every pixel, or of every row or column
Number = Float[Array, ""]
Shade = Callable[[Picture, Plane, Plane | Number | float], Picture]


@functools.partial(jax.jit, static_argnames="side")
def draw(
    numbers: Mapping[str, Float[Array, " N"] | Float[np.ndarray, " N"]],
    seeds: UInt32[Array, " N"] | UInt32[np.ndarray, " N"],
    side: int = SIDE,
) -> UInt8[Array, "N S S"]:
    """Faces from their numbers (see `faces.Faces`) and the seeds of their noise."""

    def face(numbers: Mapping[str, Number], seed: UInt32[Array, ""]) -> UInt8[Array, "S S"]:
        return _face(numbers, seed, side)

    faces: Callable[..., UInt8[Array, "N S S"]] = jax.vmap(face)
    return faces(dict(numbers), seeds)


def _cover(distance: Plane, soft: Number | float) -> Plane:
    """How much of a pixel lies inside a shape: 1 below −soft, 0 above soft, smooth between."""
    inside = jnp.clip(0.5 - 0.5 * distance / soft, 0.0, 1.0)
    return inside * inside * (3.0 - 2.0 * inside)


def _ellipse(
    x: Plane,
    y: Plane,
    rx: Plane | Number | float,
    ry: Plane | Number | float,
    square: Plane | Number | float = 0.0,
) -> Plane:
    """Approximate signed distance to an ellipse; with `square` 1, to a box with round corners."""
    across = (x / rx) ** 2
    down = (y / ry) ** 2
    radius = jnp.sqrt(across + down + 1e-6)
    if not isinstance(square, float) or square:
        # The same with fourth powers.
        boxy = jnp.sqrt(jnp.sqrt(across**2 + down**2 + 1e-6))
        radius = radius + square * (boxy - radius)
    return (radius - 1.0) * jnp.minimum(rx, ry)


def _stroke(
    x: Plane,
    y: Plane,
    width: Number | float,
    bend: Number | float,
    thick: Number | float,
) -> Plane:
    """Signed distance to a stroke along y = bend·(1 − (x/width)²), |x| < width, that tapers off."""
    along = x / width
    middle = bend * (1.0 - jnp.minimum(along**2, 1.5))
    steep = jnp.sqrt(1.0 + (2.0 * bend * along / width) ** 2)
    half_width = thick * jnp.sqrt(jnp.maximum(1.0 - 0.75 * along**2, 0.05))
    body = jnp.abs(y - middle) / steep - half_width
    return jnp.maximum(body, (jnp.abs(along) - 1.0) * width)


def _over(image: Picture, cover: Plane, tone: Plane | Number | float) -> Picture:
    """Paints a tone where `cover` is 1."""
    return image + cover * (tone - image)


def _face(p: Mapping[str, Number], seed: UInt32[Array, ""], side: int) -> UInt8[Array, "S S"]:
    """One face: the background, the head, its parts from back to front, then the camera."""
    # From the picture's coordinates (px, py), in (−1, 1), to the face's (x, y): shift, scale, roll.
    ticks = (jnp.arange(side, dtype=jnp.float32) + 0.5) / side * 2.0 - 1.0
    px = ticks[None, :]
    py = ticks[:, None]
    u = (px - p["shift_x"]) / p["scale"]
    v = (py - p["shift_y"]) / p["scale"]
    cos = jnp.cos(p["roll"])
    sin = jnp.sin(p["roll"])
    x = cos * u + sin * v
    y = -sin * u + cos * v
    soft = 2.0 / side / p["scale"] * 0.75  # about a pixel

    key_noise, key_texture = jax.random.split(jax.random.key(seed))
    coarse = jax.image.resize(jax.random.normal(key_texture, (7, 7)), (side, side), "cubic")
    backdrop = p["backdrop"] * (px * jnp.cos(p["light"]) - py * 0.5)
    image = p["background"] + backdrop + 0.06 * coarse

    # The jaw drops with the mouth; the face is a rounded box below and an ellipse above.
    drop = 0.16 * p["jaw"] + 0.10 * p["opening"]
    width = p["face_width"]
    height = p["face_height"] + jnp.where(y > 0, drop, 0.0)
    head = _ellipse(x, y, width, height, jnp.where(y > 0, 0.55 * p["square_jaw"], 0.0))
    hair_back = _ellipse(x, y + 0.12, width * 1.16, 1.06 + 0.75 * p["hair_long"], 0.25)
    image = _over(image, _cover(hair_back, soft) * p["hair"], p["hair_tone"])
    neck = jnp.maximum(jnp.abs(x) - 0.42 * width, 0.4 - y)
    image = _over(image, _cover(neck, soft), p["skin"] * 0.62)
    ear = _ellipse(jnp.abs(x + 0.12 * p["yaw"]) - width * 1.02, y - 0.02, 0.09, 0.19)
    image = _over(image, _cover(ear, soft) * (1.0 - p["hair_long"] * p["hair"]), p["skin"] * 0.8)

    # The head bulges towards the viewer, so light falls off to its edge.
    radius_squared = (x / width) ** 2 + (y / height) ** 2
    bulge = jnp.sqrt(jnp.maximum(1.0 - jnp.minimum(radius_squared, 1.0), 0.0))
    lit = 1.0 + p["contrast"] * (x * jnp.cos(p["light"]) + y * jnp.sin(p["light"]))
    skin = p["skin"] * lit * (0.62 + 0.42 * bulge) + 0.02 * coarse
    image = _over(image, _cover(head, soft), skin)
    inside = _cover(head, soft)

    def shade(image: Picture, cover: Plane, share: Plane | Number | float) -> Picture:
        """Darkens the skin by a share; never outside the face."""
        return image * (1.0 - inside * cover * share)

    # Features have coordinates of their own: they slide towards where the head looks.
    turn = p["yaw"] * 0.22
    feature_x = x - turn
    feature_y = y - p["nod"] * 0.12
    image = _brows(image, shade, p, feature_x, feature_y, soft)
    image = _eyes(image, shade, p, feature_x, feature_y, soft)
    image = _nose(image, shade, p, feature_x - 0.3 * turn, feature_y, soft)
    image = _mouth(image, shade, p, feature_x, feature_y, soft)
    image = _hair_and_beard(image, p, x, y, soft)
    image = _glasses(image, p, feature_x, feature_y, soft)
    image = _hand(image, p, x, y, soft)

    # Camera: exposure, blur, noise.
    image = _blur(image * p["exposure"], p["blur"])
    image = image + p["noise"] * jax.random.normal(key_noise, image.shape)
    return jnp.clip(jnp.round(image * 255.0), 0, 255).astype(jnp.uint8)


# The parts. Both halves of a face are drawn at once: `away` is the distance from its middle line,
# `sign` the half. `soft` is the half-width of a soft edge, about a pixel.


def _brows(
    image: Picture, shade: Shade, p: Mapping[str, Number], x: Plane, y: Plane, soft: Number
) -> Picture:
    """Brows with their height, slant and furrow; lines on the forehead and between the brows."""
    away = jnp.abs(x)
    sign = jnp.where(x < 0, -1.0, 1.0)
    height = -0.40 - 0.155 * p["brow_raise"] + 0.03 * p["furrow"] - 0.05 * p["asymmetry"] * sign
    along = away - (p["eye_gap"] + 0.02 - 0.075 * p["furrow"])
    tilt = 0.30 * p["brow_slant"] + 0.05  # positive: the outer end lower
    bow = -0.045 - 0.05 * jnp.maximum(p["brow_raise"], 0.0)
    brow = _stroke(along, y - height - tilt * along, 0.215, bow, p["brow_thick"])
    image = _over(image, _cover(brow, soft) * 0.92, p["brow_tone"] * image)
    crease = _stroke(away - 0.065, (y + 0.40) * 0.2, 0.022, 0.0, 0.035)
    image = shade(image, _cover(crease, soft * 0.8), 0.62 * p["furrow"])
    # Raised brows fold the forehead.
    fold = _stroke(x, jnp.abs(y + 0.77) - 0.05, 0.42, -0.02, 0.012)
    raised = 0.42 * jnp.clip(p["brow_raise"], 0.0, 1.0)
    return shade(image, _cover(fold, soft), raised * p["wrinkles"])


def _eyes(
    image: Picture, shade: Shade, p: Mapping[str, Number], x: Plane, y: Plane, soft: Number
) -> Picture:
    """Sockets, whites, irises, lids, crow's feet and tears."""
    opening = jnp.clip(p["eye_open"], 0.0, 1.6)
    half = p["eye_size"] * (0.018 + 0.085 * opening)
    half_up = half * (1.0 + 0.55 * p["lids"])
    half_low = half * (1.0 - 0.45 * p["squint"])
    away = jnp.abs(x)
    sign = jnp.where(x < 0, -1.0, 1.0)
    # From here on in the coordinates of an eye.
    ex = away - p["eye_gap"]
    ey = y + 0.155
    socket = jnp.exp(-((ex / 0.24) ** 2) - ((ey + 0.03) / 0.15) ** 2)
    image = shade(image, socket, 0.24)
    along = jnp.clip(1.0 - (ex / 0.165) ** 2, 0.0, 1.0)
    sag = 0.03 * p["squint"] * (1.0 - along)
    upper = -half_up * along + sag
    lower = half_low * along + sag
    ball = jnp.maximum(jnp.maximum(upper - ey, ey - lower), jnp.abs(ex) - 0.165)
    white = _cover(ball, soft * 0.7) * jnp.clip(opening * 6.0, 0.0, 1.0)
    image = _over(image, white, jnp.minimum(0.52 + 0.38 * p["skin"], 0.92))
    centre = x - sign * p["eye_gap"] - 0.05 * p["gaze"]
    iris = _ellipse(centre, ey + 0.006, 0.073, 0.073)
    image = _over(image, white * _cover(iris, soft * 0.7), p["iris"])
    glint = _ellipse(centre + 0.025, ey + 0.03, 0.02, 0.02)
    image = _over(image, white * _cover(glint, soft * 0.6) * 0.8, 0.95)
    lid = jnp.maximum(jnp.abs(ey - upper) - 0.013, jnp.abs(ex) - 0.18)
    image = shade(image, _cover(lid, soft * 0.9), 0.75)
    # In a closed eye the lid's edge curves down.
    lash = _stroke(ex, ey - 0.005, 0.17, 0.05, 0.022)
    image = shade(image, _cover(lash, soft) * jnp.clip(1.0 - 6.0 * opening, 0.0, 1.0), 0.8)
    crease = _stroke(ex, ey + half_up + 0.05, 0.16, -0.03, 0.009)
    image = shade(image, _cover(crease, soft), 0.28 * (1.0 - 0.8 * p["lids"]))
    pouch = _stroke(ex, ey - half_low - 0.05, 0.16, 0.035, 0.014)
    image = shade(image, _cover(pouch, soft), 0.16 + 0.42 * p["squint"])
    # Three crow's feet: the distance to the middle one, or to the two that part from it.
    height = jnp.abs(ey - 0.01)
    fan = jnp.minimum(height, jnp.abs(height - 0.45 * (ex - 0.16)))
    feet = _stroke(ex - 0.265, fan, 0.075, 0.0, 0.014)
    image = shade(image, _cover(feet, soft), 0.62 * p["squint"])
    trail = _stroke(ey - 0.26, ex - 0.03 * jnp.sin(9.0 * ey), 0.18, 0.0, 0.024)
    wet = jnp.minimum(p["skin"] * 1.5 + 0.16, 1.0)
    image = _over(image, _cover(trail, soft) * p["tears"] * 0.75, wet)
    rim = _ellipse(ex - 0.01, ey - 0.43, 0.062, 0.078)
    image = shade(image, _cover(rim, soft), 0.35 * p["tears"])
    drop = _ellipse(ex - 0.01, ey - 0.42, 0.045, 0.062)
    image = _over(image, _cover(drop, soft) * p["tears"], wet)
    brim = _ellipse(ex, ey - half_low * 0.8, 0.12, 0.02)
    brimming = _cover(brim, soft) * p["tears"] * 0.7 * jnp.clip(opening * 4.0, 0.0, 1.0)
    return _over(image, brimming, 0.95)


def _nose(
    image: Picture, shade: Shade, p: Mapping[str, Number], x: Plane, y: Plane, soft: Number
) -> Picture:
    """Ridge, tip, nostrils and the wrinkle beside a flared nose."""
    flare = p["nostrils"]
    away = jnp.abs(x)
    tip = 0.20 + 0.10 * (p["nose_long"] - 1.0)
    lit_side = jnp.where(jnp.cos(p["light"]) < 0, -0.06, 0.06)
    ridge = jnp.exp(-(((x - lit_side) / 0.045) ** 2) - ((y - 0.02) / 0.20) ** 2)
    image = shade(image, ridge, 0.20)
    image = image * (1.0 + 0.10 * jnp.exp(-((x / 0.06) ** 2) - ((y - tip + 0.06) / 0.09) ** 2))
    below = jnp.exp(-((x / 0.13) ** 2) - ((y - tip - 0.075) / 0.035) ** 2)
    image = shade(image, below, 0.26)
    hole = _ellipse(
        away - 0.075 - 0.055 * flare,
        y - tip + 0.005 + 0.03 * flare,
        0.030 + 0.034 * flare,
        0.022 + 0.030 * flare,
    )
    image = shade(image, _cover(hole, soft), 0.62 + 0.2 * flare)
    side = _ellipse(away - 0.095, y - tip + 0.03, 0.075 + 0.055 * flare, 0.07 + 0.03 * flare)
    wing = jnp.abs(side) - 0.008
    image = shade(image, _cover(jnp.maximum(wing, 0.095 - away), soft), 0.30 + 0.35 * flare)
    wrinkle = _stroke((y - 0.02) * 0.5 + away * 0.2, away - 0.10 - 0.2 * y, 0.05, 0.0, 0.012)
    return shade(image, _cover(wrinkle, soft), 0.55 * flare * p["wrinkles"])


def _mouth(
    image: Picture, shade: Shade, p: Mapping[str, Number], x: Plane, y: Plane, soft: Number
) -> Picture:
    """Lips, teeth, the open mouth, folds beside it, tense jaw, raised chin."""
    curve = p["mouth_curve"]
    opening = p["opening"]
    press = p["press"]
    tension = p["tension"]
    smile = jnp.maximum(curve, 0.0)
    down = jnp.maximum(-curve, 0.0)
    away = jnp.abs(x)
    # The line between the lips, and where upper and lower lip are when they open.
    round_ = 0.22 * opening * (curve < 0.3).astype(jnp.float32)
    width = p["mouth_width"] * (1.0 + 0.20 * smile + 0.16 * tension - round_ - 0.08 * press)
    base = 0.47 + 0.05 * p["jaw"] - 0.055 * p["chin"] + 0.03 * down
    along = x / width
    arc = 1.0 - jnp.minimum(along**2, 1.4)
    shape = jnp.sqrt(jnp.maximum(arc, 0.0))
    edge = (jnp.abs(along) - 1.0) * width
    line = base + 0.125 * curve * (arc - 0.5) + 0.02 * p["asymmetry"] * along
    gap = jnp.clip(opening, 0.0, 1.2) * 0.20 + 0.02 * p["jaw"]
    top = line - 0.28 * gap * shape
    bottom = line + gap * shape
    lips = p["lips"] * (1.0 - 0.78 * press) * (1.0 - 0.35 * tension) * shape
    flesh = jnp.maximum(jnp.maximum(top - 0.062 * lips - y, y - bottom - 0.085 * lips), edge)
    image = shade(image, _cover(flesh, soft), p["lip_dark"])
    hole = jnp.maximum(jnp.maximum(top - y, y - bottom), edge)
    apart = jnp.clip(gap * 18.0, 0.0, 1.0)
    image = _over(image, _cover(hole, soft * 0.8) * apart, 0.07)
    bared = jnp.clip(curve + tension, 0.0, 1.0)
    teeth = jnp.maximum(hole, y - top - (0.055 + 0.06 * tension) * (0.35 + bared) * shape)
    shown = jnp.clip(0.25 + curve + tension, 0.0, 1.0)
    image = _over(image, _cover(teeth, soft * 0.8) * apart * shown, 0.86)
    seam = jnp.maximum(jnp.abs(y - line) - (0.012 + 0.012 * press), edge)
    image = shade(image, _cover(seam, soft) * (1.0 - 0.7 * apart), 0.60 + 0.25 * press)
    # Pressed lips whiten their rim.
    pale = jnp.maximum(jnp.abs(jnp.abs(y - line) - 0.065) - 0.018, edge * 0.9)
    image = _over(image, _cover(pale, soft) * press * 0.45, p["skin"] * 1.12)
    below = _stroke(x, y - (base + 0.135 + gap + 0.05 * p["jaw"]), 0.16, -0.02, 0.02)
    image = shade(image, _cover(below, soft * 1.6), 0.20)
    corner = _ellipse(away - width, y - line, 0.035, 0.03 + 0.03 * press)
    image = shade(
        image, _cover(corner, soft * 1.3), 0.28 + 0.35 * jnp.maximum(jnp.abs(curve), press)
    )
    return _around_the_mouth(image, shade, p, x, y, soft, width, base)


def _around_the_mouth(
    image: Picture,
    shade: Shade,
    p: Mapping[str, Number],
    x: Plane,
    y: Plane,
    soft: Number,
    width: Number,
    base: Number,
) -> Picture:
    """Folds, cheeks, jaw and chin around a mouth of this half-width at this height."""
    curve = p["mouth_curve"]
    tension = p["tension"]
    smile = jnp.maximum(curve, 0.0)
    down = jnp.maximum(-curve, 0.0)
    away = jnp.abs(x)
    # Folds from the nose to the corners: a smile bows them outward, tension draws them straight and
    # deep.
    beside = away - width * 0.98 - 0.02 - 0.03 * (y - 0.2)
    fold = _stroke((y - 0.36) * 0.9, beside, 0.17, 0.04 * curve + 0.03, 0.014)
    depth = jnp.clip(0.14 + 0.40 * smile + 0.42 * tension, 0.0, 0.75)
    image = shade(image, _cover(fold, soft * 1.2), depth)
    # Corners that are pulled down leave a line below them.
    sunk = _stroke(y - base - 0.14, away - width - 0.02 - 0.12 * (y - base), 0.11, 0.0, 0.016)
    image = shade(image, _cover(sunk, soft * 1.1), 0.50 * down)
    jaw = _ellipse(away - 0.78 * p["face_width"], y - 0.46, 0.10, 0.16)
    image = image * (1.0 + 0.24 * tension * _cover(jaw, soft * 2.5))
    cord = _stroke(y - 0.46, away - 0.58 * p["face_width"], 0.19, 0.02, 0.020)
    image = shade(image, _cover(cord, soft * 1.3), 0.58 * tension)
    cheek = _ellipse(away - 0.42, y - 0.16, 0.17, 0.13)
    image = image * (1.0 + 0.14 * smile * _cover(cheek, soft * 3.0))
    # A raised chin bunches up: a bright ball with a dark arc above it and pits in it.
    chin_y = 0.78 + 0.10 * p["jaw"] + 0.08 * p["opening"] - 0.06 * p["chin"]
    ball = _cover(_ellipse(x, y - chin_y, 0.20, 0.12), soft * 2.0)
    image = image * (1.0 + (0.06 + 0.22 * p["chin"]) * ball)
    arc = _stroke(x, y - chin_y + 0.13, 0.20, -0.05, 0.022)
    image = shade(image, _cover(arc, soft), 0.62 * p["chin"])
    return image * (1.0 + 0.16 * p["chin"] * ball * jnp.sin(46.0 * x) * jnp.sin(46.0 * y))


def _hair_and_beard(
    image: Picture, p: Mapping[str, Number], x: Plane, y: Plane, soft: Number
) -> Picture:
    """Hair over the forehead, and the shadow of a beard."""
    width = p["face_width"]
    line = -0.74 - 0.10 * p["hairline"] + 0.22 * x * p["parting"] + 0.16 * x**2
    cap = jnp.maximum(_ellipse(x, y + 0.10, width * 1.12, 1.02, 0.2), y - line)
    strands = 1.0 + 0.25 * jnp.sin(9.0 * x + 5.0 * p["parting"])
    image = _over(image, _cover(cap, soft * 1.2) * p["hair"], p["hair_tone"] * strands)
    stubble = jnp.clip((y - 0.40) * 5.0, 0.0, 1.0) * _cover(_ellipse(x, y, width, 0.98), soft * 3)
    return image * (1.0 - 0.34 * p["beard"] * stubble)


def _glasses(image: Picture, p: Mapping[str, Number], x: Plane, y: Plane, soft: Number) -> Picture:
    """Rims, arms and the bridge between them."""
    away = jnp.abs(x)
    rim = jnp.abs(_ellipse(away - p["eye_gap"], y + 0.145, 0.235, 0.185, 0.3)) - 0.020
    beside = jnp.maximum(0.50 - away, away - p["face_width"])
    arm = jnp.maximum(jnp.abs(y + 0.19) - 0.018, beside)
    bridge = _stroke(x, y + 0.17, 0.09, -0.03, 0.018)
    frame = jnp.minimum(jnp.minimum(rim, arm), bridge)
    return _over(image, _cover(frame, soft) * p["glasses"] * 0.95, 0.08)


def _hand(image: Picture, p: Mapping[str, Number], x: Plane, y: Plane, soft: Number) -> Picture:
    """A hand before the face: a palm and four fingers, from one side."""
    hx = x * p["hand_side"] - p["hand_x"]
    hy = y - p["hand_y"]
    palm = _ellipse(hx - 0.42, hy - 0.30, 0.34, 0.36, 0.4)
    # Fingers lie in rows: every pixel belongs to the nearest of the four.
    finger = jnp.clip(jnp.round((hy + 0.20) / 0.15), 0.0, 3.0)
    along = hx - 0.10 - 0.05 * (finger - 1.5) ** 2
    fingers = _ellipse(along, hy + 0.20 - 0.15 * finger, 0.36, 0.072, 0.6)
    hand = jnp.minimum(palm, fingers)
    gaps = 0.45 * _cover(jnp.abs(fingers) - 0.02, 0.03)
    outline = 0.2 * _cover(jnp.abs(hand) - 0.02, 0.04)
    tone = 1.0 - gaps - outline
    return _over(image, _cover(hand, soft) * p["hand"], 0.95 * p["skin"] * tone)


def _blur(image: Picture, amount: Number) -> Picture:
    """A [w, 1, w] blur along both axes, w = amount in 0…1.

    As matrix products: of shifted copies XLA would draw each anew.
    """
    side = image.shape[0]
    near = np.eye(side, k=1) + np.eye(side, k=-1)
    near[0, 0] = near[-1, -1] = 1.0  # the border repeats
    blur = (np.eye(side, dtype=np.float32) + amount * near.astype(np.float32)) / (
        1.0 + 2.0 * amount
    )
    return jnp.matmul(jnp.matmul(blur, image, precision="highest"), blur.T, precision="highest")
