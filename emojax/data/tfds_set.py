"""Any labelled images that TFDS has prepared in array_record files, read by index when they are needed, without TensorFlow.

The feature `image` is an uint8 array of one size, `label` a class and `id` a text; the last two may be missing.
"""

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from emojax.data.loader import ImageSet
from emojax.distributed.processes import map_in_shares
from emojax.errors import InputError, did_you_mean
from emojax.store import content_key

_CHUNK = 4096  # examples whose labels are read together


class Records:
    """Images uint8 [I, H, W, C] of a TFDS data source, read slice by slice."""

    def __init__(self, source: Any, shape: tuple[int, ...]):
        self._source, self.shape = source, (len(source), *shape)

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        images = np.empty((stop - start, *self.shape[1:]), np.uint8)
        for row, example in enumerate(self._source.__getitems__(range(start, stop)) if stop > start else ()):
            images[row] = example["image"]
        return images


def _folder(path: Path) -> Path | None:
    """The folder of the data set's only version, at the path or up to two below it."""
    found = [info.parent for depth in ("", "*/", "*/*/") for info in path.glob(f"{depth}dataset_info.json")]
    return found[0] if len(found) == 1 else None


def is_prepared(path: Path) -> bool:
    """Whether there is a data set that TFDS prepared, and one only."""
    return _folder(path) is not None


def splits(path: Path) -> list[str]:
    """Names of the splits.

    Raises:
      InputError: there is no such data set.
    """
    return list(_builder(path).info.splits)


def _builder(path: Path) -> Any:
    import tensorflow_datasets as tfds

    folder = _folder(path)
    if folder is None:
        raise InputError(f"{path} holds no data set that TFDS prepared, or several; name the folder of one version")
    return tfds.builder_from_directory(folder)


def load(path: Path, split: str) -> ImageSet:
    """A split, in the order on disk. Its key is that of the files' bytes.

    Raises:
      InputError: there is no such data set or split, or its images are not uint8 arrays of one size.
    """
    import tensorflow_datasets as tfds

    builder, folder = _builder(path), _folder(path)
    known, features = builder.info.splits, builder.info.features
    if split not in known:
        raise InputError(f"{folder} has no split {split!r}{did_you_mean(split, known)}")
    image = dict(features.items()).get("image")
    if image is None or image.np_dtype != np.uint8 or len(image.shape) != 3 or None in image.shape:
        raise InputError(f"{folder}: the feature 'image' must be uint8 [H, W, C] of one size, not {image}")
    if image.shape[-1] not in (1, 3):
        raise InputError(f"{folder}: images have {image.shape[-1]} channels, not 1 or 3")
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise InputError(f"{folder} is in {builder.info.file_format.value} files; prepare it with array_record")

    source = builder.as_data_source(split=split)
    labels, ids, classes = None, None, ()
    about = [name for name in ("label", "id") if name in features]
    if about:
        bare = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        read = functools.partial(_examples, bare, about)
        rows = [row for chunk in map_in_shares(read, range(0, len(bare), _CHUNK)) for row in chunk]
        columns = dict(zip(about, zip(*rows, strict=True), strict=True))
        if "label" in columns:
            labels, classes = np.asarray(columns["label"], np.int32), tuple(features["label"].names)
        ids = list(columns["id"]) if "id" in columns else None
    files = [str(name) for name in known[split].filepaths]
    hashes = map_in_shares(_hash, files)
    return ImageSet(
        images=Records(source, image.shape),
        labels=labels,
        classes=classes,
        ids=ids or [f"{split}/{at}" for at in range(len(source))],
        key=content_key([hashes, list(classes)]),
        name=f"{builder.name} {split}",
    )


def _examples(source: Any, names: list[str], start: int) -> list[list[Any]]:
    """The named features, a label as a number and an id as a text, of a chunk of examples."""
    examples = source.__getitems__(range(start, min(start + _CHUNK, len(source))))
    return [[int(one[name]) if name == "label" else one[name].decode() for name in names] for one in examples]


def _hash(file: str) -> str:
    with open(file, "rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
