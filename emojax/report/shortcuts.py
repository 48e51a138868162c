"""The page of `emojax shortcuts`: what was found, on which images it shows, how to take it out.

It is filled in while the images are at hand, so nothing of it is read back from a folder.
Shapes: I images, U units, C classes, N concepts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from emojax.data.image_set import Images
from emojax.editing.shortcuts import LEVEL, UNFINDABLE, Side, Suspect
from emojax.report import page, sprites

FILE = "shortcuts.html"
_MOST = 12  # found concepts that are shown with their images and units; the table has more
_ROWS = 100  # of the table of all
_UNITS = 12
_EXAMPLES = 8  # images of a group
_SIDE = 72  # of an image, in pixels


class Looked(NamedTuple):
    """What the finder looked at.

    Attributes:
      layer: the last hidden layer.
      classes: names of the classes.
      units: which of the layer's units stand for each concept, in the order of the similarities.
      scores: the units' similarities with the concepts.
      weight: of the last layer.
      probe, held_out: the sets.
      images: those of the probe set and of the test splits, in the order of the sets; None shows
        none.
    """

    layer: str
    classes: Sequence[str]
    units: Mapping[str, Bool[np.ndarray, " U"]]
    scores: Float[np.ndarray, "U N"]
    weight: Float[np.ndarray, "U C"]
    probe: Side
    held_out: Side
    images: tuple[Sequence[Images], Sequence[Images]] | None


def render(
    suspects: Sequence[Suspect],
    looked: Looked,
    *,
    name: str,
    version: str,
    command: Callable[[str], Sequence[str]],
    people: bool = True,
    size: float = 25.0,
) -> str:
    """The page of what `find_shortcuts` found.

    Args:
      suspects: in its order.
      looked: what they were found in.
      name: of the run, for the title.
      version: of emojax.
      command: the command line that erases a concept, given its name, a flag in each part.
      people: whether the images are of people, which the page then says.
      size: bound of the page, in millions of bytes.

    Raises:
      InputError: the page is larger.
    """
    significant = [one for one in suspects if one.q_value <= LEVEL]
    shown = [_card(one, looked, command(one.concept)) for one in significant[:_MOST]]
    rows = [_row(one, looked.classes) for one in suspects[:_ROWS]]
    text = page.fill(
        "shortcuts.html.j2",
        ("theme.js",),
        title=f"emojax shortcuts: {name}",
        emotions=page.name_emotions(looked.classes),
        version=version,
        sections=[("found", "Found"), ("all", "All concepts"), ("how", "How")],
        level=f"{LEVEL:g}",
        layer=looked.layer,
        images=[f"{len(side.labels):,}" for side in (looked.probe, looked.held_out)],
        count=len(significant),
        found=shown,
        unfindable=UNFINDABLE,
        consent=page.PEOPLE if looked.images is not None and people else None,
        header=["concept", "class", "units", "push", "probe set", "test splits", "errors", "q"],
        rows=rows,
        left=len(suspects) - len(rows),
    )
    page.check_size(text, size)
    return text


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _row(suspect: Suspect, classes: Sequence[str]) -> list[str]:
    numbers = (suspect.drive, suspect.association, suspect.held_out_association, suspect.errors)
    cells = [suspect.concept, classes[suspect.label], str(suspect.units)]
    return [*cells, *map(_signed, numbers), page.p_text(suspect.q_value)]


def _card(suspect: Suspect, looked: Looked, command: Sequence[str]) -> dict[str, Any]:
    """What the page shows of a found concept."""
    at = list(looked.units).index(suspect.concept)
    weight = looked.weight[:, suspect.label] - looked.weight.mean(axis=1)
    weight = np.where(looked.units[suspect.concept], weight, 0.0)
    own = np.flatnonzero(looked.units[suspect.concept])
    order = own[np.argsort(-weight[own], kind="stable")]
    both = {"probe set": suspect.association, "test splits": suspect.held_out_association}
    most = max(map(abs, both.values())) or 1.0
    return {
        "concept": suspect.concept,
        "class": looked.classes[suspect.label],
        "q": page.p_text(suspect.q_value),
        "count": suspect.units,
        "push": _signed(suspect.drive),
        "errors": _signed(suspect.errors),
        "goes": [
            (name, _signed(value), f"{100 * abs(value) / most:.1f}", value < 0)
            for name, value in both.items()
        ],
        "units": [
            [str(unit), page.number(float(looked.scores[unit, at])), _signed(float(weight[unit]))]
            for unit in order[:_UNITS]
        ],
        "more": max(0, len(own) - _UNITS),
        "groups": _groups(suspect, looked, looked.probe.similarities[:, at], weight),
        "command": " \\\n  ".join(command),
    }


def _groups(
    suspect: Suspect,
    looked: Looked,
    similar: Float[np.ndarray, " I"],
    weight: Float[np.ndarray, " U"],
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Titles of the groups, and the address and the class of each of their images.

    Where the title says the class, it is blank.
    """
    if looked.images is None:
        return []
    probe, held_out = looked.probe, looked.held_out
    name = looked.classes[suspect.label]
    of_class = np.flatnonzero(probe.labels == suspect.label)
    by_similarity = of_class[np.argsort(-similar[of_class], kind="stable")]
    with_it = by_similarity[: min(_EXAMPLES, len(of_class) // 2)]
    without = by_similarity[::-1][: min(_EXAMPLES, len(of_class) // 2)]
    called = (held_out.predictions == suspect.label) & (held_out.labels != suspect.label)
    misled = np.flatnonzero(called)
    push = held_out.features[misled] @ weight
    misled = misled[np.argsort(-push, kind="stable")][:_EXAMPLES]
    true = held_out.labels[misled]
    concept = suspect.concept
    return [
        (f"{name}, most like {concept!r}", _examples(looked.images[0], with_it)),
        (f"{name}, least like {concept!r}", _examples(looked.images[0], without)),
        (
            f"called {name} on the test splits, most pushed first; below each what it is",
            _examples(looked.images[1], misled, [looked.classes[int(i)] for i in true]),
        ),
    ]


def _examples(
    parts: Sequence[Images], rows: np.ndarray, classes: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """Addresses of some images of several sets in a row, each with its class."""
    starts = np.cumsum([0, *(part.shape[0] for part in parts)])
    shown = []
    for row in rows:
        part = int(np.searchsorted(starts, row, side="right")) - 1
        shown.append(sprites.address(parts[part], int(row - starts[part]), _SIDE))
    return list(zip(shown, classes or [""] * len(shown), strict=True))
