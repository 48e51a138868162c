"""Data sets that TFDS prepared, from strangers: no class that they name is imported, and no damage
ends in a traceback.
"""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emojax import cli
from emojax.data import fer2013
from emojax.data.opening import open_split
from emojax.errors import InputError

TENSOR = "tensorflow_datasets.core.features.tensor_feature.Tensor"
IMAGE = "tensorflow_datasets.core.features.image_feature.Image"
TRAINING = "fer2013-training.array_record-00000-of-00001"
PLANTED = "planted_feature"
# What a module writes when it is imported, beside itself.
MODULE = "import pathlib\npathlib.Path(__file__).with_name('imported').write_text('yes')\n"


@pytest.fixture
def prepared(tmp_path, sound) -> Path:
    """A set in a folder of its own, where kind `auto` takes it for TFDS's and not for FER2013."""
    return Path(shutil.copytree(sound / "fer" / "fer2013" / "1.0.0", tmp_path / "set"))


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Changes a JSON file; what `change` returns replaces the content, unless it is None."""
    content = json.loads(path.read_text())
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed))


def features(change: Callable[[dict], Any]) -> Callable[[Path], None]:
    return lambda folder: edit(
        folder / "features.json", lambda j: change(j["featuresDict"]["features"]) and None
    )


def info(change: Callable[[dict], Any]) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "dataset_info.json", lambda j: change(j) and None)


def split(**values: Any) -> Callable[[Path], None]:
    """Sets fields of the split `training`, which the fixture holds beside two others."""

    def change(j: dict) -> None:
        next(each for each in j["splits"] if each["name"] == "training").update(values)

    return info(change)


def write_examples(folder: Path, rows: Sequence[dict[str, Any]], file: str = TRAINING) -> None:
    """Writes a file of examples: numbers become an int64 list, bytes a bytes list."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    writer = ArrayRecordWriter(str(folder / file), "group_size:1")
    for row in rows:
        example = tf_example_pb2.Example()
        for name, value in row.items():
            feature = example.features.feature[name]
            if isinstance(value, bytes):
                feature.bytes_list.value.append(value)
            else:
                feature.int64_list.value.extend(value)
        writer.write(example.SerializeToString())
    writer.close()


def rewrite(**values: Any) -> Callable[[Path], None]:
    """Seven examples of the fixture's form, with other values."""
    good = {"image": [7] * 48 * 48, "label": [3], "id": b"a"}
    row = {name: value for name, value in (good | values).items() if value is not None}
    return lambda folder: write_examples(folder, [row] * 7)


# Code


def nested(name: str) -> dict:
    inner = {"pythonClassName": name, "jsonFeature": {"json": "{}"}}
    return {
        "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
        "sequence": {"feature": inner, "length": "-1"},
    }


def legacy(name: str) -> dict:
    image = {"type": name, "content": {}}
    top = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    return {"type": top, "content": {"image": image}}


CLASS = f"{PLANTED}.Feature"
PLANTS: dict[str, Callable[[Path], None]] = {
    "the whole": lambda d: edit(d / "features.json", lambda j: j.update(pythonClassName=CLASS)),
    "the image": features(lambda f: f["image"].update(pythonClassName=CLASS)),
    "a feature that emojax leaves alone": features(
        lambda f: f["source"].update(pythonClassName=CLASS)
    ),
    "inside a sequence": features(lambda f: f.update(more=nested(CLASS))),
    "snake case": features(lambda f: f.update(more={"python_class_name": CLASS, "text": {}})),
    "the form of old versions": lambda d: edit(d / "features.json", lambda j: legacy(CLASS)),
    "a class named like TFDS's": features(
        lambda f: f["image"].update(pythonClassName="tensorflow_datasets.planted_feature.Image")
    ),
}


@pytest.fixture
def planted(prepared, monkeypatch):
    """Importable as a top module and, if a name is believed, as one of TFDS; both from the folder
    itself.
    """
    import tensorflow_datasets

    (prepared / f"{PLANTED}.py").write_text(MODULE)
    monkeypatch.chdir(prepared)
    monkeypatch.syspath_prepend(prepared)
    monkeypatch.setattr(
        tensorflow_datasets, "__path__", [*tensorflow_datasets.__path__, str(prepared)]
    )
    yield prepared
    for name in (PLANTED, f"tensorflow_datasets.{PLANTED}"):
        sys.modules.pop(name, None)


def commands(sound: Path, data: str, out: Path) -> dict[str, list[str]]:
    data_args = ["--data.path", data, "--out", str(out)]
    weights = ["--target.weights", str(sound / "vgg.safetensors")]
    return {
        "evaluate": ["evaluate", *weights, *data_args, "--data.test-splits", "training"],
        "probe": ["probe", *weights, "--clip.path", str(sound / "clip"), *data_args],
        "audit": ["audit", *data_args],
    }


@pytest.mark.parametrize("command", ["evaluate", "probe", "audit"])
@pytest.mark.parametrize("plant", PLANTS)
def test_no_class_named_by_data_is_imported(planted, tmp_path, sound, capsys, plant, command):
    PLANTS[plant](planted)
    assert cli.main(commands(sound, ".", tmp_path / "out")[command]) == 2
    assert not (planted / "imported").exists()
    err = capsys.readouterr().err
    assert "features.json" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_dataset_info_names_is_not_imported_either(planted, tmp_path, sound):
    """It may hold the features once more, and the module of its builder; neither is needed to read
    it.
    """
    plant = {"pythonClassName": CLASS, "jsonFeature": {"json": "{}"}}
    info(lambda j: j.update(features=plant, moduleName=PLANTED))(planted)
    assert cli.main(commands(sound, ".", tmp_path / "out")["audit"]) == 0
    assert not (planted / "imported").exists()


def test_a_prepared_fer2013_imports_nothing(tmp_path, sound, monkeypatch):
    folder = Path(shutil.copytree(sound / "fer", tmp_path / "fer"))
    inner = folder / "fer2013" / "1.0.0"
    (folder / f"{PLANTED}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(folder)
    PLANTS["the image"](inner)
    with pytest.raises(InputError, match="imports no class that data names"):
        open_split(folder, "training")
    with pytest.raises(InputError, match="imports no class that data names"):
        fer2013.prepared_splits(folder)
    assert not (folder / "imported").exists()


def test_the_program_started_in_the_folder(planted, tmp_path, sound):
    """As a person starts it: the working folder comes first among the places that Python imports
    from.
    """
    PLANTS["the image"](planted)
    args = commands(sound, ".", tmp_path / "out")["evaluate"]
    ran = subprocess.run(
        [sys.executable, "-m", "emojax", *args],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=planted,
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("emojax: ")
    assert ran.stderr.count("\n") == 1
    assert not (planted / "imported").exists()


# Damage


def truncated(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size]) and None


def replaced(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def flipped(folder: Path) -> None:
    """Flips a byte of the first examples: after the headers of the file and its first chunk."""
    data = bytearray((folder / TRAINING).read_bytes())
    filled = [at for at, byte in enumerate(data) if byte]
    data[filled[len(filled) // 3]] ^= 255
    (folder / TRAINING).write_bytes(data)


def link_outside(folder: Path) -> None:
    shutil.move(folder / TRAINING, folder.parent / "elsewhere")
    (folder / TRAINING).symlink_to(folder.parent / "elsewhere")


def link_in_a_loop(folder: Path) -> None:
    (folder / TRAINING).unlink()
    (folder / TRAINING).symlink_to(TRAINING)


def pipe(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def device(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")

    return change


def directory(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def gone(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def png(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros(shape, np.uint8)).save(file, "png")
    return file.getvalue()


def as_png(data: bytes) -> Callable[[Path], None]:
    """The set with its images as PNG files."""

    def change(folder: Path) -> None:
        shape = {"dimensions": ["48", "48", "1"]}
        image = {"dtype": "uint8", "encodingFormat": "png", "shape": shape}
        features(lambda f: f.update(image={"pythonClassName": IMAGE, "image": image}))(folder)
        rewrite(image=data)(folder)

    return change


def encoded(encoding: str, data: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        features(lambda f: f["image"]["tensor"].update(encoding=encoding))(folder)
        rewrite(image=data)(folder)

    return change


LABELS = "label.labels.txt"
INFO = "dataset_info.json"
FEATURES = "features.json"
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    # dataset_info.json
    "info cut": (truncated(INFO, 200), "dataset_info.json: not readable JSON"),
    "info empty": (replaced(INFO, b""), "dataset_info.json: not readable JSON"),
    "info a list": (replaced(INFO, b"[]"), "it is not a JSON object"),
    "info not UTF-8": (replaced(INFO, b'{"name": "\xff"}'), "byte 10 is not UTF-8"),
    "info of NaN": (replaced(INFO, b'{"name": NaN}'), "NaN is not JSON"),
    "info with a key twice": (replaced(INFO, b'{"name": "a", "name": "b"}'), "a key occurs twice"),
    "info nested deeply": (replaced(INFO, b"[" * 200_000), "nested too deeply"),
    "info too large": (replaced(INFO, b" " * (17 << 20)), "more than the 16777216"),
    "info of huge numbers": (replaced(INFO, b"9" * 5000), "not readable JSON"),
    "no splits": (info(lambda j: j.pop("splits")), "splits is not a JSON array"),
    "splits empty": (info(lambda j: j.update(splits=[])), "no split in it"),
    "splits of numbers": (info(lambda j: j.update(splits=[3])), "a split is not a JSON object"),
    "a split twice": (info(lambda j: j["splits"].append(j["splits"][0])), "occurs twice"),
    "no name": (info(lambda j: j.pop("name")), "name is 'None', not a printable text"),
    "a name of control characters": (
        info(lambda j: j.update(name="\x1b[2J")),
        "not a printable text",
    ),
    "tfrecord": (info(lambda j: j.update(fileFormat="tfrecord")), "prepare it with array_record"),
    "no file format": (info(lambda j: j.pop("fileFormat")), "in 'tfrecord' files"),
    "a file format of another type": (info(lambda j: j.update(fileFormat=7)), "fileFormat is '7'"),
    "lengths too large": (split(shardLengths=["8"]), "7 examples in it, dataset_info.json says 8"),
    "lengths too small": (split(shardLengths=["6"]), "7 examples in it, dataset_info.json says 6"),
    "lengths of no number": (split(shardLengths=["x"]), "is 'x', not a whole number"),
    "lengths negative": (split(shardLengths=[-1]), "is '-1', not a whole number"),
    "lengths of booleans": (split(shardLengths=[True]), "is 'True', not a whole number"),
    "lengths astronomic": (split(shardLengths=["999999999999"]), "not a whole number from 0 to"),
    "lengths in an object": (split(shardLengths={}), "is not a JSON array"),
    "more files than there are": (split(shardLengths=["7", "7"]), "00000-of-00002: No such file"),
    "no images in a split": (split(shardLengths=[]), "no image in split 'training'"),
    "template absolute": (split(filepathTemplate="/etc/passwd"), "leads out of the folder"),
    "template upwards": (
        split(filepathTemplate="../{SPLIT}-{SHARD_X_OF_Y}"),
        "leads out of the folder",
    ),
    "template of attributes": (split(filepathTemplate="{SPLIT.__class__}"), "is not of the form"),
    "template unknown": (split(filepathTemplate="{WHAT}"), "is not of the form"),
    "template without a number": (
        split(filepathTemplate="x", shardLengths=["3", "4"]),
        "several files one name",
    ),
    "template of another type": (split(filepathTemplate=3), "filepathTemplate is '3'"),
    "template with NUL": (split(filepathTemplate="a\0b"), "not a printable text"),
    "a name that leads out": (info(lambda j: j.update(name="../../x")), "leads out of the folder"),
    # features.json
    "features missing": (gone(FEATURES), "features.json: No such file"),
    "features cut": (truncated(FEATURES, 100), "features.json: not readable JSON"),
    "features empty": (replaced(FEATURES, b"{}"), "is of class 'None', not FeaturesDict"),
    "features in a list": (
        lambda d: edit(d / FEATURES, lambda j: j["featuresDict"].update(features=[])),
        "featuresDict.features is not a JSON object",
    ),
    "no image": (features(lambda f: f.pop("image")), "no feature 'image'"),
    "an image of text": (features(lambda f: f.update(image=f["id"])), "not Image or Tensor"),
    "an image of float32": (
        features(lambda f: f["image"]["tensor"].update(dtype="float32")),
        "must be uint8",
    ),
    "an image of no type": (features(lambda f: f["image"]["tensor"].pop("dtype")), "must be uint8"),
    "an image of any size": (
        features(lambda f: f["image"]["tensor"]["shape"].update(dimensions=["-1", "-1", "1"])),
        "must be uint8 [H, W, C] of one size",
    ),
    "an image of two channels": (
        features(lambda f: f["image"]["tensor"]["shape"].update(dimensions=["48", "48", "2"])),
        "2 channels, not 1 or 3",
    ),
    "an image too large": (
        features(
            lambda f: f["image"]["tensor"]["shape"].update(dimensions=["50000", "50000", "1"])
        ),
        "larger than emojax reads",
    ),
    "an image of another size": (
        features(lambda f: f["image"]["tensor"]["shape"].update(dimensions=["40", "48", "1"])),
        "example 0 of training: not as features.json describes it",
    ),
    "an image without a shape": (
        features(lambda f: f["image"]["tensor"].pop("shape")),
        "is not a JSON object",
    ),
    "an unknown encoding": (
        features(lambda f: f["image"]["tensor"].update(encoding="x")),
        "is not known",
    ),
    "a label of text": (features(lambda f: f.update(label=f["id"])), "not ClassLabel"),
    "an id of numbers": (features(lambda f: f.update(id=f["image"])), "not Text"),
    "a class without a name": (
        features(lambda f: f["image"].pop("pythonClassName")),
        "of class 'None'",
    ),
    "a class of another type": (
        features(lambda f: f["image"].update(pythonClassName=[1])),
        "of class '[1]'",
    ),
    "classes of another type": (
        features(lambda f: f["label"]["classLabel"].update(numClasses={})),
        "numClasses",
    ),
    "classes more than named": (
        features(lambda f: f["label"]["classLabel"].update(numClasses=8)),
        "says 8",
    ),
    # names of classes
    "class names missing": (
        gone(LABELS),
        "label.labels.txt is missing; write the names of the 7 classes",
    ),
    "class names empty": (replaced(LABELS, b""), "names 0 classes, features.json says 7"),
    "class names repeated": (replaced(LABELS, b"a\nb\nc\nd\ne\nf\na\n"), "names 'a' 2 times"),
    "class names not UTF-8": (replaced(LABELS, b"\xff\n"), "byte 0 is not UTF-8"),
    "class names of control characters": (
        replaced(LABELS, b"a\nb\nc\nd\ne\nf\n\x1b[2J\n"),
        "is not printable",
    ),
    # Examples
    "examples missing": (gone(TRAINING), f"{TRAINING}: No such file"),
    "examples empty": (replaced(TRAINING, b""), f"{TRAINING}: damaged"),
    "examples of text": (replaced(TRAINING, b"no array_record" * 9999), f"{TRAINING}: damaged"),
    "examples cut": (truncated(TRAINING, 70_000), f"{TRAINING}: damaged"),
    "examples with a flipped byte": (flipped, "damaged"),
    "examples outside": (link_outside, "leads out of the folder"),
    "examples in a loop of links": (
        link_in_a_loop,
        f"{TRAINING}: Too many levels of symbolic links",
    ),
    "no image in an example": (rewrite(image=None), "example 0 of training"),
    "an image too short": (rewrite(image=[1, 2]), "example 0 of training"),
    "pixels beyond 255": (rewrite(image=[300] * 2304), "example 0 of training"),
    "a label too large": (rewrite(label=[7]), "label 7, and 7 classes"),
    "a label below 0": (rewrite(label=[-1]), "label -1, and 7 classes"),
    "no label in an example": (rewrite(label=None), "example 0 of training"),
    "an id that is not UTF-8": (rewrite(id=b"\xff"), "example 0 of training"),
    "no id in an example": (rewrite(id=None), "example 0 of training"),
    "a png cut": (as_png(png((48, 48))[:60]), "not a readable image"),
    "a png of another size": (as_png(png((40, 48))), "an image of 40×48 pixels"),
    "a bomb of zlib": (encoded("zlib", zlib.compress(bytes(1 << 26))), "example 0 of training"),
    "zlib cut": (encoded("zlib", zlib.compress(bytes(2304))[:5]), "example 0 of training"),
    # Special files
    **{
        f"a pipe as {name}": (pipe(name), "a pipe, socket or device")
        for name in (INFO, FEATURES, LABELS, TRAINING)
    },
    **{
        f"a folder as {name}": (directory(name), "is a folder")
        for name in (INFO, FEATURES, LABELS, TRAINING)
    },
    "a device as features": (device(FEATURES), "a pipe, socket or device"),
    "a device as class names": (device(LABELS), "a pipe, socket or device"),
    "a device as examples": (device(TRAINING), "leads out of the folder"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_in_one_line(prepared, tmp_path, capfd, damage):
    change, message = DAMAGE[damage]
    change(prepared)
    assert cli.main(["audit", "--data.path", str(prepared), "--out", str(tmp_path / "out")]) == 2
    err = capfd.readouterr().err
    assert message in err
    assert str(prepared) in err
    assert err.startswith("emojax: ")
    assert err.count("\n") == 1
    assert err[:-1].isprintable()
    assert len(err) < 700
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "damage",
    ["info cut", "features missing", "class names missing", "lengths too large", "examples cut"],
)
def test_damage_of_a_prepared_fer2013_is_refused(sound, tmp_path, damage):
    folder = Path(shutil.copytree(sound / "fer", tmp_path / "fer"))
    change, message = DAMAGE[damage]
    change(folder / "fer2013" / "1.0.0")
    with pytest.raises(InputError, match=message):
        open_split(folder, "training")


def test_class_names_in_another_order_are_no_fer2013(sound, tmp_path):
    folder = Path(shutil.copytree(sound / "fer", tmp_path / "fer"))
    names = folder / "fer2013" / "1.0.0" / LABELS
    names.write_text("\n".join(sorted(fer2013.CLASSES)))
    with pytest.raises(InputError, match="not FER2013, which has"):
        open_split(folder, "training")


@pytest.mark.parametrize(
    ("form", "data"),
    [
        (as_png, png((48, 48))),
        (lambda data: encoded("bytes", data), bytes(2304)),
        (lambda data: encoded("zlib", data), zlib.compress(bytes(2304))),
    ],
    ids=["png", "bytes", "zlib"],
)
def test_images_in_every_form_are_read(prepared, form, data):
    form(data)(prepared)
    found = open_split(prepared, "training")
    assert found.images.shape == (7, 48, 48, 1)
    assert not found.images[0:7].any()
    assert found.labels.tolist() == [3] * 7


@pytest.mark.slow
def test_random_damage_never_changes_a_result(prepared):
    """Flips, cuts and noise: the set is refused, or it is the same; array_record's own checksums
    see to the latter.
    """
    whole = (prepared / TRAINING).read_bytes()
    good = open_split(prepared, "training")
    images, labels = good.images[0:7], good.labels.tolist()
    rng = np.random.default_rng(0)
    filled = np.flatnonzero(np.frombuffer(whole, np.uint8))
    refused = 0
    for kind in np.tile(range(3), 40):
        data = bytearray(whole)
        at = int(rng.choice(filled))
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data = data[:at]
        else:
            data[at : at + 100] = rng.bytes(100)
        (prepared / TRAINING).write_bytes(data)
        try:
            found = open_split(prepared, "training")
            assert found.labels.tolist() == labels
            np.testing.assert_array_equal(found.images[0:7], images)
        except InputError:
            refused += 1
    assert refused > 60


# What a folder is


def test_auto_says_that_it_took_tfds(prepared, caplog):
    with caplog.at_level("INFO", "emojax"):
        assert open_split(prepared, "training", kind="auto").name == "fer2013 training"
    assert f"{prepared} is read as the set that TFDS prepared in {prepared}" in caplog.text


def test_auto_takes_a_folder_of_images_with_somebody_elses_info(tmp_path, sound, caplog):
    """Other tools, too, call a file dataset_info.json."""
    folder = Path(shutil.copytree(sound / "photos", tmp_path / "photos"))
    (folder / INFO).write_text('{"builder_name": "imagefolder"}')
    with caplog.at_level("INFO", "emojax"):
        assert open_split(folder, "all").images.shape == (4, 48, 48, 1)
    assert "is read as an image folder" in caplog.text


# Special files in other forms


@pytest.mark.parametrize("kind", [pipe, device, directory])
def test_an_image_that_is_no_file(sound, tmp_path, kind):
    folder = Path(shutil.copytree(sound / "photos", tmp_path / "photos"))
    kind("calm/0.png")(folder)
    with pytest.raises(InputError, match=r"0\.png: it is .*, not a regular file"):
        open_split(folder, "all")


def test_a_socket_for_an_image(sound, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(sound / "photos", tmp_path / "photos"))
    monkeypatch.chdir(folder / "calm")  # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("9.png")
        with pytest.raises(InputError, match=r"9\.png: it is a pipe, socket or device"):
            open_split(folder, "all")


def test_an_image_file_that_is_too_large(sound, tmp_path):
    folder = Path(shutil.copytree(sound / "photos", tmp_path / "photos"))
    os.truncate(folder / "calm" / "0.png", 20 << 30)  # sparse
    with pytest.raises(InputError, match=r"0\.png: 21474836480 bytes, more than"):
        open_split(folder, "all")


@pytest.mark.parametrize("kind", [pipe, device, directory])
def test_a_csv_that_is_no_file(sound, tmp_path, kind):
    shutil.copy(sound / "fer2013.csv", tmp_path)
    kind("fer2013.csv")(tmp_path)
    with pytest.raises(InputError, match=r"fer2013\.csv: it is .*, not a regular file"):
        list(fer2013.read(tmp_path))
    with pytest.raises(InputError, match=r"fer2013\.csv: it is .*, not a regular file"):
        list(fer2013.read_csv(tmp_path / "fer2013.csv"))


def test_a_csv_that_is_too_large(sound, tmp_path):
    shutil.copy(sound / "fer2013.csv", tmp_path)
    os.truncate(tmp_path / "fer2013.csv", 20 << 30)
    with pytest.raises(InputError, match=r"fer2013\.csv: 21474836480 bytes, more than"):
        list(fer2013.read(tmp_path / "fer2013.csv"))
