"""From a command's function to the kernel in at most six frames of ours: architecture.md's rule."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import emojax

# The kernel of each command, as a function of ours that is called while it is traced.
KERNELS = {
    "probe": "emojax.ops.topk.update",
    "dissect": "emojax.ops.similarity.weighted_loglik",
    "train": "emojax.ops.augment.mirror",
}
ALLOWED = 6

DRIVER = """
import importlib, json, sys, traceback
command, kernel, root, args = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
module, name = kernel.rsplit(".", 1)
module = importlib.import_module(module)
plain = getattr(module, name)
found = []

def recorded(*arguments, **options):
    stack = [f for f in traceback.extract_stack()[:-1] if f.filename.startswith(root)]
    names = [f"{f.filename[len(root):]}:{f.name}" for f in stack if not f.name.endswith("comp>")]
    start = names.index(f"commands/{command}.py:{command}")
    found.append(names[start + 1 :])
    return plain(*arguments, **options)

setattr(module, name, recorded)
from emojax import cli
code = cli.main([command, *args])
print(json.dumps([code, found]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", KERNELS)
def test_few_frames_between_command_and_kernel(command, sound, tmp_path):
    network = ["--target.weights", sound / "vgg.safetensors", "--clip.path", sound / "clip"]
    probing = ["--data.path", sound / "fer", *network, "--probe.layers", "lin2"]
    args = {
        "probe": probing,
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
    line = [sys.executable, "-c", DRIVER, command, KERNELS[command], root, *args, *folders]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code, stacks = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    assert stacks, "the kernel was not traced"
    for stack in stacks:
        assert len(stack) <= ALLOWED, stack
