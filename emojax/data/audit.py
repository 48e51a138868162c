"""Faults of a data set: frames without a face, repeated images, training images in a test split.

`pictures` reads every form of data set that emojax reads, the raw ones too, and skips past a file
that cannot be read. `audit` judges them by rules on a 48×48 gray version of each. Shapes: I images,
B chunk, S 48.

A placeholder (a removed-image page, an icon) is drawn by a program, a face is lit by the sun or a
lamp. So a drawn frame is a few flat levels of gray and the edges between them; on skin, gray
changes gently and almost everywhere. Four statistics say which it is, added with the weights below.
These were fitted by logistic regression to the frames of FER2013 that a person had judged by eye,
and rounded; docs/audit.md has the counts.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from emojax.data.decode import read_image
from emojax.data.image_set import ImageSet, pixel_digest
from emojax.data.opening import Kind, resolve
from emojax.data.reasons import REASONS, Reason
from emojax.errors import InputError

SIDE = 48
BITS = 120  # of the perceptual hash
_CHUNK = 1024
_TILE = 4096  # images compared with as many at once
_BLANK = 24  # of 255 gray levels that a frame must span to show anything
_FLAT = 4  # gray levels
_EDGE = 40  # gray levels
_WEIGHTS = {"levels": 13.0, "shading": -23.0, "detail": -16.0, "contrast": -5.0}
_BIAS = 5.0


class Picture(NamedTuple):
    """An image as it lies in the data set.

    `file` is its name in its own form of data set, `id` the name under which the other commands
    know it, `pixels` uint8 [H, W] or [H, W, 3], or None with the `complaint` when it cannot be
    read.
    """

    file: str
    id: str
    split: str
    label: str
    pixels: np.ndarray | None
    complaint: str = ""


class Finding(NamedTuple):
    """A row of `audit.csv`."""

    file: str
    split: str
    label: str
    reason: Reason
    detail: str
    id: str


# Reading


def pictures(
    path: Path | None, kind: Kind = "auto", *, limit: int | None = None
) -> Iterator[Picture]:
    """Every image of every split, the training split first.

    Raises:
      InputError: there is no data set, or its form is wrong as a whole; a single bad image is a
        `complaint` instead.
    """
    from emojax.data import fer2013, tfds_set
    from emojax.synthetic import faces

    form, path = resolve(path, kind, raw=True)
    if form == "faces":
        sets: Iterable[ImageSet] = (
            faces.split(name, limit).image_set(f"faces/{name}") for name in faces.SPLITS
        )
        yield from _of_sets(sets, list(faces.SPLITS))
    elif form == "fer2013":
        names = fer2013.prepared_splits(path)
        yield from _of_sets((fer2013.load(path, name).first(limit) for name in names), names)
    elif form == "tfds":
        names = sorted(tfds_set.splits(path), key=lambda name: not is_training(name))
        yield from _of_sets((tfds_set.load(path, name).first(limit) for name in names), names)
    elif form == "raw":
        yield from _limited(_raw(path), limit)
    else:
        yield from _limited(_folder(path), limit)


def _of_sets(sets: Iterable[ImageSet], names: Sequence[str]) -> Iterator[Picture]:
    for name, images in zip(names, sets, strict=True):
        for start in range(0, len(images), _CHUNK):
            for row, pixels in enumerate(images.images[start : start + _CHUNK], start):
                label = "" if images.labels is None else images.classes[images.labels[row]]
                yield Picture(
                    images.ids[row],
                    images.ids[row],
                    name,
                    label,
                    pixels[..., 0] if pixels.shape[2] == 1 else pixels,
                )


def _raw(path: Path) -> Iterator[Picture]:
    from emojax.data import fer2013

    bad: list[Picture] = []

    def refused(source: str, error: InputError) -> None:
        bad.append(Picture(source, "", "", "", None, str(error)))

    names = fer2013.Names()
    readable: dict[str, list[Picture]] = {name: [] for name in fer2013.SPLITS}
    for face in fer2013.read(path, refused=refused):
        pixels = np.frombuffer(face.pixels, np.uint8).reshape(fer2013.SIZE, fer2013.SIZE)
        label = fer2013.CLASSES[face.label]
        readable[face.split].append(Picture(face.source, names.of(face), face.split, label, pixels))
    for split in (*readable.values(), bad):
        yield from split


def _folder(path: Path) -> Iterator[Picture]:
    from emojax.data import folder

    for split, root in sorted(
        folder.splits_of(path).items(), key=lambda item: not is_training(item[0])
    ):
        for label, files in folder.files_of(root).items():
            for file in files:
                name = file.relative_to(path).as_posix()
                try:
                    pixels = np.asarray(read_image(file))
                except InputError as error:
                    yield Picture(name, name, split, label, None, str(error))
                else:
                    yield Picture(name, name, split, label, pixels)


def _limited(pictures: Iterable[Picture], limit: int | None) -> Iterator[Picture]:
    """The first `limit` pictures of each split."""
    counts: dict[str, int] = {}
    for picture in pictures:
        counts[picture.split] = counts.get(picture.split, 0) + 1
        if limit is None or counts[picture.split] <= limit:
            yield picture


def is_training(split: str) -> bool:
    """Whether a split is one to learn from; all others are to test on."""
    return split.casefold().startswith("train")


# Judging


@dataclass
class _Measured:
    """What is remembered of the readable images: little, so that many fit."""

    pictures: list[Picture] = field(default_factory=list)  # without their pixels
    digests: list[bytes] = field(default_factory=list)
    statistics: list[np.ndarray] = field(default_factory=list)
    bits: list[np.ndarray] = field(default_factory=list)


class Audit(NamedTuple):
    """All findings, in the order of the images, and the number of images read of each split."""

    findings: list[Finding]
    images: dict[str, int]


def audit(
    pictures: Iterable[Picture],
    *,
    reasons: Sequence[Reason] = REASONS,
    near: int = 12,
    keep: Callable[[Picture, np.ndarray], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Audit:
    """Judges pictures.

    An image has at most one row that says it repeats another: `leak` before `duplicate` before
    `near_duplicate`. The first of equal images has none; training images come first.

    Args:
      pictures: see `pictures`.
      reasons: what to look for.
      near: bits of 120 by which the perceptual hashes of near duplicates may differ.
      keep: gets each picture and its gray version [S, S], for a contact sheet.
      progress: called with the number of images read.
    """
    readable = _Measured()
    complaints: list[Picture] = []
    images: dict[str, int] = {}
    waiting: list[tuple[Picture, np.ndarray]] = []

    def measure() -> None:
        if waiting:
            gray = np.stack([small for _, small in waiting])
            readable.statistics.append(statistics(gray))
            readable.bits.append(perceptual_hash(gray))
            readable.pictures.extend(picture._replace(pixels=None) for picture, _ in waiting)
            waiting.clear()
        if progress is not None:
            progress(len(readable.pictures) + len(complaints))

    for picture in pictures:
        images[picture.split] = images.get(picture.split, 0) + 1
        if picture.pixels is None:
            complaints.append(picture)
            continue
        gray = _small(picture.pixels)
        readable.digests.append(pixel_digest(picture.pixels))
        waiting.append((picture, gray))
        if keep is not None:
            keep(picture, gray)
        if len(waiting) == _CHUNK:
            measure()
    measure()
    rows = [
        _finding(picture, "unreadable", " ".join(picture.complaint.split()))
        for picture in complaints
    ]
    if readable.pictures:
        measured = np.concatenate(readable.statistics)
        bits = np.concatenate(readable.bits)
        rows += _judge(readable, measured, bits, near, reasons)
    return Audit([row for row in rows if row.reason in reasons], images)


def _judge(
    images: _Measured, measured: np.ndarray, bits: np.ndarray, near: int, reasons: Sequence[Reason]
) -> list[Finding]:
    rows = []
    blank = is_blank(measured)
    drawn = is_placeholder(measured)
    originals = _first_duplicates(images)
    # Blank frames and placeholders look alike without being one picture, so hashes compare faces.
    faces = np.flatnonzero((originals < 0) & ~blank & ~drawn)
    close = _closest(bits[faces], near) if {"near_duplicate", "leak"} & set(reasons) else {}
    close = {
        int(faces[row]): (int(faces[original]), apart) for row, (original, apart) in close.items()
    }
    for row, picture in enumerate(images.pictures):
        if blank[row]:
            rows.append(
                _finding(picture, "blank", f"spans {measured[row][3] * 255:.0f} of 255 gray levels")
            )
        elif drawn[row]:
            levels, shading = measured[row][:2]
            rows.append(
                _finding(
                    picture,
                    "placeholder",
                    f"{levels:.0%} of it flat in three grays, {shading:.0%} shaded",
                )
            )
        if originals[row] >= 0:
            rows.append(
                _repeat(picture, images.pictures[originals[row]], "same pixels as", "duplicate")
            )
        elif row in close:
            original, apart = close[row]
            rows.append(
                _repeat(
                    picture,
                    images.pictures[original],
                    f"{apart} of {BITS} bits from",
                    "near_duplicate",
                )
            )
    return rows


def _finding(picture: Picture, reason: Reason, detail: str) -> Finding:
    return Finding(picture.file, picture.split, picture.label, reason, detail, picture.id)


def _repeat(picture: Picture, first: Picture, relation: str, reason: Reason) -> Finding:
    if is_training(first.split) and picture.split and not is_training(picture.split):
        reason = "leak"
    their_label = f", labelled {first.label} there" if first.label != picture.label else ""
    return _finding(picture, reason, f"{relation} {first.file}{their_label}")


def _first_duplicates(images: _Measured) -> np.ndarray:
    """Index of the first image with the same pixels, −1 for the first itself [I]."""
    first: dict[bytes, int] = {}
    original = np.asarray([first.setdefault(d, row) for row, d in enumerate(images.digests)], int)
    return np.where(original == np.arange(len(original)), -1, original)


def _closest(bits: np.ndarray, near: int) -> dict[int, tuple[int, int]]:
    """For images whose hash is close to an earlier one's: the closest such, and the distance.

    Args:
      bits: perceptual hashes [I, 120].
      near: the greatest distance, in bits.
    """
    # The product of two hashes of ±1 is their equal bits minus their different ones.
    signs = np.where(bits, np.float32(1), np.float32(-1))
    closest: dict[int, tuple[int, int]] = {}
    for top in range(0, len(signs), _TILE):
        for left in range(0, top + 1, _TILE):
            apart = (BITS - signs[top : top + _TILE] @ signs[left : left + _TILE].T) / 2
            rows, columns = np.nonzero(apart <= near)
            for row, column in zip(rows + top, columns + left, strict=True):
                distance = int(apart[row - top, column - left])
                if column < row and distance < closest.get(int(row), (0, BITS))[1]:
                    closest[int(row)] = (int(column), distance)
    return closest


# Measuring


def _small(pixels: np.ndarray) -> np.ndarray:
    """Any image as gray [S, S]."""
    if pixels.shape == (SIDE, SIDE):
        return pixels
    return np.asarray(
        Image.fromarray(pixels).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    )


def perceptual_hash(gray: np.ndarray) -> np.ndarray:
    """Signs of the 11×11 lowest cosine frequencies but the mean, against their median."""
    centres = np.arange(SIDE) + 0.5
    waves = np.cos(np.pi * centres * np.arange(11)[:, None] / SIDE).astype(np.float32)
    frequencies = (waves @ gray.astype(np.float32) @ waves.T).reshape(len(gray), -1)[:, 1:]
    return frequencies > np.median(frequencies, axis=1, keepdims=True)


def statistics(gray: np.ndarray) -> np.ndarray:
    """Four shares of each gray image [B, S, S], float [B, 4].

    levels: of pixels in flat surroundings and in the three commonest bands of nine grays.
    shading: of pixels where gray changes gently and no edge is near, relative to the image's
      contrast.
    detail: of pixels at an edge.
    contrast: gray levels that the image spans without its 0.5 % darkest and brightest pixels, of
      255.
    """
    count = len(gray)
    pixels = SIDE * SIDE
    offsets = 256 * np.arange(count)[:, None]
    flat = gray.reshape(count, -1)
    histogram = np.bincount((flat + offsets).ravel(), minlength=256 * count).reshape(count, 256)
    below = histogram.cumsum(1)
    contrast = (below < 0.995 * pixels).sum(1) - (below <= 0.005 * pixels).sum(1)
    close = _range(gray, 1)
    wide = _range(gray, 3)
    calm = (close <= _FLAT).reshape(count, -1)
    chosen = np.bincount((flat + offsets)[calm], minlength=256 * count).reshape(count, 256)
    levels = np.zeros(count)
    for _ in range(3):
        sums = np.pad(chosen, ((0, 0), (5, 4))).cumsum(1)
        bands = sums[:, 9:] - sums[:, :-9]
        best = bands.argmax(1)
        levels += bands[np.arange(count), best] / pixels
        chosen[np.abs(np.arange(256) - best[:, None]) <= 4] = 0
    scale = np.maximum(contrast, 8)[:, None, None]
    shading = ((close > 0.05 * scale) & (close < 0.5 * scale) & (wide < 0.7 * scale)).mean((1, 2))
    return np.stack([levels, shading, (close > _EDGE).mean((1, 2)), contrast / 255], axis=1)


def _range(gray: np.ndarray, reach: int) -> np.ndarray:
    """Brightest minus darkest pixel of the surroundings, 2·reach + 1 pixels wide and high."""
    high = low = gray
    for _ in range(reach):
        for axis in (1, 2):
            around = [(0, 0)] * 3
            around[axis] = (1, 1)
            ends = [slice(None)] * 3
            parts = []
            for values in (high, low):
                padded = np.pad(values, around, mode="edge")
                shifted = []
                for start in (0, 1, 2):
                    ends[axis] = slice(start, start + SIDE)
                    shifted.append(padded[tuple(ends)])
                parts.append(shifted)
            high, low = np.maximum.reduce(parts[0]), np.minimum.reduce(parts[1])
    return high - low


def is_blank(measured: np.ndarray) -> np.ndarray:
    """Frames that show nothing, from their statistics [B, 4]."""
    return measured[:, 3] * 255 <= _BLANK


def is_placeholder(measured: np.ndarray) -> np.ndarray:
    """Frames that a program drew, from their statistics [B, 4]."""
    return ~is_blank(measured) & (measured @ np.array(list(_WEIGHTS.values())) + _BIAS > 0)
