"""Opens a data set from its path: which format it is in, and so which reader makes the image set.

The only module that knows all formats; each reader knows its own and nothing of the others.
"""

import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from emojax.data import fer2013, folder, tfds_set
from emojax.data.draw import Draw, How
from emojax.data.exclude import Excluded
from emojax.data.image_set import ImageSet
from emojax.errors import InputError, did_you_mean
from emojax.section import user_path
from emojax.synthetic import faces

Kind = Literal["auto", "fer2013", "tfds", "folder", "faces"]
_log = logging.getLogger("emojax")


def resolve(path: Path | None, kind: Kind = "auto", *, raw: bool = False) -> tuple[str, Path]:
    """The format of a path, and the path with the home folder filled in.

    The format is `fer2013` (prepared), `tfds`, `folder`, `faces` (rendered, without a path) or,
    where the caller can read it (`raw`), `raw`: FER2013 as it is downloaded.

    Raises:
      InputError: the path is missing; or it is raw FER2013 where that cannot be read (the message
        has the command that prepares it).
    """
    if kind == "faces":
        return kind, Path()
    if path is None:
        raise InputError("--data.path is needed: a prepared FER2013 or an image folder")
    path = user_path(path)
    if not path.exists():
        raise InputError(
            f"no data at {str(path)!r}; pass --data.path a prepared FER2013 or an image folder"
        )
    if kind == "auto":
        if raw and (path.suffix == ".csv" or fer2013.looks_raw(path)):
            return "raw", path
        if path.is_file() or fer2013.looks_raw(path):
            raise InputError(
                f"{path} is raw FER2013; run `emojax prepare --source {path} --out DIR` "
                "and pass --data.path DIR"
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
    """The format of a folder, logged once; other tools, too, write a `dataset_info.json`.

    Raises:
      InputError: it is neither; the message says why it is no data set of TFDS.
    """
    described = tfds_set.find(path)
    if described is None:
        return "folder"
    try:
        tfds_set.open_prepared(path)
    except InputError as error:
        try:
            folder.splits_of(path)
        except InputError:
            raise error from None
        _log_once(f"data: {path} is read as an image folder, {described} is not: {error}")
        return "folder"
    _log_once(f"data: {path} is read as the set that TFDS prepared in {described}; see --data.kind")
    return "tfds"


@functools.cache
def _log_once(line: str) -> None:
    """Logs a line that splits of one folder, opened one after another, would repeat."""
    _log.info(line)


def open_split(
    path: Path | None,
    split: str,
    *,
    kind: Kind = "auto",
    size: int | None = None,
    limit: int | None = None,
    draw: How = "balanced",
    seed: int = 0,
    exclude: Path | None = None,
    class_map: Mapping[str, str] | None = None,
) -> ImageSet:
    """Opens a split of a data set.

    Args:
      path: a prepared FER2013, any data set that TFDS prepared, or an image folder.
      split: the split's name.
      kind: the format; `auto` finds out, `faces` renders and takes no path.
      size: side of the square that the images of a folder are brought to; None suits the images.
      limit: how many images to take of those that `exclude` leaves; of rendered faces, as many
        are rendered, and then excluded. None takes all.
      draw: which images a limit takes, see `Draw`.
      seed: of a balanced draw.
      exclude: a list of images to leave out, see `exclude.py`.
      class_map: other names for classes of the data, by the names that they have there.

    Raises:
      InputError: see `resolve`; there is no such split or class, or the list does not fit.
    """
    kind_found, path = resolve(path, kind)
    excluded = None if exclude is None else Excluded.read(exclude)
    images = _open(kind_found, path, split, size, Draw(limit, draw, seed), excluded)
    return images.renamed(class_map or {})


def _open(
    kind: str, path: Path, split: str, size: int | None, draw: Draw, excluded: Excluded | None
) -> ImageSet:
    """The split as its reader gives it, without what is excluded or not drawn."""
    if kind == "faces":
        images = faces.split(split, draw.limit).image_set(f"faces/{split}")
        return images.without(
            excluded, [f"faces/{name}/" for name in faces.SPLITS if name != split]
        )
    if kind == "folder":
        return folder.load(path, split, size=size, draw=draw, excluded=excluded)
    if kind == "tfds":
        others = [f"{name}/" for name in tfds_set.splits(path)]
        return tfds_set.load(path, split).without(excluded, others).drawn(draw)
    if split not in fer2013.SPLITS:
        raise InputError(f"FER2013 has no split {split!r}{did_you_mean(split, fer2013.SPLITS)}")
    others = [f"{name}-" for name in fer2013.SPLITS if name != split]
    return fer2013.load(path, split).without(excluded, others).drawn(draw)
