"""`emojax predict`: a row for every image, whatever the batch, the damage or the interruption."""

import csv
import os
import shutil
import struct
import textwrap
from pathlib import Path

import numpy as np
import pytest
from conftest import generated_images, some_record
from PIL import Image

import emojax
from emojax.cli import main
from emojax.commands import predict as command
from emojax.data.weights import load_network, save_vgg
from emojax.training.evaluate import evaluate

SIZE = 48


@pytest.fixture(scope="module")
def images():
    return generated_images(150, 4, "faces")


@pytest.fixture(scope="module")
def faces(tmp_path_factory, images) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    for number, image in enumerate(images.images[:]):
        Image.fromarray(image[..., 0]).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_vgg) -> Path:
    path = tmp_path_factory.mktemp("weights") / "vgg.safetensors"
    save_vgg(tiny_vgg, path)
    return path


def run(*args):
    return main(["predict", *map(str, args)])


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_rows_are_what_the_network_says(tmp_path, faces, weights, images, capsys):
    out = tmp_path / "p.csv"
    assert run(faces, "--target.weights", weights, "--out", out) == 0, capsys.readouterr().err
    assert "150 images in" in capsys.readouterr().out
    rows = table(out)
    assert [row["file"] for row in rows] == [str(path) for path in sorted(faces.iterdir())]
    logits = np.float64(evaluate(load_network(weights), images).logits)
    want = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    classes = list(rows[0])[2:9]
    got = np.array([[float(row[name]) for name in classes] for row in rows])
    # The logits are the same bits; what is left is the rounding to float32.
    np.testing.assert_allclose(got, want, atol=2**-24)
    second, best = np.sort(want, axis=1)[:, -2:].T
    for row, probabilities, margin in zip(rows, want, best - second, strict=True):
        assert row["label"] == classes[probabilities.argmax()]
        assert abs(margin - 0.1) < 1e-6 or row["near_tie"] == str(bool(margin < 0.1)).lower()
        assert (row["units"], row["reason"]) == ("", "")


@pytest.mark.slow
def test_table_does_not_depend_on_the_batch(tmp_path, faces, weights):
    tables = []
    for batch in (1, 300):
        out = tmp_path / f"{batch}.csv"
        assert run(faces, "--target.weights", weights, "--batch", batch, "--out", out) == 0
        tables.append(out.read_bytes())
    assert tables[0] == tables[1]


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_stopped_and_resumed_to_the_same_file(tmp_path, faces, weights, monkeypatch, capsys):
    (tmp_path / "bad.png").write_bytes(b"no image")
    given = [faces, tmp_path / "bad.png", "--target.weights", weights, "--batch", "1"]
    assert run(*given, "--out", tmp_path / "whole.csv") == 0
    out = tmp_path / "p.csv"
    add = command._Table.add

    def add_and_die(self, rows, *, images):
        if self.rows:
            self._file.write(b'"half a r')
            self._file.flush()
            raise Killed
        add(self, rows, images=images)

    monkeypatch.setattr(command._Table, "add", add_and_die)
    with pytest.raises(Killed):
        run(*given, "--out", out)
    assert not out.exists()
    monkeypatch.undo()
    capsys.readouterr()
    assert run(*given, "--out", out) == 0
    assert "resuming after 128 of 151 images" in capsys.readouterr().out
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not list(tmp_path.glob(".p.csv*"))


@pytest.mark.slow
def test_stopped_table_of_other_images_is_not_used(tmp_path, faces, weights, monkeypatch, capsys):
    def die(*_):
        raise Killed

    out = tmp_path / "p.csv"
    monkeypatch.setattr(command._Table, "finish", die)
    with pytest.raises(Killed):
        run(faces, "--target.weights", weights, "--out", out)
    monkeypatch.undo()
    few = sorted(faces.iterdir())[:3]
    assert run(*few, "--target.weights", weights, "--out", out) == 0
    assert "resuming" not in capsys.readouterr().out
    assert [row["file"] for row in table(out)] == list(map(str, few))


OWN = """
import jax.numpy as jnp

def make():
    def run(params, images):
        mean = images.mean((1, 2))
        return mean @ params, {"mean": mean}
    return run, jnp.asarray([[1.0, 2], [0, 1], [3, 0]])
"""


def test_a_factory_resumes_only_under_a_key(tmp_path, faces, monkeypatch, capsys):
    """Without one nothing tells whether its code is still the same."""
    (tmp_path / "own_network_to_predict.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    few = sorted(faces.iterdir())[:2]
    args = [*few, "--target.factory", "own_network_to_predict:make", "--out", "p.csv"]
    args.append("--overwrite")

    def die(*_):
        raise Killed

    for key, resumed in (([], False), (["--target.key", "1"], True)):
        with monkeypatch.context() as patched:
            patched.setattr(command._Table, "finish", die)
            with pytest.raises(Killed):
                run(*args, *key)
        capsys.readouterr()
        assert run(*args, *key) == 0
        assert ("resuming after 2 of 2 images" in capsys.readouterr().out) == resumed
    rows = table("p.csv")
    assert [row["label"] for row in rows] == ["class 0"] * 2  # gray: 4 times the mean, and 3 times


def bad_files(folder: Path) -> list[Path]:
    """Files that are no readable 8-bit images, of forty kinds."""
    gray = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8))
    written = {}
    for ending in ("jpg", "png", "bmp", "webp", "tif", "gif"):
        gray.save(folder / f"whole.{ending}")
        data = (folder / f"whole.{ending}").read_bytes()
        (folder / f"whole.{ending}").unlink()
        for share, name in ((0.02, "start"), (0.3, "third"), (0.6, "most")):
            written[f"{name}.{ending}"] = data[: int(len(data) * share)]
        written[f"zeros.{ending}"] = bytes(len(data))
    bomb = (b"\x89PNG\r\n\x1a\n", 13, b"IHDR", 60000, 60000, 8, 0, 0, 0, 0, 0)
    png = struct.pack(">8sI4sIIBBBBBI", *bomb)
    written |= {
        "empty.png": b"",
        "byte.png": b"\x89",
        "text.png": "smile ☺".encode(),
        "page.jpg": b"<html><img src='face.jpg'></html>",
        "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "paper.png": b"%PDF-1.7\n",
        "archive.png": b"PK\x03\x04" + bytes(40),
        "noise.jpg": np.random.default_rng(1).bytes(999),
        "bomb.png": png,
    }
    for name, data in written.items():
        (folder / name).write_bytes(data)
    Image.fromarray(np.ones((9, 9), np.uint16)).save(folder / "sixteen.png")
    Image.fromarray(np.ones((9, 9), np.float32)).save(folder / "float.tif")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "broken_link.png").symlink_to(folder / "nowhere.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    return [*sorted(folder.iterdir()), folder / "missing.png"]


@pytest.mark.slow
def test_every_bad_file_is_a_row_with_its_reason(tmp_path, faces, weights):
    folder = tmp_path / "bad"
    folder.mkdir()
    bad = [path for path in bad_files(folder) if path.name != "folder.png"]
    assert len(bad) >= 39
    good = [faces / "000.png", faces / "001.png"]
    out = tmp_path / "p.csv"
    paths = [good[0], *bad, good[1]]
    assert run(*paths, "--target.weights", weights, "--out", out) == 0
    rows = table(out)
    assert [row["file"] for row in rows] == list(map(str, paths))
    readable = [row["file"] for row in rows if not row["reason"]]
    assert readable == list(map(str, good))
    assert all(row["label"] == "" for row in rows if row["reason"])
    assert not any(" at 0x" in row["reason"] for row in rows)
    # The good ones say what they say alone.
    alone = tmp_path / "alone.csv"
    assert run(*good, "--target.weights", weights, "--out", alone) == 0
    assert [row for row in rows if not row["reason"]] == table(alone)


@pytest.mark.slow
def test_patterns_and_odd_names(tmp_path, faces, weights, monkeypatch):
    odd = ["a b.png", 'quote".png', "line\nbreak.png", "comma,.png", "[1].png", "ß☺.png"]
    for name in odd:
        shutil.copyfile(faces / "000.png", tmp_path / name)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    shutil.copyfile(faces / "001.png", tmp_path / "deep" / "er" / "x.PNG")
    (tmp_path / "deep" / "notes.txt").write_text("not an image, and not named as one")
    monkeypatch.chdir(tmp_path)
    args = ["*.png", "deep", "--target.weights", weights, "--out", "p.csv"]
    assert run(*args) == 0
    assert [row["file"] for row in table("p.csv")] == [*sorted(odd), "deep/er/x.PNG"]


@pytest.mark.slow
def test_prepared_set_and_parquet(tmp_path, sound, weights):
    parquet = pytest.importorskip("pyarrow.parquet", reason="parquet needs pyarrow")
    args = [sound / "fer", "--target.weights", weights]
    assert run(*args, "--out", tmp_path / "p.csv") == 0
    assert run(*args, "--out", tmp_path / "p.parquet") == 0
    rows = table(tmp_path / "p.csv")
    assert {row["file"].split("-")[0] for row in rows} == {
        "training",
        "public_test",
        "private_test",
    }
    for row, other in zip(
        rows, parquet.read_table(tmp_path / "p.parquet").to_pylist(), strict=True
    ):
        assert list(row) == list(other)
        assert np.float32(row["happy"]) == np.float32(other["happy"])
        assert (row["file"], row["label"]) == (other["file"], other["label"])
        assert row["near_tie"] == str(other["near_tie"]).lower()


@pytest.mark.long
def test_units_that_pushed_the_decision(tmp_path, faces, weights, tiny_clip, tiny_vgg, images):
    out = tmp_path / "p.csv"
    concepts = emojax.load_concepts("paper25")
    record = some_record(tiny_clip.key)
    dissection = emojax.dissect(record, concepts, clip=tiny_clip, null_sets=0, top_k=20)
    labels = tmp_path / "run"
    emojax.write_report(dissection, labels)
    args = ["--target.weights", weights, "--labels", labels, "--units", "2", "--out", out]
    assert run(faces, *args) == 0
    _, taps = tiny_vgg(tiny_vgg.preprocess(images.images[:5]), taps="relu")
    pushes = np.asarray(taps["lin2"])[:, :, None] * np.asarray(tiny_vgg.lin3.kernel[...])
    rows = table(out)[:5]
    names = list(rows[0])[2:9]
    with open(labels / "dissection.csv", encoding="utf-8", newline="") as file:
        labelled = [row for row in csv.DictReader(file) if row["layer"] == "lin2"]
    for row, push in zip(rows, pushes, strict=True):
        of_class = push[:, names.index(row["label"])]
        for text, unit in zip(row["units"].split("; "), np.argsort(-of_class)[:2], strict=True):
            assert text.startswith(f"lin2:{unit} {labelled[unit]['concept']} ")
            assert float(text.split()[-1]) == pytest.approx(of_class[unit], rel=1e-2)


def test_faces_that_a_detector_finds(tmp_path, weights, images, monkeypatch):
    """A face in a photograph gets the row of the face alone; a photograph without one, a reason."""
    module = """
        def find(image):
            if image.max() == 0:
                return None
            rows, columns = image[:, :, 0].any(axis=1).nonzero()[0], image[0, :, 0].nonzero()[0]
            return [[columns[0], rows[0], len(columns), len(rows)]]
        """
    (tmp_path / "faces_of.py").write_text(textwrap.dedent(module))
    monkeypatch.chdir(tmp_path)
    face = np.maximum(images.images[:1][0, ..., 0], 1)
    photograph = np.zeros((48, 120), np.uint8)
    photograph[:, 50:98] = face
    for name, pixels in {"face": face, "photo": photograph, "none": 0 * photograph}.items():
        Image.fromarray(pixels).save(f"{name}.png")
    args = ["--target.weights", weights, "--detector", "faces_of:find"]
    assert run("face.png", "photo.png", "none.png", *args, "--out", "p.csv") == 0
    alone, found, none = table("p.csv")
    assert none["reason"] == "no face found"
    assert found == alone | {"file": "photo.png"}
    assert found["label"]


def test_units_of_equal_push_are_named_in_order():
    values = np.float32([1, 3, 2, 3, 1, 2])
    for count in range(1, 8):
        want = (-values).argsort(kind="stable")[:count]
        np.testing.assert_array_equal(command._largest(values, count), want)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "name images: emojax predict PATH"),
        (["FACES", "--out", "p.txt"], "ends in .csv or .parquet"),
        (["FACES", "--out", "there.csv"], "is there already"),
        (["*.nothing"], "no file matches *.nothing"),
        (["empty"], "no images in it or below"),
        (["photoz/"], "photoz/: there is no such file or folder"),
        (["FACES", "--labels", "empty"], "is not an emojax run"),
        (["FACES", "--detector", "json"], "--detector is 'json', not package.module:function"),
        (["FACES", "--detector", "json:none"], "--detector json:none: module 'json' has no"),
        (["FACES", "--detector", "json:__name__"], "it is a str, not a function"),
    ],
)
def test_refusals(tmp_path, monkeypatch, faces, weights, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.csv").write_text("mine")
    args = [faces if arg == "FACES" else arg for arg in args]
    assert run(*args, "--target.weights", weights) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "there.csv").read_text() == "mine"
