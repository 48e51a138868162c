"""Faults of the disk and the user: full, forbidden, interrupted."""

import errno
import os
import resource
import signal

import numpy as np
import pytest

from emojax import cli, outputs, store
from emojax.probing import probe as probe_engine


def refused(capsys, *args):
    code = cli.main([str(arg) for arg in args])
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (2, 1), err
    return err


@pytest.fixture
def small_disk():
    """Files cannot grow beyond 300 bytes: writing fails as on a full disk, in C++ and Rust too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk(capsys, tmp_path, sound, small_disk):
    for args in (
        ["prepare", "--source", sound / "fer2013.csv"],
        ["concepts", "paper25"],
        ["audit", "--data.path", sound / "fer", "--sheet"],
    ):
        err = refused(capsys, *args, "--out", tmp_path / "out")
        assert "File too large; free space, or choose another --out or --cache" in err
        assert not any(file.is_file() for file in tmp_path.rglob("*"))


def test_full_disk_while_arrays_are_written(tmp_path, small_disk):
    with pytest.raises(OSError, match="File too large") as stopped:
        store.save_arrays({"a": np.zeros(9999)}, tmp_path / "a.safetensors")
    assert stopped.value.errno == errno.EFBIG


def test_no_permission(capsys, tmp_path, sound, monkeypatch):
    """Simulated, since tests may run as root, whom no permission stops."""

    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "locked"))

    audit = ["audit", "--data.path", sound / "fer", "--out", tmp_path / "out"]
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "fresh_folder", denied)
        assert "cannot write to" in refused(capsys, *audit)
    with monkeypatch.context() as patch:
        patch.setattr(store, "write_csv", denied)
        assert "locked: Permission denied" in refused(capsys, *audit)
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.read_bytes", denied)
        assert "Permission denied" in refused(
            capsys, "concepts", tmp_path / "c.txt", "--out", tmp_path / "out"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_interrupted_from_the_keyboard(capsys, tmp_path, sound, monkeypatch):
    """Nothing half-written is kept but the partial record, from which tests/probing/test_probe.py
    resumes.
    """

    def interrupted(*args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        yield

    monkeypatch.setattr(probe_engine, "batches", interrupted)
    # A shell starts background jobs with this signal ignored, and then it stays ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    flags = [
        "--data.path",
        sound / "fer",
        "--target.weights",
        sound / "vgg.safetensors",
        "--clip.path",
        sound / "clip",
    ]
    args = [
        "probe",
        *flags,
        "--probe.layers",
        "lin2",
        "--out",
        tmp_path / "out",
        "--cache",
        tmp_path / "cache",
    ]
    try:
        code = cli.main([str(arg) for arg in args])
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, capsys.readouterr().err) == (
        130,
        "emojax: interrupted; nothing half-written was kept\n",
    )
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]
    assert [p.suffix for p in (tmp_path / "cache" / "probes").iterdir()] == [".partial"]
