"""A signal is not lost."""

import signal
import sys

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

    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: None)
    monkeypatch.setitem(cli.COMMANDS, "demo", cli.COMMANDS["demo"]._replace(run=drops))
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["demo"]) == 143
    assert capsys.readouterr().err == "emojax: interrupted; nothing half-written was kept\n"
    assert signal.getsignal(signal.SIGTERM) == before
    with interruption.listening():  # a later command in the same process begins anew
        interruption.check_interrupted()
