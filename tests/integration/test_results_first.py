"""Results before the page, the page before words: what full disks and broken pipes leave behind."""

import errno
import os
import subprocess
import sys

import pytest
from signalled import assert_whole, environment, notes

from emojax import cli, store
from emojax.report import page

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_a_page_that_fails(capsys, monkeypatch, tmp_path, small_run):
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
        assert cli.main(small_run.args(run)) == 2
    out, err = capsys.readouterr()
    assert err == f"emojax: cannot write to {run}: {os.strerror(errno.ENOSPC)}" + notes(run)
    assert "evidence: " in out
    assert_whole(run)
    with monkeypatch.context() as patch:
        patch.setattr(page, "build", broken)
        again = tmp_path / "again"
        assert cli.main(small_run.args(again)) == 1
    err = capsys.readouterr().err
    assert f"ZeroDivisionError: in the page\n{notes(again)[2:]}emojax: this is a bug" in err
    assert_whole(again)


@pytest.mark.parametrize(
    "streams",
    [
        "full",
        *(
            pytest.param(name, marks=pytest.mark.exhaustive)
            for name in ("no reader", "closed", "both closed", "ascii", "latin-1")
        ),
    ],
)
def test_words_never_cost_results(tmp_path, small_run, streams):
    """Whatever stdout and stderr are, the run is whole with its page, and the exit code is that of
    success.
    """
    folder = tmp_path / "Gefühl τ 表情"
    folder.mkdir()
    command = [sys.executable, "-m", "emojax", *small_run.args(folder / "run")]
    env, got = environment(), b""
    if streams in ("latin-1", "ascii"):
        env |= {"PYTHONIOENCODING": f"{streams}:strict", "PYTHONUTF8": "0"}
        done = subprocess.run(command, env=env, capture_output=True, check=False)
        got = done.stdout
        assert done.stderr == b""
    elif streams == "no reader":
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(command, stdout=writer, stderr=writer, env=env, check=False)
        os.close(writer)
    elif streams == "full":
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                command, stdout=full, stderr=subprocess.PIPE, env=env, check=False
            )
        assert done.stderr.decode() == (
            "emojax: not all of the output could be written to stdout "
            f"({os.strerror(errno.ENOSPC)})\n"
        )
    else:
        shell = 'exec "$@" >&-' + (" 2>&-" if streams == "both closed" else "")
        done = subprocess.run(
            ["bash", "-c", shell, "bash", *command], env=env, capture_output=True, check=False
        )
        assert done.stderr == b""
    assert done.returncode == 0
    assert_whole(folder / "run")
    assert (folder / "run" / "report.html").is_file()
    if got:
        assert "Gef" in got.decode(streams)
        assert "\\u8868\\u60c5" in got.decode(streams)
        assert "evidence: " in got.decode(streams)


@pytest.mark.long
def test_help_into_a_closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    for args in (["--help"], ["run", "--help"], ["concepts", "--prompt"], ["--version"]):
        command = [sys.executable, "-m", "emojax", *args]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
    os.close(writer)
