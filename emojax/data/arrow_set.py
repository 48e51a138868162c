"""Encoded images in Arrow tables: what Hugging Face `datasets` saves, and parquet files.

Read by pyarrow, which is optional, so that no code that a data set names is run. A set of
`save_to_disk` is mapped into memory and a parquet file is read a row group at a time, so memory
does not grow with the number of images.
"""

import bisect
import functools
import itertools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emojax.data.decode import check_regular
from emojax.errors import InputError
from emojax.strict import read_json
from emojax.tables import import_arrow

_DICT = "dataset_dict.json"  # names the splits of a set that has some
_STATE = "state.json"  # names the files of a split
_MAX_JSON = 1 << 24  # bytes of a description
_GROUPS = 3  # row groups of a parquet file in memory: threads may read near the end of one


class EncodedImages(NamedTuple):
    """Images of a table, each as the bytes of an image file.

    Attributes:
      place: the table's folder or file, for messages.
      rows: how many.
      read: the bytes of a row's image; None where the row has none. Raises InputError where the
        row cannot be read.
    """

    place: Path
    rows: int
    read: Callable[[int], bytes | None]


def is_saved(path: Path) -> bool:
    """Whether `datasets` saved a folder with `save_to_disk`."""
    return (path / _DICT).is_file() or _is_split(path)


def _is_split(path: Path) -> bool:
    return (path / _STATE).is_file() and any(path.glob("*.arrow"))


def open_saved(path: Path) -> list[EncodedImages]:
    """The splits of a folder of `save_to_disk`, in the order in which it names them.

    Raises:
      InputError: pyarrow is missing, the folder is damaged, or has no single column of images.
    """
    _arrow(path)
    if _is_split(path):
        return [_open_split(path)]
    return [_open_split(path / name) for name in _names(path / _DICT, "splits")]


def open_parquet(file: Path) -> EncodedImages:
    """The images of a parquet file.

    Raises:
      InputError: pyarrow is missing, the file is damaged, or has no single column of images.
    """
    arrow = _arrow(file)
    check_regular(file)
    table = _reading(file, lambda: arrow.parquet.ParquetFile(file))
    column = _image_column(table.schema_arrow, file)
    sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
    ends = _ends(sizes)
    lock = threading.Lock()  # or several threads would read a group, each for itself

    @functools.lru_cache(maxsize=_GROUPS)
    def group(number: int) -> Any:
        def read_group() -> Any:
            return table.read_row_group(number, columns=[column])[column].combine_chunks()

        return _reading(file, read_group)

    def read(row: int) -> bytes | None:
        number, position = _locate(ends, row)
        with lock:
            images = group(number)
        return _encoded(images, position)

    return EncodedImages(file, sum(sizes), read)


def _open_split(folder: Path) -> EncodedImages:
    """A split, whose files are mapped into memory."""
    arrow = _arrow(folder)
    chunks: list[Any] = []
    for name in _names(folder / _STATE, "_data_files"):
        file = folder / name
        check_regular(file)
        table = _reading(file, lambda file=file: _map(arrow, file))
        column = table[_image_column(table.schema, file)]
        # Offsets that point out of the file would be followed as they are.
        _reading(file, lambda column=column: column.validate(full=True))
        chunks += column.chunks
    ends = _ends([len(chunk) for chunk in chunks])

    def read(row: int) -> bytes | None:
        number, position = _locate(ends, row)
        return _encoded(chunks[number], position)

    return EncodedImages(folder, sum(len(chunk) for chunk in chunks), read)


def _map(arrow: Any, file: Path) -> Any:
    with arrow.ipc.open_stream(arrow.memory_map(str(file))) as stream:
        return stream.read_all()


def _arrow(path: Path) -> Any:
    return import_arrow(f"{path}: reading Arrow and parquet")


def _reading(file: Path, read: Callable[[], Any]) -> Any:
    """What `read` returns; errors of pyarrow, which are ValueError and its like, name the file.

    Raises:
      InputError: pyarrow cannot read the file.
    """
    try:
        return read()
    except (ValueError, OSError, KeyError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file}: not readable ({reason}); restore or save it again") from None


def _names(file: Path, key: str) -> list[str]:
    """Names of what lies beside a JSON file, as the file lists them: texts, or objects with a
    `filename`.

    Raises:
      InputError: it is no such list, or a name leads elsewhere.
    """
    check_regular(file, limit=_MAX_JSON)
    content = _reading(file, lambda: read_json(file.read_text("utf-8")))
    values = content.get(key) if isinstance(content, dict) else None
    names: list[str] = []
    for value in values if isinstance(values, list) else [None]:
        name = value.get("filename") if isinstance(value, dict) else value
        if not isinstance(name, str) or name in ("", ".", "..") or {"/", "\0"} & set(name):
            raise InputError(f"{file}: {key} must list names of this folder; save the set again")
        names.append(name)
    return names


def _image_column(schema: Any, place: Path) -> str:
    """The column that holds image files: the only one that may, or else the one called `image`.

    Raises:
      InputError: there is none, or several.
    """
    candidates = [field.name for field in schema if _holds_bytes(field.type)]
    if len(candidates) > 1 and "image" in candidates:
        return "image"
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise InputError(
            f"{place}: no column of encoded images (bytes, or bytes and path) among "
            f"{', '.join(schema.names)}; cast one to datasets.Image"
        )
    raise InputError(
        f"{place}: {', '.join(candidates)} may all be images; call the right one 'image'"
    )


def _holds_bytes(kind: Any) -> bool:
    """Whether a type is that of file contents: bytes, or a structure with a field `bytes`."""
    from pyarrow import types

    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _encoded(images: Any, position: int) -> bytes | None:
    value = images[position].as_py()
    return value["bytes"] if isinstance(value, dict) else value


def _ends(sizes: Sequence[int]) -> list[int]:
    """Of parts that follow one another, the row behind the last of each."""
    return list(itertools.accumulate(sizes))


def _locate(ends: Sequence[int], row: int) -> tuple[int, int]:
    """The part that a row lies in, and its position there."""
    number = bisect.bisect_right(ends, row)
    return number, row - (ends[number - 1] if number else 0)
