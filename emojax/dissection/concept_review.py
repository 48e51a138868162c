"""What is wrong with a concept set, and how its concepts agree with the class names.

The command `concepts` shows it before a set is used. Shapes: C concepts, D embedding.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from emojax.data.clip_encoder import ClipEncoder
from emojax.data.concepts import Entry
from emojax.data.lookalikes import look


class Problem(NamedTuple):
    """A line of a concept file that is `blank`, `duplicate`, `too_long` or `near_synonym`."""

    line: int
    concept: str
    problem: str
    detail: str


def review(
    entries: Sequence[Entry], clip: ClipEncoder | None = None, *, synonym: float = 0.95
) -> list[Problem]:
    """Complaints about the lines of a concept file, in their order.

    Blank and repeated lines, lines that look alike and, with a CLIP, texts over its context and
    pairs with a cosine of at least `synonym`. The last blank lines of a file are not complained
    about.
    """
    last_line = max((entry.line for entry in entries if entry.concept), default=0)
    first: dict[str, Entry] = {}  # with each look
    problems = []
    for entry in entries:
        if not entry.concept and entry.line < last_line:
            problems.append(Problem(entry.line, "", "blank", "dropped"))
        if not entry.concept:
            continue
        same = first.setdefault(look(entry.concept), entry)
        if same is not entry:
            detail = f"first on line {same.line}"
            if entry.concept != same.concept:
                detail = f"looks like {same.concept!a}, {detail}"
            problems.append(Problem(entry.line, entry.concept, "duplicate", detail))
    if clip is not None and first:
        lines = {entry.concept: entry.line for entry in first.values()}
        problems += _problems_of_texts(lines, clip, synonym)
    return sorted(problems)


def _problems_of_texts(
    lines: Mapping[str, int], clip: ClipEncoder, synonym: float
) -> list[Problem]:
    """What CLIP makes a problem, of different concepts and their lines."""
    problems = []
    context = clip.model.config.context
    fitting = []
    for concept, tokens in zip(lines, clip.tokenizer(list(lines)), strict=True):
        if len(tokens) > context:
            detail = f"{len(tokens)} tokens, {context} fit"
            problems.append(Problem(lines[concept], concept, "too_long", detail))
        else:
            fitting.append(concept)
    if len(fitting) < 2:
        return problems
    texts = clip.embed_texts(fitting)
    # Of a pair, the later line is the problem.
    for number, concept in enumerate(fitting[1:], 1):
        cosines = texts[:number] @ texts[number]
        closest = int(cosines.argmax())
        if cosines[closest] >= synonym:
            other = fitting[closest]
            detail = f"cosine {cosines[closest]:.3f} with {other!r} on line {lines[other]}"
            problems.append(Problem(lines[concept], concept, "near_synonym", detail))
    return problems


def agreement(
    concepts: Sequence[str], classes: Sequence[str], clip: ClipEncoder
) -> Float[np.ndarray, "C classes"]:
    """CLIP text cosine of every concept with every class name."""
    return clip.embed_texts(concepts) @ clip.embed_texts(classes).T
