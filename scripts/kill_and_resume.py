"""Ends commands at random moments by signals, starts them again, and compares what they leave with
an undisturbed run.

    python scripts/kill_and_resume.py --kills 25 -- probe --data.kind faces --data.limit 2000
        --probe.save-every 0 --target.weights VGGNET --clip.path CLIP
    python scripts/kill_and_resume.py --signals 60
    python scripts/kill_and_resume.py --signals 12 -- sweep …

What follows `--` is a command line of emojax; `--out` and `--cache` are added where the command
takes them. All files must have the same bytes, but for `manifest.json` (timings) and the times in a
line of `metrics.jsonl`. Exits 1 when something is not as it should be.

`--kills`: SIGKILL comes again and again, between the start and the time that an undisturbed run
took, until the run ends; then its files are compared, and a fresh one begins. A line per finished
run.

`--signals`: each case is one signal (Ctrl-C, twice Ctrl-C, SIGTERM, SIGHUP, SIGKILL, or a pause by
SIGSTOP and SIGCONT) to a fresh process, from 0.1 s after its start on. The exit code must be that
of the signal, and stderr one line; the next run, made in this process to save time, must leave the
files of an undisturbed one and no hidden folder. Without a command line the cases go round probe,
run, sweep, demo, train and report. A line per case, and a table at the end.
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import tyro

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "emojax" / "synthetic" / "assets"
_NO_CACHE = ("evaluate", "prepare", "concepts")
_TIMES = ("seconds", "images_per_second")
_NETWORKS = [
    "--target.weights",
    str(ASSETS / "vgg.safetensors"),
    "--clip.path",
    str(ASSETS / "clip"),
]
_PROBED = ["--data.kind", "faces", "--data.limit", "96", *_NETWORKS, "--probe.layers", "lin2"]
_PROBED += ["--probe.batch", "32", "--probe.save-every", "0", "--probe.top-k", "30"]
_LABELLED = [*_PROBED, "--concepts.path", "classes7", "--dissect.top-k", "30"]
_LABELLED += ["--dissect.null-sets", "20"]
_EDITED = [*_LABELLED, "--edit.layers", "lin2", "--edit.tau", "0", "--edit.factor", "1", "2"]
_EDITED += ["--edit.permutations", "19", "--edit.masks", "3"]
_TRAINED = ["--task", "compact", "--data.kind", "faces", "--data.limit", "64"]
_TRAINED += ["--train.epochs", "2", "--train.batch", "32", "--train.save-every", "0"]
# Small command lines, of a few seconds.
COMMANDS = {
    "probe": ["probe", *_PROBED],
    "run": ["run", *_EDITED],
    "sweep": ["sweep", *_EDITED],
    "demo": ["demo", "--images", "200"],
    "train": ["train", *_TRAINED],
    "report": ["report"],
}
KINDS = {
    "INT": (signal.SIGINT,),
    "INT INT": (signal.SIGINT, signal.SIGINT),
    "TERM": (signal.SIGTERM,),
    "HUP": (signal.SIGHUP,),
    "KILL": (signal.SIGKILL,),
    "STOP CONT": (signal.SIGSTOP, signal.SIGCONT),
}


def command(args: list[str], folder: Path) -> list[str]:
    """The command line with its results under `folder`, without the program."""
    if args[0] == "report":  # its results go into the run that is there
        return [*args, str(folder / "out")]
    cache = [] if args[0] in _NO_CACHE else ["--cache", str(folder / "cache")]
    # A kill may come after the run folder is whole and before the process ends.
    return [*args, "--out", str(folder / "out"), "--overwrite", *cache]


def start(line: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
    """The command line as a process."""
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "emojax", *line], env=env, **streams)


def hidden(folder: Path) -> list[str]:
    """Hidden files and folders below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*"))


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file that counts, by name; of the cache too, where nothing half-written
    may stay.
    """
    found = {}
    for path in folder.rglob("*"):
        if path.is_dir() or path.name == "manifest.json":
            continue
        data = path.read_bytes()
        if path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in data.splitlines()]
            data = json.dumps(
                [{k: v for k, v in row.items() if k not in _TIMES} for row in rows]
            ).encode()
        found[path.relative_to(folder).as_posix()] = data
    return found


def differences(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Names of the files that only one has, or that differ."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


# Killed again and again


def killed(line: list[str], env: dict[str, str], after: float) -> bool:
    """Starts the command and kills it after so many seconds; False when it has ended well before.

    Raises:
      RuntimeError: it ended with an error.
    """
    process = start(line, env)
    try:
        error = process.communicate(timeout=after)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    if process.returncode:
        raise RuntimeError(f"{' '.join(line)} ended with {process.returncode}:\n{error}")
    return False


def kill(args: list[str], kills: int, folder: Path, env: dict[str, str], chance: random.Random):
    """Kills a command so many times; whether its files were the same each time it ended."""
    for _ in range(2):  # the first compiles, the second shows how long a run takes
        shutil.rmtree(folder / "whole", ignore_errors=True)
        begun = time.monotonic()
        killed(command(args, folder / "whole"), env, 3600)
        seconds = time.monotonic() - begun
    whole = contents(folder / "whole")
    print(f"undisturbed: {len(whole)} files in {seconds:.1f} s", flush=True)
    well, done, of_this_run, line = True, 0, 0, command(args, folder / "killed")
    while done < kills or of_this_run:
        begun = time.monotonic()
        if killed(line, env, chance.uniform(0, seconds) if done < kills else 600):
            done, of_this_run = done + 1, of_this_run + 1
            continue
        if not of_this_run:  # the machine may be less busy now
            seconds = min(seconds, time.monotonic() - begun)
        wrong = differences(whole, contents(folder / "killed")) + hidden(folder / "killed")
        well &= not wrong
        print(
            f"{'DIFFERS' if wrong else 'same'} after {of_this_run} kills ({done} in all)",
            *wrong,
            flush=True,
        )
        shutil.rmtree(folder / "killed")
        of_this_run = 0
    return well


# One signal a case


class Ended(NamedTuple):
    """How a process ended that got a signal: exit code, stderr, and whether it listened for signals
    by then, or Python was still starting.
    """

    code: int
    error: str
    listened: bool


def signalled(line: list[str], env: dict[str, str], kind: str, after: float) -> Ended | None:
    """Starts the command and sends a kind of signal after so many seconds; None when the process
    has ended before.
    """
    process = start(line, env)
    with process:
        time.sleep(after)
        listened = _listens(process.pid)
        if process.poll() is not None:
            return None
        for number in KINDS[kind]:
            process.send_signal(number)
            time.sleep(0.1)
        error = process.communicate(timeout=600)[1]
    return Ended(process.returncode, error, listened)


def _listens(process: int) -> bool:
    """Whether a process has a handler for SIGTERM (Linux)."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def complaints(kind: str, ended: Ended) -> list[str]:
    """What is wrong with how a process ended."""
    number = KINDS[kind][0]
    lines = [line for line in ended.error.splitlines() if not line.startswith("warning: ")]
    if kind == "STOP CONT":
        return [] if (ended.code, lines) == (0, []) else [f"exit code {ended.code}: {lines}"]
    one_line = len(lines) == 1 and lines[0].startswith("emojax: interrupted")
    well = ended.code == 128 + number and one_line
    if kind == "KILL" or not ended.listened:
        well |= ended.code == -number
    well |= ended.code == 0 and not lines  # it had finished, and was about to end
    return [] if well else [f"exit code {ended.code}: {lines}"]


def run_here(line: list[str]) -> list[str]:
    """Runs a command line in this process; what is wrong with how it ended."""
    from emojax import cli

    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = cli.main(line)
    return [] if code == 0 else [f"the next run: exit code {code}: {error.getvalue()}"]


class Cases:
    """Cases of one command line, and what an undisturbed run of it leaves.

    Args:
      args: the command line.
      folder: for all that is written.
      env: of the processes.
      before: for `report`, a run folder without a page.
    """

    def __init__(self, args: list[str], folder: Path, env: dict[str, str], before: Path | None):
        self.args, self.folder, self.env, self.before = args, folder, env, before
        wrong = run_here(self._line("whole"))
        if wrong:
            raise RuntimeError(f"undisturbed: {wrong}")
        self.whole = contents(folder / "whole")
        self.seconds = 0.0

    def _line(self, name: str) -> list[str]:
        """The command line, with a fresh folder for its results."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        if self.before is not None:
            shutil.copytree(self.before, self.folder / name / "out")
        return command(self.args, self.folder / name)

    def measure(self) -> None:
        """Finds how long an undisturbed process takes now."""
        begun = time.monotonic()
        killed(self._line("timed"), self.env, 3600)
        self.seconds = time.monotonic() - begun

    def attempt(self, kind: str, after: float) -> list[str] | None:
        """What is wrong after a signal at this moment, and after the next run; None when the
        process had ended before.
        """
        line = self._line("signalled")
        ended = signalled(line, self.env, kind, after)
        if ended is None:
            return None
        wrong = complaints(kind, ended) + run_here(line)
        there = self.folder / "signalled"
        return wrong + differences(self.whole, contents(there)) + hidden(there)


def unpaged_run(folder: Path) -> Path:
    """A run folder without a page, for `report`."""
    out = folder / "unpaged"
    run_here([*COMMANDS["run"], "--cache", str(folder / "unpaged-cache"), "--out", str(out)])
    (out / "report.html").unlink()
    shutil.rmtree(out / "figures")
    return out


def send_signals(
    lines: dict[str, list[str]],
    count: int,
    folder: Path,
    env: dict[str, str],
    chance: random.Random,
) -> bool:
    """Sends so many signals, one a case, and prints the table; whether all was well."""
    cases: dict[str, Cases] = {}
    for name, args in lines.items():
        before = unpaged_run(folder) if args == ["report"] else None
        cases[name] = Cases(args, folder / name, env, before)
        cases[name].measure()
        print(f"{name}: undisturbed in {cases[name].seconds:.1f} s", flush=True)
    well, names, kinds = Counter(), list(lines), list(KINDS)
    for number in range(count):
        round_, place = divmod(number, len(names))
        name, kind = names[place], kinds[(round_ + place) % len(kinds)]
        wrong = None
        while wrong is None:
            after = chance.uniform(0.1, cases[name].seconds)
            wrong = cases[name].attempt(kind, after)
        well[name, kind, not wrong] += 1
        print(f"{'FAILED' if wrong else 'ok'}  {name}, {kind} at {after:.2f} s", *wrong, flush=True)
    print("", *kinds, sep="\t")
    for name in names:
        counts = [(well[name, kind, True], well[name, kind, False]) for kind in kinds]
        print(name, *(f"{right} of {right + wrong}" for right, wrong in counts), sep="\t")
    return not any(count for (_, _, right), count in well.items() if not right)


def main(
    args: tyro.conf.Positional[tuple[str, ...]] = (),
    kills: int = 25,
    signals: int = 0,
    seed: int = 0,
) -> None:
    """Ends commands and compares.

    Args:
      args: the command line; without one, all that `--signals` knows.
      kills: how often one command is killed.
      signals: how many cases of one signal, instead of the kills.
      seed: of the moments.
    """
    if not args and not signals:
        sys.exit("name a command line after --, or give --signals")
    # Ctrl-C is not ignored then, as it is in jobs that a shell starts in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with tempfile.TemporaryDirectory(prefix="emojax-kills-") as name:
        folder = Path(name)
        os.environ |= {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            "HF_HUB_OFFLINE": "1",
        }
        env, chance = dict(os.environ), random.Random(seed)
        lines = {args[0]: list(args)} if args else COMMANDS
        if signals:
            well = send_signals(lines, signals, folder, env, chance)
        else:
            well = kill(list(args), kills, folder, env, chance)
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    tyro.cli(main)
