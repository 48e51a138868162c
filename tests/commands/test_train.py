"""`emojax train`: run folders, refusals, ensembles, and that a killed command resumes."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import signalled
from commands_in_process import run
from flax import nnx
from small_training import assert_same

from emojax import cli
from emojax.data.network_folder import load_network as load_folder
from emojax.data.provenance import read_provenance
from emojax.data.weights import load_network, load_vgg
from emojax.models.deep_emotion import DeepEmotion
from emojax.synthetic.faces import random_faces


@pytest.mark.slow
def test_a_run_folder(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [
        "--data.kind",
        "faces",
        "--data.limit",
        "128",
        "--train.epochs",
        "2",
        "--train.batch",
        "64",
    ]
    assert (
        cli.main(["train", *arguments, "--out", str(out), "--cache", str(tmp_path / "cache")]) == 0
    )
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    summary = json.loads((out / "summary.json").read_text())
    found = summary["validation"]["faces/public_test"]
    assert found["images"] == 128
    assert rows[summary["members"][0]["best_epoch"] - 1]["validation_accuracy"] == found["top1"]
    assert load_vgg(out / "model.safetensors").config.hidden == (128, 128)
    (events,) = (out / "tensorboard").glob("events.out.tfevents.*")
    rates = {b"validation_accuracy", b"learning_rate", b"images_per_second"}
    assert all(events.read_bytes().count(name) == len(rows) for name in rates)
    capsys.readouterr()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--data.kind", "faces", "--data.limit", "50"],
            "has 50 images, fewer than a batch; --train.batch 128 is too many",
        ),
        (
            ["--task", "clip"],
            "a CLIP is trained on rendered faces, whose captions are known; pass --data.kind faces",
        ),
        (
            ["--task", "vit", "--data.kind", "faces", "--train.augment", "affine"],
            "--train.augment and --train.precision are not for a ViT",
        ),
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
    assert (
        cli.main(
            [
                "train",
                *arguments,
                "--out",
                str(tmp_path / "out"),
                "--cache",
                str(tmp_path / "cache"),
            ]
        )
        == 2
    )
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--train.validation", "training"],
            "--train.validation is faces/training, which is trained on",
        ),
        (
            ["--train.test", "public_test"],
            "--train.test is faces/public_test, which training or choosing uses",
        ),
        (["--task", "clip", "--train.seeds", "1", "2"], "are not for a CLIP"),
        (
            ["--task", "deep_emotion", "--evaluate.protocol", "tencrop"],
            "use resize40 for a Deep-Emotion",
        ),
        (["--train.start", "none.safetensors"], "no weights file 'none.safetensors'"),
    ],
)
def test_refusals(tmp_path, capsys, args, message):
    given = [
        "--data.kind",
        "faces",
        "--data.limit",
        "64",
        "--train.batch",
        "32",
        "--cache",
        tmp_path / "cache",
    ]
    code, _, err = run(capsys, "train", *given, *args, "--out", tmp_path / "out")
    assert (code, err.count("\n")) == (2, 1), err
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_an_ensemble_by_command(tmp_path, capsys):
    out = tmp_path / "out"
    args = [
        "--data.kind",
        "faces",
        "--data.limit",
        "64",
        "--train.batch",
        "32",
        "--train.epochs",
        "2",
    ]
    args += ["--task", "deep_emotion", "--train.seeds", "0", "1", "--train.test", "private_test"]
    args += ["--cache", tmp_path / "cache", "--out", out]
    code, _, err = run(capsys, "train", *args)
    assert code == 0, err
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["member"]) for row in rows] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    summary = json.loads((out / "summary.json").read_text())
    assert [member["seed"] for member in summary["members"]] == [0, 1]
    assert "faces/private_test, ensemble, no copies of faces/training" in summary["test"]
    uses = read_provenance(out / "model_1.safetensors")
    assert {use.role for use in uses} == {"trained", "chosen"}
    tested = [
        "--target.weights",
        out / "model_0.safetensors",
        "--data.kind",
        "faces",
        "--data.limit",
        "64",
    ]
    tested += [
        "--data.test-splits",
        "training",
        "private_test",
        "--copies-of",
        "public_test",
        "--out",
        tmp_path / "e",
    ]
    code, _, err = run(capsys, "evaluate", *tested)
    assert code == 0
    assert (
        "warning: model_0.safetensors was trained on faces/training: accuracy there says nothing"
        in err
    )
    splits = json.loads((tmp_path / "e" / "summary.json").read_text())["splits"]
    assert splits["faces/private_test, no copies of public_test"]["images"] == 64


@pytest.mark.slow
@pytest.mark.exhaustive
def test_deep_emotion_by_command(tmp_path, capsys, clip_folder):
    """Trained, tested and dissected like a VGGNet; edits are refused in one line."""
    args = ["--data.kind", "faces", "--data.limit", "64"]
    training = [
        "--task",
        "deep_emotion",
        "--train.batch",
        "32",
        "--train.epochs",
        "1",
        "--cache",
        tmp_path / "cache",
    ]
    assert run(capsys, "train", *args, *training, "--out", tmp_path / "de")[0] == 0
    target = ["--target.weights", tmp_path / "de" / "model.safetensors"]
    assert isinstance(load_network(target[1]), DeepEmotion)
    clip, few = (
        ["--clip.path", clip_folder],
        ["--dissect.top-k", "20", "--cache", tmp_path / "cache"],
    )
    code, _, err = run(capsys, "dissect", *args, *target, *clip, *few, "--out", tmp_path / "d")
    assert code == 0, err
    table = (tmp_path / "d" / "dissection.csv").read_text().splitlines()
    assert [
        sum(line.startswith(f"{layer},") for line in table) for layer in ("conv1", "fc1", "fc2")
    ] == [10, 50, 7]
    code, _, err = run(capsys, "run", *args, *target, *clip, *few, "--out", tmp_path / "r")
    refused = "and this is a DeepEmotion; `emojax dissect` labels its units"
    assert (code, err.count(refused)) == (2, 1)


@pytest.mark.long
def test_a_vit_by_command(tmp_path, capsys):
    """Saved as a Hugging Face folder: transformers gives our logits, evaluate our accuracy."""
    torch = pytest.importorskip("torch", reason="needs the oracle extra")
    from transformers import ViTForImageClassification

    faces = ["--data.kind", "faces", "--data.limit", "64"]
    training = ["--task", "vit", "--train.batch", "32", "--train.epochs", "1"]
    training += ["--cache", tmp_path / "cache", "--out", tmp_path / "run"]
    code, _, err = run(capsys, "train", *faces, *training)
    assert code == 0, err
    folder = tmp_path / "run" / "model"
    ours = load_folder(folder)
    theirs = ViTForImageClassification.from_pretrained(folder).eval()
    assert tuple(theirs.config.id2label.values()) == ours.config.class_names
    images = ours.preprocess(random_faces(8, 0).image_set("faces").images[:8])
    with torch.no_grad():
        want = theirs(torch.tensor(np.asarray(images).transpose(0, 3, 1, 2))).logits.numpy()
    np.testing.assert_allclose(ours(images)[0], want, atol=1e-4 * np.abs(want).max())
    assert {use.role for use in read_provenance(folder)} == {"trained", "chosen"}
    tested = ["--target.path", folder, "--data.test-splits", "public_test", "--out", tmp_path / "e"]
    assert run(capsys, "evaluate", *faces, *tested)[0] == 0
    split = json.loads((tmp_path / "e" / "summary.json").read_text())["splits"]["faces/public_test"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert split["top1"] == summary["validation"]["faces/public_test"]["top1"]


def weights(path):
    return nnx.state(load_network(path))


@pytest.mark.long
def test_a_killed_command_resumes(tmp_path, capsys):
    """SIGKILL of `emojax train` in its first epochs; the same command ends as undisturbed."""
    data = ["--data.kind", "faces", "--data.limit", "96"]
    recipe = ["--task", "deep_emotion", "--train.batch", "32", "--train.epochs", "2"]

    def command(name):
        places = ["--out", tmp_path / name / "run", "--cache", tmp_path / name / "cache"]
        return ["train", *data, *recipe, "--train.save-every", "0", *map(str, places)]

    # With as many devices as here, so that the programs are the same; only what is killed needs a
    # process of its own.
    devices = {"JAX_NUM_CPU_DEVICES": str(jax.device_count())}
    broken = subprocess.Popen(
        [sys.executable, "-m", "emojax", *command("broken")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=signalled.environment() | devices,
    )
    saved = tmp_path / "broken" / "cache" / "training"
    while broken.poll() is None and not list(saved.glob("*/[0-9]*")):
        time.sleep(0.05)
    broken.send_signal(signal.SIGKILL)
    assert broken.wait() == -signal.SIGKILL
    assert not (tmp_path / "broken" / "run").exists()
    code, told, err = run(capsys, *command("broken"))
    assert code == 0, err
    assert "resuming from the checkpoint in" in told
    assert run(capsys, *command("whole"))[0] == 0
    for name in ("model.safetensors", "last.safetensors"):
        assert_same(weights(tmp_path / "whole/run" / name), weights(tmp_path / "broken/run" / name))
    assert not list(saved.iterdir())
    assert os.path.getsize(tmp_path / "broken/run/curves.png") > 1000


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--train.task", "gan", "invalid choice 'gan'"),
        ("--train.size", "huge", "invalid choice 'huge'"),
        ("--train.epochs", "0", "greater than 0"),
        ("--train.batch", "-8", "greater than 0"),
        ("--train.optimizer", "lion", "invalid choice 'lion'"),
        ("--train.learning-rate", "0", "greater than 0"),
        ("--train.learning-rate", "nan", "finite"),
        ("--train.warmup", "1", "less than 1"),
        ("--train.momentum", "1", "less than 1"),
        ("--train.label-smoothing", "-0.1", "greater than or equal to 0"),
        ("--train.average", "1", "less than 1"),
        ("--train.weight-decay", "-1", "greater than or equal to 0"),
        ("--train.seed", "-1", "greater than or equal to 0"),
        ("--train.seed", "5000000000", "less than"),
    ],
)
def test_settings_out_of_range_are_refused(inputs, flag, value, message):
    inputs.refused(["train", flag, value], message)


def test_a_clip_on_photographs_is_refused(inputs):
    args = ["train", "--train.task", "clip", "--data.path", inputs.sound / "fer"]
    inputs.refused(args, "pass --data.kind faces")


def test_a_clip_without_some_faces_is_refused(inputs):
    excluded = inputs.put("x.csv", "file\na\n")
    args = ["train", "--train.task", "clip", "--data.kind", "faces", "--data.exclude", excluded]
    inputs.refused(args, "--data.exclude is for images")
