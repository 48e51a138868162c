"""Commands in processes of their own, to be signalled, and what a whole run is."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax

from emojax.report import results

# A command whose page says on stderr that it has begun, then takes for ever. Ctrl-C is not ignored,
# as it is in jobs that a shell starts in the background.
DRIVER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from emojax.__main__ import start
from emojax.report import page

def slow(*args, **options):
    print("PAGE", file=sys.stderr, flush=True)
    while True:
        time.sleep(0.05)

{patch}
sys.argv = ["emojax", *{args!r}]
start()
"""
WHOLE = {
    "manifest.json",
    "summary.json",
    "evidence.json",
    "dissection.csv",
    "sweep.csv",
    "edited.safetensors",
}


def environment() -> dict[str, str]:
    """Processes compile into the session's cache, too: each program once."""
    return dict(os.environ) | {
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }


def start(*args, patch: str = "", **streams) -> subprocess.Popen:
    code = DRIVER.format(args=[str(arg) for arg in args], patch=patch)
    options = {"stderr": subprocess.PIPE, "text": True, "env": environment()} | streams
    return subprocess.Popen([sys.executable, "-c", code], **options)


class SmallRun(NamedTuple):
    """`emojax run` on a few images of a small network."""

    inputs: Path
    weights: Path
    cache: Path

    def args(self, out: Path, cache: Path | None = None) -> list[str]:
        """With a cache that another run has filled, only its results are new."""
        inputs = [*("--data.path", self.inputs / "fer"), *("--clip.path", self.inputs / "clip")]
        labels = ["--probe.layers", "lin2", "--dissect.top-k", "7", "--dissect.null-sets", "20"]
        # A share of the units, because a threshold may lie beyond all scores, which is warned of.
        edits = ["--edit.layers", "lin2", "--edit.tau", "0", "--edit.top-fraction", "0.5"]
        edits += ["--edit.factor", "1", "2"]
        evidence = ["--edit.permutations", "19", "--edit.masks", "3", "--report.images", "none"]
        places = ["--out", out, "--cache", cache or self.cache]
        given = ["--target.weights", self.weights, *inputs, *labels, *edits, *evidence, *places]
        return ["run", *map(str, given)]


def assert_whole(run: Path) -> None:
    """The run is read as a whole one, has its results, and nothing half-written lies in or beside
    it.
    """
    names = {path.name for path in run.iterdir()}
    assert names >= WHOLE
    assert results.read_run(run).evidence is not None
    assert not [path for path in run.parent.rglob(".*") if "cache" not in path.parts]


def notes(run: Path) -> str:
    return f"; the run in {run} is whole but for its page, which `emojax report {run}` makes\n"
