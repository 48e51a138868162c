"""Where a run may be written: only emojax's own files are ever replaced.

A run's manifest lists the files that the run wrote, with sizes and checksums. `--overwrite`
replaces a folder whose manifest is emojax's and which holds these files and no others, so notes,
edited files, inputs and caches stay. What stands in the way is found before any work, and looked
for again just before the old run goes.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from emojax import strict
from emojax.errors import InputError

MANIFEST = "manifest.json"
FORMAT = "emojax run 1"
# Begins the names of folders inside `--out` in which a run is built or an old one set aside.
_HIDDEN = ".emojax-"
PART = ".emojax-part"  # ends the hidden names of files that are being written
_ANOTHER = "name another folder"

# What a run wrote: path within its folder, in posix form → {"bytes", "sha256"}; None while it is
# being written.
Files = dict[str, dict[str, Any] | None]


# What a run folder holds


def list_files(folder: Path) -> Files:
    """The entries of a manifest's `files` for all files of a run folder but the manifest."""
    names = (path.relative_to(folder).as_posix() for path in _walk(folder) if path.is_file())
    return {name: entry(folder / name) for name in sorted(names) if name != MANIFEST}


def entry(path: Path) -> dict[str, Any]:
    """Size and checksum of a file."""
    with open(path, "rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": checksum}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder; empty where there is none, or none that is an object."""
    path = folder / MANIFEST
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return {}
        value = strict.read_json(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def is_unchanged(path: Path, known: Any) -> bool:
    """Whether a file is as its entry of the manifest says; None, being written, is any state."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        return False
    # The size is compared first: it spares reading most changed files.
    if known is None:
        return True
    return isinstance(known, dict) and known.get("bytes") == status.st_size and entry(path) == known


def foreign(folder: Path, files: Files) -> str | None:
    """The first file or folder that the run did not write, or that was changed since."""
    folders = {parent.as_posix() for name in files for parent in Path(name).parents}
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if name in files:
            known = is_unchanged(path, files[name])
        elif path.is_dir() and not path.is_symlink():
            known = name in folders
        else:
            # `store.write_binary`, when killed, leaves a part of the file that it was writing.
            part = re.fullmatch(rf"\.(.+)\.\d+{re.escape(PART)}", path.name)
            whole = path.with_name(part[1]).relative_to(folder).as_posix() if part else None
            known = MANIFEST in (name, whole) or whole in files
        if not known:
            return name
    return None


def _walk(folder: Path) -> Iterator[Path]:
    """Everything in a run folder, links not followed, hidden folders of unfinished runs left out.

    Raises:
      InputError: a folder cannot be read.
    """
    for path in _sorted(folder):
        if not path.name.startswith(_HIDDEN):
            yield path
            yield from _below(path)


def _below(path: Path) -> Iterator[Path]:
    if path.is_dir() and not path.is_symlink():
        for child in _sorted(path):
            yield child
            yield from _below(child)


def _sorted(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}; {_ANOTHER}") from None


# Whether a run may be written there


def check_out(out: Path, *, overwrite: bool = False) -> None:
    """Refuses to put a run where something else lies.

    Raises:
      InputError: `out` is a file, a link to a folder in use, or a folder that holds anything but
        an unchanged run that is to be overwritten.
    """
    if out.is_symlink() and (not out.is_dir() or next(_walk(out), None) is not None):
        to = os.readlink(out)
        cure = "name the folder itself or another"
        raise InputError(f"--out {out} is a link to {to}, which is no empty folder; {cure}")
    try:
        mode = out.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}; {_ANOTHER}") from None
    if not stat.S_ISDIR(mode):
        raise InputError(f"--out {out} is a file; name a folder")
    first = next(_walk(out), None)
    if first is None:
        return
    manifest = read_manifest(out)
    files = manifest.get("files")
    command_known = isinstance(manifest.get("verb"), str)
    if manifest.get("format") == FORMAT and command_known and isinstance(files, dict):
        if (name := foreign(out, files)) is not None:
            what = "was changed since the run" if name in files else "the run did not write"
            raise InputError(f"--out {out} holds {name}, which {what}; move it away, or {_ANOTHER}")
        if not overwrite:
            cure = f"pass --overwrite to replace it, or {_ANOTHER}"
            raise InputError(f"--out {out} holds a run already ({MANIFEST}); {cure}")
    elif "verb" in manifest and "settings" in manifest and "format" not in manifest:
        why = f"whose {MANIFEST} does not list its files; remove it yourself, or {_ANOTHER}"
        raise InputError(f"--out {out} holds a run of an older emojax, {why}")
    else:
        raise InputError(f"--out {out} holds {first.name} and is not an emojax run; {_ANOTHER}")


def check_empty(folder: Path) -> None:
    """Refuses a folder that holds anything.

    Raises:
      InputError: it does, or is a file.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder} is not a folder; {_ANOTHER}")
    first = next(_walk(folder), None) if folder.exists() else None
    if first is not None:
        raise InputError(f"{folder} holds {first.name}; {_ANOTHER}")


def check_inputs(out: Path, inputs: Iterable[tuple[str, Path]], cache: Path | None) -> None:
    """Refuses to put a run over its own inputs or around the cache.

    Args:
      out: the run folder.
      inputs: the flag and the path of each; what is not on disk is left out.
      cache: the cache, which may not exist yet.

    Raises:
      InputError: `out` is, holds or, where it is in use, lies inside an input; or it is or holds
        the cache.
    """
    target = _real(out)
    in_use = target.is_dir() and next(_walk(target), None) is not None
    named = [(flag, path) for flag, path in inputs if os.path.lexists(_user(path))]
    for flag, path in [*named, *([] if cache is None else [("--cache", cache)])]:
        place = _real(path)
        inside = _lies_in(place, target)
        if inside and _lies_in(target, place):
            raise InputError(f"--out {out} is also {flag}; {_ANOTHER}")
        if inside:
            raise InputError(f"--out {out} holds {flag} {path}; {_ANOTHER}")
        if in_use and flag != "--cache" and _lies_in(target, place):
            raise InputError(f"--out {out} is in use and lies inside {flag} {path}; {_ANOTHER}")


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a real path is or lies in a folder, by name or by number.

    A mount, or a disk that ignores the case of letters, gives a folder several names.
    """
    if path.is_relative_to(folder):
        return True
    above = (path, *path.parents)
    return folder.exists() and any(each.exists() and each.samefile(folder) for each in above)


def _user(path: Path) -> str:
    return os.path.expanduser(path)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(_user(path)))


# Putting it there


def in_place(target: Path) -> bool:
    """Whether a run goes into the folder that is there, instead of taking its place.

    That is so for an empty folder, which somebody may have prepared, for a mount point and a
    folder in which a shell works, which cannot or must not be renamed, and where an interrupted
    run left something.
    """
    if not target.is_dir():
        return False
    names = [path.name for path in target.iterdir()]
    leftover = any(name.startswith(_HIDDEN) for name in names)
    worked_in = _real(Path.cwd()).is_relative_to(_real(target))
    return not names or leftover or worked_in or _is_mount(target)


def _is_mount(folder: Path) -> bool:
    """Whether a folder is a mount point; Linux alone tells of a folder mounted on the same disk."""
    if os.path.ismount(folder):
        return True
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:  # no Linux
        return False
    points = (line.split()[4] for line in lines)  # with blanks and the like as \040
    real = str(_real(folder))
    return any(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), p) == real for p in points)


@contextlib.contextmanager
def building_folder(target: Path) -> Iterator[Path]:
    """A fresh hidden folder to build in: inside `target` when that stays, else beside it.

    What is left of it after the block is removed.

    Raises:
      InputError: it cannot be made.
    """
    inside = in_place(target)
    parent = target if inside else target.parent
    prefix = f"{_HIDDEN}new." if inside else f".{target.name}."
    with contextlib.ExitStack() as stack:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(fresh_folder(parent, prefix))
        except OSError as error:
            why = f"cannot write to {parent}: {error.strerror}"
            raise InputError(f"{why}; choose another folder") from None
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def fresh_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder, its name the prefix and 16 random digits; its rights are those of the umask.

    It is locked while the block lasts, so that no process takes it for one that was left behind.
    """
    while True:
        folder = parent / (prefix + secrets.token_hex(8))
        folder.mkdir()  # `tempfile.mkdtemp` would shut out all other users, of the finished run too
        lock = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):  # a disk without locks, where nothing is swept
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            break
        os.close(lock)  # it was swept before it was locked
    try:
        yield folder
    finally:
        os.close(lock)


def sweep(target: Path) -> None:
    """Removes the hidden folders of `target` that processes which were killed left behind.

    For a finished `target`: old runs that were put aside for another go, too. A folder that a
    living process has locked stays, and so does everything where the disk has no locks.
    """
    beside = rf"\.{re.escape(target.name)}\.(old\.)?[0-9a-f]{{16}}"
    inside = rf"{re.escape(_HIDDEN)}(new|old)\.[0-9a-f]{{16}}"
    for parent, pattern in ((target.parent, beside), (target, inside)):
        with contextlib.suppress(OSError):  # it may be written, and not be read
            for name in os.listdir(parent):
                if re.fullmatch(pattern, name):
                    _remove_unlocked(parent / name, os.O_DIRECTORY, shutil.rmtree)


def _remove_unlocked(path: Path, flag: int, remove: Callable[[Path], object]) -> None:
    """Removes what no living process has locked, if it can be opened with that flag."""
    with contextlib.suppress(OSError):
        lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | flag)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(path)
        finally:
            os.close(lock)


def open_locked(path: Path) -> BinaryIO:
    """A new file to write, locked until it is closed, so that `sweep_files` leaves it alone."""
    while True:
        file = open(path, "wb")  # noqa: SIM115 - open until its user closes it
        with contextlib.suppress(OSError):  # a disk without locks, where nothing is swept
            fcntl.flock(file, fcntl.LOCK_EX)
        # It may have been swept before it was locked.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()


def sweep_files(folder: Path) -> None:
    """Removes the unfinished files in a folder that processes which were killed left behind."""
    with contextlib.suppress(OSError):  # it may be written, and not be read
        for name in os.listdir(folder):
            if name.startswith(".") and name.endswith(PART):
                _remove_unlocked(folder / name, os.O_NONBLOCK, os.unlink)


def place(building: Path, target: Path) -> None:
    """Puts what was built at `target`; what was there is removed last.

    Whenever this is killed, every file of both is on the disk, or the new ones are in their place.
    The caller has checked that the old content may go.
    """
    if building.parent == target:
        _move_in(building, target)
    else:
        move_into_place(building, target)


def move_into_place(building: Path, target: Path) -> None:
    """Renames a finished folder to `target`; what lay there, file, link or folder, is removed last.

    A link is replaced itself: what it points to stays.
    """
    if not os.path.lexists(target):
        os.replace(building, target)
        return
    with fresh_folder(target.parent, f".{target.name}.old.") as retired:
        os.replace(target, retired / target.name)
        os.replace(building, target)
        shutil.rmtree(retired)


def _move_in(building: Path, target: Path) -> None:
    """Moves files one by one into a folder that stays.

    The old manifest goes first and the new one comes last, so a mixture is never taken for a run.
    """
    old = [path for path in target.iterdir() if not path.name.startswith(_HIDDEN)]
    with fresh_folder(target, f"{_HIDDEN}old.") as retired:
        for path in sorted(old, key=_manifest_last, reverse=True):
            os.replace(path, retired / path.name)
        for path in sorted(building.iterdir(), key=_manifest_last):
            os.replace(path, target / path.name)
        shutil.rmtree(retired)


def _manifest_last(path: Path) -> bool:
    return path.name == MANIFEST


def set_aside(building: Path, target: Path) -> Path:
    """Keeps what cannot be put at `target` under a free name beside it, or inside; returns that."""
    number = 1
    while True:
        name = f"{target.name}.new" if number == 1 else f"{target.name}.new-{number}"
        kept = building.parent / name
        try:
            kept.mkdir()
            os.replace(building, kept)
            return kept
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        number += 1
