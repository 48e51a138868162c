"""`emojax concepts`: reviews a concept set, asks a language model for one, imports its answer."""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from emojax import settings
from emojax.commands.base import Command, WritesRun, out_folder
from emojax.section import UserPath, user_path

if TYPE_CHECKING:
    from emojax.data.clip_encoder import ClipEncoder
    from emojax.data.concepts import Entry
    from emojax.dissection.concept_review import Problem

_EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


class ConceptsSettings(WritesRun):
    """Settings of a review."""

    concepts: settings.Concepts = settings.Concepts()
    clip: settings.Clip = settings.Clip()
    classes: tuple[str, ...] = Field(
        default=_EMOTIONS, description="class names that concepts are compared with", min_length=1
    )
    synonym: float = Field(
        default=0.95,
        ge=-1,
        le=1,
        description="text cosine from which two concepts are near-synonyms",
    )
    prompt: bool = Field(
        default=False, description="print what to ask a language model, and do nothing else"
    )
    answer: UserPath | None = Field(
        default=None, description="a language model's answer to import as a concept file"
    )
    out: UserPath = out_folder("concepts")


def concepts(settings: ConceptsSettings) -> None:
    """Reviews a concept set, or prints the prompt for one, or imports a language model's answer."""
    from emojax import store
    from emojax.commands import opening
    from emojax.commands.console import say_written
    from emojax.data import concepts as concept_files
    from emojax.dissection import concept_review
    from emojax.errors import InputError, printable

    if settings.prompt:
        print(printable(concept_files.prompt(settings.classes)), end="")
        return
    text, source = _read(settings)
    entries = concept_files.entries(text, source)
    clip = None if settings.clip.path is None else opening.open_clip(settings.clip)
    problems = concept_review.review(entries, clip, synonym=settings.synonym)
    names = list(dict.fromkeys(entry.concept for entry in entries if entry.concept))
    if not names:
        raise InputError(f"{source}: no concept in it; write one concept a line")
    with opening.open_run(settings, "concepts") as run:
        if settings.answer is not None:
            store.write_text(run.folder / "concepts.csv", text)
        store.write_csv(run.folder / "problems.csv", concept_review.Problem._fields, problems)
        if clip is not None:
            too_long = {problem.concept for problem in problems if problem.problem == "too_long"}
            fitting = [name for name in names if name not in too_long]
            _write_agreement(run.folder / "agreement.csv", fitting, settings.classes, clip)
    _print(entries, names, problems, compared=clip is not None)
    say_written(settings.out)


def _read(settings: ConceptsSettings) -> tuple[str, str]:
    """The text of the concept file, and where it is from."""
    from emojax.data import concepts as concept_files

    if settings.answer is not None:
        source = str(settings.answer)
        answer = concept_files.read_text(settings.answer)
        concept_set = concept_files.parse_answer(answer, settings.classes, source)
        return concept_files.to_csv(concept_set), source
    source = settings.concepts.path
    if source in concept_files.BUILT_IN:
        return concept_files.to_csv(concept_files.load_concepts(source)), source
    return concept_files.read_text(user_path(source)), source


def _write_agreement(
    path: Path, names: list[str], classes: tuple[str, ...], clip: "ClipEncoder"
) -> None:
    """A row per concept: its cosine with every class name, and the closest."""
    from emojax import store
    from emojax.dissection import concept_review

    table = concept_review.agreement(names, classes, clip)
    rows = (
        [name, *cosines, classes[cosines.argmax()]]
        for name, cosines in zip(names, table, strict=True)
    )
    store.write_csv(path, ["concept", *classes, "closest"], rows)


def _print(
    entries: "list[Entry]", names: list[str], problems: "list[Problem]", *, compared: bool
) -> None:
    from emojax.commands.console import say

    mapped = sum(bool(entry.emotions) for entry in entries)
    say(f"{len(names)} concepts, {mapped or 'none'} with emotions, {len(problems)} problems")
    for problem in problems:
        kind = problem.problem.replace("_", " ")
        say(f"  line {problem.line}: {kind} {problem.concept!r} ({problem.detail})")
    if not compared:
        say(
            "without --clip.path: lengths, near-synonyms and agreement with the classes were not "
            "looked at"
        )


COMMAND = Command(
    "concepts",
    "review a concept set (emojax concepts FILE), ask a language model for one, import its answer",
    ConceptsSettings,
    concepts,
    positional="--concepts.path",
)
