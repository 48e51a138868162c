"""FER2013 in both forms, image folders, batches, concept files, weight files: what is read and what
is refused.
"""

import numpy as np
import pytest
from conftest import write_fer_csv
from PIL import Image
from safetensors.numpy import save_file

from emojax.data import fer2013, folder, weights
from emojax.data.concepts import ConceptSet, load_concepts, parse_concepts
from emojax.data.image_set import ImageSet
from emojax.data.loader import batches
from emojax.data.opening import open_split
from emojax.errors import InputError
from emojax.models import vgg
from emojax.ops.topk import EMPTY


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


@pytest.fixture
def photos(tmp_path):
    root, rng = tmp_path / "photos", np.random.default_rng(0)
    for _label, name in enumerate(("calm", "joy")):
        (root / name).mkdir(parents=True)
        for i in range(3):
            size = (30 + 10 * i, 40)
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(
                root / name / f"{i}.png"
            )
    Image.new("L", (64, 50), 128).save(root / "joy" / "gray.png")
    return root


def test_folder_of_mixed_images(photos):
    images = open_split(photos, "all", size=32)
    assert images.images.shape == (7, 32, 32, 3)
    assert images.classes == ("calm", "joy")
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert images.ids[3] == "joy/0.png"
    pixels = images.images[0:7]
    assert pixels.shape == (7, 32, 32, 3)
    assert (pixels[6] == 128).all()
    assert open_split(photos, "all").images.shape[1] == folder.MIXED_SIZE


def test_folder_key_follows_the_bytes(photos):
    before = open_split(photos, "all", size=32).key
    assert open_split(photos, "all", size=32).key == before
    pixels = np.array(Image.open(photos / "calm" / "0.png"))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(photos / "calm" / "0.png")
    assert open_split(photos, "all", size=32).key != before


def test_folder_with_splits_and_gray_images(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "x" / split / "a").mkdir(parents=True)
        Image.new("L", (20, 20), 9).save(tmp_path / "x" / split / "a" / "1.png")
    assert open_split(tmp_path / "x", "test").images.shape == (1, 20, 20, 1)
    with pytest.raises(InputError, match="no split 'tset'; did you mean 'test'"):
        open_split(tmp_path / "x", "tset")


def test_open_refusals(photos, tmp_path, fer_folder):
    for path, split, message in (
        (tmp_path / "none", "all", "no data at"),
        (photos, "training", "pass the split 'all' instead of 'training'"),
        (fer_folder, "training", "raw FER2013; run `emojax prepare --source"),
    ):
        with pytest.raises(InputError, match=message):
            open_split(path, split)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images in it"):
        open_split(tmp_path / "empty", "all")
    (photos / "joy" / "bad.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match=r"bad.png: not a readable image"):
        open_split(photos, "all")


def test_image_set_checks():
    images = np.zeros((3, 8, 8), np.uint8)
    for args, message in (
        ((images.astype(np.float32),), "images are uint8"),
        ((images[:0],), "no image in it"),
        ((images, [0, 1], ("a", "b")), "3 images but labels of shape"),
        ((images, [0, 1, 2], ("a", "b")), "labels must lie in 0…1"),
    ):
        with pytest.raises(InputError, match=message):
            ImageSet.from_arrays(*args)
    assert ImageSet.from_arrays(images).first(2).images.shape == (2, 8, 8, 1)


@pytest.mark.parametrize("size", [1, 4, 10, 16])
def test_batches_are_padded_and_complete(size):
    images = np.arange(10, dtype=np.uint8)[:, None, None, None]
    seen = []
    for batch in batches(images, size):
        assert batch.images.shape == (size, 1, 1, 1)
        real = batch.indices != EMPTY
        assert (batch.images[real, 0, 0, 0] == batch.indices[real]).all()
        seen += batch.indices[real].tolist()
    assert seen == list(range(10))
    assert [b.indices[0] for b in batches(images, 4, start=8)] == [8]


def test_built_in_concepts():
    paper = load_concepts("paper25")
    assert len(paper) == 25
    mask = paper.class_mask(fer2013.CLASSES)
    assert mask.sum() == 36
    assert mask[paper.by_name["Smile"]].tolist() == [name == "happy" for name in fer2013.CLASSES]
    assert load_concepts("classes7").concepts == fer2013.CLASSES


def test_concept_files():
    plain = parse_concepts("Smile\n\n  Frown \n", "file")
    assert plain.concepts == ("Smile", "Frown")
    assert plain.class_mask(("happy",)) is None
    mapped = parse_concepts('concept,emotions\n\n"Smile, broad",happy; Surprise\n', "file")
    assert mapped.concepts == ("Smile, broad",)
    assert mapped.class_mask(("happy", "sad", "surprise")).tolist() == [[True, False, True]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no concept in it"),
        (b"\n \n", "no concept in it"),
        (b"Smile\nFrown\n\nSmile\n", "'Smile' stands on lines 1 and 4"),
        (b"Smile\n\xff\n", "byte 6 is not UTF-8"),
        (b"concept,emotions\nSmile\n", "line 2: 1 columns"),
        (b"concept,emotions\nSmile,\n", "line 2: a concept and at least one emotion"),
        (b"concept,emotions\nSmile,hapy\n", "no class of the data; did you mean 'happy'"),
    ],
)
def test_concept_file_refusals(tmp_path, content, message):
    path = tmp_path / "concepts.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_concepts(path).class_mask(fer2013.CLASSES)


def test_concept_set_refusals():
    with pytest.raises(InputError, match="no concept file 'paper26'; built in: paper25"):
        load_concepts("paper26")
    with pytest.raises(InputError, match="concept 2 is blank"):
        ConceptSet(("a", " "))


def test_weight_files(tiny_vgg, tmp_path):
    path = tmp_path / "vgg.safetensors"
    weights.save_vgg(tiny_vgg, path)
    again = weights.load_vgg(path)
    for name, array in vgg.to_torch_state_dict(again).items():
        np.testing.assert_array_equal(array, vgg.to_torch_state_dict(tiny_vgg)[name])
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"vgg.safetensors: not a readable safetensors file"):
        weights.load_vgg(path)
    save_file({"a": np.ones(2, np.float32)}, path)
    with pytest.raises(InputError, match=r"vgg.safetensors: this is not a VGGNet state dict"):
        weights.load_vgg(path)
    with pytest.raises(InputError, match="no weights file"):
        weights.load_vgg(tmp_path / "none.pt")


def test_published_checkpoint(tiny_vgg, tmp_path):
    torch = pytest.importorskip("torch", reason="the oracle extra (torch) is not installed")
    state = {name: torch.tensor(array) for name, array in vgg.to_torch_state_dict(tiny_vgg).items()}
    torch.save({"logs": {"acc": [1.0]}, "params": state}, tmp_path / "best")
    loaded = weights.load_vgg(tmp_path / "best")
    np.testing.assert_array_equal(
        vgg.to_torch_state_dict(loaded)["lin2.weight"], state["lin2.weight"].numpy()
    )

    torch.save(
        {"params": state, "code": np.random.default_rng}, tmp_path / "evil"
    )  # needs arbitrary unpickling
    with pytest.raises(InputError, match="weights_only=True"):
        weights.load_vgg(tmp_path / "evil")
    torch.save([1, 2], tmp_path / "list")
    with pytest.raises(InputError, match="no state dict"):
        weights.load_vgg(tmp_path / "list")


def test_any_prepared_set_is_read_by_index(tmp_path, fer_rows):
    """FER2013 as just one of the sets that TFDS prepared: the same images, in the same order, not
    held in memory.
    """
    fer2013.prepare(
        fer2013.read_csv(write_fer_csv(tmp_path / "fer2013.csv", fer_rows)), tmp_path / "fer"
    )
    known = open_split(tmp_path / "fer", "training")
    found = open_split(tmp_path / "fer", "training", kind="tfds")
    assert (found.ids, found.classes, found.images.shape) == (
        known.ids,
        known.classes,
        known.images.shape,
    )
    np.testing.assert_array_equal(found.labels, known.labels)
    for start in (0, 3, 13, 14):
        np.testing.assert_array_equal(
            found.images[start : start + 5], known.images[start : start + 5]
        )
    assert (
        found.key == open_split(tmp_path / "fer" / "fer2013" / "1.0.0", "training", kind="tfds").key
    )
    with pytest.raises(InputError, match="no split 'train'; did you mean 'training'"):
        open_split(tmp_path / "fer", "train", kind="tfds")
    with pytest.raises(InputError, match="holds no data set that TFDS prepared"):
        open_split(tmp_path, "training", kind="tfds")


@pytest.mark.parametrize("start", [0, 6, 12, 18])
def test_stream_of_files_goes_on_where_it_stopped(fer_folder, start):
    """Files are decoded as they are needed; from any image on, and for any share of a batch, the
    stream is the same.
    """
    images = open_split(fer_folder / "train", "all", kind="folder").images
    whole = images[0 : images.shape[0]]
    for rows in (slice(0, 6), slice(0, 2), slice(4, 6)):
        stream = list(batches(images, 6, start=start, rows=rows))
        assert len(stream) == -(-max(0, len(whole) - start) // 6)
        for number, batch in enumerate(stream):
            first, real = start + 6 * number + rows.start, batch.indices != EMPTY
            assert len(batch.indices) == rows.stop - rows.start
            np.testing.assert_array_equal(batch.indices[real], np.arange(first, first + real.sum()))
            np.testing.assert_array_equal(batch.images[real], whole[first : first + real.sum()])
            assert not batch.images[~real].any()


def test_an_unreadable_file_in_a_stream_is_named(fer_folder):
    images = open_split(fer_folder / "train", "all", kind="folder").images
    next((fer_folder / "train" / "happy").iterdir()).write_bytes(b"gone")
    with pytest.raises(InputError, match=r"happy.*not a readable image"):
        list(batches(images, 2))
