"""A signal is not lost."""

import gc
import signal
import time

import pytest

from emojax import cli, interruption


def test_a_lost_interrupt_is_not_success(capsys, monkeypatch):
    """An exception that a handler raises inside a finalizer is dropped by Python; the signal still
    counts.
    """

    class Finalized:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def drops(settings):
        thing = Finalized()
        del thing

    monkeypatch.setitem(cli.COMMANDS, "demo", cli.COMMANDS["demo"]._replace(run=drops))
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["demo"]) == 143
    assert capsys.readouterr().err == "emojax: interrupted; nothing half-written was kept\n"
    assert signal.getsignal(signal.SIGTERM) == before
    interruption.check_interrupted()  # what this process does later is not interrupted


@pytest.mark.slow
def test_a_dropped_interrupt_comes_again(capsys, monkeypatch):
    """As when the garbage collector runs a callback of JAX while the signal comes."""

    def interrupted(phase, info):
        gc.callbacks.remove(interrupted)
        signal.raise_signal(signal.SIGTERM)

    def works_on(settings):
        gc.callbacks.append(interrupted)
        gc.collect()
        for _ in range(1000):
            time.sleep(0.01)
        raise AssertionError("the signal was lost")

    monkeypatch.setitem(cli.COMMANDS, "demo", cli.COMMANDS["demo"]._replace(run=works_on))
    assert cli.main(["demo"]) == 143
    assert capsys.readouterr().err == "emojax: interrupted; nothing half-written was kept\n"
