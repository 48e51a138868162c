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
    sys.exit(code)


if __name__ == "__main__":
    start()
