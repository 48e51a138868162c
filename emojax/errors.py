"""The one exception that means "the input is wrong", as opposed to "the program is wrong".

The command line turns it into a single line on stderr and exit code 2; every other exception is a bug and keeps its
traceback. From Python it is an ordinary `ValueError`.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A file, value or setting that emojax refuses. The message names it and says what would be right."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest of the known names, or the list of them when none is close."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
