"""Bad input through the command line: one line on stderr, exit code 2, nothing left behind."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from emojax import cli


def table(*rows: tuple) -> list:
    """Rows of a parametrized test: the name of a case, then its arguments."""
    return [pytest.param(*arguments, id=name) for name, *arguments in rows]


class Inputs(NamedTuple):
    """Sound inputs, made once; the folder that a case may fill with bad ones; and the check."""

    sound: Path  # vgg.safetensors, clip/, fer/, fer2013.csv, photos/, record/
    here: Path
    capsys: pytest.CaptureFixture[str]

    def put(self, name: str, content: bytes | str) -> str:
        path = self.here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def copy(self, name: str, change: Callable[[Path], object]) -> str:
        """A copy of a sound input, changed."""
        source, path = self.sound / name, self.here / name
        shutil.copytree(source, path) if source.is_dir() else shutil.copy(source, path)
        change(path)
        return str(path)

    def raw(self, content: bytes) -> Path:
        """A raw FER2013 of one image for training and one for testing, both with this content."""
        for part, name in (("train", "Training_1.jpg"), ("test", "PublicTest_1.jpg")):
            self.put(f"raw/{part}/happy/{name}", content)
        return self.here / "raw"

    def refused(self, args: Sequence[object], message: str) -> None:
        """The command ends with one line that holds the message and code 2; every file stays."""
        given = [str(arg) for arg in args]
        command = cli.COMMANDS.get(given[0])
        if "--out" not in given and command and "out" in command.settings.model_fields:
            given += ["--out", "runs/out"]
        before = files(self.here.parent)
        code = cli.main(given)
        error = self.capsys.readouterr().err
        assert code == 2, error
        assert message in error
        assert error.startswith("emojax: ")
        assert error.count("\n") == 1
        assert error[:-1].isprintable()
        assert "Traceback" not in error
        assert len(error) < 1000
        assert files(self.here.parent) == before


def files(root: Path) -> list[str]:
    """Files and links below a folder; the cache, which keeps whole things only, apart."""
    paths = [p for p in root.rglob("*") if p.is_symlink() or not p.is_dir()]
    return sorted(str(p.relative_to(root)) for p in paths if "home" not in p.parts)
