"""Commands in processes of their own, to be signalled, and what a whole run is."""

import os
import subprocess
import sys
from pathlib import Path

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
    "truth.csv",
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


def demo(out: Path, cache: Path) -> list[str]:
    """A small demo; with a cache that another one has filled, only its results are new."""
    return [
        *("demo", "--images", "200", "--report.images", "none"),
        *("--out", str(out), "--cache", str(cache)),
    ]


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
