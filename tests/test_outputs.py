"""What `--out` may replace: runs of emojax alone, only when asked, and nothing that the run did not
write.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import generated_images, some_record

from emojax import cli, outputs, store
from emojax import settings as config
from emojax.commands import opening, steps
from emojax.commands.base import Dissecting, WritesRun
from emojax.data import audit as auditing
from emojax.data import concepts as concept_files
from emojax.distributed import processes as hosts
from emojax.errors import InputError
from emojax.probing import record as records
from emojax.report import results
from emojax.report.write import FIGURES, PAGE
from emojax.synthetic import faces

TESTS = Path(__file__).parent


def contents(root: Path) -> dict[str, bytes | str]:
    """Every file's bytes, every link's target, and every folder below a folder."""
    found: dict[str, bytes | str] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        else:
            found[name] = "folder" if path.is_dir() else path.read_bytes()
    return found


def written_run(
    out: Path, text: str = "1", *, overwrite: bool = False, verb: str = "concepts"
) -> Path:
    """A small run."""
    with store.run_folder(out, verb, {}, overwrite=overwrite) as run:
        store.write_text(run.folder / "problems.csv", text)
        store.write_text(run.folder / "deep" / "er" / "rows.csv", text)
    return out


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working folder with a home of its own, in which no image, network or record is opened."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def work(*args, **kwargs):
        raise AssertionError("work began before --out was checked")

    for module, names in (
        (opening, ("load_network", "load_clip", "open_split", "open_run")),
        (concept_files, ("load_concepts", "read_text")),
        (records, ("load",)),
        (faces, ("split", "random_faces")),
        (auditing, ("pictures",)),
        (results, ("read_run",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, work)
    return tmp_path / "work"


def assert_refused(capsys, root: Path, args: list[object], message: str) -> None:
    """The command line ends with one line and code 2, and every byte stays."""
    before = contents(root)
    code = cli.main([str(arg) for arg in args])
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (2, 1), error
    assert message in error
    assert contents(root) == before


# Each deletion of which we know; all of them ask for --overwrite, which must not help


def web_app(place: Path) -> list[object]:
    (place / "app").mkdir()
    (place / "app" / "manifest.json").write_text('{"name": "app", "start_url": "/"}')
    (place / "app" / "thesis.tex").write_text("years")
    return ["demo", "--out", "app"]


def prepared_set(place: Path) -> list[object]:
    written_run(place / "fer", verb="prepare")
    return ["evaluate", "--data.path", "fer", "--target.weights", "x", "--out", "fer"]


def network(place: Path) -> list[object]:
    with store.run_folder(place / "runs" / "q", "train", {}) as run:
        (run.folder / "model.safetensors").write_bytes(b"weights")
    return ["evaluate", "--target.weights", "runs/q/model.safetensors", "--out", "runs/q"]


def compared(place: Path) -> list[object]:
    for name in "AB":
        written_run(place / name, verb="run")
    return ["compare", "A", "B", "--out", "A"]


def record_of_a_run(place: Path) -> list[object]:
    with store.run_folder(place / "R", "probe", {}) as run:
        records.save(some_record("clip"), run.folder / "record")
    return ["dissect", "--record", "R/record", "--clip.path", "c", "--out", "R"]


def clip_folder_of_a_run(place: Path) -> list[object]:
    with store.run_folder(place / "R", "train", {}) as run:
        store.write_text(run.folder / "clip" / "config.json", "{}")
    return ["dissect", "--record", "record", "--clip.path", "R/clip", "--out", "R"]


def inside_an_input(place: Path) -> list[object]:
    written_run(place / "photos" / "runs")
    return ["evaluate", "--data.path", "photos", "--target.weights", "x", "--out", "photos/runs"]


def behind_a_link(place: Path) -> list[object]:
    args = network(place)
    (place / "weights.link").symlink_to(place / "runs" / "q" / "model.safetensors")
    return [arg if "safetensors" not in str(arg) else "weights.link" for arg in args]


def cache_inside(place: Path) -> list[object]:
    written_run(place / "R")
    return ["demo", "--out", "R", "--cache", "R/cache"]


def cache_itself(place: Path) -> list[object]:
    written_run(place / "R")
    return ["demo", "--out", "R", "--cache", "R"]


def cache_in_a_new_folder(place: Path) -> list[object]:
    return ["demo", "--out", "new", "--cache", "new/cache"]


def settings_file(place: Path) -> list[object]:
    store.write_text(written_run(place / "R") / "s.yaml", "probe: {batch: 8}\n")
    return ["dissect", "--config", "R/s.yaml", "--out", "R"]


def file_in(flag: str, command: str, name: str = "file.txt"):
    def build(place: Path) -> list[object]:
        store.write_text(written_run(place / "R") / name, "x")
        return [command, flag, f"R/{name}", "--out", "R"]

    return build


def notes(place: Path) -> list[object]:
    (written_run(place / "R") / "notes.md").write_text("mine")
    return ["demo", "--out", "R"]


def notes_below(place: Path) -> list[object]:
    (written_run(place / "R") / "deep" / "er" / "notes.md").write_text("mine")
    return ["demo", "--out", "R"]


def empty_folder_of_mine(place: Path) -> list[object]:
    (written_run(place / "R") / "deep" / "kept").mkdir()
    return ["demo", "--out", "R"]


def link_of_mine(place: Path) -> list[object]:
    (written_run(place / "R") / "latest").symlink_to(place)
    return ["demo", "--out", "R"]


def changed_file(place: Path) -> list[object]:
    (written_run(place / "R") / "problems.csv").write_text("2")  # of the same size
    return ["demo", "--out", "R"]


def run_within_a_run(place: Path) -> list[object]:
    written_run(written_run(place / "R") / "second")
    return ["demo", "--out", "R"]


def link_to_a_run(place: Path) -> list[object]:
    written_run(place / "R")
    (place / "latest").symlink_to("R")
    return ["demo", "--out", "latest"]


def link_to_nothing(place: Path) -> list[object]:
    (place / "latest").symlink_to("R")
    return ["demo", "--out", "latest"]


def older_run(place: Path) -> list[object]:
    folder = written_run(place / "R")
    manifest = json.loads((folder / "manifest.json").read_text())
    store.write_json(
        folder / "manifest.json",
        {k: v for k, v in manifest.items() if k not in ("format", "files")},
    )
    return ["demo", "--out", "R"]


def linked_manifest(place: Path) -> list[object]:
    folder = written_run(place / "R")
    os.replace(folder / "manifest.json", place / "m.json")
    (folder / "manifest.json").symlink_to(place / "m.json")
    return ["demo", "--out", "R"]


def manifest_of_another(place: Path) -> list[object]:
    folder = written_run(place / "R")
    manifest = json.loads((folder / "manifest.json").read_text())
    store.write_json(folder / "manifest.json", manifest | {"format": "emojax run 2"})
    return ["demo", "--out", "R"]


def working_folder(place: Path) -> list[object]:
    (place / "thesis.tex").write_text("years")
    return ["demo", "--out", "."]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (web_app, "--out app holds manifest.json and is not an emojax run; name another folder"),
        (prepared_set, "--out fer is also --data.path; name another folder"),
        (
            network,
            "--out runs/q holds --target.weights runs/q/model.safetensors; name another folder",
        ),
        (compared, "--out A is also --runs; name another folder"),
        (record_of_a_run, "--out R holds --record R/record; name another folder"),
        (clip_folder_of_a_run, "--out R holds --clip.path R/clip; name another folder"),
        (
            inside_an_input,
            "--out photos/runs is in use and lies inside --data.path photos; name another folder",
        ),
        (behind_a_link, "--out runs/q holds --target.weights weights.link; name another folder"),
        (cache_inside, "--out R holds --cache R/cache; name another folder"),
        (cache_itself, "--out R is also --cache; name another folder"),
        (cache_in_a_new_folder, "--out new holds --cache new/cache; name another folder"),
        (settings_file, "--out R holds --config R/s.yaml; name another folder"),
        (
            file_in("--concepts.path", "concepts"),
            "--out R holds --concepts.path R/file.txt; name another folder",
        ),
        (file_in("--answer", "concepts"), "--out R holds --answer R/file.txt; name another folder"),
        (
            file_in("--source", "prepare", "fer2013.csv"),
            "--out R holds --source R/fer2013.csv; name another folder",
        ),
        (
            file_in("--data.exclude", "evaluate"),
            "--out R holds --data.exclude R/file.txt; name another folder",
        ),
        (
            file_in("--edit.gains", "run"),
            "--out R holds --edit.gains R/file.txt; name another folder",
        ),
        (
            file_in("--train.start", "train"),
            "--out R holds --train.start R/file.txt; name another folder",
        ),
        (
            file_in("--data.path", "audit"),
            "--out R holds --data.path R/file.txt; name another folder",
        ),
        (
            notes,
            "--out R holds notes.md, which the run did not write; move it away, or name another "
            "folder",
        ),
        (notes_below, "--out R holds deep/er/notes.md, which the run did not write"),
        (empty_folder_of_mine, "--out R holds deep/kept, which the run did not write"),
        (link_of_mine, "--out R holds latest, which the run did not write"),
        (changed_file, "--out R holds problems.csv, which was changed since the run; move it away"),
        (run_within_a_run, "--out R holds second, which the run did not write"),
        (
            link_to_a_run,
            "--out latest is a link to R, which is no empty folder; name the folder itself or "
            "another",
        ),
        (link_to_nothing, "--out latest is a link to R, which is no empty folder"),
        (
            older_run,
            "--out R holds a run of an older emojax, whose manifest.json does not list its files",
        ),
        (linked_manifest, "--out R holds deep and is not an emojax run"),
        (manifest_of_another, "--out R holds deep and is not an emojax run"),
        (working_folder, "--out . holds thesis.tex and is not an emojax run"),
    ],
)
def test_what_is_not_the_runs_stays(capsys, place, build, message):
    args = build(place)
    assert_refused(capsys, place, [*args, "--overwrite"], message)
    assert_refused(capsys, place, args, message)


@pytest.mark.parametrize(
    "command",
    [name for name, command in cli.COMMANDS.items() if issubclass(command.settings, WritesRun)],
)
def test_a_run_is_replaced_only_when_asked(capsys, place, command):
    """The default folder of every command that writes one."""
    written_run(place / "runs" / command, verb=command)
    message = (
        f"--out runs/{command} holds a run already (manifest.json); pass --overwrite to replace "
        "it, or name another folder"
    )
    assert_refused(capsys, place, [command], message)


def test_every_setting_that_names_a_place_is_known():
    """A new setting of paths is an input without anybody thinking of it; a text that may be one
    must be marked.
    """
    every = config.Settings(
        data=config.Data(path=Path("a"), exclude=Path("b")),
        target=config.Target(weights=Path("c")),
        clip=config.Clip(path="d"),
        concepts=config.Concepts(path="e"),
        edit=config.Edit(gains=Path("f")),
        train=config.Train(start=Path("g")),
        cache=Path("h"),
    )
    flags = (
        "data.path",
        "data.exclude",
        "target.weights",
        "clip.path",
        "concepts.path",
        "edit.gains",
        "train.start",
    )
    assert dict(config.paths_in(every)) == dict(
        zip([*(f"--{flag}" for flag in flags), "--cache"], map(Path, "abcdefgh"), strict=True)
    )
    for section in (config.Settings, *(command.settings for command in cli.COMMANDS.values())):
        for name, info in section.model_fields.items():
            parts = (
                info.annotation.model_fields
                if hasattr(info.annotation, "model_fields")
                else {name: info}
            )
            for field, described in parts.items():
                text = (described.description or "").lower()
                if described.annotation in (str, str | None) and (
                    "file" in text or "folder" in text
                ):
                    assert config.NAME_OR_PATH in described.metadata, (section, field)


def test_an_input_under_another_name_is_found(tmp_path, monkeypatch):
    """As behind a mount or in other letters of a disk that ignores their case: the same folder, by
    the system's number.
    """
    for name in ("R/data", "alias"):
        (tmp_path / name).mkdir(parents=True)
    same = Path.samefile
    twins = {str(tmp_path / "R"), str(tmp_path / "alias")}
    monkeypatch.setattr(Path, "samefile", lambda a, b: {str(a), str(b)} == twins or same(a, b))
    with pytest.raises(InputError, match=r"is also --data\.path"):
        outputs.check_inputs(tmp_path / "R", [("--data.path", tmp_path / "alias")], None)
    (tmp_path / "alias" / "data").mkdir()
    with pytest.raises(InputError, match=r"holds --data\.path"):
        outputs.check_inputs(tmp_path / "R", [("--data.path", tmp_path / "alias" / "data")], None)


# What is allowed


def test_concepts_twice(capsys, tmp_path):
    (tmp_path / "c.txt").write_text("Smile\n")
    args = ["concepts", str(tmp_path / "c.txt"), "--out", str(tmp_path / "out")]
    assert cli.main(args) == 0
    first = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (first["format"], first["verb"]) == ("emojax run 1", "concepts")
    assert first["files"] == {"problems.csv": outputs.entry(tmp_path / "out" / "problems.csv")}
    assert cli.main(args) == 2
    (tmp_path / "c.txt").write_text("Smile\nSmile\n")
    assert cli.main([*args, "--overwrite"]) == 0
    assert "Smile" in (tmp_path / "out" / "problems.csv").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.txt", "out"]
    assert cli.main(["concepts", "--prompt", "--out", str(tmp_path / "out")]) == 0  # writes nothing


def test_a_file_removed_from_a_run_is_no_loss(tmp_path):
    (written_run(tmp_path / "R") / "problems.csv").unlink()
    assert (written_run(tmp_path / "R", "2", overwrite=True) / "problems.csv").read_text() == "2"


@pytest.mark.parametrize("kind", ["empty", "link", "working", "mount"])
def test_folders_that_are_written_into(tmp_path, monkeypatch, kind):
    """They are not renamed, and appear whole or not at all; where they can hold a run, that is
    replaced in them.
    """
    out = folder = tmp_path / "R"
    folder.mkdir()
    if kind == "link":
        out = tmp_path / "latest"
        out.symlink_to("R")
    elif kind == "working":
        monkeypatch.chdir(folder)
        out = Path(".")
    elif kind == "mount":
        is_mount = os.path.ismount
        monkeypatch.setattr(
            os.path, "ismount", lambda path: os.fspath(path) == str(folder) or is_mount(path)
        )
    number = folder.stat().st_ino
    beside = sorted(path.name for path in tmp_path.iterdir())

    def fail():
        with store.run_folder(out, "x", {}) as run:
            (run.folder / "a").write_text("1")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert contents(folder) == {}
    written_run(out)
    if kind in ("working", "mount"):
        with pytest.raises(InputError, match="pass --overwrite"):
            written_run(out, "2")
        written_run(out, "2", overwrite=True)
    assert folder.stat().st_ino == number
    assert sorted(path.name for path in tmp_path.iterdir()) == beside
    assert out.is_symlink() == (kind == "link")
    assert outputs.foreign(folder, outputs.read_manifest(folder)["files"]) is None
    assert set(contents(folder)) == {
        "manifest.json",
        "problems.csv",
        "deep",
        "deep/er",
        "deep/er/rows.csv",
    }


@pytest.mark.long
def test_a_folder_mounted_on_the_same_disk_is_written_into(tmp_path):
    """A bind mount cannot be renamed, and only the system's table of mounts tells of it."""
    for name in ("R", "source"):
        (tmp_path / name).mkdir()
    program = f"""
import sys
sys.path[:0] = {[str(TESTS), str(TESTS / "support")]!r}
from pathlib import Path
from test_outputs import written_run
for text, again in (("1", False), ("2", True)):
    written_run(Path({str(tmp_path / "R")!r}), text, overwrite=again)
"""
    line = f'mount --bind "{tmp_path}/source" "{tmp_path}/R" && exec "{sys.executable}" -c "$0"'
    if subprocess.run(
        ["unshare", "-rm", "mount", "--bind", "/tmp", "/tmp"], capture_output=True, check=False
    ).returncode:
        pytest.skip("this machine lets no user mount")
    subprocess.run(["unshare", "-rm", "sh", "-c", line, program], check=True)
    assert (tmp_path / "source" / "problems.csv").read_text() == "2"
    assert contents(tmp_path / "R") == {}


# What comes in between


def test_notes_added_while_a_run_goes_on_stay(tmp_path):
    out = written_run(tmp_path / "R")

    def run():
        with store.run_folder(out, "x", {}, overwrite=True) as new:
            (new.folder / "a").write_text("new")
            (out / "notes.md").write_text("mine")

    with pytest.raises(
        InputError, match=r"holds notes.md, .*; what was to go there is in .*R\.new$"
    ):
        run()
    assert (out / "notes.md").read_text() == "mine"
    assert (out / "problems.csv").read_text() == "1"
    assert (tmp_path / "R.new" / "a").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["R", "R.new"]


@pytest.mark.slow
def test_two_runs_into_one_folder_lose_neither(tmp_path):
    def run():
        with store.run_folder(tmp_path / "R", "x", {}) as late:
            (late.folder / "a").write_text("late")
            written_run(tmp_path / "R", "early")

    with pytest.raises(InputError, match="pass --overwrite"):
        run()
    assert (tmp_path / "R" / "problems.csv").read_text() == "early"
    assert (tmp_path / "R.new" / "a").read_text() == "late"


_KILLED = """
import functools, os, shutil, signal, sys
from pathlib import Path
from emojax import outputs, store

out, new, inside, left = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True", int(sys.argv[4])
if inside:
    os.chdir(out)
rename = os.replace


def kill(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)


def replace(*args):
    global left
    if left == 0:
        kill()
    left -= 1
    rename(*args)


with store.atomic_folder(out, functools.partial(outputs.check_out, overwrite=True)) as building:
    shutil.copytree(new, building, dirs_exist_ok=True)
    os.replace, shutil.rmtree = replace, kill
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inside", "renames"),
    [*((False, number) for number in range(3)), *((True, number) for number in range(7))],
)
def test_a_kill_while_replacing_loses_no_run(tmp_path, inside, renames):
    """Killed before each rename and before the old run is removed: every file of both runs is still
    there.
    """
    out, new = written_run(tmp_path / "R"), written_run(tmp_path / "new", "2")
    both = [(path.name, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()]
    line = [sys.executable, "-c", _KILLED, out, new, inside, renames]
    assert subprocess.run([str(part) for part in line], check=False).returncode == -signal.SIGKILL
    shutil.rmtree(new)  # its copy counts
    found = [(path.name, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(found) == sorted(both)
    if (out / "manifest.json").is_file():  # what looks like a run is one, as it was written
        files = outputs.read_manifest(out)["files"]
        assert outputs.foreign(out, files) is None
        assert all((out / name).is_file() for name in files)
    elif inside:
        return  # a mixture is left to its owner
    written_run(out, "3", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["R"]
    assert {path.name for path in out.iterdir()} == {"manifest.json", "problems.csv", "deep"}


def test_only_what_no_living_process_owns_is_swept(tmp_path):
    number = "0123456789abcdef"
    left = [
        f".R.{number}",
        f".R.old.{number}",
        f"R/.emojax-new.{number}",
        f"R/.emojax-old.{number}",
    ]
    kept = [f".S.{number}", f".R.{number}0", ".R.notes", "R.new", f"R/.R.{number}"]
    for name in left + kept:
        (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / f".R.{number[::-1]}").write_text("a file")
    (tmp_path / ".R.aaaaaaaaaaaaaaaa").symlink_to(tmp_path / "R.new")
    with outputs.fresh_folder(tmp_path, ".R.") as living:
        before = set(contents(tmp_path))
        outputs.sweep(tmp_path / "R")
        gone = {name for folder in left for name in (folder, f"{folder}/deep")}
        assert set(contents(tmp_path)) == before - gone
    outputs.sweep(tmp_path / "R")
    assert not living.exists()


def test_a_folder_that_is_swept_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    locked = []

    def swept(lock, kind):
        if not locked:
            next(tmp_path.iterdir()).rmdir()
        locked.append(lock)

    monkeypatch.setattr("fcntl.flock", swept)
    with outputs.fresh_folder(tmp_path, ".R.") as folder:
        assert folder.is_dir()
    assert len(locked) == 2


def test_other_processes_of_a_job_write_nothing(tmp_path, monkeypatch):
    out = written_run(tmp_path / "R")
    monkeypatch.setattr(store, "is_main_process", lambda: False)
    monkeypatch.setattr(hosts, "is_main_process", lambda: False)
    before = contents(tmp_path)
    written_run(out, "2", overwrite=True)
    assert contents(tmp_path) == before


# Folders that are no runs


def test_a_record_is_saved_into_no_folder_in_use(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match=r"thesis holds thesis\.tex; name another folder"):
        records.save(some_record("clip"), tmp_path / "thesis")
    assert contents(tmp_path) == {"thesis": "folder", "thesis/thesis.tex": b"years"}


# The page, which is written into a run


@pytest.fixture(scope="module")
def dissected(tmp_path_factory, tiny_vgg, tiny_clip) -> Path:
    """A run of `dissect` without a page."""
    out = tmp_path_factory.mktemp("dissected") / "R"
    settings = Dissecting(
        probe=config.Probe(layers=("lin2",)),
        dissect=config.Dissect(null_sets=0, top_k=20),
        cache=tmp_path_factory.mktemp("cache"),
    )
    images = generated_images(40, 2, "blobs")
    concepts = concept_files.load_concepts("paper25")
    with store.run_folder(out, "dissect", settings.model_dump(mode="json")) as run:
        record = steps.probe(settings, run, tiny_vgg, images, tiny_clip)
        steps.label(settings, run, record, concepts, tiny_clip, tiny_vgg)
    return out


@pytest.fixture
def paged(dissected, tmp_path) -> Path:
    return Path(shutil.copytree(dissected, tmp_path / "R"))


@pytest.mark.long
def test_the_page_belongs_to_the_run(capsys, paged):
    for _ in range(2):  # written anew, too
        assert cli.main(["report", str(paged)]) == 0
        files = outputs.read_manifest(paged)["files"]
        assert outputs.foreign(paged, files) is None
        assert PAGE in files
        assert any(name.startswith(f"{FIGURES}/") for name in files)
    assert not any(known is None for known in files.values())
    outputs.check_out(paged, overwrite=True)
    (paged / PAGE).write_text("mine")
    with pytest.raises(InputError, match=r"holds report\.html, which was changed"):
        outputs.check_out(paged, overwrite=True)


@pytest.mark.long
def test_report_keeps_what_others_put_among_the_figures(capsys, paged):
    assert cli.main(["report", str(paged)]) == 0
    (paged / FIGURES / "talk.svg").write_text("mine")
    known = [f"{FIGURES}/old.png", f"{FIGURES}/changed.png"]
    for name in known:
        (paged / name).write_text("of an earlier page")
    store.list_again(paged, known, done=True)
    (paged / known[1]).write_text("mine as well")
    assert cli.main(["report", str(paged)]) == 0
    assert (paged / FIGURES / "talk.svg").read_text() == "mine"
    assert not (paged / known[0]).exists()
    assert (paged / known[1]).read_text() == "mine as well"
    assert outputs.foreign(paged, outputs.read_manifest(paged)["files"]) == known[1]


def test_report_writes_through_no_link(capsys, paged, tmp_path):
    (tmp_path / "mine").mkdir()
    (paged / FIGURES).symlink_to(tmp_path / "mine")
    assert_refused(
        capsys,
        tmp_path,
        ["report", paged],
        "figures is a link, which is not written through; remove it",
    )


def test_a_page_that_was_interrupted_counts_as_the_runs(capsys, paged, monkeypatch):
    """Between the page and the manifest a process may be killed; the run can still be replaced."""

    write = store.write_text

    def stop(path, text):
        if path.suffix == ".svg":
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr(store, "write_text", stop)
    assert cli.main(["report", str(paged)]) == 130
    figures = list((paged / FIGURES).iterdir())
    assert len(figures) == 1
    # As write_binary leaves it when killed.
    (paged / FIGURES / f".{figures[0].name}.123{outputs.PART}").write_bytes(b"half")
    (paged / f".manifest.json.123{outputs.PART}").write_bytes(b"half")
    outputs.check_out(paged, overwrite=True)
    (paged / ".notes.md.123").write_text("mine")
    with pytest.raises(InputError, match=r"holds \.notes\.md\.123, which the run did not write"):
        outputs.check_out(paged, overwrite=True)


def test_a_run_of_an_older_version_gets_a_page_and_no_list(capsys, paged):
    manifest = outputs.read_manifest(paged)
    older = {name: value for name, value in manifest.items() if name not in ("format", "files")}
    store.write_json(paged / "manifest.json", older)
    assert cli.main(["report", str(paged)]) == 0
    assert (paged / PAGE).is_file()
    assert outputs.read_manifest(paged) == older
    with pytest.raises(InputError, match="of an older emojax"):
        outputs.check_out(paged, overwrite=True)
    np.testing.assert_equal(outputs.read_manifest(paged), older)


def test_report_refuses_a_later_format(capsys, paged):
    store.write_json(
        paged / "manifest.json", outputs.read_manifest(paged) | {"format": "emojax run 9"}
    )
    assert cli.main(["report", str(paged)]) == 2
    assert "manifest.json: format: Input should be 'emojax run 1'" in capsys.readouterr().err


def test_what_killed_writers_left_goes_with_the_next_file(tmp_path):
    """A part that no living process writes is removed, whatever file it was of; nothing else is."""
    left = tmp_path / f".old.png.123{outputs.PART}"
    left.write_bytes(b"half")
    notes = [tmp_path / ".new.png.123", tmp_path / f"mine{outputs.PART}"]
    for note in notes:
        note.write_bytes(b"a user's")
    with outputs.open_locked(tmp_path / f".other.png.456{outputs.PART}") as being_written:
        store.write_binary(tmp_path / "new.png", lambda file: file.write(b"whole"))
        assert Path(being_written.name).exists()
    assert not left.exists()
    assert all(note.exists() for note in notes)
    assert (tmp_path / "new.png").read_bytes() == b"whole"
