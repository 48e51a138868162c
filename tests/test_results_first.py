"""Results before the page, the page before words: what a signal, a full disk or a broken stdout
leaves behind.
"""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY

from emojax import cli, interruption, store
from emojax.data.concepts import load_concepts
from emojax.data.weights import save_vgg
from emojax.dissection.dissect import dissect
from emojax.errors import InputError
from emojax.models.vgg import VggNet
from emojax.probing.probe import probe
from emojax.report import page, results, write

# A command whose page says on stderr that it has begun, then takes for ever. Ctrl-C is not ignored,
# as it is in jobs that a shell starts in the background.
DRIVER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
import jax
jax.config.update("jax_compilation_cache_dir", {compiled!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
from emojax.__main__ import start
from emojax.report import page

def slow(*args, **options):
    print("PAGE", file=sys.stderr, flush=True)
    while True:
        time.sleep(0.05)

{patch}
sys.argv = ["emojax", *{args!r}]
start()
"""
WHOLE = {
    "manifest.json",
    "summary.json",
    "evidence.json",
    "dissection.csv",
    "sweep.csv",
    "truth.csv",
    "edited.safetensors",
}


def start(*args, patch: str = "", **streams) -> subprocess.Popen:
    import jax

    compiled = jax.config.jax_compilation_cache_dir
    code = DRIVER.format(args=[str(arg) for arg in args], patch=patch, compiled=compiled)
    return subprocess.Popen(
        [sys.executable, "-c", code], **{"stderr": subprocess.PIPE, "text": True} | streams
    )


def demo(folder: Path) -> list:
    return [
        "demo",
        "--images",
        "200",
        "--report.images",
        "none",
        "--out",
        folder / "run",
        "--cache",
        folder / "cache",
    ]


def assert_whole(run: Path) -> None:
    """The run is read as a whole one, has its results, and nothing half-written lies in or beside
    it.
    """
    names = {path.name for path in run.iterdir()}
    assert names >= WHOLE
    assert results.read_run(run).evidence is not None
    assert not [path for path in run.parent.rglob(".*") if "cache" not in path.parts]


def notes(run: Path) -> str:
    return f"; the run in {run} is whole but for its page, which `emojax report {run}` makes\n"


@pytest.mark.parametrize(("number", "times", "code"), [
    (signal.SIGTERM, 1, 143),
    (signal.SIGINT, 2, 130),
    (signal.SIGHUP, 1, 129),
])  # fmt: skip
def test_a_signal_during_the_page(capsys, tmp_path, number, times, code):
    with start(*demo(tmp_path), patch="page.build = slow", stdout=subprocess.DEVNULL) as command:
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


def test_a_page_that_fails(capsys, monkeypatch, tmp_path):
    """A full disk at any of the page's files is a line and exit code 2; an error in making it keeps
    its traceback.
    """
    run, wrote = tmp_path / "run", store.write_binary

    def full(path, put):
        if path.suffix in (".png", ".svg", ".html"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        wrote(path, put)

    def broken(*args, **options):
        raise ZeroDivisionError("in the page")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_binary", full)
        assert cli.main([str(arg) for arg in demo(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert err == f"emojax: cannot write to {run}: {os.strerror(errno.ENOSPC)}" + notes(run)
    assert "What was found" in out
    assert_whole(run)
    with monkeypatch.context() as patch:
        patch.setattr(page, "build", broken)
        again = tmp_path / "again"
        with pytest.raises(ZeroDivisionError) as failed:
            cli.main(
                [
                    *map(str, demo(tmp_path)[:-4]),
                    "--out",
                    str(again),
                    "--cache",
                    str(tmp_path / "cache"),
                ]
            )
    assert failed.value.__notes__ == [notes(again)[2:-1]]
    assert_whole(again)


def test_page_failures_from_python(monkeypatch, tmp_path, tiny_vgg, tiny_clip, blobs):
    record = probe(tiny_vgg, blobs, tiny_clip, layers=("lin2",))
    found = dissect(record, load_concepts("paper25"), clip=tiny_clip, null_sets=0)
    monkeypatch.setattr(page, "build", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError) as failed:
        write.write_report(found, tmp_path / "run")
    assert failed.value.__notes__ == [notes(tmp_path / "run")[2:-1]]
    assert (tmp_path / "run" / "manifest.json").is_file()


@pytest.mark.parametrize(
    "streams", ["no reader", "full", "closed", "both closed", "latin-1", "ascii"]
)
def test_words_never_cost_results(tmp_path, streams):
    """Whatever stdout and stderr are, the run is whole with its page, and the exit code is that of
    success.
    """
    folder = tmp_path / "Gefühl τ 表情"
    folder.mkdir()
    command, env, got = (
        [sys.executable, "-m", "emojax", *map(str, demo(folder))],
        dict(os.environ),
        b"",
    )
    if streams in ("latin-1", "ascii"):
        env |= {"PYTHONIOENCODING": f"{streams}:strict", "PYTHONUTF8": "0"}
        done = subprocess.run(command, env=env, capture_output=True, check=False)
        got = done.stdout
        assert done.stderr == b""
    elif streams == "no reader":
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(command, stdout=writer, stderr=writer, check=False)
        os.close(writer)
    elif streams == "full":
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
        assert done.stderr.decode() == (
            "emojax: not all of the output could be written to stdout "
            f"({os.strerror(errno.ENOSPC)})\n"
        )
    else:
        shell = 'exec "$@" >&-' + (" 2>&-" if streams == "both closed" else "")
        done = subprocess.run(
            ["bash", "-c", shell, "bash", *command], capture_output=True, check=False
        )
        assert done.stderr == b""
    assert done.returncode == 0
    assert_whole(folder / "run")
    assert (folder / "run" / "report.html").is_file()
    if got:
        assert "Gef" in got.decode(streams)
        assert "\\u8868\\u60c5" in got.decode(streams)
        assert "What was found" in got.decode(streams)


def test_help_into_a_closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    for args in (["--help"], ["run", "--help"], ["concepts", "--prompt"], ["--version"]):
        command = [sys.executable, "-m", "emojax", *args]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
    os.close(writer)


def test_numbers_that_json_lacks(tmp_path):
    numbers = {
        "nll": np.inf,
        "split/a~b": [1.0, float("nan"), np.float32(-np.inf)],
        "fine": {"x": 0.5, "none": None},
    }
    store.write_json(tmp_path / "a.json", numbers)
    text = (tmp_path / "a.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    assert found["nll"] is None
    assert found["split/a~b"] == [1.0, None, None]
    assert found["not_finite"] == {"/nll": "inf", "/split~1a~0b/1": "nan", "/split~1a~0b/2": "-inf"}
    np.testing.assert_equal(
        store.restore_numbers(found), {**numbers, "split/a~b": [1.0, np.nan, -np.inf]}
    )
    assert store.json_line({"loss": 1.5}) == '{"loss": 1.5}\n'
    assert json.loads(store.json_line({"loss": np.nan}), parse_constant=pytest.fail)[
        "not_finite"
    ] == {"/loss": "nan"}
    for wrong in (
        {"/other": "nan"},
        {"/fine/x": "nan"},
        {"/nll": "none"},
        {"/split~1a~0b/7": "nan"},
        ["nll"],
        {"": "nan"},
    ):
        with pytest.raises(ValueError, match=r"."):
            store.restore_numbers({**found, "not_finite": wrong})


def test_infinite_losses_do_not_cost_the_run(capsys, tmp_path, fer_folder):
    """Finite weights whose logits overflow give losses that are no numbers; the rest of the result
    is written.
    """
    from flax import nnx

    model = VggNet(TINY, rngs=nnx.Rngs(0))
    model.lin3.kernel[...] = model.lin3.kernel[...] * 1e38
    model.lin3.bias[...] = np.linspace(-1, 1, 7).astype(np.float32) * 3e38
    save_vgg(model, tmp_path / "vgg.safetensors")
    assert cli.main(["prepare", "--source", str(fer_folder), "--out", str(tmp_path / "fer")]) == 0
    args = [
        "evaluate",
        "--data.path",
        tmp_path / "fer",
        "--target.weights",
        tmp_path / "vgg.safetensors",
    ]
    code = cli.main([str(arg) for arg in [*args, "--out", tmp_path / "run"]])
    out, err = capsys.readouterr()
    assert code == 0, err
    summary = json.loads(
        (tmp_path / "run" / "summary.json").read_text(), parse_constant=pytest.fail
    )
    assert summary["splits"]["all"]["nll"] is None
    assert "/splits/all/nll" in summary["not_finite"]
    assert summary["splits"]["all"]["correct"] >= 0
    assert "nan" in out


def test_a_damaged_list_of_numbers_is_refused(tmp_path):
    (tmp_path / "summary.json").write_text('{"not_finite": {"/a": "nan"}}')
    with pytest.raises(InputError, match=r"summary\.json: not_finite does not fit"):
        results._json(tmp_path / "summary.json")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_in_the_first_moments(tmp_path, number):
    """At each moment from the first import on: one line and 128 + n.

    Before our first line Python's own way.
    """
    for delay in (0.15, 0.8):
        out = tmp_path / f"{delay}"
        code = (
            "import signal, runpy, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
            "signal.signal(signal.SIGHUP, signal.SIG_DFL); from emojax import interruption; "
            "process.begin_loading();"
            "import os; os.write(1, b'!'); sys.argv = ['emojax', "
            f"*{[str(a) for a in demo(out)]!r}];"
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
