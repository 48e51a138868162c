"""How a command is interrupted by a signal, and how it is not by streams that cannot be written.

Imports nothing heavy: `python -m emojax` listens for signals before anything else is loaded. A
stream that is closed, full or not UTF-8 costs no results: it goes quiet, and the work is finished.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, TextIO

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
# What `signal.signal` takes and returns; None is a handler that Python did not install.
_Handler = Callable[[int, FrameType | None], Any] | int | None
_TIDYING = 5.0  # seconds after a signal in which further ones do not disturb the clean-up


class Interrupted(KeyboardInterrupt):
    """A signal asks the process to end; as a KeyboardInterrupt it passes `except Exception`."""


class _Received:
    """The first signal that came, and the time of the last that was acted on."""

    def __init__(self):
        self.number: int | None = None
        self.time = 0.0

    def forget(self) -> None:
        self.number = None
        self.time = 0.0


_received = _Received()


def exit_code() -> int:
    """128 plus the number of the signal that came.

    130 for Ctrl-C, as for a KeyboardInterrupt without a signal.
    """
    return 128 + (_received.number or signal.SIGINT)


def check_interrupted() -> None:
    """Ends the work if a signal came and its exception was lost.

    Python drops an exception that a signal handler raises inside a callback of compiled code or a
    finalizer, prints its traceback and continues; the program would end with exit code 0.

    Raises:
      Interrupted: a signal came.
    """
    if _received.number is not None:
        raise Interrupted(signal.Signals(_received.number).name)


def _stop(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _received.number is not None and now - _received.time < _TIDYING:
        return
    if _received.number is None:
        _received.number = number
    _received.time = now
    raise Interrupted(signal.Signals(number).name)


def listen() -> dict[int, _Handler]:
    """Makes SIGINT, SIGTERM and SIGHUP raise `Interrupted` in the main thread.

    Returns the handlers that were there, by number. A signal that the parent had ignored (`nohup`,
    a shell's background job) stays ignored.
    """
    before: dict[int, _Handler] = {}
    if threading.current_thread() is not threading.main_thread():
        return before
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, _stop)
    return before


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Signals end the block by `Interrupted`; the handlers from before come back after it."""
    before = listen()
    if _stop not in before.values():  # the outermost block begins anew
        _received.forget()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def ignore_signals() -> None:
    """For the last moments of a process whose exit code is settled."""
    for number in listen():
        signal.signal(number, signal.SIG_IGN)


class _Quiet:
    """A text stream whose writes cannot fail.

    Characters that its encoding lacks are escaped, and once broken it is silent.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.failure: OSError | ValueError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self._attempt(self.stream.write, text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._attempt(self.stream.flush)

    def _attempt(self, function: Callable[..., Any], *values: str) -> None:
        if self.failure is not None:
            return
        try:
            function(*values)
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            self.failure = error
            # What waits in the stream's buffer must go nowhere too, or Python fails on it at exit.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                number = self.stream.fileno()
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """stdout and stderr that cannot fail, for the length of the block.

    One that was closed from the start is opened on nothing, so that no file gets its number. A
    reader that went away (`| head`) is not reported; any other failure of stdout is, on stderr.
    """
    stdout = sys.stdout
    stderr = sys.stderr
    with contextlib.ExitStack() as opened:

        def quiet(stream: TextIO | None) -> _Quiet:
            return _Quiet(stream or opened.enter_context(open(os.devnull, "w", encoding="utf-8")))

        out = quiet(stdout)
        err = quiet(stderr)
        sys.stdout = out  # pyright: ignore[reportAttributeAccessIssue] - it has all of TextIO's methods
        sys.stderr = err  # pyright: ignore[reportAttributeAccessIssue]
        try:
            yield
        finally:
            out.flush()
            if out.failure is not None and not isinstance(out.failure, BrokenPipeError):
                reason = getattr(out.failure, "strerror", None) or out.failure
                err.write(
                    "emojax: not all that was to be printed could be written "
                    f"to stdout ({reason})\n"
                )
            err.flush()
            sys.stdout = stdout
            sys.stderr = stderr
