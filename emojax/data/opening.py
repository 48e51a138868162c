"""From a path to an image set: which form of data set it is, and its reader."""

import functools
import logging
from pathlib import Path
from typing import Literal

from emojax.data import fer2013, folder, tfds_set
from emojax.data.exclude import Excluded
from emojax.data.image_set import ImageSet
from emojax.errors import InputError, did_you_mean
from emojax.synthetic import faces

Kind = Literal["auto", "fer2013", "tfds", "folder", "faces"]


def resolve(
    path: Path | None, kind: Kind = "auto", *, raw: bool = False
) -> tuple[str, Path | None]:
    """What a path is, `fer2013` (prepared), `folder`, `faces` or, where that will do, `raw`; and
    the path itself.

    Raises:
      InputError: the path is missing, or is raw FER2013 (with the command that prepares it) where
        that will not do.
    """
    if kind == "faces":
        return kind, None
    if path is None:
        raise InputError("--data.path is needed: a prepared FER2013 or an image folder")
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(
            f"no data at {str(path)!r}; pass --data.path a prepared FER2013 or an image folder"
        )
    if kind == "auto":
        if raw and (path.suffix == ".csv" or fer2013.looks_raw(path)):
            return "raw", path
        if path.is_file() or fer2013.looks_raw(path):
            raise InputError(
                f"{path} is raw FER2013; run `emojax prepare --source {path} --out DIR` and pass "
                "--data.path DIR"
                if path.is_dir() or path.suffix == ".csv"
                else f"{path} is a file; pass --data.path a prepared FER2013 or an image folder"
            )
        kind = "fer2013" if fer2013.is_prepared(path) else _tfds_or_folder(path)
    if kind == "fer2013" and not fer2013.is_prepared(path):
        raise InputError(
            f"{path} is not a prepared FER2013; run `emojax prepare --source {path} --out DIR`"
        )
    return kind, path


def _tfds_or_folder(path: Path) -> Literal["tfds", "folder"]:
    """What a folder is: that a file is called dataset_info.json does not make it TFDS's. Says so,
    once a folder.

    Raises:
      InputError: why it is no data set of TFDS, if it is no image folder either.
    """
    found = tfds_set.find(path)
    if found is None:
        return "folder"
    try:
        tfds_set.open_prepared(path)
    except InputError as error:
        try:
            folder.splits_of(path)
        except InputError:
            raise error from None
        _say_once(f"data: {path} is read as an image folder, {found} is not: {error}")
        return "folder"
    _say_once(f"data: {path} is read as the set that TFDS prepared in {found}; see --data.kind")
    return "tfds"


@functools.cache
def _say_once(line: str) -> None:
    """A line that splits opened one after another would repeat; the command line shows it."""
    logging.getLogger("emojax").info("%s", line)


def open_split(
    path: Path | None,
    split: str,
    *,
    kind: Kind = "auto",
    size: int | None = None,
    limit: int | None = None,
    exclude: Path | None = None,
) -> ImageSet:
    """Opens a split of a prepared FER2013, of any data set that TFDS prepared, or of an image
    folder; or renders one.

    `kind="faces"` renders and takes no path. `exclude` is a list of images to leave out, see
    `exclude.py`; `limit` counts those that are left, but for rendered faces, of which as many are
    rendered.

    Raises:
      InputError: see `resolve`; there is no such split, or the list does not fit.
    """
    kind, path = resolve(path, kind)
    excluded = None if exclude is None else Excluded.read(exclude)
    if kind == "faces":
        images = faces.split(split, limit).image_set(f"faces/{split}")
        return images.without(
            excluded, [f"faces/{name}/" for name in faces.SPLITS if name != split]
        )
    if kind == "folder":
        return folder.load(path, split, size=size, excluded=excluded).first(limit)
    if kind == "tfds":
        return (
            tfds_set.load(path, split)
            .without(excluded, [f"{name}/" for name in tfds_set.splits(path)])
            .first(limit)
        )
    if split not in fer2013.SPLITS:
        raise InputError(f"FER2013 has no split {split!r}{did_you_mean(split, fer2013.SPLITS)}")
    others = [f"{name}-" for name in fer2013.SPLITS if name != split]
    return fer2013.load(path, split).without(excluded, others).first(limit)
