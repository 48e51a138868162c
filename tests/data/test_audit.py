"""`emojax audit`: what it finds in every form of data set, and lists of images that the other verbs
leave out.
"""

import csv

import numpy as np
import pytest
from commands_in_process import rows_of
from conftest import write_fer_csv
from PIL import Image, ImageDraw

from emojax import cli
from emojax.data import audit, fer2013
from emojax.data.opening import open_split
from emojax.errors import InputError
from emojax.synthetic import faces


def warning_icon(left):
    image = Image.new("L", (48, 48))
    ImageDraw.Draw(image).polygon(
        [(left, 36), (left + 12, 14), (left + 24, 36)], outline=255, width=2
    )
    return np.asarray(image)


def page(top):
    image = Image.new("L", (48, 48), 252)
    for y in range(top, 48, 8):
        ImageDraw.Draw(image).line([(4, y), (40, y)], fill=120)
    return np.asarray(image)


@pytest.fixture(scope="module")
def spoilt():
    """Rows (label, pixels, usage) of rendered faces with known faults, and the faults as {row:
    reason}.
    """
    training, testing = (
        faces.random_faces(n, seed).render()[..., 0] for n, seed in ((30, 1), (12, 2))
    )
    rows = [(i % 7, x.reshape(-1), "Training") for i, x in enumerate(training)]
    rows += [
        (i % 7, x.reshape(-1), "PublicTest" if i < 6 else "PrivateTest")
        for i, x in enumerate(testing)
    ]
    faults = {}

    def spoil(row, pixels, reason):
        rows[row] = (rows[row][0], np.asarray(pixels, np.uint8).reshape(-1), rows[row][2])
        faults[row] = reason

    spoil(3, np.zeros((48, 48)), "blank")
    spoil(4, warning_icon(10), "placeholder")
    spoil(33, page(5), "placeholder")
    spoil(8, training[7], "duplicate")
    spoil(12, np.clip(training[11] * 0.9 + 5, 0, 255), "near_duplicate")
    spoil(35, training[15], "leak")
    spoil(40, np.clip(training[16] * 0.95 + 4, 0, 255), "leak")
    spoil(36, testing[0], "duplicate")
    return rows, faults


def write_folder(root, rows, name="{usage}_{row}.png", split="{part}"):
    for row, (label, pixels, usage) in enumerate(rows):
        part = split.format(part="train" if usage == "Training" else "test")
        folder = root / part / fer2013.CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(pixels, np.uint8).reshape(48, 48)).save(
            folder / name.format(usage=usage, row=row)
        )
    return root


@pytest.mark.parametrize("form", ["csv", "raw", "prepared", "folder"])
def test_finds_the_faults_in_every_form(capsys, tmp_path, spoilt, form):
    rows, faults = spoilt
    if form == "csv":
        data = write_fer_csv(tmp_path / "fer2013.csv", rows)
    elif form == "raw":
        data = write_folder(tmp_path / "raw", rows)
    elif form == "prepared":
        data = tmp_path / "fer"
        fer2013.prepare(fer2013.read(write_fer_csv(tmp_path / "fer2013.csv", rows)), data)
    else:
        data = write_folder(tmp_path / "photos", rows, name="{row:03}.png")
    flags = ["--exclude", "--sheet", "--out", str(tmp_path / "audit")]
    assert cli.main(["audit", "--data.path", str(data), *flags]) == 0
    found = rows_of(tmp_path / "audit" / "audit.csv")
    assert list(found[0]) == ["file", "split", "label", "reason", "detail"]
    assert sorted(row["reason"] for row in found) == sorted(faults.values())
    if form == "csv":
        assert {row["file"]: row["reason"] for row in found} == {
            f"row {row + 1}": faults[row] for row in faults
        }
        exact = next(row for row in found if row["file"] == "row 9")
        assert exact["detail"] == "same pixels as row 8, labelled angry there"
    assert "8 of 42 images found" in capsys.readouterr().out
    with Image.open(tmp_path / "audit" / "sheet.png") as sheet:
        assert sheet.width == 24 * 50
    again = [row["reason"] for row in rows_of(tmp_path / "audit" / "exclude.csv")]
    assert sorted(again) == sorted(faults.values())


def test_unreadable_images_are_reported(capsys, tmp_path, spoilt):
    rows, _ = spoilt
    table = write_fer_csv(tmp_path / "fer2013.csv", rows[:3])
    with open(table, "a") as file:
        file.write("1,7 8,Training\n9,7,Training\n1,7\n")
    raw, photos = (
        write_folder(tmp_path / "raw", rows),
        write_folder(tmp_path / "photos", rows, name="{row}.png"),
    )
    (raw / "test" / "happy" / "PublicTest_x.jpg").write_bytes(b"no image")
    (raw / "test" / "happy" / "Training_x.jpg").write_bytes(b"no image")
    (photos / "test" / "happy" / "x.jpg").write_bytes(b"\xff\xd8\xff")
    for data, count, detail in (
        (table, 3, "row 4: 2 pixel values, not 2304"),
        (raw, 2, "PublicTest_x.jpg: not a readable image"),
        (photos, 1, "x.jpg: not a readable image"),
    ):
        args = [
            "--data.path",
            str(data),
            "--reasons",
            "unreadable",
            "--out",
            str(tmp_path / "audit"),
            "--overwrite",
        ]
        assert cli.main(["audit", *args]) == 0
        found = rows_of(tmp_path / "audit" / "audit.csv")
        assert [row["reason"] for row in found] == ["unreadable"] * count
        assert detail in found[0]["detail"]
    capsys.readouterr()


def test_the_command_line_knows_all_reasons():
    assert cli.parse(cli.COMMANDS["audit"], []).reasons == audit.REASONS


@pytest.mark.slow
def test_rendered_faces_are_no_placeholders():
    found = audit.audit(audit.pictures(None, "faces", limit=100))
    assert found.images == {"training": 100, "public_test": 100, "private_test": 100}
    assert found.findings == []


def test_near_duplicates_across_tiles(monkeypatch):
    monkeypatch.setattr(audit, "_TILE", 7)
    bits = np.random.default_rng(0).random((40, audit.BITS)) < 0.5
    bits[30] = bits[2]
    bits[30, :5] ^= True
    bits[35] = bits[30]
    bits[35, 10:12] ^= True
    assert audit._closest(bits, 12) == {30: (2, 5), 35: (30, 2)}
    assert audit._closest(bits, 4) == {35: (30, 2)}


@pytest.fixture
def world(tmp_path, fer_rows):
    """The same images as a prepared set and as an image folder."""
    fer2013.prepare(
        fer2013.read(write_fer_csv(tmp_path / "fer2013.csv", fer_rows)), tmp_path / "fer"
    )
    return {
        "fer": tmp_path / "fer",
        "folder": write_folder(tmp_path / "photos", fer_rows, name="{row:03}.png"),
    }


def listed(path, ids):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["file", "reason"], *([one, "mine"] for one in ids)])
    return path


@pytest.mark.parametrize(
    ("form", "split", "other"), [("fer", "training", "public_test"), ("folder", "train", "test")]
)
def test_excluded_images_leave(tmp_path, world, form, split, other):
    whole, elsewhere = open_split(world[form], split), open_split(world[form], other)
    gone = [whole.ids[0], whole.ids[5], elsewhere.ids[1]]
    left = open_split(world[form], split, exclude=listed(tmp_path / "x.csv", gone))
    kept = [row for row in range(14) if row not in (0, 5)]
    assert list(left.ids) == [whole.ids[row] for row in kept]
    assert left.key != whole.key
    np.testing.assert_array_equal(left.labels, whole.labels[kept])
    pixels = whole.images[:14]
    for start in range(0, 12, 5):
        np.testing.assert_array_equal(
            left.images[start : start + 5], pixels[kept][start : start + 5]
        )
    assert left.images.shape == (12, *whole.images.shape[1:])
    same = open_split(world[form], split, exclude=listed(tmp_path / "y.csv", [elsewhere.ids[1]]))
    assert same.key == whole.key
    assert len(open_split(world[form], split, limit=3, exclude=tmp_path / "x.csv")) == 3
    for ids, message in (
        (["nothing"], r"x.csv: no image 'nothing' in .*; is this the list of another data set\?"),
        ([f"{split}-0123", "b"], "no image 'b' and 1 more"),
        (whole.ids, "excludes every image"),
    ):
        with pytest.raises(InputError, match=message):
            open_split(world[form], split, exclude=listed(tmp_path / "x.csv", ids))


@pytest.mark.slow
def test_rendered_faces_can_be_excluded(tmp_path):
    path = listed(tmp_path / "x.csv", ["faces/training/1", "faces/public_test/9"])
    images = open_split(None, "training", kind="faces", limit=4, exclude=path)
    assert images.ids == ["faces/training/0", "faces/training/2", "faces/training/3"]


def test_an_unreadable_image_can_be_excluded(tmp_path, world):
    bad = world["folder"] / "train" / "happy" / "bad.png"
    bad.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"bad\.png: not a readable image"):
        open_split(world["folder"], "train")
    args = [
        "--data.path",
        str(world["folder"]),
        "--exclude",
        "--reasons",
        "unreadable",
        "--out",
        str(tmp_path / "audit"),
    ]
    assert cli.main(["audit", *args]) == 0
    assert (
        len(open_split(world["folder"], "train", exclude=tmp_path / "audit" / "exclude.csv")) == 14
    )


def test_the_list_of_raw_data_fits_the_prepared(tmp_path, spoilt):
    rows, faults = spoilt
    source = write_fer_csv(tmp_path / "fer2013.csv", rows)
    assert (
        cli.main(
            ["audit", "--data.path", str(source), "--exclude", "--out", str(tmp_path / "audit")]
        )
        == 0
    )
    assert cli.main(["prepare", "--source", str(source), "--out", str(tmp_path / "fer")]) == 0
    counts = {
        split: len(open_split(tmp_path / "fer", split, exclude=tmp_path / "audit" / "exclude.csv"))
        for split in fer2013.SPLITS
    }
    assert sum(counts.values()) == len(rows) - len(faults)


def test_names_with_brackets_are_no_markup(capsys, tmp_path, spoilt):
    photos = write_folder(tmp_path / "photos", spoilt[0][:5], split="[bold]")
    assert cli.main(["audit", "--data.path", str(photos), "--out", str(tmp_path / "audit")]) == 0
    assert "[bold]" in capsys.readouterr().out
