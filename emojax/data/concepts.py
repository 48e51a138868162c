"""Concept sets: the phrases that units are matched with, and the emotions each phrase stands for.

A concept file is UTF-8 text with one concept a line, or a csv with the header `concept,emotions`
where emotions are separated by semicolons; `none` stands for no emotion. Spreadsheets write
semicolons or tabs between the columns, or quotes around the header: that is read too, and what only
looks like a table is refused rather than taken for concepts. Blank lines are dropped everywhere
alike (the reference implementation dropped them when encoding but not when indexing, which shifted
every later label).
"""

import csv
import difflib
import io
import re
import unicodedata
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
from emojax.data.lookalikes import UNSEEN, look
from emojax.errors import InputError, did_you_mean, short
from emojax.section import user_path
from emojax.store import guarded_rows, unguarded

BUILT_IN = ("paper25", "classes7", "faces30")  # faces30: what rendered faces show
NONE = "none"  # stands in a concept file for no emotion
_LONGEST, _MOST = (
    1000,
    1_000_000,
)  # characters in a line, of which CLIP reads 77 tokens; lines in a file
_HEADER = ["concept", "emotions"]
_JOINERS = "\u200c\u200d"  # not printable, and part of words and pictures
_MOST_BYTES = 1 << 28  # of a file


@brief
@dataclass(frozen=True)
class ConceptSet:
    """Concepts in file order and, when known, the emotions of each.

    Attributes:
      concepts: the phrases, not blank; no two look alike.
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
        first: dict[str, int] = {}  # number of the concept with each look
        for number, concept in enumerate(self.concepts, 1):
            seen = look(concept)
            if not seen:
                raise InputError(f"{self.name}: concept {number} is blank; remove it")
            if seen in first:
                same = self.concepts[first[seen] - 1]
                where = f"as concepts {first[seen]} and {number}"
                raise InputError(f"{self.name}: {_alike(same, concept, where)}")
            first[seen] = number
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

    def indices(self, names: Sequence[str]) -> list[int]:
        """Where the named concepts stand in the set.

        Raises:
          InputError: one is not in it; the message names those that are spelt most alike.
        """
        names = [unicodedata.normalize("NFC", name) for name in names]  # as files are read
        for name in names:
            if name not in self.by_name:
                near = difflib.get_close_matches(name, self.concepts, n=3, cutoff=0.5)
                known = ", ".join(map(repr, near)) or ", ".join(self.concepts[:30])
                raise InputError(
                    f"{self.name} has no concept {short(name)}; "
                    f"{'near ones' if near else 'it has'}: {known}"
                )
        return [self.by_name[name] for name in names]

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


def _alike(first: str, second: str, where: str) -> str:
    """The complaint of two concepts that nobody can tell apart."""
    if first == second:
        return f"{short(second)} stands {where}; remove one"
    return f"{first!a} and {second!a} look alike, {where}; remove one"


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
    check_regular(Path(path), limit=_MOST_BYTES, missing_ok=True)
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
      InputError: a csv line without a concept and at least one emotion; what looks like a table
        without being one; control characters.
    """
    lines = _lines(text, name)
    start = next((i for i, line in enumerate(lines) if line.strip()), len(lines))
    if start == len(lines):
        return [Entry(number, "", None) for number in range(1, len(lines) + 1)]
    for delimiter in ",;\t":
        if [cell.casefold() for cell in _header(lines[start], delimiter)] == _HEADER:
            return list(_csv_rows(lines, start, name, delimiter))
    _check_plain(lines, start, name)
    return [Entry(number, line.strip(), None) for number, line in enumerate(lines, 1)]


def _lines(text: str, name: str) -> list[str]:
    """The lines of a file; `str.splitlines` would also cut at characters that stand inside lines.

    Blanks of other kinds than the space become spaces, and an accent is one character with its
    letter (NFC), as tokenizers read it.

    Raises:
      InputError: there are too many, or one is too long or holds control characters.
    """
    lines = re.split(r"\r\n|\r|\n", text)
    if not lines[-1]:
        lines.pop()
    if len(lines) > _MOST:
        raise InputError(f"{name}: {len(lines)} lines, at most {_MOST} make a concept file")
    for number, line in enumerate(lines, 1):
        if len(line) > _LONGEST:
            raise InputError(
                f"{name}, line {number}: {len(line)} characters long, "
                f"at most {_LONGEST} make a concept"
            )
        _check_characters(line.replace("\t", " "), f"{name}, line {number}")
        if not line.isascii():
            plain = (" " if unicodedata.category(c) == "Zs" else c for c in line)
            lines[number - 1] = unicodedata.normalize("NFC", "".join(plain))
    return lines


def _check_characters(text: str, where: str) -> None:
    """Refuses what cannot be seen: control and format characters, and ends of lines.

    Raises:
      InputError: such a character is there; the message begins with `where`.
    """
    if unseen := UNSEEN.search(text):
        raise InputError(f"{where}: U+{ord(unseen[0]):04X} is not seen; remove it")
    if text.isprintable():
        return
    for character in text:
        seen = character.isprintable() or unicodedata.category(character) == "Zs"
        if not seen and character not in _JOINERS:
            raise InputError(
                f"{where}: the control character U+{ord(character):04X}; remove it, or is this no "
                "text file?"
            )


def _header(line: str, delimiter: str) -> list[str]:
    """Names of columns; none where the line is no row of a csv."""
    try:
        cells = next(csv.reader([line], delimiter=delimiter, strict=True, skipinitialspace=True))
    except csv.Error:
        return []
    return [cell.strip() for cell in cells]


def _check_plain(lines: list[str], start: int, name: str) -> None:
    """Refuses a table whose cells would be taken for concepts; `start` is its first line.

    Raises:
      InputError: there are columns, quotes or comments.
    """
    header = f"the header {','.join(_HEADER)} comes before concepts with emotions"
    cells = [cell.strip(" \"'").casefold() for cell in re.split(r"[,;|\t]", lines[start])]
    words = {"concept", "concepts"} | ({"emotion", "emotions"} if len(cells) > 1 else set())
    if words.intersection(cells):
        first = short(lines[start].strip())
        raise InputError(f"{name}, line {start + 1}: {first} is no header that is known; {header}")
    named = 0  # lines that end with a comma and an emotion
    for number, line in enumerate(lines, 1):
        where, text = f"{name}, line {number}", line.strip()
        if text[:1] in tuple('#"[{'):
            raise InputError(f"{where}: begins with {text[0]!r}; write the concept alone")
        for mark, called in (("\t", "a tab"), (";", "a ';'")):
            if mark in text:
                raise InputError(f"{where}: {called} inside a concept; {header}")
        named += not text or ("," in text and meaning(text.rpartition(",")[2]) in ALIASES)
    if named == len(lines):
        raise InputError(f"{name}: an emotion ends every line; {header}")


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
    _check_characters(concept, where)
    return concept


def parse_concepts(text: str, name: str) -> ConceptSet:
    """A concept set from the text of a concept file; see the module's description."""
    listed = [entry for entry in entries(text, name) if entry.concept]
    first: dict[str, Entry] = {}  # with each look
    for entry in listed:
        same = first.setdefault(look(entry.concept), entry)
        if same is not entry:
            where = f"on lines {same.line} and {entry.line}"
            raise InputError(f"{name}: {_alike(same.concept, entry.concept, where)}")
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
      InputError: a line has no emotions or one that is not asked for, a phrase comes twice, there
        is none, or a line holds control characters.
    """
    known = {c.casefold(): c for c in classes}
    concepts: dict[str, tuple[str, ...]] = {}
    for number, raw in enumerate(_lines(text, name), 1):
        line = (
            re.sub(r"^\s*(?:[-*•]|\d+[.)])\s*", "", raw).replace("**", "").replace("`", "").strip()
        )
        if not line:
            continue
        phrase, _, listed = line.rpartition(":")
        given = [e.strip(" .\t").casefold() for e in re.split(r"[,;/]", listed) if e.strip(" .\t")]
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


def _csv_rows(lines: list[str], start: int, name: str, delimiter: str) -> Iterable[Entry]:
    text = io.StringIO("\n".join(lines[start + 1 :]))
    reader = csv.reader(text, delimiter=delimiter, strict=True, skipinitialspace=True)
    # Where semicolons are between columns, commas may be between emotions.
    between = "[;,]" if delimiter == ";" else ";"
    try:
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
            listed = re.split(between, unguarded(row[1].strip()))
            emotions = tuple(e.strip() for e in listed if e.strip())
            if not row[0].strip() or not emotions:
                raise InputError(
                    f"{name}, line {number}: a concept and at least one emotion (or {NONE}) are "
                    f"needed, not {','.join(row)!r}"
                )
            for cell in row:  # quotes may hold the end of a line
                _check_characters(cell, f"{name}, line {number}")
            concept = unguarded(row[0].strip())
            yield Entry(number, concept, () if emotions == (NONE,) else emotions)
    except csv.Error as error:
        number = start + 1 + reader.line_num
        raise InputError(
            f"{name}, line {number}: no row of a csv ({error}); check its quotes"
        ) from None
