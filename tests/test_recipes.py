"""What training adds to its step: schedules, checkpoints, several networks, streaming, precision, what weights have seen."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx

from emojax import cli
from emojax.data import faces, seen
from emojax.data.loader import ImageSet, copies
from emojax.data.weights import load_network, load_vgg, save_vgg
from emojax.engine import tasks, train
from emojax.engine.evaluate import Evaluation, average
from emojax.errors import InputError
from emojax.mesh import make_mesh, sharded
from emojax.models.deep_emotion import DeepEmotion
from emojax.models.vgg import VggConfig, VggNet
from emojax.report.figures import plot_training


@pytest.fixture(scope="module")
def images():
    return faces.random_faces(64, 3).image_set("faces")


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same(one, other):
    for a, b in zip(leaves(one), leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def recipe(**changed):
    return train.Recipe(**({"epochs": 2, "optimizer": "sgd", "learning_rate": 1e-3, "average": 0.9} | changed))


def fit(model, images, recipes=None, *, mesh=1, task=None, **how):
    """The same program in every test where nothing else is asked for, so that it is compiled once."""
    options = {"batch": 32, "label_smoothing": 0.1} | (task or {})
    return train.fit(tasks.classifier(model, images, **options), recipes or recipe(), mesh=make_mesh(mesh), **how)


# Schedules


def test_plateau_equals_pytorchs():
    torch = pytest.importorskip("torch", reason="needs the oracle extra")
    rng = np.random.default_rng(0)
    values = np.round((0.6 + 0.1 * np.tanh(np.arange(80) / 10) + 0.01 * rng.standard_normal(80)) * 3589) / 3589
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.75, patience=5)
    ours = train.Plateau()
    for value in values:
        theirs.step(value)
        assert ours.scale(value) == pytest.approx(optimizer.param_groups[0]["lr"])
        ours = train.Plateau(json.loads(json.dumps(ours.numbers())))  # as a checkpoint keeps it
    assert ours.numbers()[0] < 0.4


def test_one_cycle_and_constant():
    values = recipe(schedule="one_cycle", learning_rate=0.5, warmup=0.3).rates(100)
    assert values.max() == pytest.approx(0.5)
    assert values.argmax() == 30
    assert values[0] == pytest.approx(0.5 / 25)
    assert values[-1] < 1e-3
    np.testing.assert_array_equal(recipe(schedule="constant").rates(3), np.float32(1e-3))


def test_plateau_lowers_the_rate_of_the_run(tiny_vgg, images):
    worse = iter(range(100, 0, -1))
    found = fit(
        tiny_vgg,
        images,
        recipe(epochs=9, schedule="plateau"),
        validate=lambda *_: {"validation_accuracy": next(worse) / 100},
    )
    rates = [row["learning_rate"] for row in found[0].history]
    assert rates[:7] == pytest.approx([1e-3] * 7)
    assert rates[7:] == pytest.approx([0.75e-3] * 2)


# Checkpoints


class Killed(Exception):
    pass


def killer(after):
    def progress(done, total, note):
        if done >= after:
            raise Killed

    return progress


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_two_steps_stop_and_on_to_four(tiny_vgg, images, tmp_path, steps):
    """Stopped anywhere and taken up again, training ends with the same bits: weights, statistics, best epoch, history."""
    best = iter([0.5, 0.4])
    validate = lambda *_: {"validation_accuracy": next(best)}
    whole = fit(tiny_vgg, images, validate=validate)[0]
    best = iter([0.5, 0.4])
    with pytest.raises(Killed):
        fit(tiny_vgg, images, validate=validate, checkpoints=tmp_path, save_every=0, progress=killer(32 * steps))
    again = fit(tiny_vgg, images, validate=validate, checkpoints=tmp_path, save_every=0)[0]
    assert_same((whole.params, whole.rest, whole.last), (again.params, again.rest, again.last))
    assert (whole.best_epoch, again.best_epoch) == (1, 1)
    assert [row["loss"] for row in whole.history] == [row["loss"] for row in again.history]
    assert any((a != b).any() for a, b in zip(leaves(whole.params), leaves(whole.last[0]), strict=True))


def test_a_finished_training_is_only_read(tiny_vgg, images, tmp_path):
    one = fit(tiny_vgg, images, checkpoints=tmp_path)[0]
    again = fit(tiny_vgg, images, checkpoints=tmp_path, progress=killer(0))[0]
    assert_same(one.last, again.last)


def test_a_checkpoint_goes_on_with_other_devices(tiny_vgg, images, tmp_path):
    whole = fit(tiny_vgg, images, mesh=1)[0]
    with pytest.raises(Killed):
        fit(tiny_vgg, images, mesh=8, shard=True, checkpoints=tmp_path, save_every=0, progress=killer(64))
    again = fit(tiny_vgg, images, mesh=1, checkpoints=tmp_path)[0]
    for a, b in zip(leaves(whole.last), leaves(again.last), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def test_what_a_checkpoint_holds_does_not_change_while_it_is_written():
    notes = train._Notes(1)
    notes.add([{"loss": 1.0}])
    kept = notes.write()
    notes.add([{"loss": 2.0}])
    notes.history[0].append({"epoch": 1})
    assert (kept["sums"], kept["history"]) == ({"loss": [1.0]}, [[]])


def test_damaged_or_foreign_checkpoints_are_refused(tiny_vgg, images, tmp_path):
    fit(tiny_vgg, images, checkpoints=tmp_path)
    with pytest.raises(InputError, match=r"checkpoint 4 cannot be read .*; delete the folder"):
        fit(tiny_vgg, images, recipe(average=0.0), checkpoints=tmp_path)
    for file in (tmp_path / "4" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(InputError, match=r"checkpoint 4 cannot be read .*; delete the folder"):
        fit(tiny_vgg, images, checkpoints=tmp_path)


def test_killed_command_goes_on(tmp_path):
    """SIGKILL of `emojax train` in its first epochs; the same command ends as an undisturbed one does."""
    args = ["--task", "deep_emotion", "--data.kind", "faces", "--data.limit", "96", "--train.batch", "32"]
    args += ["--train.epochs", "2"]

    def command(out):
        cache = ["--cache", str(tmp_path / out / "cache"), "--train.save-every", "0"]
        return [sys.executable, "-m", "emojax", "train", *args, *cache, "--out", str(tmp_path / out / "run")]

    shared = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    env = os.environ | shared
    subprocess.run(command("whole"), check=True, capture_output=True, env=env)
    broken = subprocess.Popen(command("broken"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    while broken.poll() is None and not list((tmp_path / "broken" / "cache" / "training").glob("*/[0-9]*")):
        time.sleep(0.05)
    broken.send_signal(signal.SIGKILL)
    broken.wait()
    assert not (tmp_path / "broken" / "run").exists()
    told = subprocess.run(command("broken"), check=True, capture_output=True, text=True, env=env).stdout
    assert "going on from the checkpoint in" in told
    for name in ("model.safetensors", "last.safetensors"):
        assert_same(weights(tmp_path / "whole/run" / name), weights(tmp_path / "broken/run" / name))
    assert not list((tmp_path / "broken" / "cache" / "training").iterdir())
    assert os.path.getsize(tmp_path / "broken/run/curves.png") > 1000


def weights(path):
    return nnx.state(load_network(path))


# Several networks, placements, streams, precision


@pytest.mark.parametrize("together", [False, True])
def test_members_are_the_runs_of_their_own(tiny_vgg, images, together):
    both = train.members(recipe(), (0, 1), (1e-3,))
    found = fit(tiny_vgg, images, both, together=together)
    for one, result in zip(both, found, strict=True):
        alone = fit(tiny_vgg, images, one)[0]
        for a, b in zip(leaves(alone.last), leaves(result.last), strict=True):
            if together:  # stacked convolutions round differently
                np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)
            else:
                np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(leaves(found[0].last), leaves(found[1].last), strict=True))


def test_members():
    made = train.members(recipe(seed=7), (), (0.1, 0.2))
    assert [(one.seed, one.learning_rate) for one in made] == [(7, 0.1), (7, 0.2)]
    assert len(train.members(recipe(), (1, 2, 3), (0.1, 0.2))) == 6


def test_recipes_of_one_program_must_agree(tiny_vgg, images):
    with pytest.raises(InputError, match="may differ in seed and learning rate only"):
        fit(tiny_vgg, images, [recipe(), recipe(momentum=0.5)])


def test_sharded_parameters_change_rounding_only(tiny_vgg, images):
    one, eight = fit(tiny_vgg, images, recipe(epochs=1)), fit(tiny_vgg, images, recipe(epochs=1), mesh=8, shard=True)
    for a, b in zip(leaves(one[0].last), leaves(eight[0].last), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_one_rule_places_parameters():
    mesh = make_mesh(8)
    tree = {"kernel": np.zeros((3, 3, 16, 24)), "bias": np.zeros(16), "odd": np.zeros((3, 5)), "step": np.zeros(())}
    found = {name: tuple(place.spec) for name, place in sharded(mesh, tree).items()}
    assert found == {"kernel": (None, None, None, "data"), "bias": ("data",), "odd": (), "step": ()}


def test_a_stream_gives_what_resident_images_give(tiny_vgg, images):
    here, streamed = (fit(tiny_vgg, images, task={"resident": resident})[0] for resident in (True, False))
    for a, b in zip(leaves(here.last), leaves(streamed.last), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_bfloat16_keeps_float32_parameters_and_comes_near(tiny_vgg, images):
    full, half = (fit(tiny_vgg, images, task={"precision": precision})[0] for precision in ("float32", "bfloat16"))
    assert {leaf.dtype for leaf in leaves((half.params, half.rest))} <= {np.dtype(np.float32), np.dtype(np.uint32)}
    assert half.history[-1]["loss"] == pytest.approx(full.history[-1]["loss"], rel=0.03)
    assert half.history[-1]["loss"] != full.history[-1]["loss"]


def test_augmented_training_is_seeded(tiny_vgg, images):
    one, again, other = (
        fit(tiny_vgg, images, recipe(epochs=1, seed=seed), task={"augment": "ten_crop"})[0] for seed in (0, 0, 1)
    )
    assert_same(one.last, again.last)
    assert one.history[0]["loss"] != other.history[0]["loss"]


# One step of the full network against PyTorch


def test_a_step_of_the_full_vggnet_equals_pytorchs():
    """Loss, gradients and the SGD step of 29.89 M parameters, BatchNorm in training mode, no dropout, to 1e-4."""
    torch = pytest.importorskip("torch", reason="needs the oracle extra")
    from emojax.models import vgg

    config = VggConfig(dropout=0.0)
    model = nnx.jit(lambda: VggNet(config, rngs=nnx.Rngs(0)))()
    pictures = np.random.default_rng(0).integers(0, 256, (16, 40, 40, 1), np.uint8)  # of the network's size: not resized
    labels = np.random.default_rng(1).integers(0, 7, 16).astype(np.int32)
    given = ImageSet.from_arrays(pictures, labels, [str(i) for i in range(7)])
    task = tasks.classifier(model, given, batch=16)
    oracle = reference.torch_vgg(torch, config)
    start = {name: torch.tensor(array) for name, array in vgg.to_torch_state_dict(model).items()}
    oracle.load_state_dict(start, strict=True)
    oracle.train()
    optimizer = torch.optim.SGD(oracle.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)

    key = jax.random.fold_in(jax.random.key(3), 0)  # as the step folds its number in; the mirroring is then known
    (rows,) = task.batches(0, 3, 0)
    from emojax.ops.augment import mirror

    mirrored = np.asarray(mirror(jax.random.split(key)[0], jnp.asarray(pictures[rows])))
    x = torch.tensor(np.float32(mirrored).transpose(0, 3, 1, 2) / 255)
    loss = torch.nn.functional.cross_entropy(oracle(x), torch.tensor(labels[rows], dtype=torch.long))
    loss.backward()
    params, rest = task.start(3)
    (ours, _), gradients = jax.jit(jax.value_and_grad(task.loss, has_aux=True))(params, rest, task.data, rows, key)
    assert float(ours) == pytest.approx(loss.item(), rel=1e-4)
    as_torch = vgg.to_torch_state_dict(tasks.trained(model, gradients, rest))
    theirs = {name: parameter.grad.numpy() for name, parameter in oracle.named_parameters()}

    def scale(name):
        """Of a gradient. BatchNorm takes a convolution's bias off again: its gradient is zero, but for rounding."""
        return np.abs(theirs[name.replace("bias", "weight") if name.startswith("conv") else name]).max()

    for name, want in theirs.items():
        assert np.abs(as_torch[name] - want).max() <= 1e-4 * scale(name), name
    assert round(sum(want.size for want in theirs.values()) / 1e6, 2) == 29.89
    optimizer.step()
    one = train.Recipe(epochs=1, optimizer="sgd", schedule="constant", learning_rate=0.01, seed=3)
    (result,) = train.fit(task, one, mesh=make_mesh(1))
    after = vgg.to_torch_state_dict(tasks.trained(model, *result.last))
    for name, parameter in oracle.named_parameters():
        # The step is 0.01 · 1.9 of gradient and decay; a parameter itself is known to 2^-24 of it.
        known = 2**-23 * np.abs(start[name].numpy()).max()
        assert np.abs(after[name] - parameter.detach().numpy()).max() <= 0.019 * 1e-4 * scale(name) + known, name


# What weights have seen, copies, ensembles, curves


def test_weights_say_what_they_have_seen(tiny_vgg, images, tmp_path):
    path, other = tmp_path / "model.safetensors", faces.random_faces(20, 5).image_set("other")
    save_vgg(tiny_vgg, path)
    assert seen.read(path) is None
    assert seen.warnings(None, "model", [images, other]) == [
        "model does not say what it was trained on, so it counts as having seen faces, other"
    ]
    save_vgg(tiny_vgg, path, seen=[seen.of(images, "trained"), seen.of(other, "chosen")])
    known = seen.read(path)
    assert [(each.name, each.role) for each in known] == [("faces", "trained"), ("other", "chosen")]
    renamed = ImageSet.from_arrays(images.images, images.labels, images.classes, name="renamed")
    found = seen.warnings(known, "model", [renamed, other, faces.random_faces(20, 6).image_set("new")])
    assert found == [
        "model was trained on renamed: accuracy there says nothing",
        "model was chosen on other: accuracy is flattered",
    ]
    assert load_vgg(path).config == tiny_vgg.config


def test_copies(images):
    pixels = images.images
    mixed = np.concatenate([pixels[5:7], 255 - pixels[:3], pixels[:1]])
    np.testing.assert_array_equal(copies(mixed, pixels, chunk=4), [True, True, False, False, False, True])


def test_average_is_the_mean_of_probabilities():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3, 10, 7)).astype(np.float32)
    labels, names = rng.integers(0, 7, 10).astype(np.int32), tuple("abcdefg")
    found = average(*(Evaluation(each, labels, names) for each in logits))
    softmax = np.exp(np.float64(logits))
    softmax /= softmax.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(np.exp(found.logits), softmax.mean(axis=0), rtol=1e-5)


def test_curves():
    rows = [
        {
            "epoch": e,
            "loss": 1 / e,
            "accuracy": 0.1 * e,
            "validation_accuracy": 0.09 * e,
            "validation_nll": 1.5,
            "seconds": 1,
        }
        for e in (1, 2, 3)
    ]
    panels = plot_training([rows, rows], [2, 3]).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["loss", "accuracy", "validation nll"]
    np.testing.assert_array_equal(panels[1].lines[1].get_ydata(), [row["validation_accuracy"] for row in rows])


# The command


def run(capsys, *args):
    code = cli.main([str(arg) for arg in args])
    return code, *capsys.readouterr()


def test_an_ensemble_by_command(tmp_path, capsys):
    out = tmp_path / "out"
    args = ["--data.kind", "faces", "--data.limit", "64", "--train.batch", "32", "--train.epochs", "2"]
    args += ["--task", "deep_emotion", "--train.seeds", "0", "1", "--train.test", "private_test"]
    args += ["--cache", tmp_path / "cache", "--out", out]
    code, _, err = run(capsys, "train", *args)
    assert code == 0, err
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["member"]) for row in rows] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    summary = json.loads((out / "summary.json").read_text())
    assert [member["seed"] for member in summary["members"]] == [0, 1]
    assert "faces/private_test, ensemble, no copies of faces/training" in summary["test"]
    assert {each.role for each in seen.read(out / "model_1.safetensors")} == {"trained", "chosen"}
    tested = ["--target.weights", out / "model_0.safetensors", "--data.kind", "faces", "--data.limit", "64"]
    tested += ["--data.test-splits", "training", "private_test", "--copies-of", "public_test", "--out", tmp_path / "e"]
    code, _, err = run(capsys, "evaluate", *tested)
    assert code == 0
    assert "warning: model_0.safetensors was trained on faces/training: accuracy there says nothing" in err
    splits = json.loads((tmp_path / "e" / "summary.json").read_text())["splits"]
    assert splits["faces/private_test, no copies of public_test"]["images"] == 64


def test_deep_emotion_by_command(tmp_path, capsys, clip_folder):
    """Trained, tested and dissected like a VGGNet; edits are refused in one line."""
    args = ["--data.kind", "faces", "--data.limit", "64"]
    training = ["--task", "deep_emotion", "--train.batch", "32", "--train.epochs", "1", "--cache", tmp_path / "cache"]
    assert run(capsys, "train", *args, *training, "--out", tmp_path / "de")[0] == 0
    target = ["--target.weights", tmp_path / "de" / "model.safetensors"]
    assert isinstance(load_network(target[1]), DeepEmotion)
    clip, few = ["--clip.path", clip_folder], ["--dissect.top-k", "20", "--cache", tmp_path / "cache"]
    code, _, err = run(capsys, "dissect", *args, *target, *clip, *few, "--out", tmp_path / "d")
    assert code == 0, err
    table = (tmp_path / "d" / "dissection.csv").read_text().splitlines()
    assert [sum(line.startswith(f"{layer},") for line in table) for layer in ("conv1", "fc1", "fc2")] == [10, 50, 7]
    code, _, err = run(capsys, "run", *args, *target, *clip, *few, "--out", tmp_path / "r")
    assert (code, err.count("edits are made to a VGGNet or a CompactNet, and this is a DeepEmotion")) == (2, 1)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--train.validation", "training"], "--train.validation is faces/training, which is trained on"),
        (["--train.test", "public_test"], "--train.test is faces/public_test, which training or choosing uses"),
        (["--task", "clip", "--train.seeds", "1", "2"], "are not for a CLIP"),
        (["--task", "deep_emotion", "--evaluate.protocol", "tencrop"], "use resize40 for a Deep-Emotion"),
        (["--train.start", "none.safetensors"], "no weights file 'none.safetensors'"),
    ],
)
def test_refusals(tmp_path, capsys, args, message):
    given = ["--data.kind", "faces", "--data.limit", "64", "--train.batch", "32", "--cache", tmp_path / "cache"]
    code, _, err = run(capsys, "train", *given, *args, "--out", tmp_path / "out")
    assert (code, err.count("\n")) == (2, 1), err
    assert message in err
    assert not (tmp_path / "out").exists()


def test_shards_of_weights(tiny_vgg, tmp_path):
    """bfloat16 shards of at most the size asked for, and back: what they say of seen images stays with them."""
    path = os.path.join(os.path.dirname(__file__), "..", "scripts", "shard_weights.py")
    spec = importlib.util.spec_from_file_location("shard_weights", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    save_vgg(tiny_vgg, tmp_path / "model.safetensors", seen=[seen.Seen("FER2013 training", "key", "trained")])
    script.shard(tmp_path / "model.safetensors", tmp_path / "shards", megabytes=0.068)
    sizes = [file.stat().st_size for file in (tmp_path / "shards").glob("*.safetensors")]
    assert len(sizes) > 2
    assert max(sizes) <= 68_000
    script.join(tmp_path / "shards", tmp_path / "back.safetensors")
    assert seen.read(tmp_path / "back.safetensors") == seen.read(tmp_path / "model.safetensors")
    for a, b in zip(leaves(nnx.state(load_vgg(tmp_path / "back.safetensors"))), leaves(nnx.state(tiny_vgg)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2**-8)
