"""Concept sets: the phrases that units are matched with, and the emotions each phrase stands for.

A concept file is UTF-8 text with one concept a line, or a csv with the header `concept,emotions`
where emotions are separated by semicolons; `none` stands for no emotion. Blank lines are dropped
everywhere alike (the reference implementation dropped them when encoding but not when indexing,
which shifted every later label).
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emojax.brief import brief
from emojax.data.classes import ALIASES, listed, meaning
from emojax.data.decode import check_regular
from emojax.errors import InputError, did_you_mean, short
from emojax.section import user_path
from emojax.store import guarded_rows, unguarded

BUILT_IN = ("paper25", "classes7", "faces30")  # faces30: what rendered faces show
NONE = "none"  # stands in a concept file for no emotion
_LONGEST, _MOST = (
    1000,
    1_000_000,
)  # characters in a line, of which CLIP reads 77 tokens; lines in a file
_MOST_BYTES = 1 << 28  # of a file
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x9f]")


@brief
@dataclass(frozen=True)
class ConceptSet:
    """Concepts in file order and, when known, the emotions of each.

    Attributes:
      concepts: the phrases, unique, not blank.
      emotions: for each concept the class names it speaks for, perhaps none; or None for a set
        without a map.
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
                raise InputError(
                    f"{self.name}: {concept!r} is both concept {first[concept]} and {number}; "
                    "remove one"
                )
            first[concept] = number
        if self.emotions is not None and len(self.emotions) != len(self.concepts):
            raise InputError(
                f"{self.name}: {len(self.concepts)} concepts "
                f"but {len(self.emotions)} emotion entries"
            )

    def __len__(self) -> int:
        return len(self.concepts)

    @cached_property
    def by_name(self) -> dict[str, int]:
        """Index of every concept."""
        return {concept: index for index, concept in enumerate(self.concepts)}

    def class_mask(self, classes: Sequence[str]) -> np.ndarray | None:
        """Which class each concept speaks for: bool [C, classes], or None for a set without a map.

        The built-in sets speak of the seven emotions, so with other classes they have no map.

        Raises:
          InputError: an emotion is not a class of the data; the message says what would help.
        """
        if self.emotions is None:
            return None
        index = {meaning(name): i for i, name in enumerate(classes)}
        spoken_for = {meaning(emotion) for emotions in self.emotions for emotion in emotions}
        if self.name in BUILT_IN and not spoken_for <= set(index):
            return None
        mask = np.zeros((len(self.concepts), len(classes)), bool)
        for row, (concept, emotions) in enumerate(zip(self.concepts, self.emotions, strict=True)):
            for emotion in emotions:
                if meaning(emotion) not in index:
                    hint = did_you_mean(emotion, classes)
                    raise InputError(
                        f"{self.name}: {concept!r} names the emotion {emotion!r}, "
                        f"no class of the data{hint}; its classes are {listed(classes)}: "
                        "--data.class-map renames them, --concepts.path takes a set of your own "
                        "(`emojax concepts --prompt --classes ...` asks a language model for one)"
                    )
                mask[row, index[meaning(emotion)]] = True
        return mask


def load_concepts(source: str | Path) -> ConceptSet:
    """A built-in set (`paper25`, `classes7`, `faces30`) or a concept file.

    Raises:
      InputError: the file is missing, not UTF-8, empty, has duplicates or an entry without
        emotions.
    """
    if str(source) in BUILT_IN:
        text = (resources.files("emojax.data") / "concept_sets" / f"{source}.csv").read_text(
            "utf-8"
        )
        return parse_concepts(text, str(source))
    path = user_path(source)
    if not path.is_file():
        raise InputError(f"no concept file {str(source)!r}; built in: {', '.join(BUILT_IN)}")
    return parse_concepts(read_text(path), str(path))


class Entry(NamedTuple):
    """A line of a concept file: its number, the concept and its emotions.

    A blank line has an empty concept; a file without a map has None for emotions, `none` gives ().
    """

    line: int
    concept: str
    emotions: tuple[str, ...] | None


def read_text(path: Path) -> str:
    """The text of a concept file.

    Raises:
      InputError: the file is missing, too large or not UTF-8.
    """
    if Path(path).exists():
        check_regular(Path(path), limit=_MOST_BYTES)
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(
            f"cannot read {str(path)!r} ({error.strerror}); built-in sets: {', '.join(BUILT_IN)}"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from None


def entries(text: str, name: str) -> list[Entry]:
    """Every line of a concept file, blank and repeated ones too.

    Raises:
      InputError: a csv line without a concept and at least one emotion.
    """
    lines = text.splitlines()
    if len(lines) > _MOST:
        raise InputError(f"{name}: {len(lines)} lines, at most {_MOST} make a concept file")
    for number, line in enumerate(lines, 1):
        if len(line) > _LONGEST:
            raise InputError(
                f"{name}, line {number}: {len(line)} characters long, "
                f"at most {_LONGEST} make a concept"
            )
        if control := _CONTROL.search(line):
            raise InputError(
                f"{name}, line {number}: control character {control[0]!r}; is this a text file?"
            )
    start = next((i for i, line in enumerate(lines) if line.strip()), len(lines))
    if start == len(lines) or lines[start].replace(" ", "").casefold() != "concept,emotions":
        return [Entry(number, line.strip(), None) for number, line in enumerate(lines, 1)]
    return list(_csv_rows(lines, start, name))


def check_text(concept: str, where: str) -> str:
    """A concept that somebody's file holds, as it is.

    Raises:
      InputError: it is blank, too long, or holds control characters; the message begins with
        `where`.
    """
    if not concept:
        raise InputError(f"{where}: the concept is blank")
    if len(concept) > _LONGEST:
        raise InputError(f"{where}: a concept of {len(concept)} characters, at most {_LONGEST}")
    if control := _CONTROL.search(concept):
        raise InputError(f"{where}: control character {control[0]!r} in a concept")
    return concept


def parse_concepts(text: str, name: str) -> ConceptSet:
    """A concept set from the text of a concept file; see the module's description."""
    listed = [entry for entry in entries(text, name) if entry.concept]
    first: dict[str, int] = {}
    for entry in listed:
        if entry.concept in first:
            raise InputError(
                f"{name}: {short(entry.concept)} stands on lines {first[entry.concept]} "
                f"and {entry.line}; remove one"
            )
        first[entry.concept] = entry.line
    # A file has emotions on every line or on none: `entries` sees to that.
    emotions = tuple(entry.emotions for entry in listed if entry.emotions is not None)
    concepts = tuple(entry.concept for entry in listed)
    return ConceptSet(concepts, emotions or None, name)


def to_csv(concepts: ConceptSet) -> str:
    """The set as the text of a concept file; a set without a map as plain lines."""
    if concepts.emotions is None:
        return "".join(f"{concept}\n" for concept in concepts.concepts)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["concept", "emotions"])
    rows = (
        [c, ";".join(e) or NONE] for c, e in zip(concepts.concepts, concepts.emotions, strict=True)
    )
    writer.writerows(guarded_rows(rows))
    return text.getvalue()


def prompt(classes: Sequence[str], count: int = 25) -> str:
    """A prompt for a set like the paper's; `parse_answer` reads the answer.

    Where a class is no emotion, it asks for what any picture can show.
    """
    subject = "visible parts, shapes, colours, textures or surroundings"
    group = "classes of pictures"
    example = "Round Red Body"
    if all(meaning(name) in ALIASES for name in classes):
        subject = (
            "visible facial expressions or movements of parts of the face, such as the brows, "
            "eyes, nostrils, mouth, lips, jaw and chin,"
        )
        group = "emotions"
        example = "Wide Open Eyes"
    return (
        f"List {count} distinct {subject} that tell these {group} apart: {', '.join(classes)}.\n"
        "Each is a short noun phrase of two to five words that a picture can show, without the "
        f"name of one of the {group} in it. Cover all of them; a phrase may speak for several.\n"
        "Answer with lines of the form `phrase: name, name` and nothing else, for example\n"
        f"{example}: {classes[-1]}\n"
    )


def parse_answer(text: str, classes: Sequence[str], name: str = "answer") -> ConceptSet:
    """A concept set from a language model's answer to `prompt`.

    A line is `phrase: emotion, emotion`, with or without the marks of a list.

    Raises:
      InputError: a line has no emotions or one that is not asked for, a phrase comes twice, or
        there is none.
    """
    known = {c.casefold(): c for c in classes}
    concepts: dict[str, tuple[str, ...]] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = (
            re.sub(r"^\s*(?:[-*•]|\d+[.)])\s*", "", raw).replace("**", "").replace("`", "").strip()
        )
        if not line:
            continue
        phrase, _, listed = line.rpartition(":")
        given = [e.strip(" .").casefold() for e in re.split(r"[,;/]", listed) if e.strip(" .")]
        if not phrase.strip() or not given:
            raise InputError(
                f"{name}, line {number}: {raw.strip()!r} is not of the form "
                "`phrase: emotion, emotion`"
            )
        for emotion in given:
            if emotion not in known:
                raise InputError(
                    f"{name}, line {number}: no emotion {emotion!r} was asked for"
                    f"{did_you_mean(emotion, known)}"
                )
        if phrase.strip() in concepts:
            raise InputError(f"{name}, line {number}: {phrase.strip()!r} comes twice; remove one")
        concepts[phrase.strip()] = tuple(known[emotion] for emotion in dict.fromkeys(given))
    return ConceptSet(tuple(concepts), tuple(concepts.values()), name)


def _csv_rows(lines: list[str], start: int, name: str) -> Iterable[Entry]:
    reader = csv.reader(io.StringIO("\n".join(lines[start + 1 :])))
    for row in reader:
        number = start + 1 + reader.line_num
        if not any(cell.strip() for cell in row):
            yield Entry(number, "", ())
            continue
        if len(row) != 2:
            raise InputError(
                f"{name}, line {number}: {len(row)} columns, not concept,emotions; "
                "quote a concept with a comma"
            )
        emotions = tuple(e.strip() for e in row[1].split(";") if e.strip())
        if not row[0].strip() or not emotions:
            raise InputError(
                f"{name}, line {number}: a concept and at least one emotion (or {NONE}) are "
                f"needed, not {','.join(row)!r}"
            )
        yield Entry(number, unguarded(row[0].strip()), () if emotions == (NONE,) else emotions)
