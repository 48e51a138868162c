"""emojax: which concept each hidden unit of an emotion network stands for, and what editing by it
does.

record = emojax.probe(model, images, clip)
dissection = emojax.dissect(record, emojax.load_concepts("paper25"))
edited = emojax.edit(model, "lin2", gains)

The public names are imported in `__init__.pyi`, where type checkers and editors see them. Here each
is loaded when it is first used, so that `import emojax` costs nothing.
"""

import ast
import functools
import importlib
from pathlib import Path
from typing import Any


@functools.cache
def _modules() -> dict[str, str]:
    """The module of each public name, as the stub file imports it."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text("utf-8"))
    imports = (node for node in stub.body if isinstance(node, ast.ImportFrom))
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(_modules())
    if name not in _modules():
        raise AttributeError(f"module 'emojax' has no attribute {name!r}")
    return getattr(importlib.import_module(_modules()[name]), name)


def __dir__() -> list[str]:
    return sorted(_modules())
