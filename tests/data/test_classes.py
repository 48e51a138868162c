"""Class order: images and networks are matched by name, or refused; nothing is wrong in silence."""

import dataclasses
import json
import struct

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import emojax
from emojax import cli
from emojax.data import classes, fer2013
from emojax.data.concepts import ConceptSet
from emojax.data.image_set import ImageSet
from emojax.data.opening import open_split
from emojax.data.weights import load_network, save_network, save_vgg, with_classes
from emojax.editing import activations as layers
from emojax.errors import InputError
from emojax.models.deep_emotion import DeepEmotion, DeepEmotionConfig
from emojax.probing.network import as_network
from emojax.synthetic import faces
from emojax.synthetic.shipped import ASSETS
from emojax.training.evaluate import better_order, evaluate, join

FACES = 80
ALIASED = ("Anger", "disgusted", "FEARFUL", "happiness", "Sadness", "surprised", "calm")
ALPHABETICAL = tuple(sorted(fer2013.CLASSES))
MOVED = [ALPHABETICAL.index(name) for name in fer2013.CLASSES]


def write_folder(root, pictures, labels, names):
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        folder = root / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[..., 0]).save(folder / f"{number}.png")
    return root


def without_names(source, target):
    """The same tensors in a file that says nothing of its classes."""
    save_network(with_classes(load_network(source), None), target)
    return target


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """The same rendered faces as prepared FER2013, as alphabetical folders, and under aliases."""
    root = tmp_path_factory.mktemp("forms")
    images = faces.random_faces(FACES, 21).image_set("faces")
    pictures, labels = np.asarray(images.images[:FACES]), images.labels
    assert set(labels) == set(range(7))
    read = [
        fer2013.Face("public_test", int(label), picture.tobytes(), str(number))
        for number, (picture, label) in enumerate(zip(pictures, labels, strict=True))
    ]
    fer2013.prepare(read, root / "fer")
    write_folder(root / "folders", pictures, labels, fer2013.CLASSES)
    write_folder(root / "aliases", pictures, labels, ALIASED)
    without_names(ASSETS / "vgg.safetensors", root / "nameless.safetensors")
    return root


def splits(root):
    return [
        open_split(root / "fer", "public_test"),
        open_split(root / "folders", "all"),
        open_split(root / "aliases", "all"),
    ]


def evaluated(out, *arguments):
    code = cli.main(["evaluate", *map(str, arguments), "--out", str(out)])
    summary = out / "summary.json"
    return code, json.loads(summary.read_text())["splits"] if summary.exists() else None


@pytest.mark.parametrize("weights", ["named", "nameless"])
def test_every_form_of_the_same_faces_gives_the_same_accuracy(forms, tmp_path, weights, capsys):
    path = ASSETS / "vgg.safetensors" if weights == "named" else forms / "nameless.safetensors"
    found = []
    for form, split in (("fer", "public_test"), ("folders", "all"), ("aliases", "all")):
        given = ("--target.weights", path, "--data.path", forms / form, "--data.test-splits", split)
        code, summary = evaluated(tmp_path / form, *given)
        assert code == 0
        (only,) = summary.values()
        found.append((only["correct"], only["confusion"], only["classes"]))
        printed = capsys.readouterr()
        assert ("does not name its classes" in printed.out) == (weights == "nameless")
        assert "another order" not in printed.err
    assert found[0] == found[1] == found[2]
    assert found[0][0] > 0.6 * FACES
    assert tuple(found[0][2]) == fer2013.CLASSES


def test_in_python_as_on_the_command_line(forms, tmp_path):
    model = emojax.load_vgg(ASSETS / "vgg.safetensors")
    results = [evaluate(model, images) for images in splits(forms)]
    assert len({result.top(1) for result in results}) == 1
    assert {result.classes for result in results} == {fer2013.CLASSES}
    read = [layers.pre_bias_activations(model, images, "lin2") for images in splits(forms)]
    counts = [np.bincount(each.labels, minlength=7).tolist() for each in read]
    assert counts[0] == counts[1] == counts[2]


def test_reordering_gives_new_labels_and_a_new_key():
    pixels = np.zeros((3, 8, 8), np.uint8)
    images = ImageSet.from_arrays(pixels, [0, 1, 2], ("Angry", "happiness", "sad"))
    turned = images.in_order(("happy", "sad", "anger"))
    assert turned.labels.tolist() == [2, 0, 1]
    assert turned.labels.dtype == np.int32
    assert turned.classes == ("happy", "sad", "anger")
    assert turned.key != images.key
    assert images.labels.tolist() == [0, 1, 2]
    assert images.in_order(images.classes) is images


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vgg", "deep_emotion"])
def test_weights_files_carry_the_names(tiny_vgg, tmp_path, kind):
    model = tiny_vgg
    if kind == "deep_emotion":
        model = nnx.jit(lambda: DeepEmotion(DeepEmotionConfig(), rngs=nnx.Rngs(0)))()
    path = tmp_path / "model.safetensors"
    save_network(with_classes(model, ALPHABETICAL), path)
    named = load_network(path)
    assert named.config.class_names == ALPHABETICAL
    save_network(model, path)
    nameless = load_network(path)
    assert nameless.config.class_names is None
    assert as_network(named).key == as_network(nameless).key, "records would go stale"


def test_the_demo_network_names_its_classes():
    assert load_network(ASSETS / "vgg.safetensors").config.class_names == fer2013.CLASSES


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("[", "record of class names is damaged"),
        ('{"a": 1}', "record of class names is damaged"),
        ("[1, 2, 3, 4, 5, 6, 7]", "record of class names is damaged"),
        ('["a", "b", "c", "d", "e", "f", "\\u001b[2J"]', "record of class names is damaged"),
        ('["a", "b"]', "names 2 classes and has 7 outputs"),
        ('["a", "b", "c", "d", "e", "sad", "Sadness"]', "'sad' and 'Sadness' mean the same"),
    ],
)
def test_damaged_names_are_refused(tmp_path, entry, message):
    whole = (ASSETS / "vgg.safetensors").read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    header["__metadata__"]["emojax.classes"] = entry
    written = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(written)) + written + whole[8 + size :])
    with pytest.raises(InputError, match=message):
        load_network(path)


def test_other_names_are_refused_before_any_work(forms, tmp_path, capsys):
    names = (*fer2013.CLASSES[:6], "contempt")
    images = splits(forms)[0]
    write_folder(tmp_path / "set", np.asarray(images.images[:FACES]), images.labels, names)
    given = ("--target.weights", ASSETS / "vgg.safetensors", "--data.test-splits", "all")
    assert evaluated(tmp_path / "out", *given, "--data.path", tmp_path / "set") == (2, None)
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "angry, contempt, disgust" in error
    assert "the network angry, disgust, fear" in error


def test_other_names_are_the_images_own_where_the_weights_say_nothing(forms, tmp_path, capsys):
    names = ("one", "two", "three", "four", "five", "six", "seven")
    images = splits(forms)[0]
    write_folder(tmp_path / "set", np.asarray(images.images[:FACES]), images.labels, names)
    given = ("--target.weights", forms / "nameless.safetensors", "--data.test-splits", "all")
    code, summary = evaluated(tmp_path / "out", *given, "--data.path", tmp_path / "set")
    assert code == 0
    printed = capsys.readouterr()
    line = "taken to be five, four, one, seven, six, three, two (the order in set all)"
    assert line in printed.out
    assert "another order" in printed.err
    assert f"taken as {', '.join(names)}" in printed.err
    given = (*given, "--target.classes", *names)
    code, right = evaluated(tmp_path / "right", *given, "--data.path", tmp_path / "set")
    assert code == 0
    assert right["set all"]["correct"] > summary["set all"]["correct"]
    printed = capsys.readouterr()
    assert "does not name its classes" not in printed.out
    assert "another order" not in printed.err


def test_names_given_against_the_file_are_refused(forms, tmp_path, capsys):
    given = ("--target.weights", ASSETS / "vgg.safetensors", "--data.path", forms / "fer")
    given = (*given, "--data.test-splits", "public_test", "--target.classes")
    assert evaluated(tmp_path / "out", *given, *ALPHABETICAL) == (2, None)
    assert "itself names its outputs angry, disgust" in capsys.readouterr().err
    assert evaluated(tmp_path / "out", *given, "angry", "sad") == (2, None)
    assert "--target.classes: the network has 7 outputs, not 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("one", "other"), [("happy", "Happy"), ("happy", "happiness"), ("calm", "Neutral")]
)
def test_names_that_mean_the_same_are_refused(tmp_path, one, other):
    pixels = np.zeros((2, 8, 8, 1), np.uint8)
    message = "mean the same; merge them, or rename one"
    with pytest.raises(InputError, match=message):
        ImageSet.from_arrays(pixels, [0, 1], (one, other))
    write_folder(tmp_path, pixels, [0, 1], (one, other))
    with pytest.raises(InputError, match=message):
        open_split(tmp_path, "all")


@pytest.mark.slow
def test_pooled_splits_are_matched_by_name(tiny_vgg, tmp_path, blobs, capsys):
    """Two splits, two alphabets: without names in the weights, the first split's order holds."""
    letters = ("a1", "b1", "c1", "d1", "e1", "f1", "g1")
    upper = ("A1", "b1", "C1", "d1", "E1", "f1", "G1")  # sorted: A1, C1, E1, G1, b1, d1, f1
    pictures, labels = np.asarray(blobs.images[:60]), blobs.labels[:60]
    for split, names in (("one", letters), ("two", upper)):
        write_folder(tmp_path / "set" / split, pictures, labels, names)
    save_vgg(tiny_vgg, tmp_path / "vgg.safetensors")
    given = ["--target.weights", tmp_path / "vgg.safetensors", "--data.path", tmp_path / "set"]
    given += ["--data.test-splits", "one", "two"]
    code, summary = evaluated(tmp_path / "out", *given)
    assert code == 0
    one, two, both = (summary[name] for name in ("set one", "set two", "all"))
    assert one["confusion"] == two["confusion"]
    assert both["correct"] == 2 * one["correct"]
    (tmp_path / "set" / "two" / "G1").rename(tmp_path / "set" / "two" / "h1")
    capsys.readouterr()
    assert evaluated(tmp_path / "refused", *given) == (2, None)
    error = capsys.readouterr().err
    assert "set two has the classes A1, C1, E1, b1, d1, f1, h1, set one a1, b1" in error


@pytest.mark.slow
def test_results_in_different_orders_are_not_pooled(tiny_vgg, blobs):
    first = evaluate(tiny_vgg, blobs.first(20))
    second = dataclasses.replace(first, classes=ALPHABETICAL)
    with pytest.raises(InputError, match="cannot be pooled"):
        join(first, second)
    lin2 = layers.pre_bias_activations(tiny_vgg, blobs.first(20), "lin2")
    with pytest.raises(InputError, match="cannot be pooled"):
        layers.pool_activations(lin2, dataclasses.replace(lin2, classes=ALPHABETICAL))


@pytest.mark.slow
def test_a_network_of_ones_own_keeps_the_images_order(blobs):
    """Nothing is assumed of a function that emojax did not write or read."""
    rng = np.random.default_rng(0)
    images = ImageSet.from_arrays(
        np.asarray(blobs.images[:30]), rng.integers(0, 7, 30), ALPHABETICAL
    )
    weight = rng.normal(size=(48 * 48, 7)).astype(np.float32)
    network = as_network(lambda x: (x.reshape(len(x), -1) @ weight, {}))
    assert evaluate(network, images).classes == ALPHABETICAL
    assert evaluate(network, images).labels.tolist() == images.labels.tolist()


@pytest.mark.long
def test_training_goes_on_in_the_order_of_the_first_weights(forms, tmp_path):
    """Of alphabetical folders; the file that it writes names the order, assumed before."""
    set_of = tmp_path / "set"
    for split, seed in (("train", 31), ("val", 32)):
        images = faces.random_faces(64, seed).image_set("faces")
        pictures = np.asarray(images.images[:64])
        write_folder(set_of / split, pictures, images.labels, fer2013.CLASSES)
    command = ["train", "--train.start", forms / "nameless.safetensors", "--data.path", set_of]
    command += ["--train.split", "train", "--train.validation", "val", "--train.epochs", "1"]
    command += ["--train.batch", "32", "--train.learning-rate", "1e-9", "--out", tmp_path / "out"]
    command += ["--cache", tmp_path / "cache"]
    assert cli.main([str(part) for part in command]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["validation"]["set val"]["top1"] > 0.6
    written = load_network(tmp_path / "out" / "model.safetensors")
    assert written.config.class_names == fer2013.CLASSES


def shuffle(confusion, order):
    """The confusion matrix of the same network with its outputs in another order."""
    return confusion[:, order]


def test_a_shuffled_order_is_found(forms):
    model = load_network(ASSETS / "vgg.safetensors")
    confusion = evaluate(model, faces.random_faces(400, 5).image_set("faces")).confusion()
    assert better_order(confusion, fer2013.CLASSES) is None
    rng = np.random.default_rng(0)
    for _ in range(20):
        order = rng.permutation(7)
        if (order == np.arange(7)).all():
            continue
        found = better_order(shuffle(confusion, order), fer2013.CLASSES)
        assert found.names == tuple(fer2013.CLASSES[at] for at in order)
        assert found.correct == np.trace(confusion)
        assert found.given_correct == np.trace(shuffle(confusion, order))


def test_no_order_is_found_where_there_is_none():
    """Networks that know nothing, that always say the same, and that mix up two classes."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        sizes = rng.integers(1, 400, 7)
        says = rng.dirichlet(np.full(7, 0.3))
        unknowing = np.stack([rng.multinomial(size, says) for size in sizes])
        assert better_order(unknowing, fer2013.CLASSES) is None
    constant = np.zeros((7, 7), int)
    constant[:, 3] = [10, 20, 30, 40, 500, 60, 70]
    assert better_order(constant, fer2013.CLASSES) is None
    mixed = np.diag(np.full(7, 90)) + 1
    mixed[[0, 1]] = [[40, 55, 0, 0, 0, 0, 5], [55, 40, 0, 0, 0, 0, 5]]
    assert better_order(mixed, fer2013.CLASSES) is None
    few = np.diag(np.ones(7, int))[MOVED]
    assert better_order(few, fer2013.CLASSES) is None


def test_emotions_of_concepts_are_matched_by_the_same_names():
    concepts = ConceptSet(("Smile", "Tears"), (("happiness",), ("Sad",)))
    mask = concepts.class_mask(("Happy", "sadness"))
    assert mask.tolist() == [[True, False], [False, True]]


def test_one_table_of_names():
    """No alias stands for two classes."""
    aliases = [alias for each in classes.ALIASES.values() for alias in each]
    assert len(set(aliases)) == len(aliases)
    assert not set(aliases) & set(classes.ALIASES)
    assert set(classes.FER2013) <= set(classes.ALIASES)
