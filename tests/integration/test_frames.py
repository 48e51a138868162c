"""From a command's function to the kernel in at most six frames of ours: architecture.md's rule."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from signalled import environment

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

# One process for all commands: each imports and compiles anew what the others have, too.
DRIVER = """
import importlib, json, sys, traceback
root, kernels, commands = sys.argv[1], *map(json.loads, sys.argv[2:])
stacks = {kernel: [] for names in kernels.values() for kernel in names}
running = None

def record(kernel, command):
    module, name = kernel.rsplit(".", 1)
    module = importlib.import_module(module)
    plain = getattr(module, name)

    def recorded(*arguments, **options):
        stack = [f for f in traceback.extract_stack()[:-1] if f.filename.startswith(root)]
        stack = [f for f in stack if not f.name.endswith("comp>")]
        names = [f"{f.filename[len(root):]}:{f.name}" for f in stack]
        if running == command:
            start = names.index(f"commands/{command}.py:{command}")
            stacks[kernel].append(names[start + 1 :])
        return plain(*arguments, **options)

    setattr(module, name, recorded)

for command, names in kernels.items():
    for kernel in names:
        record(kernel, command)
from emojax import cli
codes = []
for running, args in commands.items():
    codes.append(cli.main([running, *args]))
print(json.dumps([codes, stacks]))
"""


@pytest.mark.long
def test_few_frames_between_command_and_kernel(sound, tmp_path):
    network = ["--target.weights", sound / "vgg.safetensors", "--clip.path", sound / "clip"]
    probing = ["--data.path", sound / "fer", *network, "--probe.layers", "lin2"]
    study = ["--dissect.top-k", "7", "--data.test-splits", "training", "--edit.layers", "lin1"]
    study += ["lin2", "--edit.tau", "0", "--edit.permutations", "19", "--edit.masks", "3"]
    commands = {
        "probe": probing,
        "dissect": [
            "--record",
            sound / "record",
            "--clip.path",
            sound / "clip",
            "--dissect.top-k",
            "5",
        ],
        "sweep": [*probing, "lin1", *study],
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
    }
    for command, args in commands.items():
        args += ["--out", tmp_path / command, "--cache", tmp_path / "cache"]
    given = {command: list(map(str, args)) for command, args in commands.items()}
    root = str(Path(emojax.__file__).parent) + os.sep
    line = [sys.executable, "-c", DRIVER, root, json.dumps(KERNELS), json.dumps(given)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    codes, stacks = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0] * len(commands), done.stderr
    for kernel, frames in stacks.items():
        assert frames, f"{kernel} was not traced"
        for stack in frames:
            assert len(stack) <= ALLOWED, f"{kernel}: {stack}"
