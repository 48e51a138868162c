"""Signals at any moment leave a whole run or none, one line, and exit code 128 + n."""

import random
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from signalled import assert_whole, environment, notes, start

from emojax import cli

pytestmark = pytest.mark.slow


@pytest.mark.long
@pytest.mark.parametrize(("number", "times", "code"), [
    (signal.SIGTERM, 1, 143),
    pytest.param(signal.SIGINT, 2, 130, marks=pytest.mark.exhaustive),
    pytest.param(signal.SIGHUP, 1, 129, marks=pytest.mark.exhaustive),
])  # fmt: skip
def test_a_signal_during_the_page(capsys, tmp_path, small_run, number, times, code):
    args = small_run.args(tmp_path / "run")
    with start(*args, patch="page.build = slow", stdout=subprocess.DEVNULL) as command:
        lines = iter(command.stderr.readline, "")
        assert any(line == "PAGE\n" for line in lines)
        for _ in range(times):
            command.send_signal(number)
        err = command.stderr.read()
        assert command.wait(60) == code
    assert err == "emojax: interrupted; nothing half-written was kept" + notes(tmp_path / "run")
    assert_whole(tmp_path / "run")
    assert not (tmp_path / "run" / "report.html").exists()
    assert cli.main(["report", str(tmp_path / "run"), "--images", "none"]) == 0
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_in_the_first_moments(tmp_path, small_run, number):
    """At each moment from the first import on: one line and 128 + n.

    Before our first line Python's own way.
    """
    for delay in (0.15, 0.8):
        out = tmp_path / f"{delay}"
        code = (
            "import signal, runpy, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
            "signal.signal(signal.SIGHUP, signal.SIG_DFL); from emojax import interruption; "
            "interruption.begin_loading();"
            "import os; os.write(1, b'!'); sys.argv = ['emojax', "
            f"*{small_run.args(out / 'run', out / 'cache')!r}];"
            "runpy.run_module('emojax', run_name='__main__')"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as command:
            assert command.stdout.read(1) == b"!"
            try:
                command.wait(delay)
            except subprocess.TimeoutExpired:
                command.send_signal(number)
                command.send_signal(number)
            _, err = command.communicate(timeout=60)
        assert command.returncode == 128 + number, (delay, err)
        assert err.decode().startswith("emojax: interrupted"), (delay, err)
        assert err.count(b"\n") == 1, (delay, err)
        assert not out.exists() or [path.name for path in out.iterdir()] in ([], ["cache"])


@pytest.mark.exhaustive
def test_the_run_after_any_signal_is_as_if_undisturbed(tmp_path, small_run):
    """A signal of each kind at a random moment; scripts/kill_and_resume.py tries more commands."""
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "kill_and_resume.py"))
    *args, _, _, _, _ = small_run.args(tmp_path)  # without --out and --cache
    # As many devices as this process has, so that sums are added in the same order.
    env = environment() | {"JAX_NUM_CPU_DEVICES": str(jax.device_count())}
    assert script["send_signals"]({"run": args}, 6, tmp_path, env, random.Random(0))
