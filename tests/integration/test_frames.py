"""From a command's function to the kernel in at most six frames of ours: architecture.md's rule."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import emojax

# The kernels of each command, as functions of ours that are called while they are traced.
KERNELS = {
    "probe": ["emojax.ops.topk.update"],
    "sweep": [
        "emojax.editing.kernels.by_gains",
        "emojax.editing.kernels.by_masks",
        "emojax.editing.kernels.by_cuts",
        "emojax.editing.kernels.logits_of",
    ],
    "dissect": ["emojax.ops.similarity.weighted_loglik"],
    "train": ["emojax.ops.augment.mirror"],
}
ALLOWED = 6

DRIVER = """
import importlib, json, sys, traceback
command, kernels, root, args = sys.argv[1], sys.argv[2].split(","), sys.argv[3], sys.argv[4:]
stacks = {kernel: [] for kernel in kernels}

def record(kernel):
    module, name = kernel.rsplit(".", 1)
    module = importlib.import_module(module)
    plain = getattr(module, name)

    def recorded(*arguments, **options):
        stack = [f for f in traceback.extract_stack()[:-1] if f.filename.startswith(root)]
        stack = [f for f in stack if not f.name.endswith("comp>")]
        names = [f"{f.filename[len(root):]}:{f.name}" for f in stack]
        start = names.index(f"commands/{command}.py:{command}")
        stacks[kernel].append(names[start + 1 :])
        return plain(*arguments, **options)

    setattr(module, name, recorded)

for kernel in kernels:
    record(kernel)
from emojax import cli
code = cli.main([command, *args])
print(json.dumps([code, stacks]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", KERNELS)
def test_few_frames_between_command_and_kernel(command, sound, tmp_path):
    network = ["--target.weights", sound / "vgg.safetensors", "--clip.path", sound / "clip"]
    probing = ["--data.path", sound / "fer", *network, "--probe.layers", "lin2"]
    study = ["--dissect.top-k", "7", "--data.test-splits", "training", "--edit.layers", "lin1"]
    study += ["lin2", "--edit.tau", "0", "--edit.permutations", "19", "--edit.masks", "3"]
    args = {
        "probe": probing,
        "sweep": [*probing, "lin1", *study],
        "dissect": [
            "--record",
            sound / "record",
            "--clip.path",
            sound / "clip",
            "--dissect.top-k",
            "5",
        ],
        "train": [
            "--data.kind",
            "faces",
            "--data.limit",
            "64",
            "--train.epochs",
            "1",
            "--train.batch",
            "32",
        ],
    }[command]
    folders = ["--out", tmp_path / "out", "--cache", tmp_path / "cache"]
    root = str(Path(emojax.__file__).parent) + os.sep
    kernels = ",".join(KERNELS[command])
    line = [sys.executable, "-c", DRIVER, command, kernels, root, *args, *folders]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code, stacks = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    for kernel, frames in stacks.items():
        assert frames, f"{kernel} was not traced"
        for stack in frames:
            assert len(stack) <= ALLOWED, f"{kernel}: {stack}"
