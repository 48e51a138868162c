"""Progress in a terminal."""

import functools
import io

import pytest
from rich.console import Console

from emojax.commands import console


@pytest.fixture
def written(monkeypatch):
    """What comes to a terminal; bars are silent in the tests' pipes."""
    written = io.StringIO()
    terminal = functools.partial(Console, file=written, force_terminal=True, width=100)
    monkeypatch.setattr(console, "_Console", lambda stderr: terminal())
    return written


def test_progress_in_a_terminal(written):
    """A speed that is not known yet is no stumbling block."""
    with console.progress("probe") as bar:
        for done in (0, 10, 20):
            bar(done, 20)
    assert "20/20" in written.getvalue()
    assert "probe" in written.getvalue()


def test_work_that_cannot_be_counted_shows_its_time(written):
    with console.working("dissect"):
        pass
    assert "dissect" in written.getvalue()
    assert "0:00:00" in written.getvalue()
