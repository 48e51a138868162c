"""The description of a data set that TFDS prepared, checked before any example is read.

TFDS itself imports whatever Python class `features.json` (or the features inside
`dataset_info.json`) names, so it is never asked about a folder: the two files are read here as
plain data, names of classes are looked up in a fixed table, and every file that holds examples is
found inside the folder, as a regular file with the number of examples promised.
"""

import collections
import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from emojax import strict
from emojax.data.decode import check_regular
from emojax.errors import InputError, did_you_mean, short

T = TypeVar("T")
_AGAIN = "restore it, or prepare the set again"
_MAX_BYTES = 16 << 20  # of a description: ImageNet's 1,024 shards and 1,000 classes take 0.1 MB
_MAX_IMAGE = 1 << 28  # bytes of one image
_MAX_CLASSES = 1_000_000
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_OURS = "tensorflow_datasets."
_FEATURES = f"{_OURS}core.features."
# The classes of features that are read, and the field of features.json in which each is described.
_FIELDS = {
    f"{_FEATURES}features_dict.FeaturesDict": "featuresDict",
    f"{_FEATURES}image_feature.Image": "image",
    f"{_FEATURES}tensor_feature.Tensor": "tensor",
    f"{_FEATURES}class_label_feature.ClassLabel": "classLabel",
    f"{_FEATURES}text_feature.Text": "text",
}


class Shard(NamedTuple):
    """A file of examples, with the attributes that array_record wants of a file instruction."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class Prepared(NamedTuple):
    """A data set that TFDS prepared as array_record files.

    Attributes:
      folder: of its one version.
      name: of the data set.
      splits: for each split, its files in order. They are regular files inside the folder.
      shape: of an image: height, width, channels (1 or 3).
      encoding: how an example holds an image: `image` (a PNG or JPEG file), `none`, `bytes` or
        `zlib`.
      classes: names by label; empty without labels.
      has_ids: whether examples carry a text `id`.
    """

    folder: Path
    name: str
    splits: dict[str, list[Shard]]
    shape: tuple[int, int, int]
    encoding: str
    classes: tuple[str, ...]
    has_ids: bool

    def shards(self, split: str) -> list[Shard]:
        """The files of a split.

        Raises:
          InputError: there is no such split, or it holds no example.
        """
        if split not in self.splits:
            hint = did_you_mean(split, self.splits)
            raise InputError(f"{self.folder} has no split {split!r}{hint}")
        shards = [shard for shard in self.splits[split] if shard.take]
        if not shards:
            raise InputError(f"{self.folder}: no image in split {split!r}; prepare the set again")
        return shards


def describe(folder: Path) -> Prepared:
    """Reads and checks `dataset_info.json`, `features.json` and the class names.

    Opens no file of examples: see `check_shards`.

    Raises:
      InputError: a file is missing, damaged or not regular, names a class that is not TFDS's own or
        a file outside the folder; or the set holds no images that emojax can read.
    """
    info = _object(_read_json(folder / "dataset_info.json"), folder / "dataset_info.json")
    features = _read_features(folder / "features.json")
    shape, encoding = _image(folder / "features.json", features)
    return Prepared(
        folder=folder,
        name=_text(info, "name", folder / "dataset_info.json"),
        splits=_splits(folder, info),
        shape=shape,
        encoding=encoding,
        classes=_classes(folder, features),
        has_ids=_has_ids(folder / "features.json", features),
    )


# JSON


def _read_text(path: Path) -> str:
    check_regular(path, limit=_MAX_BYTES)
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; {_AGAIN}") from None


def _read_json(path: Path) -> Any:
    try:
        return strict.read_json(_read_text(path))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: not readable JSON ({error}); {_AGAIN}") from None


def _object(value: Any, path: Path, what: str = "it") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{path}: {what} is not a JSON object; {_AGAIN}")
    return value


def _array(value: Any, path: Path, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"{path}: {what} is not a JSON array; {_AGAIN}")
    return value


def _text(record: dict[str, Any], key: str, path: Path, default: str | None = None) -> str:
    value = record.get(key, default)
    if not isinstance(value, str) or not value or not value.isprintable():
        raise InputError(f"{path}: {key} is {short(str(value))}, not a printable text; {_AGAIN}")
    return value


def _integer(value: Any, path: Path, what: str, most: int) -> int:
    """A whole number from 0 to `most`; TFDS writes 64-bit ones as texts."""
    number = value if type(value) is int else None
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value):
        number = int(value)
    if number is None or not 0 <= number <= most:
        value = short(str(value))
        raise InputError(
            f"{path}: {what} is {value}, not a whole number from 0 to {most}; {_AGAIN}"
        )
    return number


# Features


def _read_features(path: Path) -> dict[str, dict[str, Any]]:
    """The features of an example by name; refuses a file that names classes not TFDS's own."""
    content = _object(_read_json(path), path)
    _check_class_names(content, path)
    if "type" in content:
        raise InputError(f"{path} was written by a TFDS before 4.5; prepare the set again")
    top = _content(content, path, "the whole", ("featuresDict",))
    features = _object(top.get("features"), path, "featuresDict.features")
    return {name: _object(value, path, short(name)) for name, value in features.items()}


def _check_class_names(value: Any, path: Path) -> None:
    """Refuses classes that are not TFDS's own, at every depth, even of features not read."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        if not isinstance(value, dict):
            continue
        waiting += value.values()
        legacy = ("type",) if "content" in value else ()
        for key in ("pythonClassName", "python_class_name", *legacy):
            name = value.get(key)
            if isinstance(name, str) and not name.startswith(_OURS):
                raise InputError(
                    f"{path} names the class {short(name)}, which is not TFDS's own; "
                    "emojax imports no class that data names: "
                    "prepare the set again with TFDS's features"
                )


def _content(
    feature: dict[str, Any], path: Path, what: str, fields: tuple[str, ...]
) -> dict[str, Any]:
    """How a feature is described, under one of the fields."""
    name = feature.get("pythonClassName")
    field = _FIELDS.get(name) if isinstance(name, str) else None
    if field not in fields:
        wanted = " or ".join(
            class_name.rpartition(".")[2]
            for class_name, field in _FIELDS.items()
            if field in fields
        )
        raise InputError(f"{path}: {what} is of class {short(str(name))}, not {wanted}; {_AGAIN}")
    return _object(feature.get(field), path, f"{field} of {what}")


def _image(path: Path, features: dict[str, dict[str, Any]]) -> tuple[tuple[int, int, int], str]:
    if "image" not in features:
        raise InputError(f"{path}: no feature 'image'{did_you_mean('image', features)}")
    content = _content(features["image"], path, "the feature 'image'", ("image", "tensor"))
    shape = _object(content.get("shape"), path, "the shape of 'image'")
    dimensions = _array(shape.get("dimensions"), path, "the shape of 'image'")
    sizes = [
        _integer(size, path, "a side of 'image'", _MAX_IMAGE) if size != "-1" else 0
        for size in dimensions
    ]
    dtype = content.get("dtype")
    if dtype != "uint8" or len(sizes) != 3 or 0 in sizes:
        said = f"{short(str(dtype))} {short(str(dimensions))}"
        raise InputError(
            f"{path}: the feature 'image' must be uint8 [H, W, C] of one size, not {said}"
        )
    height, width, channels = sizes
    if channels not in (1, 3):
        raise InputError(f"{path}: images have {channels} channels, not 1 or 3")
    if height * width * channels > _MAX_IMAGE:
        raise InputError(
            f"{path}: images of {height}×{width} are larger than emojax reads; {_AGAIN}"
        )
    if features["image"]["pythonClassName"].endswith(".Image"):
        return (height, width, channels), "image"
    encoding = content.get("encoding", "none")
    if encoding not in ("none", "bytes", "zlib"):
        raise InputError(
            f"{path}: the encoding {short(str(encoding))} of 'image' is not known; {_AGAIN}"
        )
    return (height, width, channels), encoding


def _classes(folder: Path, features: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    if "label" not in features:
        return ()
    path = folder / "features.json"
    content = _content(features["label"], path, "the feature 'label'", ("classLabel",))
    count = _integer(content.get("numClasses"), path, "numClasses of 'label'", _MAX_CLASSES)
    names_file = folder / "label.labels.txt"
    if not names_file.exists():
        cure = f"write the names of the {count} classes into it, one a line, in order"
        raise InputError(f"{names_file} is missing; {cure}")
    names = tuple(name.strip() for name in _read_text(names_file).split("\n") if name.strip())
    if len(names) != count or not count:
        raise InputError(
            f"{names_file} names {len(names)} classes, features.json says {count}; {_AGAIN}"
        )
    (name, times), *_ = collections.Counter(names).most_common(1)
    if times > 1:
        raise InputError(f"{names_file} names {short(name)} {times} times; {_AGAIN}")
    bad = next((name for name in names if not name.isprintable()), None)
    if bad is not None:
        raise InputError(f"{names_file}: the class name {short(bad)} is not printable; {_AGAIN}")
    return names


def _has_ids(path: Path, features: dict[str, dict[str, Any]]) -> bool:
    if "id" in features:
        _content(features["id"], path, "the feature 'id'", ("text",))
    return "id" in features


# Splits and their files


def _splits(folder: Path, info: dict[str, Any]) -> dict[str, list[Shard]]:
    path = folder / "dataset_info.json"
    form = _text(info, "fileFormat", path, "tfrecord")
    if form != "array_record":
        raise InputError(f"{path}: the set is in {short(form)} files; prepare it with array_record")
    shards: dict[str, list[Shard]] = {}
    for value in _array(info.get("splits"), path, "splits"):
        split = _object(value, path, "a split")
        name = _text(split, "name", path)
        if name in shards:
            raise InputError(f"{path}: the split {short(name)} occurs twice; {_AGAIN}")
        lengths = _array(split.get("shardLengths", []), path, f"shardLengths of {short(name)}")
        counts = [
            _integer(length, path, f"a length of {short(name)}", 2**31 - 1) for length in lengths
        ]
        if sum(counts) >= 2**31:
            total = f"{sum(counts)} examples, more than emojax numbers"
            raise InputError(f"{path}: {short(name)} has {total}; {_AGAIN}")
        template = _text(split, "filepathTemplate", path, _TEMPLATE)
        values = {"DATASET": _text(info, "name", path), "SPLIT": name, "FILEFORMAT": form}
        files = [
            _shard_file(folder, template, values, number, len(counts))
            for number in range(len(counts))
        ]
        if len(set(files)) < len(files):
            same = f"filepathTemplate {short(template)} gives several files one name"
            raise InputError(f"{path}: {same}; {_AGAIN}")
        shards[name] = [Shard(str(file), 0, n, n) for file, n in zip(files, counts, strict=True)]
    if not shards:
        raise InputError(f"{path}: no split in it; {_AGAIN}")
    return shards


def _shard_file(
    folder: Path, template: str, values: dict[str, str], number: int, count: int
) -> Path:
    """The path of a file of examples; `format` would look up attributes that a template names."""
    digits = max(5, len(str(count)))
    index = f"{number:0{digits}}"
    total = f"{count:0{digits}}"
    shard = {"SHARD_INDEX": index, "NUM_SHARDS": total, "SHARD_X_OF_Y": f"{index}-of-{total}"}
    known = values | shard

    def value(match: re.Match[str]) -> str:
        return known.get(match[1], match[0])

    where = f"{folder / 'dataset_info.json'}: filepathTemplate {short(template)}"
    name = re.sub(r"\{([^{}]*)\}", value, template)
    if "{" in name or "}" in name:
        raise InputError(f"{where} is not of the form {_TEMPLATE}; {_AGAIN}")
    file = folder / name
    inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    with contextlib.suppress(
        OSError, RuntimeError
    ):  # a loop of links; the check for regular files names it
        inside = inside and file.resolve().is_relative_to(folder.resolve())
    if not inside:
        raise InputError(
            f"{where} leads out of the folder, to {short(name)}; copy the files into it"
        )
    return file


def check_shards(shards: list[Shard]) -> None:
    """Looks into every file for the number of examples that it holds.

    Raises:
      InputError: a file is missing, not regular, no array_record, damaged at its end, or holds more
        or fewer examples.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    for shard in shards:
        check_regular(Path(shard.filename))
        reader = reading(shard.filename, lambda file=shard.filename: ArrayRecordReader(file))
        if not reader.ok():  # not closed: closing would raise the error that is reported here
            raise InputError(f"{shard.filename}: damaged, or no array_record file; {_AGAIN}")
        count = reader.num_records()
        reader.close()
        if count != shard.take:
            raise InputError(
                f"{shard.filename}: {count} examples in it, "
                f"dataset_info.json says {shard.take}; {_AGAIN}"
            )


def reading(where: Path | str, read: Callable[[], T]) -> T:
    """What `read` returns; errors of array_record become errors of the input.

    Raises:
      InputError: array_record cannot read the file.
    """
    try:
        return read()
    except InputError:
        raise
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        reason = str(error).partition(" (")[0].partition(";")[0]
        raise InputError(f"{where}: damaged examples ({short(reason, 80)}); {_AGAIN}") from None
