"""The base of all settings, and the types that several of them share.

A library's options class is a section of the settings file, so it derives from `Section`. This
module and those that state options are light: importing them loads neither JAX nor NumPy.
"""

import os
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from emojax.errors import short

_Named = TypeVar("_Named", bound=str | Path)


def user_path(path: str | Path) -> Path:
    """The path with the home folder filled in; `~name` stays where there is no such home."""
    return Path(os.path.expanduser(path))


def named_place(path: _Named) -> _Named:
    """The path itself, if a file can have that name and a manifest can hold it.

    Raises:
      ValueError: it cannot.
    """
    if "\0" in str(path):
        raise ValueError(f"{short(str(path))} holds a NUL character, which no file name does")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{short(str(path))} is not UTF-8; rename it") from None
    return path


# Bounds keep numbers that a user mistyped, and those that float32 or int32 cannot compute with,
# from coming back as NaN after the work.
Positive = Annotated[int, Field(gt=0, lt=2**31)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]  # of random draws
Side = Annotated[int, Field(gt=0, le=4096)]  # of an image, in pixels
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Factor = Annotated[float, Field(ge=1e-6, le=1e6)]
Factors = tuple[Factor, ...]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Threshold = Annotated[float, Field(ge=-1e6, le=1e6)]
UserPath = Annotated[Path, AfterValidator(named_place), AfterValidator(user_path)]
NAME_OR_PATH = "a name or a path"  # marks a text that names a file or folder, or something built in


class Section(BaseModel):
    """Base of all settings: frozen, without unknown names, NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
