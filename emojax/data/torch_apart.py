"""Keeps torch out of a process that has no use for it.

transformers, of which tokenizers and settings are read, loads torch wherever it is installed: five
of the seven seconds of CPU that its import takes then. Only a PyTorch weights file needs torch.
"""

import os
import sys


def import_transformers() -> None:
    """Imports transformers while torch looks as if it were not installed, which it remembers.

    For programs to call, not for libraries: transformers has no models in this process then.
    Nothing changes where it or torch is loaded already.
    """
    if "transformers" in sys.modules or "torch" in sys.modules:
        return
    # transformers would say at every start that it found no torch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType] - as Python documents it
    try:
        import transformers
    finally:
        del sys.modules["torch"]
    assert not transformers.is_torch_available()
