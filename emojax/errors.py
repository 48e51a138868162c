"""The one exception that means "the input is wrong", as opposed to "the program is wrong".

The command line turns it into a single line on stderr and exit code 2; every other exception is a
bug and keeps its traceback. From Python it is an ordinary `ValueError`.
"""

import difflib
import errno
import re
from collections.abc import Iterable


class InputError(ValueError):
    """A file, value or setting that emojax refuses; the message names it and what is right."""


# Errors of the operating system that concern the disk or the user's rights, not a bug.
_ENVIRONMENT = {
    getattr(errno, name)
    for name in (
        "ENOSPC",
        "EDQUOT",
        "EFBIG",
        "EROFS",
        "EACCES",
        "EPERM",
        "EIO",
        "ENOTDIR",
        "EISDIR",
        "ENAMETOOLONG",
        "ELOOP",
    )
}


_LONGEST = 800  # characters of a message, which may quote what a file holds


def one_line(error: Exception | str) -> str:
    """The message of an error as one line that a terminal can show, cut where it is very long."""
    line = " ".join(str(error).split())
    return printable(line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…")


def printable(text: str) -> str:
    """A text that a terminal shows and does not obey: other than line ends, what controls it
    (escape sequences, directions of writing) is spelled out.
    """
    return "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode()


def of_the_disk(error: OSError) -> str | None:
    """The line for an error of the operating system that the user can mend; None for any other."""
    if error.errno in _ENVIRONMENT:
        where = f"{error.filename}: " if error.filename else "cannot write: "
        return f"{where}{error.strerror}; free space, or choose another --out or --cache"
    # NumPy reports a full disk without an error number, in these words.
    if error.errno is None and re.search(r"\d+ requested and \d+ written", str(error)):
        return "cannot write: the disk is full; free space, or choose another --out or --cache"
    return None


def short(text: str, limit: int = 60) -> str:
    """A text in quotes, cut when it is long."""
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}…"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest known name; all of them when none is close."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
