"""What mkdocs does not find in docs/: the README as the first page, and the public names.

A hook of `mkdocs.yml`. The documents stay as they are read on a forge; their links to files outside
docs/ lose their link here.
"""

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the README and the reference of the public names."""
    readme = (ROOT / "README.md").read_text("utf-8")
    files.append(File.generated(config, "index.md", content=readme.replace("](docs/", "](")))
    files.append(File.generated(config, "api.md", content=reference()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page whose links all lead to pages of the site."""
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"`\1`", markdown)


def reference() -> str:
    """The page of public names, as the stub file imports them."""
    stub = ast.parse((ROOT / "emojax" / "__init__.pyi").read_text("utf-8"))
    lines = ["# Python", "", "Everything that `import emojax` offers.", ""]
    for node in stub.body:
        if isinstance(node, ast.ImportFrom):
            lines += [f"::: {node.module}.{alias.name}\n" for alias in node.names]
    return "\n".join(lines)
