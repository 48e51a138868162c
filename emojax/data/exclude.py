"""Lists of images to leave out: a csv with a column `file`, as `emojax audit --exclude` writes.

Every reader of a data set takes one (`--data.exclude`) and leaves those images out.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from emojax.data.decode import read_bytes
from emojax.errors import InputError, short
from emojax.section import user_path
from emojax.store import unguarded

COLUMN = "file"


@dataclass(frozen=True)
class Excluded:
    """Ids of images to leave out, and the list that they stand on."""

    ids: frozenset[str]
    name: str

    @classmethod
    def read(cls, path: Path) -> "Excluded":
        """From a csv; columns besides `file` are for people.

        Raises:
          InputError: the list is missing, no csv in UTF-8, without the column, or with a row that
            lacks it.
        """
        path = user_path(path)
        try:
            text = read_bytes(path).decode("utf-8-sig")
            rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
            if COLUMN not in (rows.fieldnames or ()):
                raise InputError(
                    f"{path}: no column {COLUMN!r}; "
                    "its first line names the columns, as in file,reason"
                )
            if list(rows.fieldnames or ()).count(COLUMN) > 1:
                raise InputError(f"{path}: the column {COLUMN!r} stands twice; remove one")
            ids = []
            for number, row in enumerate(rows, 1):
                if None in row:  # cells that the header does not have
                    cells = len(row) - 1 + len(row[None])
                    raise InputError(
                        f"{path}: entry {number} has {cells} columns; quote a name with a comma"
                    )
                ids.append(unguarded(row[COLUMN] or ""))
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8"
            ) from None
        except csv.Error as error:
            raise InputError(f"{path}: not a readable csv ({error})") from None
        for number, name in enumerate(ids, 1):
            if not name:
                raise InputError(f"{path}: entry {number} names no file")
        return cls(frozenset(ids), str(path))

    def rows_left(
        self, ids: Sequence[str], others: Sequence[str], where: str
    ) -> Int64[np.ndarray, " rows"]:
        """Rows of `ids` that are not on the list; the list may also name images of other splits.

        Args:
          ids: of the images of one split.
          others: what the ids of other splits begin with.
          where: name of the set, for messages.

        Raises:
          InputError: the list names an image that is of no split, or nothing is left.
        """
        missing = self.ids.difference(ids)
        unknown = sorted(name for name in missing if not name.startswith(tuple(others)))
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise InputError(
                f"{self.name}: no image {short(unknown[0])}{more} in {where}; "
                "is this the list of another data set?"
            )
        rows = np.asarray([row for row, name in enumerate(ids) if name not in self.ids], np.int64)
        if not len(rows):
            raise InputError(f"{self.name} excludes every image of {where}")
        return rows
