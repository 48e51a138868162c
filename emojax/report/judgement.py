"""The page's section on a judgement: `judgement.json` of `emojax judge`, checked and as text."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from emojax.data.decode import MOST_TEXT, check_regular
from emojax.errors import InputError

FILE = "judgement.json"
_MOST = 1000  # characters of a name or a warning that the page shows
Measures = dict[str, tuple[float, float, float]]


class _Sanity(BaseModel):
    missing: float
    extra: float
    passes: bool
    sound: bool


class _Difference(BaseModel):
    first: str
    second: str
    units: int
    measures: Measures


class Judgement(BaseModel):
    """What `emojax judge` found, as its file says."""

    files: dict[str, Measures]
    units: dict[str, int]
    differences: list[_Difference]
    sanity: dict[str, _Sanity]
    warnings: list[str]


def read(folder: Path) -> Judgement:
    """Reads the judgement that a folder holds.

    Raises:
      InputError: there is none, or it is damaged.
    """
    path = folder / FILE
    check_regular(path, limit=MOST_TEXT, missing_ok=True)
    try:
        return Judgement.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"no judgement at {str(path)!r} ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:100]
        raise InputError(f"{path}: {where}: {first['msg']}; judge again") from None


def section(judgement: Judgement) -> dict[str, Any]:
    """The section's tables, as text."""
    names = list(next(iter(judgement.files.values()), {}))
    means = [
        [name[:_MOST], f"{judgement.units.get(name, 0):,}", *_cells(measures)]
        for name, measures in judgement.files.items()
    ]
    differences = [
        [f"{each.second} less {each.first}"[:_MOST], f"{each.units:,}", *_cells(each.measures)]
        for each in judgement.differences
    ]
    return {
        "head": ["explanations", "units", *names],
        "rows": [*means, *differences],
        "sanity": [
            [
                name,
                f"{row.missing:.1%}",
                f"{row.extra:.1%}",
                *map(_verdict, (row.passes, row.sound)),
            ]
            for name, row in judgement.sanity.items()
        ],
        "warnings": [line[:_MOST] for line in judgement.warnings],
    }


def _cells(measures: Measures) -> list[str]:
    return [
        f"{value:.3f} ({low:.3f} … {high:.3f})".replace("-", "−")
        for value, low, high in measures.values()
    ]


def _verdict(passes: bool) -> str:
    return "passes" if passes else "fails"
