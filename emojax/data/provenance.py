"""Provenance of weights: the image sets that a network was trained or selected on.

Training writes them into the weights file; every command that tests a network reads them first.
Weights that say nothing (the published checkpoint, anybody's file) count as having seen every
test split.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from emojax import strict
from emojax.data.image_set import ImageSet
from emojax.data.metadata import read_entry
from emojax.errors import InputError

_ENTRY = "emojax.seen"  # the metadata's key since the first version
Role = Literal["trained", "chosen"]
_WARNINGS = {
    "trained": "was trained on {}: accuracy there says nothing",
    "chosen": "was chosen on {}: accuracy is flattered",
}


class Use(NamedTuple):
    """A use of an image set: the set's name and content key, and what it was used for.

    `trained`: to fit the weights. `chosen`: to select among weights, by epoch or by edit.
    """

    name: str
    key: str
    role: str


def use_of(images: ImageSet, role: Role) -> Use:
    """The entry for a use of an image set."""
    return Use(images.name, images.key, role)


def to_metadata(uses: Iterable[Use]) -> dict[str, str]:
    """Metadata of a safetensors file."""
    return {_ENTRY: json.dumps([list(use) for use in dict.fromkeys(uses)])}


def read_provenance(path: Path) -> tuple[Use, ...] | None:
    """The uses that a weights file, or that of a folder, names; None where it says nothing.

    Raises:
      InputError: the entry is there and damaged.
    """
    inside = path / "model.safetensors"
    entry = read_entry(inside if inside.is_file() else path, _ENTRY)
    if entry is None:
        return None
    try:
        uses = strict.read_json(entry)
    except ValueError:
        uses = None
    if not isinstance(uses, list) or not all(map(_is_use, uses)):
        raise InputError(f"{path}: its provenance is damaged ({entry[:60]!r})")
    return tuple(Use(*use) for use in uses)


def _is_use(value: object) -> bool:
    """Whether this is an entry as `to_metadata` writes it."""
    if not isinstance(value, list) or len(value) != len(Use._fields):
        return False
    are_texts = all(isinstance(part, str) and part.isprintable() for part in value)
    return are_texts and value[-1] in get_args(Role)


def overlap_warnings(
    uses: Sequence[Use] | None, weights: str, tests: Iterable[ImageSet]
) -> list[str]:
    """A line for every test split among the uses, by name or by content key.

    One line for all splits where the uses are not known (None).

    Args:
      uses: of the weights.
      weights: their name, for the lines.
      tests: the test splits.
    """
    tests = list(tests)
    if uses is None:
        names = ", ".join(images.name for images in tests)
        return [
            f"{weights} does not say what it was trained on, so it counts as having seen {names}"
        ]
    lines = {}
    for images in tests:
        roles = {use.role for use in uses if images.name == use.name or images.key == use.key}
        # A split with both roles gets the line of the worse one.
        for role in ("trained", "chosen"):
            if role in roles:
                lines[images.name] = f"{weights} {_WARNINGS[role].format(images.name)}"
                break
    return list(lines.values())
