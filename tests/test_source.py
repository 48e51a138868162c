"""Rules of the source: imports point down, no cycles, light imports, no code run from files."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import emojax

ROOT = Path(emojax.__file__).parent


# Imports point down this list; packages of one line may use each other as long as no modules form a
# cycle.
LEVELS = (
    {"cli"},
    {"commands"},
    {"settings"},
    {"report", "planning"},
    {"editing", "evidence"},
    {"dissection"},
    {"training"},
    {"probing"},
    {"data", "synthetic"},
    {"distributed", "store", "outputs", "interruption", "tables"},
    {"models"},
    {"ops", "section", "brief", "strict", "memory"},
)


LEVEL = {package: len(LEVELS) - at for at, packages in enumerate(LEVELS) for package in packages}


def imports_of(path):
    """Modules of ours that a file imports, anywhere in it, as (line, dotted name without
    `emojax.`).
    """
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name.removeprefix("emojax.") for name in names if name.startswith("emojax."))


def module_of(name):
    """The module that an imported name is, or lies in."""
    for candidate in (name, name.rpartition(".")[0]):
        path = ROOT / candidate.replace(".", "/")
        if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
            return candidate
    return None


MODULES = {
    path.relative_to(ROOT)
    .with_suffix("")
    .as_posix()
    .replace("/", ".")
    .removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
    if path.parent != ROOT or path.stem not in ("__init__", "__main__", "errors")
}


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    package = name.partition(".")[0]
    for imported in imports_of(MODULES[name]):
        target = imported.partition(".")[0]
        if target not in (package, "errors"):
            assert LEVEL[target] <= LEVEL[package], f"{name} imports {imported}"


@pytest.mark.slow
def test_no_module_imports_itself_by_way_of_others():
    graph = {
        name: {module_of(each) for each in imports_of(path)} & set(MODULES)
        for name, path in MODULES.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_import_is_light():
    heavy = ("jax", "flax", "transformers", "tensorflow_datasets", "matplotlib", "numpy")
    code = f"import sys, emojax, emojax.cli; print([m for m in {heavy!r} if m in sys.modules])"
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert got.stdout.strip() == "[]"


def test_public_names_exist():
    for name in emojax.__all__:
        assert getattr(emojax, name) is not None
    assert emojax.probe.__module__ == "emojax.probing.probe"
    with pytest.raises(AttributeError, match="no attribute 'prob'"):
        emojax.prob  # noqa: B018


# What must never happen with files of others: code run from them, archives unpacked


FILES = [*ROOT.rglob("*.py"), *(ROOT.parent / "scripts").rglob("*.py")]


FORBIDDEN_MODULES = {"dill", "joblib", "shelve", "marshal", "cloudpickle", "tarfile"}


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
        if ROOT in path.parents:
            assert not name.startswith("subprocess.")
            for demanded, (keyword, value) in DEMANDED.items():
                if demanded in (name, last):
                    assert keywords.get(keyword) == str(value), f"{name} without {keyword}={value}"


def test_the_rule_sees_what_it_forbids():
    found = dict(calls(ast.parse("np.load(x); torch.load(y, weights_only=True); z.extractall()")))
    assert found == {"np.load": {}, "torch.load": {"weights_only": "True"}, "z.extractall": {}}
