"""Class names: which mean the same, and in which order a network's outputs stand.

Images and networks are matched by name, never by number alone: FER2013 counts its classes from
angry to neutral, class folders stand in alphabetical order, and both have seven. Our weights files
carry the names of their outputs in order; other files say nothing.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from emojax import strict
from emojax.data.lookalikes import look
from emojax.data.metadata import read_entry
from emojax.errors import InputError, did_you_mean

FER2013 = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")

# The one table of names that mean the same, by FER2013's where it has one.
ALIASES = {
    "angry": ("anger",),
    "disgust": ("disgusted",),
    "fear": ("fearful", "afraid"),
    "happy": ("happiness", "joy"),
    "sad": ("sadness",),
    "surprise": ("surprised",),
    "neutral": ("normal", "calm"),
    "contempt": ("contemptuous",),
}
_MEANING = {alias: name for name, aliases in ALIASES.items() for alias in aliases}
_ENTRY = "emojax.classes"


def meaning(name: str) -> str:
    """What a class name is compared by: its look, case dropped, aliases under one name."""
    plain = look(name).casefold()
    return _MEANING.get(plain, plain)


def listed(classes: Sequence[str]) -> str:
    """Class names for a message, which a hundred of them must not fill."""
    shown = ", ".join(classes[:12])
    return shown if len(classes) <= 12 else f"{shown}, … ({len(classes)})"


def check(classes: Sequence[str], where: str) -> None:
    """Refuses class names that cannot be told apart by name.

    Raises:
      InputError: two are equal but for their case, or aliases of one another.
    """
    first: dict[str, str] = {}
    for name in classes:
        same = meaning(name)
        if same in first:
            raise InputError(
                f"{where}: the classes {first[same]!r} and {name!r} mean the same; "
                "merge them, or rename one"
            )
        first[same] = name


def positions(own: Sequence[str], wanted: Sequence[str]) -> Int32[np.ndarray, " classes"] | None:
    """For each own class its index in another order, int32; None if the classes differ."""
    index = {meaning(name): number for number, name in enumerate(wanted)}
    meanings = [meaning(name) for name in own]
    if len(own) != len(wanted) or set(meanings) != set(index):
        return None
    return np.asarray([index[name] for name in meanings], np.int32)


def renamed(own: Sequence[str], names: Mapping[str, str], where: str) -> list[str]:
    """The own classes under other names: `names` has the new by the old, matched by meaning.

    Raises:
      InputError: an old name is of no class.
    """
    index = {meaning(name): number for number, name in enumerate(own)}
    wanted = list(own)
    for old, new in names.items():
        if meaning(old) not in index:
            hint = did_you_mean(old, own)
            raise InputError(f"--data.class-map: {where} has no class {old!r}{hint}")
        wanted[index[meaning(old)]] = new
    return wanted


def to_metadata(classes: Sequence[str] | None) -> dict[str, str]:
    """Metadata of a safetensors file; empty where the names are not known."""
    return {} if classes is None else {_ENTRY: json.dumps(list(classes))}


def is_name(value: object) -> bool:
    """Whether a value from a file can be the name of a class."""
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def read(path: Path, outputs: int) -> tuple[str, ...] | None:
    """Class names of a weights file in the order of its outputs; None where it says nothing.

    Raises:
      InputError: the entry is there and damaged, or names another number of classes.
    """
    entry = read_entry(path, _ENTRY)
    if entry is None:
        return None
    try:
        names = strict.read_json(entry)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(map(is_name, names)):
        raise InputError(f"{path}: its record of class names is damaged ({entry[:60]!r})")
    if len(names) != outputs:
        raise InputError(f"{path}: it names {len(names)} classes and has {outputs} outputs")
    check(names, str(path))
    return tuple(names)
