"""FER2013 in both of its raw forms, and prepared."""

import numpy as np
import pytest
from conftest import write_fer_csv
from PIL import Image

from emojax.data import fer2013
from emojax.data.opening import open_split
from emojax.errors import InputError


def test_csv_and_folder_give_the_same_data(tmp_path, fer_rows, fer_folder):
    sources = {"csv": write_fer_csv(tmp_path / "fer2013.csv", fer_rows), "folder": fer_folder}
    sets = {}
    for form, source in sources.items():
        counts = fer2013.prepare(fer2013.read(source), tmp_path / form)
        assert {split: int(n.sum()) for split, n in counts.items()} == {
            "training": 14,
            "public_test": 7,
            "private_test": 7,
        }
        sets[form] = {split: open_split(tmp_path / form, split) for split in fer2013.SPLITS}
    for split in fer2013.SPLITS:
        a, b = (sets[form][split] for form in sources)
        assert a.ids == b.ids
        assert a.key == b.key
    training = sets["csv"]["training"]
    assert len(set(training.ids)) == 14
    assert sum(name.endswith("-2") for name in training.ids) == 1  # the repeated image
    want = {
        (label, pixels.astype(np.uint8).tobytes())
        for label, pixels, usage in fer_rows
        if usage == "Training"
    }
    assert {
        (int(y), x.tobytes()) for x, y in zip(training.images, training.labels, strict=True)
    } == want
    assert training.classes == fer2013.CLASSES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("emotion,pixels\n", r"columns are 'emotion,pixels', not 'emotion,pixels,Usage'"),
        ("", "columns are ''"),
        (
            "emotion,pixels,Usage\n7,{ok},Training\n",
            "row 1: emotion '7' is not a number from 0 to 6",
        ),
        (
            "emotion,pixels,Usage\n1,{ok},Training\n1,{ok} 3,Training\n",
            "row 2: 2305 pixel values, not 2304",
        ),
        (
            "emotion,pixels,Usage\n1,{ok},Training\n1,5 256,Training\n",
            "row 2: pixel value '256' is not a whole number",
        ),
        ("emotion,pixels,Usage\n1,5 x,Training\n", "row 1: pixel value 'x'"),
        ("emotion,pixels,Usage\n1,-5,Training\n", "row 1: pixel value '-5'"),
        ("emotion,pixels,Usage\n1,{ok},Test\n", "row 1: Usage 'Test' is not one of Training"),
        ("emotion,pixels,Usage\n1,{ok}\n", "row 1: 2 columns, not 3"),
        ("emotion,pixels,Usage\n", "the source holds no image"),
    ],
)
def test_csv_refusals(tmp_path, text, message):
    path = tmp_path / "fer2013.csv"
    path.write_text(text.replace("{ok}", " ".join(["7"] * 2304)))
    with pytest.raises(InputError, match=message):
        fer2013.prepare(fer2013.read(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_refusals(fer_folder, tmp_path):
    def refused(message):
        with pytest.raises(InputError, match=message):
            list(fer2013.read(fer_folder))

    bad = fer_folder / "train" / "happy" / "Training_bad.jpg"
    bad.write_bytes(b"not an image")
    refused("Training_bad.jpg: not a readable image")
    Image.new("L", (40, 40)).save(bad)
    refused("Training_bad.jpg: 40×40 pixels, not 48×48")
    bad.unlink()
    stray = fer_folder / "train" / "happy" / "PublicTest_1.jpg"
    Image.new("L", (48, 48)).save(stray)
    refused("a file of train is not named after its split")
    stray.unlink()
    (fer_folder / "train" / "hapy").mkdir()
    refused("'hapy' is no class of FER2013; did you mean 'happy'")
    with pytest.raises(InputError, match="no folder 'train'"):
        list(fer2013.read(tmp_path))
    with pytest.raises(InputError, match="no FER2013 at"):
        list(fer2013.read(tmp_path / "nowhere"))
