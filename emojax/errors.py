"""The one exception that means "the input is wrong", as opposed to "the program is wrong".

The command line turns it into a single line on stderr and exit code 2; every other exception is a
bug and keeps its traceback. From Python it is an ordinary `ValueError`.
"""

import difflib
import errno
import re
from collections.abc import Iterable


class InputError(ValueError):
    """A file, value or setting that emojax refuses.

    The message names it and says what would be right.
    """


# Errors of the operating system that speak of the disk or the user's rights, and of no bug.
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


def one_line(error: Exception | str) -> str:
    """The message of an error as one line that a terminal can show."""
    line = " ".join(str(error).split())
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in line
    )


def of_the_disk(error: OSError) -> str | None:
    """What to say of an error of the system that the user can mend, None for any other."""
    if error.errno in _ENVIRONMENT:
        where = f"{error.filename}: " if error.filename else "cannot write: "
        return f"{where}{error.strerror}; free space, or choose another --out or --cache"
    if error.errno is None and re.search(
        r"\d+ requested and \d+ written", str(error)
    ):  # NumPy's words for a full disk
        return "cannot write: the disk is full; free space, or choose another --out or --cache"
    return None


def short(text: str, limit: int = 60) -> str:
    """A text in quotes, cut when it is long."""
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}…"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest of the known names, or the list of them when none is
    close.
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
