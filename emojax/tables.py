"""Results as tables: a pandas data frame for a notebook, a parquet file for everybody else.

A result that is `Tabular` says what its columns are. Neither pandas nor pyarrow is needed for
anything else; both are the extra `dataframe`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emojax.errors import InputError
from emojax.store import write_binary

if TYPE_CHECKING:
    import pandas as pd

Columns = Mapping[str, Any]  # name → one-dimensional array, or list, of one value a row


class Tabular:
    """A result that is a table, too."""

    def columns(self) -> Columns:
        """The table, by column, all of one length."""
        raise NotImplementedError

    def to_dataframe(self) -> "pd.DataFrame":
        """The table as a pandas data frame.

        Raises:
          InputError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise InputError("a data frame needs pandas: pip install 'emojax[dataframe]'") from None
        return pd.DataFrame(dict(self.columns()))

    def to_parquet(self, path: Path | str) -> Path:
        """Writes the table as a parquet file, whole or not at all; returns its path.

        Raises:
          InputError: pyarrow is not installed.
        """
        arrow = import_arrow("parquet", extra="dataframe")
        plain = {name: _plain(values) for name, values in self.columns().items()}
        table = arrow.table(plain)
        write_binary(Path(path).expanduser(), lambda file: arrow.parquet.write_table(table, file))
        return Path(path).expanduser()


def import_arrow(what: str, *, extra: str = "parquet") -> Any:
    """pyarrow with its parquet part, which an extra of emojax brings.

    Raises:
      InputError: it is not installed; `what` needs it, and the message names the extra.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{what} needs pyarrow: pip install 'emojax[{extra}]'") from None
    return pyarrow


def unit_columns(layers: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Layer and number of each unit, a row per unit, from the layers and their numbers of units."""
    sizes = list(layers.values())
    return {
        "layer": np.repeat(np.array(list(layers), dtype=object), sizes),
        "unit": np.concatenate([np.arange(size) for size in sizes]),
    }


def _plain(values: Any) -> Any:
    """A column as pyarrow takes it: arrays of Python objects become lists."""
    return values.tolist() if isinstance(values, np.ndarray) and values.dtype == object else values
