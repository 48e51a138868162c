"""The base of all settings, and the types that several of them share.

A library's options class is a section of the settings file, so it derives from `Section`. This
module and those that state options are light: importing them loads neither JAX nor NumPy.
"""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Factors = tuple[Annotated[float, Field(gt=0)], ...]
UserPath = Annotated[Path, AfterValidator(lambda path: path.expanduser())]


class Section(BaseModel):
    """Base of all settings: frozen, without unknown names, NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
