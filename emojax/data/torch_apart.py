"""Keeps torch out of a process that has no use for it.

transformers, of which tokenizers and settings are read, loads torch wherever it is installed: five
of the seven seconds of CPU that its import takes then. Only a PyTorch weights file needs torch.
"""

import os
import sys


def hide_torch() -> None:
    """Lets torch look as if it were not installed; for programs to call, not for libraries.

    Nothing changes where it is loaded already.
    """
    if "torch" not in sys.modules:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType] - as Python documents it
        # transformers would say at every start that it found no torch.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def show_torch() -> None:
    """Undoes `hide_torch`, for an import of torch to find it."""
    if sys.modules.get("torch", True) is None:
        del sys.modules["torch"]
