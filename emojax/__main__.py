"""The `emojax` command, as which `python -m emojax` works too."""

import sys

from emojax import interruption


def start() -> None:
    """Runs the command line and ends the process; from its first moments on a signal ends it with
    one line.
    """
    interruption.begin_loading()
    from emojax.cli import main

    code = main(alone=True)
    interruption.ignore_signals()
    if interruption.was_interrupted():
        # What was computing when the signal came may not survive Python's own way out.
        interruption.leave_at_once(code)
    sys.exit(code)


if __name__ == "__main__":
    start()
