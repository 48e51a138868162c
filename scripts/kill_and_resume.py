"""Kills a command at random moments, starts it again each time, and compares what it leaves with an
undisturbed run.

    python scripts/kill_and_resume.py --kills 25 -- probe --data.kind faces --data.limit 2000
        --probe.save-every 0 \\ --target.weights VGGNET --clip.path CLIP
    python scripts/kill_and_resume.py --kills 25 -- sweep …

What follows `--` is a command line of emojax; `--out` and `--cache` are added where the verb takes
them. SIGKILL comes between the start and the time that an undisturbed run took. A run that ends
before its kill is compared, and a fresh one begins, so that kills are many whatever the run's
length. All files must have the same bytes, but for `manifest.json` (timings) and the times in a
line of `metrics.jsonl`. Prints a line per finished run; exits 1 on a difference.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro

_NO_CACHE = ("evaluate", "prepare", "concepts")
_TIMES = ("seconds", "images_per_second")


def command(args: list[str], folder: Path) -> list[str]:
    """The command line with its results under `folder`."""
    cache = [] if args[0] in _NO_CACHE else ["--cache", str(folder / "cache")]
    # A kill may come after the run folder is whole and before the process ends.
    return [
        sys.executable,
        "-m",
        "emojax",
        *args,
        "--out",
        str(folder / "out"),
        "--overwrite",
        *cache,
    ]


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file that counts, by name; of the cache too, where nothing half-written
    may stay.
    """
    found = {}
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if path.is_dir() or path.name == "manifest.json" or inside.parts[0].startswith(".out."):
            continue  # a killed run leaves its hidden folder behind
        data = path.read_bytes()
        if path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in data.splitlines()]
            data = json.dumps(
                [{k: v for k, v in row.items() if k not in _TIMES} for row in rows]
            ).encode()
        found[inside.as_posix()] = data
    return found


def killed(line: list[str], env: dict[str, str], after: float) -> bool:
    """Starts the command and kills it after so many seconds; False when it has ended well before.

    Raises:
      RuntimeError: it ended with an error.
    """
    process = subprocess.Popen(
        line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        error = process.communicate(timeout=after)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    if process.returncode:
        raise RuntimeError(f"{' '.join(line)} ended with {process.returncode}:\n{error}")
    return False


def main(args: tyro.conf.Positional[list[str]], kills: int = 25, seed: int = 0) -> None:
    """Kills and compares.

    Args:
      args: the command line.
      kills: how often.
      seed: of the moments.
    """
    chance, well = random.Random(seed), True
    with tempfile.TemporaryDirectory(prefix="emojax-kills-") as name:
        folder = Path(name)
        quick = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
        env = os.environ | quick | {"HF_HUB_OFFLINE": "1"}
        for _ in range(2):  # the first compiles, the second shows how long a run takes
            shutil.rmtree(folder / "whole", ignore_errors=True)
            begun = time.monotonic()
            subprocess.run(
                command(args, folder / "whole"), env=env, check=True, stdout=subprocess.DEVNULL
            )
            seconds = time.monotonic() - begun
        whole = contents(folder / "whole")
        print(f"undisturbed: {len(whole)} files in {seconds:.1f} s", flush=True)
        done, of_this_run, line = 0, 0, command(args, folder / "killed")
        while done < kills or of_this_run:
            begun = time.monotonic()
            if killed(line, env, chance.uniform(0, seconds) if done < kills else 600):
                done, of_this_run = done + 1, of_this_run + 1
                continue
            if not of_this_run:  # the machine may be less busy now
                seconds = min(seconds, time.monotonic() - begun)
            found = contents(folder / "killed")
            wrong = sorted(
                path for path in whole.keys() | found.keys() if whole.get(path) != found.get(path)
            )
            well &= not wrong
            print(
                f"{'DIFFERS' if wrong else 'same'} after {of_this_run} kills ({done} in all)",
                *wrong,
                flush=True,
            )
            shutil.rmtree(folder / "killed")
            of_this_run = 0
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    tyro.cli(main)
