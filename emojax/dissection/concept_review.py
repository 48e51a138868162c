"""What is in a concept set and what is wrong with it, and how its concepts agree with the class names.

Shapes: C concepts, D embedding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from emojax.data.clip_encoder import ClipEncoder
from emojax.data.concepts import Entry


class Problem(NamedTuple):
    """A complaint about a line of a concept file: `blank`, `duplicate`, `too_long` or `near_synonym`."""

    line: int
    concept: str
    problem: str
    detail: str


def review(found: Sequence[Entry], clip: ClipEncoder | None = None, *, synonym: float = 0.95) -> list[Problem]:
    """Blank and repeated lines and, with a CLIP, texts over its context and pairs with a cosine of at least `synonym`.

    The last blank lines of a file are not complained about.
    """
    last = max((entry.line for entry in found if entry.concept), default=0)
    first: dict[str, int] = {}
    problems = []
    for entry in found:
        if not entry.concept and entry.line < last:
            problems.append(Problem(entry.line, "", "blank", "dropped"))
        elif entry.concept in first:
            problems.append(Problem(entry.line, entry.concept, "duplicate", f"first on line {first[entry.concept]}"))
        elif entry.concept:
            first[entry.concept] = entry.line
    if clip is None:
        return problems

    context, short = clip.model.config.context, []
    for concept, tokens in zip(first, clip.tokenizer(list(first)) if first else [], strict=True):
        if len(tokens) > context:
            problems.append(Problem(first[concept], concept, "too_long", f"{len(tokens)} tokens, {context} fit"))
        else:
            short.append(concept)
    if len(short) > 1:
        texts = clip.embed_texts(short)
        for at, concept in enumerate(short[1:], 1):
            cosines = texts[:at] @ texts[at]
            closest = int(cosines.argmax())
            if cosines[closest] >= synonym:
                detail = f"cosine {cosines[closest]:.3f} with {short[closest]!r} on line {first[short[closest]]}"
                problems.append(Problem(first[concept], concept, "near_synonym", detail))
    return sorted(problems)


def agreement(concepts: Sequence[str], classes: Sequence[str], clip: ClipEncoder) -> np.ndarray:
    """CLIP text cosine of every concept with every class name [C, classes], as the seed compared its labels."""
    return clip.embed_texts(concepts) @ clip.embed_texts(classes).T
