"""Concept sets: the phrases that units are matched with, and the emotions that each phrase speaks for.

A concept file is UTF-8 text with one concept a line, or a csv with the header `concept,emotions` where emotions are
separated by semicolons. Blank lines are dropped everywhere alike (the original dropped them when encoding but not when
indexing, which shifted every later label).
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import numpy as np

from emojax.errors import InputError, did_you_mean

BUILT_IN = ("paper25", "classes7")


@dataclass(frozen=True)
class ConceptSet:
    """Concepts in file order and, when known, the emotions of each.

    Attributes:
      concepts: the phrases, unique, not blank.
      emotions: for each concept the class names it speaks for, or None for a set without a map.
      name: where the set came from, for messages and reports.
    """

    concepts: tuple[str, ...]
    emotions: tuple[tuple[str, ...], ...] | None = None
    name: str = "concepts"

    def __post_init__(self):
        if not self.concepts:
            raise InputError(f"{self.name}: no concept in it; write one concept a line")
        first: dict[str, int] = {}
        for number, concept in enumerate(self.concepts, 1):
            if not concept.strip():
                raise InputError(f"{self.name}: concept {number} is blank; remove it")
            if concept in first:
                raise InputError(f"{self.name}: {concept!r} is both concept {first[concept]} and {number}; remove one")
            first[concept] = number
        if self.emotions is not None and len(self.emotions) != len(self.concepts):
            raise InputError(f"{self.name}: {len(self.concepts)} concepts but {len(self.emotions)} emotion entries")

    def __len__(self) -> int:
        return len(self.concepts)

    @cached_property
    def by_name(self) -> dict[str, int]:
        """Index of every concept."""
        return {concept: index for index, concept in enumerate(self.concepts)}

    def class_mask(self, classes: Sequence[str]) -> np.ndarray | None:
        """Which class each concept speaks for: bool [C, classes], or None for a set without a map.

        Raises:
          InputError: an emotion is not a class of the data.
        """
        if self.emotions is None:
            return None
        index = {name.casefold(): i for i, name in enumerate(classes)}
        mask = np.zeros((len(self.concepts), len(classes)), bool)
        for row, (concept, emotions) in enumerate(zip(self.concepts, self.emotions, strict=True)):
            for emotion in emotions:
                if emotion.casefold() not in index:
                    hint = did_you_mean(emotion, classes)
                    raise InputError(f"{self.name}: {concept!r} names the emotion {emotion!r}, no class of the data{hint}")
                mask[row, index[emotion.casefold()]] = True
        return mask


def load_concepts(source: str | Path) -> ConceptSet:
    """A built-in set (`paper25`, `classes7`) or a concept file.

    Raises:
      InputError: the file is missing, not UTF-8, empty, has duplicates or an entry without emotions.
    """
    if str(source) in BUILT_IN:
        text = (resources.files("emojax.data") / "concept_sets" / f"{source}.csv").read_text("utf-8")
        return parse_concepts(text, str(source))
    path = Path(source)
    if not path.is_file():
        raise InputError(f"no concept file {str(source)!r}; built in: {', '.join(BUILT_IN)}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    return parse_concepts(text, str(path))


def parse_concepts(text: str, name: str) -> ConceptSet:
    """A concept set from the text of a concept file; see the module's description."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.strip()), len(lines))
    if start == len(lines) or lines[start].replace(" ", "").casefold() != "concept,emotions":
        numbered = [(number, line.strip(), None) for number, line in enumerate(lines, 1) if line.strip()]
    else:
        numbered = list(_csv_rows(lines, start, name))
    _refuse_duplicates(numbered, name)
    concepts = tuple(concept for _, concept, _ in numbered)
    emotions = tuple(e for _, _, e in numbered) if numbered and numbered[0][2] is not None else None
    return ConceptSet(concepts, emotions, name)


def _csv_rows(lines: list[str], start: int, name: str) -> Iterable[tuple[int, str, tuple[str, ...]]]:
    reader = csv.reader(io.StringIO("\n".join(lines[start + 1 :])))
    for row in reader:
        number = start + 1 + reader.line_num
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != 2:
            raise InputError(
                f"{name}, line {number}: {len(row)} columns, not concept,emotions; quote a concept with a comma"
            )
        emotions = tuple(e.strip() for e in row[1].split(";") if e.strip())
        if not row[0].strip() or not emotions:
            raise InputError(f"{name}, line {number}: a concept and at least one emotion are needed, not {','.join(row)!r}")
        yield number, row[0].strip(), emotions


def _refuse_duplicates(numbered: list[tuple[int, str, object]], name: str) -> None:
    first: dict[str, int] = {}
    for number, concept, _ in numbered:
        if concept in first:
            raise InputError(f"{name}: {concept!r} stands on lines {first[concept]} and {number}; remove one")
        first[concept] = number
