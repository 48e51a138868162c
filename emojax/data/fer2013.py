"""FER2013 (Goodfellow et al. 2013) as a TFDS data set in array_record files.

Read from `fer2013.csv` (columns emotion, pixels, Usage) or from the image folder
`train/<emotion>/Training_*.jpg`, `test/<emotion>/{PublicTest,PrivateTest}_*.jpg`. Classes carry the
csv's numbers in both. An image's id is its split and a hash of its label and pixels (with a count
for repeats), so both forms give the same ids wherever pixels are equal. `prepare` writes, `load`
reads what it wrote.
"""

import collections
import contextlib
import csv
import errno
import functools
import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from emojax.data import classes
from emojax.data.decode import check_regular, entries, read_image
from emojax.data.image_set import ImageSet
from emojax.data.prepared import Prepared, describe
from emojax.data.tfds_set import Examples
from emojax.errors import InputError, did_you_mean, short
from emojax.section import user_path

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

CLASSES = classes.FER2013
SIZE = 48
_USAGE = {"Training": "training", "PublicTest": "public_test", "PrivateTest": "private_test"}
SPLITS = tuple(_USAGE.values())
_COLUMNS = ["emotion", "pixels", "Usage"]
_MAX_CSV = 1 << 30  # three times what the published file has
_PIXELS = {str(value): value for value in range(256)}
_CHUNK = 1024  # images read at once
_VERSION = "1.0.0"
_DESCRIPTION = "FER2013: 48×48 gray faces with one of seven expressions (Goodfellow et al. 2013)."


class Face(NamedTuple):
    """One image as read: split, class number, 2,304 pixel bytes, and where it came from."""

    split: str
    label: int
    pixels: bytes
    source: str


# Called with an image that is refused: where it came from, and why. Without one, the first refusal
# ends the reading.
Refused = Callable[[str, InputError], None]


def read_csv(path: Path, refused: Refused | None = None) -> Iterator[Face]:
    """Faces from `fer2013.csv`, in row order.

    Raises:
      InputError: naming the row: wrong columns, a label outside 0–6, not 2,304 values of 0–255, an
        unknown usage.
    """
    check_regular(path, limit=_MAX_CSV)
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 20))
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [column.strip() for column in next(reader, [])]
            if header != _COLUMNS:
                raise InputError(
                    f"{path}: columns are {short(','.join(header))}, not {','.join(_COLUMNS)!r}"
                )
            for number, row in enumerate(reader, 1):
                read_row = functools.partial(_csv_face, path, number, row)
                face = _attempt(read_row, f"row {number}", refused)
                if face is not None:
                    yield face
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; is this fer2013.csv?") from None
    except csv.Error as error:
        raise InputError(f"{path}: not a readable csv ({error})") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _attempt(read_face: Callable[[], Face], source: str, refused: Refused | None) -> Face | None:
    """A face, or None after its refusal was passed on."""
    try:
        return read_face()
    except InputError as error:
        if refused is None:
            raise
        refused(source, error)
        return None


def _csv_face(path: Path, number: int, row: list[str]) -> Face:
    where = f"{path}, row {number}"
    if len(row) != 3:
        raise InputError(f"{where}: {len(row)} columns, not 3")
    label, pixels, usage = row
    if label.strip() not in set("0123456"):
        raise InputError(f"{where}: emotion {short(label)} is not a number from 0 to 6")
    if usage.strip() not in _USAGE:
        raise InputError(f"{where}: Usage {short(usage)} is not one of {', '.join(_USAGE)}")
    values = pixels.split()
    try:
        face = bytes(map(_PIXELS.__getitem__, values))
    except KeyError as error:
        value = short(error.args[0])
        raise InputError(
            f"{where}: pixel value {value} is not a whole number from 0 to 255"
        ) from None
    if len(face) != SIZE * SIZE:
        raise InputError(f"{where}: {len(face)} pixel values, not {SIZE * SIZE}")
    return Face(_USAGE[usage.strip()], int(label), face, f"row {number}")


def read_folder(path: Path, refused: Refused | None = None) -> Iterator[Face]:
    """Faces from the image-folder form, in the order of paths.

    Raises:
      InputError: naming the file or folder: an unknown class, an unknown prefix, an unreadable or
        wrongly sized image.
    """
    for part in ("train", "test"):
        if not (path / part).is_dir():
            raise InputError(
                f"{path}: no folder {part!r} in it; "
                "FER2013 has train/<emotion>/ and test/<emotion>/"
            )
        for folder in (entry for entry in entries(path / part) if entry.is_dir()):
            if folder.name not in CLASSES:
                hint = did_you_mean(folder.name, CLASSES)
                raise InputError(f"{folder}: {folder.name!r} is no class of FER2013{hint}")
            for file in entries(folder):
                source = f"{part}/{folder.name}/{file.name}"
                read_file = functools.partial(_file_face, file, source)
                face = _attempt(read_file, source, refused)
                if face is not None:
                    yield face


def _file_face(file: Path, source: str) -> Face:
    part, label, name = source.split("/")
    usage = name.partition("_")[0]
    if usage not in _USAGE or (usage == "Training") != (part == "train"):
        raise InputError(
            f"{file}: a file of {part} is not named after its split ({', '.join(_USAGE)})"
        )
    return Face(_USAGE[usage], CLASSES.index(label), _gray48(file), source)


def _gray48(file: Path) -> bytes:
    image = read_image(file)
    if image.size != (SIZE, SIZE):
        raise InputError(f"{file}: {image.size[0]}×{image.size[1]} pixels, not {SIZE}×{SIZE}")
    return image.convert("L").tobytes()


def read(source: Path, refused: Refused | None = None) -> Iterator[Face]:
    """Faces of either form; a single bad row or file goes to `refused` when that is given.

    Raises:
      InputError: neither form is there.
    """
    source = user_path(source)
    if source.exists() and not source.is_dir():  # a pipe or a device is refused there
        return read_csv(source, refused)
    if (source / "fer2013.csv").exists():
        return read_csv(source / "fer2013.csv", refused)
    if source.is_dir():
        return read_folder(source, refused)
    raise InputError(
        f"no FER2013 at {str(source)!r}; "
        "pass --source fer2013.csv or the folder with train/ and test/"
    )


def looks_raw(path: Path) -> bool:
    """Whether a folder is FER2013 as downloaded, to be prepared first."""
    return (path / "fer2013.csv").is_file() or any((path / "test").glob("*/PublicTest_*"))


class Names:
    """Names faces in the order in which they are read.

    A name is the split, a hash of label and pixels, and a count for repeats.
    """

    def __init__(self):
        self._counts: collections.Counter[str] = collections.Counter()

    def of(self, face: Face) -> str:
        """The id of the next face."""
        content = hashlib.sha256(bytes([face.label]) + face.pixels).hexdigest()
        name = f"{face.split}-{content[:16]}"
        self._counts[name] += 1
        count = self._counts[name]
        return name if count == 1 else f"{name}-{count}"


@functools.cache
def _builder() -> "Callable[..., tfds.core.DatasetBuilder]":
    """The TFDS builder: features image [48, 48, 1] uint8, label, id, source.

    TFDS takes a second to import and only writing needs it, hence a class in a function; it is
    made once, since TFDS refuses two classes of one name.
    """
    import tensorflow_datasets as tfds

    class Fer2013(tfds.core.GeneratorBasedBuilder):
        """FER2013 as a data set of TFDS."""

        VERSION = tfds.core.Version(_VERSION)

        def __init__(self, *, faces: Sequence[Face] = (), **options: Any):
            self._faces = faces
            super().__init__(file_format="array_record", **options)

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                description=_DESCRIPTION,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Tensor(shape=(SIZE, SIZE, 1), dtype=np.uint8),
                        "label": tfds.features.ClassLabel(names=list(CLASSES)),
                        "id": tfds.features.Text(),
                        "source": tfds.features.Text(),
                    }
                ),
            )

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
            present = {face.split for face in self._faces}
            return {name: self._generate_examples(name) for name in SPLITS if name in present}

        def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
            names = Names()
            for face in self._faces:
                if face.split != split:
                    continue
                name = names.of(face)
                pixels = np.frombuffer(face.pixels, np.uint8).reshape(SIZE, SIZE, 1)
                yield (
                    name,
                    {
                        "image": pixels,
                        "label": face.label,
                        "id": name,
                        "source": face.source,
                    },
                )

    return Fer2013


def prepare(faces: Iterable[Face], folder: Path) -> dict[str, np.ndarray]:
    """Builds the data set under `folder` and returns, for each split, its images per class [7].

    Raises:
      InputError: the faces are refused while they are read (see `read_csv`, `read_folder`), or
        there are none.
      OSError: the disk is full or fails.
    """
    faces = list(faces)
    if not faces:
        raise InputError("the source holds no image")
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces downloads that do not happen
        try:
            builder = _builder()(faces=faces, data_dir=folder)
            builder.download_and_prepare(download_dir=folder / "downloads")
        except RuntimeError as error:  # array_record's words for an error of the disk
            for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
                if os.strerror(code) in str(error):
                    raise OSError(code, os.strerror(code), str(folder)) from None
            raise
    shutil.rmtree(folder / "downloads")
    counts = {split: np.zeros(len(CLASSES), int) for split in SPLITS}
    for face in faces:
        counts[face.split][face.label] += 1
    return counts


def is_prepared(path: Path) -> bool:
    """Whether `prepare` has run on this folder."""
    return (path / "fer2013" / _VERSION / "dataset_info.json").is_file()


def _described(path: Path) -> Prepared:
    """The checked description of a prepared data set; TFDS would import what its files name."""
    folder = path / "fer2013" / _VERSION
    prepared = describe(folder)
    image = (prepared.shape, prepared.encoding)
    if prepared.classes != CLASSES or image != ((SIZE, SIZE, 1), "none") or not prepared.has_ids:
        wanted = f"images [{SIZE}, {SIZE}, 1], ids and the classes {', '.join(CLASSES)}"
        raise InputError(f"{folder}: not FER2013, which has {wanted}; run `emojax prepare` again")
    return prepared


def prepared_splits(path: Path) -> list[str]:
    """Splits of a prepared data set, in the usual order.

    Raises:
      InputError: its description is damaged.
    """
    present = _described(path).splits
    return [split for split in SPLITS if split in present]


def load(path: Path, split: str) -> ImageSet:
    """A split of a prepared data set, in memory, in the order on disk.

    That order is shuffled, and the same for both forms of the source.

    Raises:
      InputError: the prepared data has no such split, or its files are damaged.
    """
    prepared = _described(path)
    if split not in prepared.splits:
        present = ", ".join(prepared.splits)
        raise InputError(f"{path} has no split {split!r}; it has {present}")
    examples = Examples(prepared, split)
    images = np.empty((len(examples), SIZE, SIZE, 1), np.uint8)
    labels = np.empty(len(examples), np.int32)
    ids = []
    for start in range(0, len(examples), _CHUNK):
        rows = range(start, min(start + _CHUNK, len(examples)))
        columns = examples.read(rows, ("image", "label", "id"))
        for row, (image, label, name) in zip(rows, columns, strict=True):
            images[row] = image
            labels[row] = label
            ids.append(name)
    return ImageSet.from_arrays(images, labels, CLASSES, ids=ids, name=f"FER2013 {split}")
