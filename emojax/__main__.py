"""The `emojax` command, as which `python -m emojax` works too."""

import sys

from emojax import interruption


def start() -> None:
    """Runs the command line and ends the process; from its first moments on a signal ends it with one line."""
    interruption.listen()
    try:
        from emojax.cli import main

        code = main()
    except KeyboardInterrupt:  # while the command line was still loading
        with interruption.safe_streams():
            print("emojax: interrupted", file=sys.stderr)
        code = interruption.exit_code()
    interruption.ignore_signals()
    sys.exit(code)


if __name__ == "__main__":
    start()
