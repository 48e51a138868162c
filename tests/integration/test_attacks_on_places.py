"""Attacks on places, sizes, the terminal, tables and a job's ports: each is refused in one line
with exit code 2 and writes nothing, or works.
"""

import contextlib
import csv
import itertools
import json
import os
import pwd
import resource
import runpy
import socket
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import Inputs, table
from rich.table import Table

from emojax import cli, memory, store
from emojax.commands import console
from emojax.data import hf_folder
from emojax.data.concepts import load_concepts, parse_concepts, to_csv
from emojax.data.exclude import Excluded
from emojax.data.folder import read_square
from emojax.data.loader import batches
from emojax.dissection import explanation_files
from emojax.distributed import processes
from emojax.distributed.mesh import make_mesh
from emojax.errors import InputError, printable
from emojax.models.transformer import check_sizes
from emojax.probing import probe as probing
from emojax.report import results, units
from emojax.training.checkpoints import Checkpoints
from emojax.training.training_log import TrainingLog

MANY = 2 * 10**9  # more than any machine holds, and within the bounds of the settings

# Sizes before work


@pytest.mark.parametrize(
    ("args", "message"),
    table(
        ("faces of demo", ["demo", "--images", MANY], "rendered faces need at least "),
        (
            "faces of evaluate",
            ["evaluate", "--data.kind", "faces", "--data.limit", MANY, "WEIGHTS"],
            "fit)",
        ),
        (
            "faces of train",
            ["train", "--train.task", "clip", "--data.kind", "faces", "--data.limit", MANY],
            "take fewer (at most ",
        ),
        ("size", ["probe", "--data.size", 100_000], "less than or equal to 4096"),
        ("size of predict", ["predict", "x.png", "--size", 100_000], "less than or equal to 4096"),
        ("tile", ["probe", "--probe.tile", 10**9], "less than or equal to 65536"),
        ("null sets", ["dissect", "--dissect.null-sets", 10**9], "less than or equal to 1000000"),
        ("permutations", ["sweep", "--edit.permutations", MANY], "less than or equal to 1000000"),
        ("masks", ["run", "--edit.masks", MANY], "less than or equal to 1000000"),
        ("resamples", ["judge", "x.csv", "--judge.resamples", MANY], "less than or equal"),
        ("epochs", ["train", "--train.epochs", 10**15], "less than or equal to 100000"),
        (
            "processes",
            ["evaluate", "--coordinator", "h:1", "--processes", 10**12, "--index", 1],
            "--processes is '1000000000000', not a number below 100000",
        ),
        (
            "digits",
            ["evaluate", "--coordinator", "h:1", "--processes", "²", "--index", "0"],
            "--processes is '²', not a number",
        ),
        (
            "port",
            ["evaluate", "--coordinator", "h:" + "9" * 5000, "--processes", 2, "--index", 0],
            "not HOST:PORT",
        ),
    ),
)
def test_more_than_any_machine_has(inputs, args, message):
    weights = ["--target.weights", str(inputs.sound / "vgg.safetensors")]
    expanded = [each for arg in args for each in (weights if arg == "WEIGHTS" else [arg])]
    inputs.refused(expanded, message)


def png(width: int, height: int) -> bytes:
    """A black gray image in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack("!I", len(data)) + body + struct.pack("!I", zlib.crc32(body))

    head = struct.pack("!IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1 + width) * height, 9)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(("width", "height"), [(200_000, 1), (1, 200_000)])
def test_a_line_of_pixels_is_not_brought_to_a_square(inputs, width, height):
    file = inputs.put("lines/a/line.png", png(width, height))
    inputs.put("lines/a/other.png", png(48, 40))
    photos = ["--data.path", inputs.here / "lines", "--data.test-splits", "all"]
    args = ["evaluate", *photos, "--target.weights", inputs.sound / "vgg.safetensors"]
    inputs.refused(args, f"line.png: {width}×{height} pixels would become")
    with pytest.raises(InputError, match="more than 89478485 in all; cut it"):
        read_square(Path(file), 48, 1)


def test_a_long_image_that_fits_is_read_as_ever(inputs):
    file = inputs.put("long.png", png(4000, 40))
    assert read_square(Path(file), 48, 1).shape == (48, 48, 1)


@pytest.mark.parametrize(
    ("tower", "name", "value"),
    [
        ("vision_config", "num_hidden_layers", 10**7),
        ("text_config", "num_hidden_layers", 10**30),
        ("vision_config", "hidden_size", 48 * 10**9),
        ("vision_config", "intermediate_size", MANY),
        ("text_config", "vocab_size", MANY),
        ("vision_config", "image_size", MANY),
        ("text_config", "max_position_embeddings", MANY),
        (None, "projection_dim", MANY),
    ],
)
def test_sizes_that_a_clip_claims(inputs, tower, name, value):
    def change(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        (config if tower is None else config[tower])[name] = value
        path.write_text(json.dumps(config))

    clip = inputs.copy("clip", change)
    inputs.refused(["concepts", "paper25", "--clip.path", clip], "not the settings of a ViT CLIP")


def test_sizes_that_a_network_claims():
    check_sizes(vocabulary=256_000, width=1)
    with pytest.raises(ValueError, match="width is 1048577, more than the 1048576"):
        check_sizes(width=(1 << 20) + 1)


def test_an_archive_that_unpacks_to_more_than_any_run_has(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / units.FILE, a=np.zeros(10_000))
    monkeypatch.setattr(units, "_MOST_BYTES", 80_000)
    with pytest.raises(InputError, match="80128 bytes when unpacked, more than 80000; run again"):
        units.load(tmp_path)


def test_batches_that_do_not_fit(monkeypatch):
    monkeypatch.setattr(memory, "machine_bytes", lambda: 10**6)
    images = np.zeros((9, 100, 100, 1), np.uint8)
    assert [len(batch.images) for batch in batches(images, 9)] == [9]
    message = r"51 images of 100×100 pixels at once need at least 0.00102 GB.*at most 50 fit"
    with pytest.raises(InputError, match=message):
        next(batches(images, 51))


@pytest.mark.slow
def test_a_tile_that_does_not_fit(inputs, monkeypatch):
    monkeypatch.setattr(memory, "machine_bytes", lambda: 10**9)
    flags = ["--data.path", inputs.sound / "fer", "--clip.path", inputs.sound / "clip"]
    flags += ["--target.weights", inputs.sound / "vgg.safetensors", "--probe.tile", 60_000]
    message = "60000 images of 32×32 pixels at once need at least"
    inputs.refused(["probe", *flags], f"{message} 5.898 GB of memory")


def test_lists_that_do_not_fit(monkeypatch):
    monkeypatch.setattr(memory, "machine_bytes", lambda: 10**9)
    mesh = make_mesh(2)
    probing._check_memory(mesh, tile=16, side=32, top_k=62_500, units=1000)
    message = r"62501 images for 1000 units need .* this machine has 1 GB; .*\(at most 62500 fit"
    with pytest.raises(InputError, match=message):
        probing._check_memory(mesh, tile=16, side=32, top_k=62_501, units=1000)


def test_the_memory_of_a_machine(tmp_path, monkeypatch):
    (tmp_path / "proc/self").mkdir(parents=True)
    groups = "12:cpu:/x\n4:memory:/job/step\n0::/slice/service\n"
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, limit in (
        ("memory/job/memory.limit_in_bytes", "3000000000"),
        ("memory/memory.limit_in_bytes", "9223372036854771712"),
        ("slice/service/memory.max", "max"),
        ("slice/memory.max", "4000000000"),
    ):
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{limit}\n")
    limits = memory._group_limits(tmp_path)
    assert sorted(filter(None, limits)) == [3 * 10**9, 4 * 10**9, 9223372036854771712]
    assert memory._group_limits(tmp_path / "no Linux") == []
    monkeypatch.setattr(memory, "_group_limits", lambda: [0, 10**9])
    assert memory.machine_bytes.__wrapped__() == 10**9
    monkeypatch.setattr(memory, "_group_limits", lambda: [])
    assert memory.machine_bytes.__wrapped__() <= memory._physical()


@pytest.mark.parametrize(
    ("error", "line"),
    table(
        (
            "NumPy",
            MemoryError("Unable to allocate 7.28 TiB"),
            "out of memory ('Unable to allocate 7.28 TiB'); lower --probe.tile or the batch",
        ),
        (
            "XLA",
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\n" + "x" * 9999),
            "out of memory ('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.",
        ),
    ),
)
def test_what_the_machine_lacks_is_a_line(inputs, monkeypatch, error, line):
    def fails(settings: object) -> None:
        raise error

    command = cli.COMMANDS["evaluate"]._replace(run=fails)
    monkeypatch.setitem(cli.COMMANDS, "evaluate", command)
    inputs.refused(["evaluate"], line)


@pytest.mark.parametrize(
    ("error", "why"),
    table(
        ("no plug-in", AssertionError(), "(no such device); set it to what this machine has"),
        (
            "unknown",
            RuntimeError("Unknown backend x (set JAX_PLATFORMS='' …)"),
            "(Unknown backend x)",
        ),
    ),
)
def test_devices_that_are_not_there(inputs, monkeypatch, error, why):
    def fails() -> None:
        raise error

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", fails)
    inputs.refused(["evaluate"], f"JAX_PLATFORMS is 'cuda', and JAX cannot use that here {why}")


# Places

# Each setting that names a file or folder: {} is where the name goes.
NAMED = {
    "out": "evaluate --out {}",
    "cache": "probe --cache {}",
    "data": "evaluate --data.path {}",
    "weights": "evaluate --target.weights {}",
    "network": "evaluate --target.path {}",
    "clip": "concepts paper25 --clip.path {}",
    "concepts": "concepts {}",
    "answer": "concepts --answer {}",
    "record": "dissect --record {}",
    "record of explain": "explain --record {}",
    "record of labels": "labels --record {}",
    "exclude": "evaluate --data.exclude {}",
    "gains": "sweep --edit.gains {}",
    "table": "predict a.png --out {}",
    "labels": "predict a.png --labels {}",
    "source": "prepare --source {}",
    "run to compare": "compare {} b",
    "run": "report {}",
    "audit": "report a --audit {}",
    "explanations": "report a --explanations {}",
    "judgement": "report a --judgement {}",
    "file to judge": "judge {}",
    "start": "train --train.start {}",
}


@pytest.mark.parametrize("name", NAMED)
def test_places_that_cannot_be(inputs, name):
    os.mkfifo("pipe")
    for place, message in (
        ("a\0b", "'a\\x00b' holds a NUL character"),
        ("a\udcffb", "'a\\udcffb' is not UTF-8; rename it"),
        ("~nobody9/x", "~nobody9/x: there is no such home folder; write the whole path"),
        ("pipe", "pipe is a pipe, socket or device, not a file or folder"),
    ):
        inputs.refused([arg.format(place) for arg in NAMED[name].split()], message)


@pytest.mark.parametrize(
    ("place", "message"),
    table(
        ("NUL", "a\0b", "--config: 'a\\x00b' holds a NUL character"),
        ("not UTF-8", "a\udcffb", "--config: 'a\\udcffb' is not UTF-8"),
        ("no home", "~nobody9/x", "cannot read the settings file ~nobody9/x"),
        ("folder", "/", "it is a folder, not a regular file"),
        ("endless", "/dev/zero", "it is a pipe, socket or device, not a regular file"),
        ("full", "/dev/full", "it is a pipe, socket or device, not a regular file"),
    ),
)
def test_settings_files_that_are_none(inputs, place, message):
    inputs.refused(["evaluate", "--config", place], message)


def test_settings_files_that_would_not_end(inputs):
    os.mkfifo(inputs.here / "pipe.yaml")
    inputs.refused(["run", "--config", inputs.here / "pipe.yaml"], "it is a pipe, socket or device")
    with open(inputs.here / "long.yaml", "wb") as file:
        file.truncate(20 << 30)  # sparse: no byte of it is on the disk
    message = "21474836480 bytes, more than the 1048576 that such a file may have"
    inputs.refused(["run", "--config", inputs.here / "long.yaml"], message)
    message = "21474836480 bytes, more than the 268435456 that such a file may have"
    inputs.refused(["concepts", inputs.here / "long.yaml"], message)


# Special files inside folders that are sound but for them

IN_A_MODEL = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "additional_chat_templates/a.jinja",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def socket_at(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(os.path.relpath(path))


def sparse(path: Path) -> None:
    """20 GB of which no byte is on the disk."""
    with open(path, "wb") as file:
        file.truncate(20 << 30)


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def assert_refused_with(inputs: Inputs, args: list, path: Path, make: Callable, message: str):
    """The command is refused with this in the place of a file, which comes back then."""
    before = path.read_bytes() if path.exists() else None
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    make(path)
    inputs.refused(args, message)
    path.rmdir() if path.is_dir() else path.unlink()
    if before is not None:
        path.write_bytes(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "what"),
    table(
        ("pipe", pipe, "it is a pipe, socket or device, not a regular file"),
        ("socket", socket_at, "it is a pipe, socket or device, not a regular file"),
        ("endless", link_to("/dev/zero"), "it is a pipe, socket or device, not a regular file"),
        ("full", link_to("/dev/full"), "it is a pipe, socket or device, not a regular file"),
        ("folder", Path.mkdir, "it is a folder, not a regular file"),
        ("sparse", sparse, "21474836480 bytes, more than the 268435456 that such a file may have"),
    ),
)
def test_special_files_in_the_folder_of_a_model(inputs, make, what):
    """Of a CLIP and of a network: none is opened, which a pipe would make last for ever."""
    clip = Path(inputs.copy("clip", lambda folder: None))
    data = ["--data.path", inputs.sound / "fer"]
    lines = (
        ["concepts", "paper25", "--clip.path", clip],
        ["evaluate", "--target.path", clip, *data],
    )
    for name, line in itertools.product(IN_A_MODEL, lines):
        if make is sparse and Path(name).suffix in (".safetensors", ".bin"):
            continue  # of any size; the next test
        assert_refused_with(inputs, line, clip / name, make, f"{name}: {what}")


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_files_of_a_model_that_cannot_be_read(inputs, name):
    """A regular file whose reading fails, for root too; and one of zeros without end."""
    clip = Path(inputs.copy("clip", lambda folder: None))
    line = ["concepts", "paper25", "--clip.path", clip]
    assert_refused_with(inputs, line, clip / name, link_to("/proc/self/mem"), f"clip/{name}: ")
    if name == "model.safetensors":
        assert_refused_with(inputs, line, clip / name, sparse, "not a readable safetensors file")


@pytest.mark.parametrize("make", [pipe, link_to("/dev/zero"), sparse])
def test_special_files_in_records_and_runs(inputs, make):
    record = Path(inputs.copy("record", lambda folder: None))
    dissect = ["dissect", "--record", record, "--clip.path", inputs.sound / "clip"]
    for path in filter(Path.is_file, sorted(record.iterdir())):
        message = "record.json: " if path.name == "record.json" else "not a readable probe record"
        assert_refused_with(inputs, dissect, path, make, message)
    run = inputs.here / "run"
    run.mkdir()
    for line in (["report", run], ["compare", run, run]):
        assert_refused_with(inputs, line, run / "manifest.json", make, "manifest.json: ")
    for read in (results._json, lambda path: results._table(path, []), explanation_files._text):
        make(run / "file.csv")
        with pytest.raises(InputError, match=r"file\.csv: "):
            read(run / "file.csv")
        (run / "file.csv").unlink()


@pytest.mark.slow
def test_names_of_images_that_cannot_be_are_rows(inputs):
    weights = ["--target.weights", inputs.sound / "vgg.safetensors"]
    names = ["a\0b.png", "a\udcffb.png", "~nobody9/x.png", inputs.sound / "photos/joy/1.png"]
    args = ["predict", *names, *weights, "--out", "table.csv"]
    assert cli.main([str(arg) for arg in args]) == 0
    rows = list(csv.DictReader(Path("table.csv").read_text("utf-8").splitlines()))
    assert [bool(row["reason"]) for row in rows] == [True, True, True, False]


def test_a_user_without_a_name_or_home(inputs, monkeypatch):
    """As in a container that runs with the number of a user."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    message = "--cache ~/.cache/emojax: there is no such home folder; write the whole path, or set"
    inputs.refused(["probe"], message)
    assert cli.main(["concepts", "paper25", "--out", "review"]) == 0


def test_a_working_folder_that_is_gone(inputs, monkeypatch, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for args in (["evaluate"], ["concepts", "paper25", "--out", str(tmp_path / "out")]):
        assert cli.main(args) == 2
        error = inputs.capsys.readouterr().err
        assert error == (
            "emojax: the working folder cannot be found (No such file or directory); "
            "change to one that exists\n"
        )
    assert cli.main(["--help"]) == 0


@pytest.mark.parametrize("name", ["models/clip", "models/cilp"])
def test_a_path_with_a_typing_error_is_not_asked_of_the_hub(inputs, monkeypatch, name):
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", asked)
    Path("models").mkdir()
    inputs.refused(["concepts", "paper25", "--clip.path", name], f"{name!r} in models; pass")
    with pytest.raises(InputError, match=r"pass --target\.path one that is there"):
        hf_folder.open_folder(name, "network", "--target.path")


# A full disk while a network is trained


@pytest.fixture
def small_disk():
    """A function that lets files grow no further than so many bytes: as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_checkpoints_on_a_full_disk(tmp_path, small_disk, capfd):
    state = {"weights": np.random.default_rng(0).normal(size=20_000)}
    log = TrainingLog(1)
    folder = tmp_path / "training"

    def save(steps: int) -> None:
        log.steps = steps
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(state, log)

    save(1)
    small_disk(20_000)
    with pytest.raises(OSError, match="File too large") as stopped:
        save(2)
    small_disk(resource.RLIM_INFINITY)
    line, code = cli._outcome_of(stopped.value)
    assert code == 2
    assert line == f"{folder}: File too large; free space, or choose another --out or --cache"
    assert stopped.value.__notes__ == ["the same command resumes from the last whole checkpoint"]
    assert [path.name for path in folder.iterdir()] == ["1"]
    save(3)
    with Checkpoints(folder) as checkpoints:
        restored = checkpoints.restore(jax.tree.map(jnp.zeros_like, state), TrainingLog(1))
    np.testing.assert_array_equal(restored["weights"], np.float32(state["weights"]))
    assert capfd.readouterr().err == ""


# The terminal and tables

ESCAPES = table(
    ("colour", "a\x1b[31mb", "a\\x1b[31mb"),
    ("title", "a\x1b]0;owned\x07b", "a\\x1b]0;owned\\x07b"),
    ("one byte", "a\x9b2Jb", "a\\x9b2Jb"),
    ("return", "a\rb", "a\\rb"),
    ("backspace", "a\x08\x08b", "a\\x08\\x08b"),
    ("right to left", "a\u202eb", "a\\u202eb"),
    ("surrogate", "a\udcffb", "a\\udcffb"),
    ("zero width", "a\u200bb", "a\\u200bb"),
    ("line separator", "a\u2028b", "a\\u2028b"),
    ("markup", "[red]a[/red]", "[red]a[/red]"),
    ("emoji", ":smile:", ":smile:"),
    ("plain", "Überraschung 驚き", "Überraschung 驚き"),
)


@pytest.mark.parametrize(("text", "shown"), ESCAPES)
def test_what_a_terminal_would_obey_is_spelled_out(capsys, text, shown):
    console.say(text)
    console.warn(text)
    grid = Table(text, title=text)
    grid.add_row(text)
    console.console.print(grid)
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == shown
    assert err == f"warning: {shown}\n"
    assert out.count(shown) == 4
    assert all(c.isprintable() or c == "\n" for c in out)
    assert printable(text) == shown


def test_bars_show_names_as_they_are(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with console.progress("{0} [red]a\x1b]0;owned\x07") as update:
        update(1, 2, note="{task} b\x1b[2J")
    shown = capsys.readouterr().err
    assert "{0} [red]a\\x1b]0;owned\\x07" in shown
    assert "\x07" not in shown
    assert "\x1b[2J" not in shown


@pytest.mark.parametrize(
    ("args", "shown"),
    table(
        ("unknown command", ["a\x1b[31mb"], "no command 'a\\x1b[31mb'"),
        ("folder", ["report", "a\x1b[31mb"], "a\\x1b[31mb"),
        ("split", ["evaluate", "--data.path", "FER", "--data.test-splits", "a\x1bb"], "'a\\x1bb'"),
        ("answer", ["concepts", "--answer", "a\x1bb"], "a\\x1bb"),
        ("images", ["audit", "--data.path", "a\x1b]0;b"], "a\\x1b]0;b"),
    ),
)
def test_names_in_refusals_are_spelled_out(inputs, args, shown):
    args = [str(inputs.sound / "fer") if arg == "FER" else arg for arg in args]
    weights = ["--target.weights", inputs.sound / "vgg.safetensors"] if "evaluate" in args else []
    inputs.refused([*args, *weights], shown)


def test_class_names_that_a_terminal_would_obey(inputs):
    inputs.put("faces/a\x1b]0;owned\x07/a.png", png(48, 48))
    inputs.put("faces/=b/b.png", b"damaged")
    data = ["--data.path", str(inputs.here / "faces")]
    assert cli.main(["audit", *data, "--out", "review", "--exclude"]) == 0
    out, err = inputs.capsys.readouterr()
    assert all(c.isprintable() or c == "\n" for c in out + err)
    assert cli.main(["concepts", "--prompt", "--classes", "a\x1b]0;b\x07"]) == 0
    assert "a\\x1b]0;b\\x07" in inputs.capsys.readouterr().out
    text = Path("review/audit.csv").read_text("utf-8")
    assert "'=b/b.png" in text
    assert "object at 0x" not in text
    assert Excluded.read(Path("review/exclude.csv")).ids == {"=b/b.png", "a\x1b]0;owned\x07/a.png"}


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''-x", "-"]
HARMLESS = ["", "'", "a=b", "'quoted'", "-1.5", "+3", "-inf", "1e-5", " =1", "Smile"]


def test_cells_are_no_formulas_and_come_back(tmp_path):
    texts = FORMULAS + HARMLESS
    path = tmp_path / "a.csv"
    store.write_csv(path, ["text", "=number"], [[text, -0.5] for text in texts])
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["text", "'=number"]
    assert [cell for cell, _ in rows] == [f"'{text}" for text in FORMULAS] + HARMLESS
    assert [store.unguarded(cell) for cell, _ in rows] == texts
    assert {number for _, number in rows} == {"-0.5"}


def test_tables_that_are_read_back(tmp_path):
    concepts = parse_concepts("concept,emotions\n=Smile,happy\n-x,none\n''@a,sad\n", "c.csv")
    assert concepts.concepts == ("=Smile", "-x", "'@a")
    assert "\n'=Smile,happy\n'-x,none\n''@a,sad\n" in to_csv(concepts)
    (tmp_path / "c.csv").write_text(to_csv(concepts))
    assert load_concepts(tmp_path / "c.csv").concepts == concepts.concepts
    rows = [["lin2", 3, "=Smile"], ["lin2", 4, "-x"]]
    store.write_csv(tmp_path / "e.csv", ["layer", "unit", "description"], rows)
    assert explanation_files.read(tmp_path / "e.csv", {"lin2": 9}).concepts == ("=Smile", "-x")
    store.write_csv(tmp_path / "r.csv", ["layer", "concept"], [["=x", "@a"], ["lin2", "Smile"]])
    columns = results._table(tmp_path / "r.csv", ["layer"])
    assert {name: list(column) for name, column in columns.items()} == {
        "layer": ["=x", "lin2"],
        "concept": ["@a", "Smile"],
    }


@pytest.mark.parametrize(("mask", "folder", "file"), [(0o077, 0o700, 0o600), (0o002, 0o775, 0o664)])
def test_rights_are_those_of_the_umask(inputs, mask, folder, file):
    before = os.umask(mask)
    try:
        assert cli.main(["concepts", "paper25", "--out", "review"]) == 0
    finally:
        os.umask(before)
    written = list(Path("review").rglob("*"))
    assert len(written) >= 2
    for path in [Path("review"), *written]:
        assert path.stat().st_mode & 0o777 == (folder if path.is_dir() else file), path


# The ports of a job

SECRET = "0123456789abcdef0123456789abcdef"


def hello(index: int, secret: str = SECRET) -> bytes:
    return processes._HELLO.pack(secret.encode(), index)


@pytest.fixture
def meeting():
    """The main process of three as it waits for the others; a function that connects to it."""
    watch = object.__new__(processes._Watch)
    watch._links = {}
    opened = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=watch._accept, args=(server, SECRET, 2))
        thread.start()

        def connect(*said: bytes) -> socket.socket:
            link = socket.create_connection(server.getsockname())
            opened.append(link)
            for part in said:
                link.sendall(part)
            return link

        yield connect, thread, watch._links
        connect(hello(1)), connect(hello(2))
        thread.join(10)
    for link in [*opened, *watch._links.values()]:
        link.close()
    assert not thread.is_alive()


STRANGERS = table(
    ("silent", []),
    ("garbage", [b"GET / HTTP/1.1\r\n\r\n", bytes(99)]),
    ("half a hello", [hello(1)[:20]]),
    ("another secret", [hello(1, "f" * 32)]),
    ("a process that there is not", [hello(3)]),
    ("the main process", [hello(0)]),
    ("a negative index", [hello(0xFFFFFFFF)]),
)


@pytest.mark.parametrize("said", STRANGERS)
def test_strangers_neither_join_nor_delay(meeting, said):
    connect, thread, links = meeting
    started = time.monotonic()
    for _ in range(5):
        connect(*said)
    connect().close()
    mine = [connect(hello(index)) for index in (1, 2)]
    thread.join(10)
    assert time.monotonic() - started < processes._PATIENCE
    assert {index: link.getpeername() for index, link in links.items()} == {
        index: link.getsockname() for index, link in zip((1, 2), mine, strict=True)
    }


def test_a_slow_process_joins_and_silent_strangers_are_dropped(meeting, monkeypatch):
    monkeypatch.setattr(processes, "_PATIENCE", 0.5)
    connect, thread, links = meeting
    silent = connect()
    silent.settimeout(5)
    connect(hello(1)[:10], hello(1)[10:30], hello(1)[30:])
    assert silent.recv(1) == b""
    connect(hello(1))  # who comes second is not taken for it
    connect(hello(2))
    thread.join(10)
    assert set(links) == {1, 2}


def test_processes_that_never_come(monkeypatch):
    monkeypatch.setattr(processes, "_CONNECT", 0.3)
    watch = object.__new__(processes._Watch)
    watch._links = {}
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(TimeoutError):
        watch._accept(server, SECRET, 1)


@pytest.mark.parametrize(
    ("host", "address"), [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1"), ("0.0.0.0", "0.0.0.0")]
)
def test_a_job_listens_on_the_address_that_is_named(host, address):
    assert processes._address(processes.Job(f"{host}:1234", 2, 0)) == address


@pytest.mark.parametrize("job", ["192.0.2.1:1234", "127.0.0.1:{}"])
def test_addresses_and_ports_that_are_not_free(job):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        job = job.format(taken.getsockname()[1])
        with pytest.raises(InputError, match=r"cannot listen there \(.*\); give an address of"):
            processes._start(processes.Job(job, 2, 0))


def test_hosts_that_no_job_can_use(monkeypatch):
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
    with pytest.raises(InputError, match=r"node0 is 127\.0\.1\.1 here, which no other machine"):
        processes._address(processes.Job("node0:1", 2, 0))

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(InputError, match="--coordinator nowhere:1: Name or service not known"):
        processes._address(processes.Job("nowhere:1", 2, 0))


def listening(process: int) -> set[tuple[str, int]]:
    """Hosts and ports at which a process listens (Linux)."""
    links = set()
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed in between
            links.add(os.readlink(descriptor))
    found = set()
    for table_of in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table_of}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in links:
                found.add(("127.0.0.1", int(local.rpartition(":")[2], 16)))
    return found


def attack(started: list[subprocess.Popen], ended: threading.Event) -> int:
    """Opens connections to all ports of the processes until these have ended: silent ones, garbage,
    half a hello and resets. Returns how many there were.
    """
    open_links: list[socket.socket] = []
    count = 0
    while not ended.wait(0.05):
        for process in started:
            ports: set[tuple[str, int]] = set()
            with contextlib.suppress(OSError):  # it has ended
                ports = listening(process.pid)
            for port, said in itertools.product(ports, (b"", b"GET /\r\n\r\n", hello(1)[:9])):
                with contextlib.suppress(OSError):
                    open_links.append(socket.create_connection(port, timeout=1))
                    open_links[-1].sendall(said)
                    count += 1
        while len(open_links) > 100:
            open_links.pop(0).close()
    for link in open_links:
        link.close()
    return count


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_job_among_rogue_clients(tmp_path):
    """The same results as one process has, while strangers connect to every port all the time."""
    check = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "check_hosts.py"))
    compiled = Path(jax.config.jax_compilation_cache_dir)
    flags = ["--data.kind", "faces", "--data.limit", "480", "--concepts.path", "classes7"]
    flags += ["--probe.layers", "lin2", "--probe.batch", "32", "--probe.top-k", "40"]
    args = ["dissect", *flags, *check["NETWORKS"], "--dissect.null-sets", "50"]
    args += ["--dissect.top-k", "40"]
    places = {name: ["--out", str(tmp_path / name)] for name in ("alone", "among")}
    check["run"]([*args, *places["alone"], "--cache", str(tmp_path / "cache1")], 1, 1, compiled)
    started = check["start"](
        [*args, *places["among"], "--cache", str(tmp_path / "cache2")], 4, 1, compiled
    )
    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        attacks = pool.submit(attack, started, ended)
        try:
            results = check["wait"](started, timeout=500)
        finally:
            ended.set()
        assert attacks.result() > 100
    assert [result.code for result in results] == [0] * 4, results
    assert check["differences"](tmp_path / "alone", tmp_path / "among") == []
