"""Progress in a terminal."""

import functools
import io

from rich.console import Console

from emojax.commands import console


def test_progress_in_a_terminal(monkeypatch):
    """Bars are silent in the tests' pipes; in a terminal they must not stumble over a speed that is
    not known yet.
    """
    written = io.StringIO()
    terminal = functools.partial(Console, file=written, force_terminal=True, width=100)
    monkeypatch.setattr(console, "_Console", lambda stderr: terminal())
    with console.progress("probe") as bar:
        for done in (0, 10, 20):
            bar(done, 20)
    assert "20/20" in written.getvalue()
    assert "probe" in written.getvalue()
