"""Weights that ship with emojax, by name. Importing this module loads no JAX."""

from pathlib import Path

from emojax.section import user_path

_ASSETS = Path(__file__).parent / "assets"
FER2013_COMPACT = "fer2013-compact"
NAMED = {FER2013_COMPACT: _ASSETS / "fer2013_compact.safetensors"}


def weights_file(path: Path) -> Path:
    """The file of a name, or the path itself; a file in the working folder comes before a name."""
    path = user_path(path)
    return path if path.exists() else NAMED.get(str(path), path)
