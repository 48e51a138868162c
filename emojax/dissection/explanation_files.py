"""Reads files of explanations, whoever wrote them, for the judge.

A file is a csv with a header. Four forms are known by their columns: ours (`explanations.csv`, and
`dissection.csv` with its column `concept`), CLIP-Dissect's (`layer,unit,description,similarity`),
Linear-Explanations' (`layer,unit,…,weight0,concept0,…,bias,…`) and the plain
`layer,unit,description`. Further columns are not read. A file may be anybody's, so all of it is
checked: whatever is not as it should be is refused with its line.
"""

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from emojax.data.concepts import check_text
from emojax.data.decode import check_regular
from emojax.errors import InputError, did_you_mean, short
from emojax.store import unguarded

_MOST_ROWS = 1_000_000
_LARGEST = 1 << 28  # bytes of a file
_DESCRIPTIONS = ("description", "concept")  # columns that hold a single label


class Explanation(NamedTuple):
    """What a file says of one unit: a weighted sum of concepts with a bias, or a single concept.

    A single concept has the weight 1 and the bias 0, and `linear` is False.
    """

    layer: str
    unit: int
    concepts: tuple[str, ...]
    weights: tuple[float, ...]
    bias: float
    linear: bool

    def text(self) -> str:
        """As people write it: `0.8·Smile − 0.3·Frown + 0.1`, or the concept alone."""
        if not self.linear:
            return self.concepts[0]
        terms = [f"{w:+.3g}·{c}" for w, c in zip(self.weights, self.concepts, strict=True)]
        return " ".join([*terms, f"{self.bias:+.3g}"])


@dataclass(frozen=True)
class ExplanationFile:
    """A file of explanations.

    Attributes:
      name: what it is called in tables.
      path: where it lies.
      explanations: one per unit, in the file's order.
    """

    name: str
    path: Path
    explanations: tuple[Explanation, ...]

    @property
    def concepts(self) -> tuple[str, ...]:
        """All different concepts, in the order of their first appearance."""
        return tuple(dict.fromkeys(c for e in self.explanations for c in e.concepts))


def read(path: Path, layers: Mapping[str, int]) -> ExplanationFile:
    """Reads and checks a file.

    Args:
      path: the csv.
      layers: the network's layers and their numbers of units.

    Raises:
      InputError: the file is missing, too large, no UTF-8 or no csv, has none of the four headers,
        or a row with an unknown layer, a unit out of range or twice, a concept that is blank, too
        long or holds control characters, or a number that is none.
    """
    lines = csv.reader(io.StringIO(_text(path)), strict=True)
    try:
        header = next(lines, [])
        columns = _columns(header, path)
        rows = []
        for cells in lines:
            if cells:  # a blank line has none
                texts = [unguarded(cell) for cell in cells]
                rows.append(_row(texts, columns, layers, f"{path}, line {lines.line_num}"))
            if len(rows) > _MOST_ROWS:
                raise InputError(f"{path}: more than {_MOST_ROWS} rows")
    except csv.Error as error:
        raise InputError(f"{path}, line {lines.line_num}: not a csv ({error})") from None
    if not rows:
        raise InputError(f"{path}: no explanation in it")
    seen = set()
    for row in rows:
        if (row.layer, row.unit) in seen:
            raise InputError(f"{path}: unit {row.unit} of {row.layer} comes twice; remove one")
        seen.add((row.layer, row.unit))
    return ExplanationFile(str(path), path, tuple(rows))


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path}: over {_LARGEST >> 20} MB; is this a file of explanations?")
        check_regular(path)
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from None


class _Columns(NamedTuple):
    """Where in a row what stands."""

    number: int
    layer: int
    unit: int
    description: int | None
    pairs: tuple[tuple[int, int], ...]  # of weight and concept
    bias: int | None


def _columns(header: Sequence[str], path: Path) -> _Columns:
    """Finds the columns of one of the four forms.

    Raises:
      InputError: there is none, or a name comes twice.
    """
    names = [name.strip() for name in header]
    where = {name: place for place, name in enumerate(names)}
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: the column {short(name)} comes twice")
    forms = "layer,unit,description or layer,unit,weight0,concept0,…,bias"
    description = next((where[name] for name in _DESCRIPTIONS if name in where), None)
    numbers = sorted(int(name[6:]) for name in names if re.fullmatch(r"weight\d{1,3}", name))
    linear = bool(numbers)
    if "layer" not in where or "unit" not in where or (description is None and not linear):
        shown = short(",".join(names), 100)
        raise InputError(f"{path}: its first line is {shown}, not {forms}")
    if not linear:
        return _Columns(len(names), where["layer"], where["unit"], description, (), None)
    missing = [name for n in numbers if (name := f"concept{n}") not in where]
    missing += [] if "bias" in where else ["bias"]
    if missing:
        raise InputError(f"{path}: no column {missing[0]}; the columns are {forms}")
    pairs = tuple((where[f"weight{n}"], where[f"concept{n}"]) for n in numbers)
    return _Columns(len(names), where["layer"], where["unit"], None, pairs, where["bias"])


def _row(
    cells: Sequence[str], columns: _Columns, layers: Mapping[str, int], where: str
) -> Explanation:
    """One explanation, checked."""
    if len(cells) != columns.number:
        raise InputError(f"{where}: {len(cells)} cells, the header has {columns.number}")
    layer = cells[columns.layer].strip()
    if layer not in layers:
        raise InputError(f"{where}: no layer {short(layer)}{did_you_mean(layer[:100], layers)}")
    text = cells[columns.unit].strip()
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or int(text) >= layers[layer]:
        last = layers[layer] - 1
        raise InputError(f"{where}: unit {short(text)} is not one of 0…{last} of {layer}")
    unit = int(text)
    if columns.description is not None:
        concept = check_text(cells[columns.description].strip(), where)
        return Explanation(layer, unit, (concept,), (1.0,), 0.0, linear=False)
    pairs = list(_pairs(cells, columns, where))
    concepts = tuple(concept for concept, _ in pairs)
    if len(set(concepts)) < len(concepts):
        raise InputError(f"{where}: a concept comes twice in one explanation")
    weights = tuple(weight for _, weight in pairs)
    assert columns.bias is not None
    bias = _number(cells[columns.bias], "bias", where)
    return Explanation(layer, unit, concepts, weights, bias, linear=True)


def _pairs(cells: Sequence[str], columns: _Columns, where: str) -> Iterator[tuple[str, float]]:
    """Concepts and weights up to the first that is `0` or blank, which stands for none."""
    for of_weight, of_concept in columns.pairs:
        concept = cells[of_concept].strip()
        if concept in ("0", ""):
            return
        yield check_text(concept, where), _number(cells[of_weight], "weight", where)


def _number(text: str, what: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # What float32 cannot hold would become infinite further on.
    if not abs(value) < 1e30:
        raise InputError(f"{where}: the {what} {short(text)} is not a finite number")
    return value
