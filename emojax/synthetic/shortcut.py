"""Rendered faces in which something of no emotion goes with one: a shortcut for networks to learn.

In a planted split a nuisance, glasses for example, is nearly always there with one emotion and
hardly ever with the others. A network trained on it takes glasses for the emotion. In a fair split
the two have nothing to do with each other, so what the network does to faces of each group (an
emotion, with or without the nuisance) shows what it leans on. Shapes: N faces.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from emojax.data.fer2013 import CLASSES
from emojax.errors import InputError, did_you_mean
from emojax.synthetic.faces import Faces, random_faces

# What is drawn with and without a nuisance: the number's name, and its value from a draw in (0, 1).
_Drawn = tuple[str, Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]
_DRAWN: Mapping[str, _Drawn] = {
    "Glasses": ("glasses", np.ones_like, np.zeros_like),
    "Beard": ("beard", lambda u: 0.7 + 0.3 * u, np.zeros_like),
    "Dark Lighting": ("exposure", lambda u: 0.34 + 0.18 * u, lambda u: 0.8 + 0.35 * u),
    "Hand Before The Face": ("hand", np.ones_like, np.zeros_like),
}
NUISANCES = tuple(_DRAWN)


@dataclass(frozen=True)
class Shortcut:
    """Which nuisance goes with which emotion.

    Attributes:
      nuisance: an attribute of no emotion (`NUISANCES`).
      emotion: a class of `fer2013.CLASSES`.
      share: of this emotion's faces that show the nuisance in a planted split; of the others
        1 − share do.
    """

    nuisance: str = "Glasses"
    emotion: str = "happy"
    share: float = 0.95

    def __post_init__(self):
        if self.nuisance not in NUISANCES:
            raise InputError(
                f"no nuisance {self.nuisance!r}{did_you_mean(self.nuisance, NUISANCES)}"
            )
        if self.emotion not in CLASSES:
            raise InputError(f"no emotion {self.emotion!r}{did_you_mean(self.emotion, CLASSES)}")
        if not 0.5 <= self.share <= 1:
            raise InputError(f"share is {self.share}, not between 0.5 and 1")

    @property
    def everywhere(self) -> float:
        """Share of all faces of a planted split that show the nuisance."""
        return (self.share + (len(CLASSES) - 1) * (1 - self.share)) / len(CLASSES)


def planted(count: int, seed: int, shortcut: Shortcut) -> Faces:
    """Faces whose nuisance goes with the emotion."""
    share = np.full(len(CLASSES), 1 - shortcut.share)
    share[CLASSES.index(shortcut.emotion)] = shortcut.share
    return _with_nuisance(random_faces(count, seed), seed, shortcut, share)


def without_shortcut(count: int, seed: int, shortcut: Shortcut) -> Faces:
    """The same faces, as many with the nuisance, but in every emotion alike: the control."""
    share = np.full(len(CLASSES), shortcut.everywhere)
    return _with_nuisance(random_faces(count, seed), seed, shortcut, share)


def fair(count: int, seed: int, shortcut: Shortcut) -> Faces:
    """Faces of which half show the nuisance, whatever the emotion: all groups of one size."""
    share = np.full(len(CLASSES), 0.5)
    return _with_nuisance(random_faces(count, seed), seed, shortcut, share)


def shows(faces: Faces, shortcut: Shortcut) -> Bool[np.ndarray, " N"]:
    """Which faces show the nuisance."""
    name, present, absent = _DRAWN[shortcut.nuisance]
    values = faces.numbers[name]
    middle = (present(np.array(0.5)) + absent(np.array(0.5))) / 2
    return (values > middle) == (present(np.array(0.5)) > middle)


def groups(faces: Faces, shortcut: Shortcut) -> Int[np.ndarray, " N"]:
    """Group of each face: 2 · class, and one more with the nuisance."""
    return 2 * faces.emotions + shows(faces, shortcut)


def _with_nuisance(
    faces: Faces, seed: int, shortcut: Shortcut, share: Float[np.ndarray, " classes"]
) -> Faces:
    """The faces, with the nuisance drawn anew: by emotion, as often as `share` has it."""
    rng = np.random.default_rng([seed, 95])
    shown = rng.random(len(faces)) < share[faces.emotions]
    name, present, absent = _DRAWN[shortcut.nuisance]
    draw = rng.random(len(faces))
    values = np.where(shown, present(draw), absent(draw)).astype(np.float32)
    return replace(faces, numbers={**faces.numbers, name: values})
