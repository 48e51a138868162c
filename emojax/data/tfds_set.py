"""Any images that TFDS has prepared in array_record files, read by index, without TensorFlow.

The feature `image` is a uint8 array of one size, `label` a class and `id` a text; the last two may
be missing. TFDS is not asked to open the folder, since it would import what the folder names: see
`prepared.py`.
"""

import functools
import hashlib
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emojax.data.classes import check
from emojax.data.decode import decode
from emojax.data.image_set import ImageSet
from emojax.data.prepared import Prepared, check_shards, describe, reading
from emojax.distributed.processes import map_in_shares
from emojax.errors import InputError
from emojax.store import content_key

_CHUNK = 4096  # examples whose labels are read together


class Examples:
    """The examples of a split by index, each checked: images, labels and ids.

    Raises:
      InputError: a file of the split is missing, damaged, or not as described.
    """

    def __init__(self, prepared: Prepared, split: str):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._prepared = prepared
        self.split = split
        self.shards = prepared.shards(split)
        check_shards(self.shards)
        # A shard has the attributes that array_record asks for, read-only where its types say not.
        self._source = ArrayRecordDataSource(self.shards)  # pyright: ignore[reportArgumentType]

    def __len__(self) -> int:
        return len(self._source)

    def read(self, rows: Sequence[int], columns: Sequence[str]) -> list[list[Any]]:
        """The named columns (`image` uint8 [H, W, C], `label` a number, `id` a text) of some rows.

        Raises:
          InputError: an example is damaged, or not as `features.json` describes it.
        """
        if not len(rows):
            return []
        from google.protobuf.message import DecodeError
        from tensorflow_datasets.proto import tf_example_pb2

        # protobuf makes its classes as the module is loaded, out of pyright's sight.
        parse = tf_example_pb2.Example.FromString  # pyright: ignore[reportAttributeAccessIssue]
        where = self._prepared.folder
        records = reading(where, lambda: self._source.__getitems__(rows))
        readers: dict[str, Callable[[Any], Any]] = {
            "image": self._image,
            "label": self._label,
            "id": _id,
        }
        examples = []
        for row, record in zip(rows, records, strict=True):
            try:
                features = parse(record).features.feature
                examples.append([readers[column](features[column]) for column in columns])
            except (DecodeError, ValueError, OverflowError, IndexError, zlib.error) as error:
                reason = " ".join(str(error).split()) or "empty"
                raise InputError(
                    f"{where}, example {row} of {self.split}: not as features.json describes it "
                    f"({reason}); prepare the set again"
                ) from None
        return examples

    def _image(self, feature: Any) -> np.ndarray:
        shape = self._prepared.shape
        encoding = self._prepared.encoding
        size = shape[0] * shape[1] * shape[2]
        if encoding == "none":
            pixels = np.array(feature.int64_list.value, np.int64).reshape(shape)
            if pixels.min() < 0 or pixels.max() > 255:
                raise ValueError(f"pixels from {pixels.min()} to {pixels.max()}")
            return pixels.astype(np.uint8)
        data = feature.bytes_list.value[0]
        if encoding == "zlib":
            # At most one byte more than fits: a small file may unpack to many gigabytes.
            data = zlib.decompressobj().decompress(data, size + 1)
        if encoding != "image":
            return np.frombuffer(data, np.uint8).reshape(shape)
        image = decode(self._prepared.folder, data)
        if image.size != (shape[1], shape[0]):
            raise ValueError(f"an image of {image.height}×{image.width} pixels")
        return np.asarray(image.convert("L" if shape[2] == 1 else "RGB"), np.uint8).reshape(shape)

    def _label(self, feature: Any) -> int:
        label = feature.int64_list.value[0]
        if not 0 <= label < len(self._prepared.classes):
            raise ValueError(f"label {label}, and {len(self._prepared.classes)} classes")
        return label


def _id(feature: Any) -> str:
    return feature.bytes_list.value[0].decode()


class Records:
    """Images uint8 [I, H, W, C] of a split, read slice by slice."""

    def __init__(self, examples: Examples, shape: tuple[int, ...]):
        self._examples = examples
        self.shape = (len(examples), *shape)

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        images = np.empty((max(0, stop - start), *self.shape[1:]), np.uint8)
        for row, (image,) in enumerate(self._examples.read(range(start, stop), ("image",))):
            images[row] = image
        return images


def find(path: Path) -> Path | None:
    """The folder of the only version of the only data set at the path or up to two below it.

    A file `dataset_info.json` is all that is looked for; `open_prepared` says whether it is TFDS's.
    """
    depths = ("", "*/", "*/*/")
    folders = [info.parent for depth in depths for info in path.glob(f"{depth}dataset_info.json")]
    return folders[0] if len(folders) == 1 else None


def open_prepared(path: Path) -> Prepared:
    """The checked description of the data set at a path.

    Raises:
      InputError: there is none, or several; or see `prepared.describe`.
    """
    folder = find(path)
    if folder is None:
        raise InputError(
            f"{path} holds no data set that TFDS prepared, or several; "
            "name the folder of one version"
        )
    return describe(folder)


def splits(path: Path) -> list[str]:
    """Names of the splits.

    Raises:
      InputError: see `open_prepared`.
    """
    return list(open_prepared(path).splits)


def load(path: Path, split: str) -> ImageSet:
    """A split, in the order on disk. Its key is that of the files' bytes.

    Raises:
      InputError: see `open_prepared` and `Examples`; or there is no such split.
    """
    prepared = open_prepared(path)
    if prepared.classes:
        check(prepared.classes, str(prepared.folder))
    examples = Examples(prepared, split)
    examples.read(range(1), ("image",))  # what is wrong with all images is wrong with the first
    columns = ("label",) * bool(prepared.classes) + ("id",) * prepared.has_ids
    labels = None
    ids = [f"{split}/{row}" for row in range(len(examples))]
    if columns:
        # Labels and ids are needed at once, images only batch by batch.
        read = functools.partial(_chunk, examples, columns)
        chunks = map_in_shares(read, range(0, len(examples), _CHUNK))
        rows = [row for chunk in chunks for row in chunk]
        values = dict(zip(columns, zip(*rows, strict=True), strict=True))
        labels = np.asarray(values["label"], np.int32) if prepared.classes else None
        ids = list(values.get("id", ids))
    hashes = map_in_shares(_hash, [shard.filename for shard in examples.shards])
    return ImageSet(
        images=Records(examples, prepared.shape),
        labels=labels,
        classes=prepared.classes,
        ids=ids,
        key=content_key([hashes, list(prepared.classes)]),
        name=f"{prepared.name} {split}",
    )


def _chunk(examples: Examples, columns: Sequence[str], start: int) -> list[list[Any]]:
    return examples.read(range(start, min(start + _CHUNK, len(examples))), columns)


def _hash(file: str) -> str:
    with open(file, "rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
