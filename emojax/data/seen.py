"""Which images a network has seen: written into its weights file by training, read before it is
tested on any.

Weights that say nothing (the published checkpoint, anybody's file) count as having seen every test
split.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from emojax.data.image_set import ImageSet
from emojax.errors import InputError

_ENTRY = "emojax.seen"


class Seen(NamedTuple):
    """A split that a network has seen: its name, the content key of its images, and what it was
    used for.
    """

    name: str
    key: str
    role: Literal["trained", "chosen"]


def of(images: ImageSet, role: Literal["trained", "chosen"]) -> Seen:
    """The record of a use of an image set: to train weights, or to choose among them."""
    return Seen(images.name, images.key, role)


def to_metadata(seen: Iterable[Seen]) -> dict[str, str]:
    """Metadata of a safetensors file."""
    return {_ENTRY: json.dumps([list(each) for each in dict.fromkeys(seen)])}


def read(path: Path) -> tuple[Seen, ...] | None:
    """What a weights file says of the images it has seen; None where it says nothing.

    Raises:
      InputError: the entry is there and damaged.
    """
    if path.suffix != ".safetensors":
        return None
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        entry = (file.metadata() or {}).get(_ENTRY)
    if entry is None:
        return None
    try:
        return tuple(Seen(*map(str, each)) for each in json.loads(entry))
    except (ValueError, TypeError):
        raise InputError(f"{path}: its record of seen images is damaged ({entry[:60]!r})") from None


def warnings(seen: Iterable[Seen] | None, weights: str, tests: Iterable[ImageSet]) -> list[str]:
    """A line for every test split that the network has seen, by name or by content; one line when
    nothing is known.
    """
    tests = list(tests)
    if seen is None:
        names = ", ".join(images.name for images in tests)
        return [
            f"{weights} does not say what it was trained on, so it counts as having seen {names}"
        ]
    lines = {
        "trained": "was trained on {}: accuracy there says nothing",
        "chosen": "was chosen on {}: accuracy is flattered",
    }
    found = {}
    for images in tests:
        for role in sorted(
            {each.role for each in seen if images.name == each.name or images.key == each.key}
        ):
            found[images.name] = (
                f"{weights} {lines[role].format(images.name)}"  # "trained", the worse, comes last
            )
    return list(found.values())
