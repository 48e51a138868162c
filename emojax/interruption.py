"""Signals that end the process, and streams that may be closed, full or not UTF-8.

Light, for `python -m emojax` listens for signals before anything else is loaded. What is printed
never costs results: a stream that cannot be written goes quiet, and the work is finished.
"""

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, TextIO

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_TIDYING = 5.0  # seconds after a signal in which further ones do not disturb the clean-up
_AGAIN = 0.05  # seconds after which a signal whose exception was dropped comes again


class Interrupted(KeyboardInterrupt):
    """A signal asks the process to end.

    As a KeyboardInterrupt it passes every `except Exception`.
    """


class _Received:
    """The first signal that came, and when; and whether the process is still loading, so that it
    may end at once.
    """

    def __init__(self):
        self.loading = False
        self.forget()

    def forget(self) -> None:
        self.number: int | None = None
        self.last = 0.0  # time.monotonic() of the last signal
        self.settled = threading.Event()  # the command ends, by the signal or otherwise


_received = _Received()


def exit_code() -> int:
    """128 and the number of the signal that came: 130 for Ctrl-C, as for a KeyboardInterrupt
    without a signal.
    """
    return 128 + (_received.number or signal.SIGINT)


def check_interrupted() -> None:
    """Ends the work if a signal came and its exception was lost.

    Python drops an exception that a signal handler raises inside a callback of compiled code or a
    finalizer and continues; the program would end with exit code 0.

    Raises:
      Interrupted: a signal came.
    """
    if _received.number is not None:
        _received.settled.set()
        raise Interrupted(signal.Signals(_received.number).name)


def was_interrupted() -> bool:
    """Whether a signal came.

    An error after that is its consequence: of a callback or an import that it broke.
    """
    _received.settled.set()
    return _received.number is not None


def _stop(number: int, frame: FrameType | None) -> None:
    if _received.loading:
        # Nothing has been written that would have to be tidied, and an exception may not be raised
        # here: modules in Rust panic when it hits them while they are loaded.
        with contextlib.suppress(OSError):
            os.write(2, b"emojax: interrupted\n")
        os._exit(128 + number)
    now = time.monotonic()
    if _received.number is not None and now - _received.last < _TIDYING:
        return
    if _received.number is None:
        _received.number = number
    _received.last = now
    raise Interrupted(signal.Signals(number).name)


def _come_again(number: int, settled: threading.Event) -> None:
    """Brings a signal again whose exception Python dropped, unless the command ends by then."""
    if not settled.wait(_AGAIN):
        _received.last = -_TIDYING
        _thread.interrupt_main(signal.Signals(number))


@contextlib.contextmanager
def _nothing_dropped() -> Iterator[None]:
    """Within the block, a signal that comes in a callback is not lost, and prints no traceback.

    JAX has the garbage collector call it back, in which much of the time of a start goes by.
    """
    before = sys.unraisablehook

    def hook(dropped: "sys.UnraisableHookArgs") -> None:
        if isinstance(dropped.exc_value, Interrupted) and _received.number is not None:
            # No Timer: its locks may be held by what the garbage collector came in between.
            _thread.start_new_thread(_come_again, (_received.number, _received.settled))
        else:
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def listen() -> dict[int, Any]:
    """Makes SIGINT, SIGTERM and SIGHUP raise `Interrupted` in the main thread; returns the handlers
    that were there.

    A signal that the parent had ignored (`nohup`, a shell's background job) stays ignored.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is not threading.main_thread():
        return before
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, _stop)
    return before


def leave_at_once(code: int) -> None:
    """Ends the process without Python's clean-up, once all that was printed is written."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def begin_loading() -> None:
    """For a process of its own: until `begin_work`, a signal ends it at once, with a line."""
    listen()
    _received.loading = True


def begin_work() -> None:
    """From here on there may be something to tidy, and a signal raises `Interrupted`.

    Called when a command opens what it writes: by then the libraries that it needs are loaded.
    """
    _received.loading = False


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Signals end the block by `Interrupted`; the handlers from before come back after it.

    A signal of the outermost block is of that block alone: a program that runs a command and goes
    on is not interrupted by it later.
    """
    before = listen()
    outermost = _stop not in before.values()
    if outermost:
        _received.forget()
    try:
        with _nothing_dropped():
            yield
    finally:
        _received.settled.set()
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if outermost:
            _received.forget()


def ignore_signals() -> None:
    """For the last moments of a process whose exit code is settled."""
    for number in listen():
        signal.signal(number, signal.SIG_IGN)


class _Quiet:
    """A text stream whose writes cannot fail: characters that it lacks are escaped, and once broken
    it is silent.
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

    def _attempt(self, function: Any, *values: str) -> None:
        if self.failure is not None:
            return
        try:
            function(*values)
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            self.failure = error
            # What waits in the stream's buffer goes nowhere too, or Python would fail on it at
            # exit.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                number = self.stream.fileno()
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """stdout and stderr that cannot fail, for the length of the block.

    One that was closed from the start is opened on nothing, so that no file gets its number. A
    reader who went away (`| head`) is no news; any other failure of stdout is told on stderr.
    """
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as opened:

        def quiet(stream: TextIO | None) -> _Quiet:
            return _Quiet(stream or opened.enter_context(open(os.devnull, "w", encoding="utf-8")))

        sys.stdout, sys.stderr = out, err = quiet(before[0]), quiet(before[1])
        try:
            yield
        finally:
            out.flush()
            if out.failure is not None and not isinstance(out.failure, BrokenPipeError):
                reason = getattr(out.failure, "strerror", None) or out.failure
                err.write(f"emojax: not all of the output could be written to stdout ({reason})\n")
            err.flush()
            sys.stdout, sys.stderr = before
