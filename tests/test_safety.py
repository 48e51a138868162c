"""What must never happen with files of others: code run from them, archives unpacked, the hub asked
unasked.
"""

import ast
import socket
from pathlib import Path

import numpy as np
import pytest

import emojax
from emojax import store
from emojax.editing.edit import read_gains
from emojax.errors import InputError

PACKAGE = Path(emojax.__file__).parent
FILES = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "scripts").glob("*.py")]
FORBIDDEN_MODULES = {"dill", "joblib", "shelve", "marshal", "cloudpickle", "tarfile", "shlex"}
FORBIDDEN_CALLS = {"extractall", "unpack_archive", "unsafe_load", "full_load", "system", "popen"}
# keyword that a call of this name must carry, with its value
DEMANDED = {
    "np.load": ("allow_pickle", False),
    "torch.load": ("weights_only", True),
    "from_pretrained": ("local_files_only", True),
}


def calls(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_nothing_in_the_source_runs_files(path):
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not FORBIDDEN_MODULES & {m.partition(".")[0] for m in modules}
    for name, keywords in calls(tree):
        last = name.rpartition(".")[2]
        assert last not in FORBIDDEN_CALLS
        assert name not in ("eval", "exec")  # bare: a network has a method eval
        assert not name.startswith("pickle.")
        assert name != "yaml.load"
        if PACKAGE in path.parents:
            assert not name.startswith("subprocess.")
            for demanded, (keyword, value) in DEMANDED.items():
                if demanded in (name, last):
                    assert keywords.get(keyword) == str(value), f"{name} without {keyword}={value}"


def test_the_rule_sees_what_it_forbids():
    found = dict(calls(ast.parse("np.load(x); torch.load(y, weights_only=True); z.extractall()")))
    assert found == {"np.load": {}, "torch.load": {"weights_only": "True"}, "z.extractall": {}}


def test_a_folder_is_read_without_the_network(monkeypatch, clip_folder):
    def no_network(*args):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    assert clip_folder.load_clip(clip_folder).model.config.embedding == 24
    with pytest.raises(InputError, match="or a hub name"):
        clip_folder.load_clip(clip_folder / "none")


def test_the_hub_is_asked_for_a_name_and_only_for_harmless_files(monkeypatch, clip_folder):
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(clip_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert clip_folder.load_clip("owner/name").name == "owner/name"
    assert asked == [("owner/name", ["*.json", "*.safetensors", "*.txt", "pytorch_model.bin"])]


def test_arrays_are_never_unpickled(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        store.read_npy(tmp_path / "objects.npy")
    with open(tmp_path / "archive.npy", "wb") as file:
        np.savez(file, a=np.ones(3))
    with pytest.raises(InputError, match=r"archive\.npy is an archive"):
        read_gains(tmp_path / "archive.npy", 3)
