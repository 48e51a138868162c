"""Rendered faces with known expressions: with them a unit's label can be compared with the truth.

A face is some fifty numbers, which `drawing` draws. An emotion picks what each part of the face
does through the paper's concept → emotion map, loosely: parts disagree, emotions share parts, and
pose, identity, light and what hides a face vary freely. A rule for each concept says from the
numbers whether it is present, absent or unclear. Shapes: N faces, A attributes, S side in pixels, B
batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int, Int8, UInt8, UInt32

from emojax.data.concepts import load_concepts
from emojax.data.fer2013 import CLASSES
from emojax.data.image_set import ImageSet
from emojax.errors import InputError, did_you_mean
from emojax.memory import check_fits
from emojax.store import content_key

PRESENT = 1
ABSENT = 0
UNCLEAR = -1
# Attributes of no emotion.
DISTRACTORS = ("Glasses", "Dark Lighting", "Hand Before The Face", "Beard", "Long Hair")

# What a part of the face may do besides nothing, by the concept that names it.
_PARTS = {
    "brow_raise": ("Raised Brows", "Lowered Brows"),
    "brow_slant": ("Drooping Brows",),
    "furrow": ("Furrowed Brows",),
    "eye_open": ("Wide Open Eyes", "Narrowed Eyes", "Closed Eyes"),
    "lids": ("Elevated Upper Eyelids",),
    "squint": ("Twinkling or Crinkled Eyes",),
    "tears": ("Tearful Eyes",),
    "mouth_curve": ("Smile", "Downturned Mouth"),
    "opening": ("Slightly Open Mouth", "Wide Open Mouth", "Compressed Lips"),
    "tension": ("Tense Mouth and Jaw",),
    "jaw": ("Slightly Dropped Jaw",),
    "chin": ("Slight Chin Raise",),
    "nostrils": ("Flared Nostrils",),
}
# These concepts ask a part to do nothing, so their emotions leave it at rest more often.
_AT_REST = {
    "brow_raise": "Relaxed Brows",
    "brow_slant": "Relaxed Brows",
    "furrow": "Relaxed Brows",
    "eye_open": "Relaxed Eyes",
    "opening": "Relaxed Mouth and Jaw",
    "tension": "Relaxed Mouth and Jaw",
    "nostrils": "Relaxed Facial Muscles",
}
# What faces show beyond the paper's map, which names two concepts for fear and gives disgust
# nothing of its own.
_ALSO = {
    "angry": {"Wide Open Mouth": 0.5, "Downturned Mouth": 0.7},
    "disgust": {
        "Narrowed Eyes": 1.2,
        "Downturned Mouth": 1.0,
        "Lowered Brows": 0.5,
        "Slight Chin Raise": 0.7,
    },
    "fear": {
        "Wide Open Eyes": 1.6,
        "Raised Brows": 1.2,
        "Drooping Brows": 1.2,
        "Slightly Open Mouth": 1.2,
        "Elevated Upper Eyelids": 1.0,
        "Tense Mouth and Jaw": 1.6,
    },
    "happy": {"Slightly Open Mouth": 1.2, "Wide Open Mouth": 0.4},
    "sad": {"Furrowed Brows": 0.4, "Slight Chin Raise": 0.5},
}
# Bounds of the number when a part does what the concept says.
_AMOUNT = {
    "Lowered Brows": (-0.9, -0.45),
    "Wide Open Eyes": (1.15, 1.5),
    "Narrowed Eyes": (0.28, 0.46),
    "Closed Eyes": (0.0, 0.05),
    "Downturned Mouth": (-1.0, -0.5),
    "Slightly Open Mouth": (0.2, 0.42),
    "Wide Open Mouth": (0.7, 1.0),
    "Tearful Eyes": (0.7, 1.0),
}

# `p` are a face's parameters: its numbers by name.
Numbers = Mapping[str, Float[np.ndarray, " N"]]
_Rule = tuple[Callable[[Numbers], np.ndarray], float, float]


def _most(p: Numbers, *names: str) -> Float[np.ndarray, " N"]:
    """The largest of several numbers, by size."""
    return np.max([np.abs(p[name]) for name in names], axis=0)


def _second(p: Numbers, *names: str) -> Float[np.ndarray, " N"]:
    """The second largest of several numbers: at least two parts are at it."""
    return np.sort([p[name] for name in names], axis=0)[-2]


# Strength of every attribute; absent below the first bound, present above the second, unclear
# between.
_RULES: dict[str, _Rule] = {
    "Furrowed Brows": (lambda p: p["furrow"], 0.3, 0.45),
    "Raised Brows": (lambda p: p["brow_raise"], 0.25, 0.45),
    "Lowered Brows": (lambda p: -p["brow_raise"], 0.25, 0.4),
    "Drooping Brows": (lambda p: p["brow_slant"], 0.25, 0.45),
    "Relaxed Brows": (lambda p: -_most(p, "brow_raise", "brow_slant", "furrow"), -0.42, -0.3),
    "Wide Open Eyes": (lambda p: p["eye_open"], 1.0, 1.12),
    "Narrowed Eyes": (lambda p: -np.abs(p["eye_open"] - 0.37), -0.25, -0.13),
    "Twinkling or Crinkled Eyes": (lambda p: p["squint"], 0.25, 0.45),
    "Tearful Eyes": (lambda p: p["tears"], 0.1, 0.5),
    "Closed Eyes": (lambda p: -p["eye_open"], -0.2, -0.08),
    "Relaxed Eyes": (
        lambda p: (
            -np.maximum(2 * np.abs(p["eye_open"] - 0.82), _most(p, "squint", "tears", "lids"))
        ),
        -0.45,
        -0.35,
    ),
    "Tense Mouth and Jaw": (lambda p: p["tension"], 0.3, 0.45),
    "Relaxed Mouth and Jaw": (
        lambda p: -_most(p, "tension", "press", "opening", "jaw", "mouth_curve"),
        -0.42,
        -0.3,
    ),
    "Smile": (lambda p: p["mouth_curve"], 0.25, 0.45),
    "Frown": (
        lambda p: np.minimum(-p["mouth_curve"], np.maximum(p["furrow"], p["brow_slant"])),
        0.25,
        0.45,
    ),
    "Downturned Mouth": (lambda p: -p["mouth_curve"], 0.25, 0.45),
    "Slightly Open Mouth": (lambda p: -np.abs(p["opening"] - 0.31), -0.25, -0.14),
    "Wide Open Mouth": (lambda p: p["opening"], 0.5, 0.65),
    "Slight Chin Raise": (lambda p: p["chin"], 0.25, 0.45),
    "Slightly Dropped Jaw": (lambda p: p["jaw"], 0.25, 0.4),
    "Flared Nostrils": (lambda p: p["nostrils"], 0.3, 0.45),
    "Tightened Facial Muscles": (
        lambda p: _second(p, "furrow", "tension", "press", "nostrils"),
        0.3,
        0.45,
    ),
    "Compressed Lips": (lambda p: p["press"], 0.25, 0.45),
    "Elevated Upper Eyelids": (lambda p: p["lids"], 0.25, 0.45),
    "Relaxed Facial Muscles": (
        lambda p: -_most(p, "furrow", "tension", "press", "nostrils", "brow_slant", "squint"),
        -0.42,
        -0.3,
    ),
    "Glasses": (lambda p: p["glasses"], 0.1, 0.9),
    "Dark Lighting": (lambda p: -p["exposure"], -0.75, -0.55),
    "Hand Before The Face": (lambda p: p["hand"], 0.1, 0.9),
    "Beard": (lambda p: p["beard"], 0.15, 0.6),
    "Long Hair": (lambda p: p["hair_long"] * p["hair"], 0.25, 0.6),
}
ATTRIBUTES = tuple(_RULES)


@dataclass(frozen=True)
class Faces:
    """Faces as numbers.

    Attributes:
      numbers: by name; see `draw_numbers`.
      emotions: class of each face, an index of `fer2013.CLASSES`.
      seeds: of each face's noise.
    """

    numbers: dict[str, Float[np.ndarray, " N"]]
    emotions: Int[np.ndarray, " N"]
    seeds: UInt32[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.emotions)

    @cached_property
    def key(self) -> str:
        """Content key of the numbers."""
        return content_key([self.numbers, self.emotions, self.seeds])

    @cached_property
    def strengths(self) -> Float[np.ndarray, "N A"]:
        """How strongly each face shows each of `ATTRIBUTES`, in units of that attribute's rule."""
        strengths = [strength(self.numbers) for strength, _, _ in _RULES.values()]
        return np.stack(strengths, axis=1).astype(np.float32)

    @cached_property
    def attributes(self) -> Int8[np.ndarray, "N A"]:
        """PRESENT, ABSENT or UNCLEAR for each of `ATTRIBUTES`.

        A hand may hide any part of the face, so what the face does is unclear behind one.
        """
        bounds = np.array([(absent, present) for _, absent, present in _RULES.values()], np.float32)
        shown = np.full(self.strengths.shape, UNCLEAR, np.int8)
        shown[self.strengths < bounds[:, 0]] = ABSENT
        shown[self.strengths > bounds[:, 1]] = PRESENT
        expressions = np.array([name not in DISTRACTORS for name in ATTRIBUTES])
        shown[(self.numbers["hand"] > 0)[:, None] & expressions] = UNCLEAR
        return shown

    def render(self, batch: int = 128) -> UInt8[np.ndarray, "N 48 48 1"]:
        """The pictures. The same numbers give the same bytes on the same kind of device."""
        from emojax.synthetic import drawing

        pictures = []
        for start in range(0, len(self), batch):
            # Batches have one shape, for one program: the last is filled with the first faces.
            rows = np.arange(start, start + batch) % len(self)
            numbers = {name: values[rows] for name, values in self.numbers.items()}
            pictures.append(np.asarray(drawing.draw(numbers, self.seeds[rows])))
        return np.concatenate(pictures)[: len(self), :, :, None]

    def image_set(self, name: str) -> ImageSet:
        """Rendered, as a data set with FER2013's seven classes."""
        return ImageSet.from_arrays(self.render(), self.emotions, CLASSES, name=name)


_BYTES = 2 * 48 * 48  # of a face that is rendered, and copied to its place among the others


def random_faces(count: int, seed: int) -> Faces:
    """Faces of random people in random order, with all seven emotions equally often.

    Raises:
      InputError: more than fit into memory.
    """
    check_fits(count, _BYTES, "rendered faces", "take fewer")
    rng = np.random.default_rng([seed, 48])
    emotions = rng.permutation(np.arange(count) % len(CLASSES)).astype(np.int32)
    numbers = draw_numbers(rng, emotions)
    return Faces(numbers, emotions, rng.integers(0, 2**32, count, dtype=np.uint32))


# Seed and size of each split.
SPLITS = {"training": (1, 40_000), "public_test": (2, 4_000), "private_test": (3, 4_000)}


def split(name: str, count: int | None = None) -> Faces:
    """The faces of a split (`SPLITS`), of their usual number or of `count`.

    Raises:
      InputError: no such split.
    """
    if name not in SPLITS:
        raise InputError(f"rendered faces have no split {name!r}{did_you_mean(name, SPLITS)}")
    seed, size = SPLITS[name]
    return random_faces(size if count is None else count, seed)


def _part_probabilities() -> dict[str, Float[np.ndarray, "classes options"]]:
    """For every part, by emotion: the probabilities of rest and of each concept it may show."""
    paper = load_concepts("paper25")
    mask = paper.class_mask(CLASSES)
    assert mask is not None, "the paper's concepts have a map"
    probabilities = {}
    for part, concepts in _PARTS.items():
        rest = np.full(len(CLASSES), 0.8)
        if part in _AT_REST:
            rest += 2.0 * mask[paper.by_name[_AT_REST[part]]]
        weights = [rest]
        for concept in concepts:
            also = np.array([_ALSO.get(emotion, {}).get(concept, 0.0) for emotion in CLASSES])
            weights.append(0.06 + 4.0 * mask[paper.by_name[concept]] + also)
        table = np.stack(weights, axis=1)
        probabilities[part] = table / table.sum(axis=1, keepdims=True)
    return probabilities


def draw_numbers(
    rng: np.random.Generator, emotions: Int[np.ndarray, " N"]
) -> dict[str, Float[np.ndarray, " N"]]:
    """The numbers of one face per emotion, float32: expression, identity, picture.

    The order of the draws is part of the data set: another one gives other faces for the same seed.
    """
    p = _expressions(rng, emotions) | _identities_and_pictures(rng, len(emotions))
    return {name: value.astype(np.float32) for name, value in p.items()}


def _expressions(
    rng: np.random.Generator, emotions: Int[np.ndarray, " N"]
) -> dict[str, Float[np.ndarray, " N"]]:
    """What each part of the face does."""
    count = len(emotions)

    def uniform(low: float, high: float) -> Float[np.ndarray, " N"]:
        return rng.uniform(low, high, count)

    p: dict[str, np.ndarray] = {"press": uniform(0.0, 0.15)}
    rest = {
        "brow_raise": rng.normal(0, 0.1, count),
        "brow_slant": rng.normal(0, 0.1, count),
        "eye_open": uniform(0.68, 0.96),
        "mouth_curve": rng.normal(0, 0.1, count),
        "opening": uniform(0.0, 0.05),
    }
    for part, probabilities in _part_probabilities().items():
        # Inverse of the cumulative distribution: 0 is rest, then the part's concepts in order.
        drawn = (rng.random(count)[:, None] > probabilities[emotions].cumsum(axis=1)).sum(axis=1)
        # `uniform` draws for every part, also for those of `rest`: the draws' order is fixed.
        value = rest.get(part, uniform(0.0, 0.2))
        for option, concept in enumerate(_PARTS[part], 1):
            amount = uniform(*_AMOUNT.get(concept, (0.5, 1.0)))
            if concept == "Compressed Lips":
                p["press"] = np.where(drawn == option, amount, p["press"])
            else:
                value = np.where(drawn == option, amount, value)
        p[part] = value
    # What cannot be at once: tears are there or not, a lid that is down is not up, pressed lips are
    # closed.
    p["tears"] = np.where(p["tears"] < 0.5, 0.0, p["tears"])
    p["lids"] = np.where(p["eye_open"] < 0.6, 0.0, p["lids"])
    p["opening"] = np.where(p["press"] > 0.3, 0.0, p["opening"])
    # Lowered and furrowed brows slant towards the nose, unless they droop.
    angry_slant = 0.7 * np.clip(-p["brow_raise"], 0, 1) + 0.25 * (p["furrow"] > 0.4)
    slanted = p["brow_slant"] - angry_slant * uniform(0.0, 0.35)
    p["brow_slant"] = np.where(p["brow_slant"] < 0.4, slanted, p["brow_slant"])
    return p


def _identities_and_pictures(
    rng: np.random.Generator, count: int
) -> dict[str, Float[np.ndarray, " N"]]:
    """Who each face is, and how its picture was taken: the same for all emotions."""

    def uniform(low: float, high: float) -> Float[np.ndarray, " N"]:
        return rng.uniform(low, high, count)

    def sometimes(probability: float) -> Float[np.ndarray, " N"]:
        return (rng.random(count) < probability).astype(float)

    skin = uniform(0.36, 0.92)
    dark = sometimes(0.12)
    return {
        # identity
        "face_width": uniform(0.64, 0.78),
        "face_height": uniform(0.92, 1.04),
        "square_jaw": uniform(0.0, 1.0),
        "eye_gap": uniform(0.27, 0.34),
        "eye_size": uniform(0.85, 1.15),
        "nose_long": uniform(0.7, 1.3),
        "mouth_width": uniform(0.25, 0.34),
        "lips": uniform(0.6, 1.4),
        "lip_dark": uniform(0.16, 0.42),
        "brow_thick": uniform(0.028, 0.062),
        "brow_tone": uniform(0.15, 0.5),
        "wrinkles": uniform(0.3, 1.0),
        "asymmetry": rng.normal(0, 0.12, count),
        "skin": skin,
        "iris": uniform(0.05, 0.28),
        "hair": sometimes(0.92),
        "hair_tone": uniform(0.04, 0.7) * np.clip(skin + 0.3, 0, 1),
        "hair_long": sometimes(0.4) * uniform(0.7, 1.0),
        "hairline": uniform(-0.6, 1.0),
        "parting": uniform(-1.0, 1.0),
        "beard": sometimes(0.2) * uniform(0.7, 1.0),
        "glasses": sometimes(0.2),
        # pose, light, camera, a hand before the face
        "shift_x": rng.normal(0, 0.05, count),
        "shift_y": rng.normal(0.02, 0.05, count),
        "scale": uniform(0.78, 0.98),
        "roll": rng.normal(0, 0.10, count),
        "yaw": rng.normal(0, 0.30, count),
        "nod": rng.normal(0, 0.30, count),
        "gaze": rng.normal(0, 0.35, count),
        "background": uniform(0.08, 0.9),
        "backdrop": uniform(-0.25, 0.25),
        "light": uniform(-np.pi, np.pi),
        "contrast": uniform(0.0, 0.38),
        "exposure": np.where(dark > 0, uniform(0.34, 0.52), uniform(0.8, 1.15)),
        "blur": uniform(0.0, 0.3),
        "noise": uniform(0.005, 0.022),
        "hand": sometimes(0.07),
        "hand_side": rng.choice([-1.0, 1.0], count),
        "hand_x": uniform(-0.1, 0.3),
        "hand_y": uniform(-0.1, 0.5),
    }


# Captions


@dataclass(frozen=True)
class Captions:
    """Captions and what they say, so that one knows which other faces they are true of.

    Attributes:
      texts: a caption for each face.
      said: the attributes that it names.
      emotions: the class that it names, −1 for none.
    """

    texts: tuple[str, ...]
    said: Bool[np.ndarray, "N A"]
    emotions: Int[np.ndarray, " N"]

    def true_of(self, faces: Faces, rows: Int[np.ndarray, " B"]) -> Bool[np.ndarray, "B B"]:
        """Whether caption i is true of face j, both among these rows."""
        absent = (faces.attributes[rows] != PRESENT).astype(np.float32)
        # How many of the attributes that caption i names face j does not show; a product of
        # matrices, in floats, for which there are fast ones.
        lacking = self.said[rows].astype(np.float32) @ absent.T
        named = self.emotions[rows][:, None]
        return (lacking == 0) & ((named < 0) | (named == faces.emotions[rows][None, :]))


_FRAMES = (
    "{}",
    "a face with {}",
    "a photo of a person with {}",
    "{} in a gray picture",
    "someone with {}",
)
_FEELING = ("{e}", "{e} face", "a person who looks {e}", "{e} expression")
_BOTH = ("{e}, {}", "{e} face with {}", "a person who looks {e} with {}")


def random_captions(faces: Faces, seed: int) -> Captions:
    """A caption for each face from a small grammar: its emotion, attributes of it, or both."""
    rng = np.random.default_rng([seed, 25])
    texts = []
    said = np.zeros(faces.attributes.shape, bool)
    emotions = np.full(len(faces), -1, np.int32)
    for row, present in enumerate(faces.attributes == PRESENT):
        shown = rng.permutation(np.flatnonzero(present))
        shown = shown[: rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2])]
        feeling = rng.random() < 0.25 or not len(shown)
        if feeling and rng.random() < 0.4:
            shown = shown[:0]
        names = [ATTRIBUTES[attribute].lower() for attribute in shown]
        listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
        named = _BOTH if len(shown) else _FEELING
        frames = named if feeling else _FRAMES
        texts.append(str(rng.choice(frames)).format(listed, e=CLASSES[faces.emotions[row]]))
        said[row, shown] = True
        if feeling:
            emotions[row] = faces.emotions[row]
    return Captions(tuple(texts), said, emotions)


def sheet(
    pictures: UInt8[np.ndarray, "N S S 1"], columns: int
) -> UInt8[np.ndarray, "height width"]:
    """Pictures side by side as one gray picture [rows·(S+2), columns·(S+2)]."""
    side = pictures.shape[1]
    cell = side + 2
    rows = -(-len(pictures) // columns)
    page = np.full((rows * cell, columns * cell), 255, np.uint8)
    for number, picture in enumerate(pictures[..., 0]):
        top = number // columns * cell
        left = number % columns * cell
        page[top : top + side, left : left + side] = picture
    return page
