"""Training: the optimizer against PyTorch, seeds, devices, the contrastive loss, the tokenizer, the command."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emojax import cli
from emojax import settings as config
from emojax.commands import train as verbs_train
from emojax.data.clip_folder import load_clip, save_clip
from emojax.data.image_set import ImageSet
from emojax.data.weights import load_vgg
from emojax.distributed.mesh import make_mesh
from emojax.errors import InputError
from emojax.synthetic import faces
from emojax.synthetic.shipped import ASSETS, load_demo
from emojax.synthetic.small_clip import small_clip, train_tokenizer
from emojax.training import fit as train
from emojax.training import recipe as recipes
from emojax.training import tasks
from emojax.training.evaluate import evaluate


@pytest.fixture(scope="module")
def small_faces():
    return faces.random_faces(96, 3)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def fitted(tiny_vgg, images, mesh, **changed):
    """The same program in every test, so that it is compiled once; rate, seed and epochs are not part of it."""
    task = tasks.classifier(tiny_vgg, images, batch=32, label_smoothing=0.1)
    recipe = {"epochs": 2, "average": 0.9, "optimizer": "sgd", "learning_rate": 1e-3}
    (result,) = train.fit(task, recipes.Recipe(**(recipe | changed)), mesh=mesh)
    return result


def test_one_device_equals_eight(tiny_vgg, small_faces):
    """BatchNorm takes its statistics over the global batch, so splitting the batch changes rounding only.

    Rounding grows with the steps: a pixel that wins a pool by a hair on one side sends its gradient elsewhere.
    """
    for changed, tolerance in (({"epochs": 1, "learning_rate": 1e-4}, 5e-6), ({}, 2e-4)):
        one, eight = (fitted(tiny_vgg, small_faces.image_set("faces"), make_mesh(n), **changed) for n in (1, 8))
        for a, b in zip(leaves((one.params, one.rest)), leaves((eight.params, eight.rest)), strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_seeds_and_that_the_given_network_is_left_alone(tiny_vgg, small_faces):
    images, before = small_faces.image_set("faces"), leaves(nnx.state(tiny_vgg))
    one, again, other = (fitted(tiny_vgg, images, make_mesh(1), seed=seed) for seed in (0, 0, 1))
    for a, b in zip(leaves((one.params, one.rest)), leaves((again.params, again.rest)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(leaves(one.params), leaves(other.params), strict=True))
    for a, b in zip(before, leaves(nnx.state(tiny_vgg)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(one.history) == 2
    assert tasks.trained(tiny_vgg, one.params, one.rest).drop.deterministic


def test_learns_what_can_be_learnt(tiny_vgg, blobs):
    images = ImageSet.from_arrays(blobs.images[:96], blobs.labels[:96], blobs.classes)
    history = fitted(tiny_vgg, images, make_mesh(1), epochs=30, learning_rate=0.02).history
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert history[-1]["accuracy"] > 0.6  # chance is 1/7


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_optimizer_equals_pytorchs(optimizer):
    torch = pytest.importorskip("torch", reason="needs the oracle extra")
    start = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    gradients = np.random.default_rng(1).standard_normal((6, 4, 3)).astype(np.float32)
    rates = [0.1, 0.1, 0.05, 0.05, 0.02, 0.01]
    weight = torch.nn.Parameter(torch.tensor(start))
    recipe = recipes.Recipe(epochs=1, optimizer=optimizer, weight_decay=0.01, momentum=0.9)
    if optimizer == "sgd":
        theirs = torch.optim.SGD([weight], lr=1.0, momentum=0.9, nesterov=True, weight_decay=0.01)
    else:
        theirs = torch.optim.AdamW([weight], lr=1.0, weight_decay=0.01)
    transform, ours = recipe.transform(), jnp.asarray(start)
    state = transform.init(ours)
    for gradient, rate in zip(gradients, rates, strict=True):
        theirs.param_groups[0]["lr"] = rate
        weight.grad = torch.tensor(gradient)
        theirs.step()
        updates, state = transform.update(jnp.asarray(gradient), state, ours)
        ours = ours - rate * updates
    np.testing.assert_allclose(ours, weight.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_rate_rises_and_falls():
    values = recipes.Recipe(epochs=1, learning_rate=0.5, warmup=0.1).rates(100).tolist()
    assert max(values) == pytest.approx(0.5)
    assert values.index(max(values)) == 9
    assert values[0] == pytest.approx(0.05)
    assert values[-1] < 1e-3


def test_every_epoch_has_every_image_once():
    rows = [np.concatenate(list(tasks.epoch_rows(100, 10, 0, epoch))) for epoch in (0, 1)]
    for each in rows:
        assert sorted(each) == list(range(100))
    assert (rows[0] != rows[1]).any()
    assert len(list(tasks.epoch_rows(25, 10, 0, 0))) == 2


def test_contrastive_loss():
    """Against the definition in float64: with the identity CLIP's loss, else the target shared by the true ones."""
    rng = np.random.default_rng(0)
    cosines = rng.uniform(-1, 1, (5, 5))
    matches = np.eye(5, dtype=bool) | (rng.random((5, 5)) < 0.3)
    for truth in (np.eye(5, dtype=bool), matches):

        def one_way(logits, truth):
            logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            return -np.mean([logp[i][truth[i]].mean() for i in range(5)])

        want = (one_way(7 * cosines, truth) + one_way(7 * cosines.T, truth.T)) / 2
        got = tasks.contrastive_loss(jnp.asarray(cosines, jnp.float32), jnp.float32(7), jnp.asarray(truth))
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_tokenizer(tmp_path):
    texts = faces.random_captions(faces.random_faces(300, 0), 0).texts
    tokenizer = train_tokenizer(texts, merges=256)
    assert tokenizer.tokenize("Wide Open Eyes") == ["wide</w>", "open</w>", "eyes</w>"]
    ids = tokenizer("Ünknown wörds 🙂")["input_ids"]
    assert ids.count(len(tokenizer) - 1) == 1  # nothing is unknown: the end token ends the text and stands nowhere else
    tokenizer.save_pretrained(tmp_path)
    from transformers import CLIPTokenizer

    assert CLIPTokenizer.from_pretrained(tmp_path)(list(texts))["input_ids"] == tokenizer(list(texts))["input_ids"]


@pytest.mark.parametrize("which", ["new", "shipped"])
def test_our_clips_are_hugging_face_clips(tmp_path, which):
    torch = pytest.importorskip("torch", reason="needs the oracle extra")
    from transformers import CLIPModel

    folder = ASSETS / "clip"
    if which == "new":
        new, folder = small_clip(faces.random_captions(faces.random_faces(300, 0), 0).texts, 0), tmp_path / "clip"
        save_clip(folder, new.encoder.model, new.hf_config, new.tokenizer)
    theirs = CLIPModel.from_pretrained(folder).eval()
    ours = load_clip(folder)
    pictures = faces.random_faces(4, 0).render()
    ids = ours.tokenize(["smile", "a face with furrowed brows"])
    with torch.no_grad():
        pixels = torch.tensor(np.asarray(ours.preprocess(jnp.asarray(pictures)))).permute(0, 3, 1, 2)
        image = theirs.visual_projection(theirs.vision_model(pixels).pooler_output).numpy()
        text = theirs.text_projection(theirs.text_model(torch.tensor(ids, dtype=torch.long)).pooler_output).numpy()
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    np.testing.assert_allclose(ours.embed_images(pictures), image, atol=2e-6)
    np.testing.assert_allclose(ours.embed_texts(["smile", "a face with furrowed brows"]), text, atol=2e-6)


def test_clip_learns(small_faces, tmp_path):
    """A few steps bring captions and their faces together; the folder loads by the code that loads any CLIP."""
    rows = []
    options = config.Train(task="clip", epochs=3, batch=48, learning_rate=2e-3)
    encoder, _ = verbs_train.train_clip(options, small_faces, small_faces, tmp_path / "clip", rows.append)
    assert rows[-1]["loss"] < rows[0]["loss"]
    loaded = load_clip(tmp_path / "clip")
    assert loaded.key == encoder.key
    pairs = verbs_train.pair_accuracy(loaded, small_faces, small_faces.render())
    assert np.mean(list(pairs.values())) > 0.5


def test_train_verb(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--data.kind", "faces", "--data.limit", "128", "--train.epochs", "2", "--train.batch", "64"]
    assert cli.main(["train", *arguments, "--out", str(out), "--cache", str(tmp_path / "cache")]) == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    summary = json.loads((out / "summary.json").read_text())
    found = summary["validation"]["faces/public_test"]
    assert found["images"] == 128
    assert rows[summary["members"][0]["best_epoch"] - 1]["validation_accuracy"] == found["top1"]
    assert load_vgg(out / "model.safetensors").config.hidden == (128, 128)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.kind", "faces", "--data.limit", "50"], "has 50 images, fewer than a batch; --train.batch 128 is too many"),
        (["--task", "clip"], "a CLIP is trained on rendered faces, whose captions are known; pass --data.kind faces"),
        ([], "--data.path is needed"),
        (
            ["--data.kind", "faces", "--data.limit", "50", "--train.batch", "50"],
            "a batch of 50 does not divide over 8 devices; choose a multiple of 8",
        ),
        (
            ["--data.kind", "faces", "--train.split", "train"],
            "rendered faces have no split 'train'; did you mean 'training'",
        ),
    ],
)
def test_train_refuses(tmp_path, capsys, arguments, message):
    assert cli.main(["train", *arguments, "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_ships_does_what_its_metrics_say():
    """On other faces than those of metrics.json, within what 1,500 faces can tell; and no more than 4 MB."""
    model, clip = load_demo()
    told = json.loads((ASSETS / "metrics.json").read_text())
    people = faces.random_faces(1500, 31)
    pairs = verbs_train.pair_accuracy(clip, people, people.render())
    concepts = np.mean([value for name, value in pairs.items() if name not in faces.DISTRACTORS])
    assert concepts == pytest.approx(told["clip"]["mean_pair_accuracy_of_the_25_concepts"], abs=0.02)
    assert concepts > 0.9
    accuracy = evaluate(model, people.image_set("faces")).top(1)
    assert accuracy == pytest.approx(told["vgg"]["test_accuracy"], abs=0.04)
    assert 0.7 < accuracy < 0.95
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 4e6


def test_a_loss_that_is_not_finite_stops(tiny_vgg, small_faces):
    with pytest.raises(InputError, match="the loss is nan in epoch 1"):
        fitted(tiny_vgg, small_faces.image_set("faces"), make_mesh(1), learning_rate=1e20)
