"""What weights files say about themselves, in the metadata of a .safetensors file."""

from pathlib import Path


def read_entry(path: Path, name: str) -> str | None:
    """An entry of a weights file's metadata; None where there is none, or no metadata."""
    if path.suffix != ".safetensors":
        return None
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        return (file.metadata() or {}).get(name)
