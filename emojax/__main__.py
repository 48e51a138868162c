"""The `emojax` command, as which `python -m emojax` works too."""

import sys

from emojax import process


def start() -> None:
    """Runs the command line and ends the process; from its first moments on a signal ends it with
    one line.
    """
    process.begin_loading()
    from emojax.cli import main

    code = main()
    process.ignore_signals()
    if process.was_interrupted():
        # What was computing when the signal came may not survive Python's own way out.
        process.leave_at_once(code)
    sys.exit(code)


if __name__ == "__main__":
    start()
