"""Ends commands at random moments by signals, starts them again, and compares what they leave with
an undisturbed run.

    python scripts/kill_and_resume.py --kills 25 -- probe --data.kind faces --data.limit 2000
        --probe.save-every 0 --target.weights VGGNET --clip.path CLIP
    python scripts/kill_and_resume.py --signals 60
    python scripts/kill_and_resume.py --signals 12 --here -- sweep

What follows `--` is a command line of emojax; `--out` and `--cache` are added where the command
takes them. All files must have the same bytes, but for `manifest.json` and TensorBoard's files
(timings), the times in a line of `metrics.jsonl`, and what a page says of times and of its own
folders. Exits 1 when something is not as it should be.

`--kills`: SIGKILL comes again and again, between the start and the time that an undisturbed run
took, until the run ends; then its files are compared, and a fresh one begins. A line per finished
run.

`--signals`: each case is one signal (Ctrl-C, twice Ctrl-C, SIGTERM, SIGHUP, SIGKILL, or a pause by
SIGSTOP and SIGCONT) to a fresh process, from 0.1 s after its start on. The exit code must be that
of the signal, and stderr one line; the next run, made in this process to save time, must leave the
files of an undisturbed one and no hidden folder. Without a command line the cases go round probe,
run, sweep, demo, train and report; the name alone of one of these stands for its small command line
here. `--here` sends the signals, but SIGKILL and SIGSTOP, to this process, which runs the commands
itself: that spares most of the time, and the moments of a start. A line per case, and a table at
the end.
"""

import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
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
        # TensorBoard's files hold times, and their names one.
        if path.is_dir() or path.name == "manifest.json" or path.parent.name == "tensorboard":
            continue
        data = path.read_bytes()
        if path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in data.splitlines()]
            data = json.dumps(
                [{k: v for k, v in row.items() if k not in _TIMES} for row in rows]
            ).encode()
        if path.name == "report.html":
            # Its settings name its folders, and it lists timings.
            data = re.sub(rb"Started [\d:T+-]+|seconds</th><td>[\d.]+", b"", data)
            data = data.replace(str(folder).encode(), b"")
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
    time.sleep(after)
    listened = _listens(process.pid)
    if process.poll() is not None:
        process.communicate()
        return None
    for number in KINDS[kind]:
        process.send_signal(number)
        time.sleep(0.1)
    error = process.communicate(timeout=600)[1]
    return Ended(process.returncode, error, listened)


def signalled_here(line: list[str], kind: str, after: float) -> Ended | None:
    """As `signalled`, but in this process, where everything is imported and compiled."""
    sent, ended = threading.Event(), threading.Event()

    def send() -> None:
        for number in KINDS[kind]:
            if not ended.wait(0.1 if sent.is_set() else after):
                sent.set()
                os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    code, error = run_here(line)
    ended.set()
    sender.join()
    return Ended(code, error, listened=True) if sent.is_set() else None


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


def run_here(line: list[str]) -> tuple[int, str]:
    """Runs a command line in this process: exit code and stderr."""
    from emojax import cli

    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        return cli.main(line), error.getvalue()


class Cases:
    """Cases of one command line, and what an undisturbed run of it leaves.

    Args:
      args: the command line.
      folder: for all that is written.
      env: of processes.
      here: send signals to this process where that is possible.
    """

    def __init__(self, args: list[str], folder: Path, env: dict[str, str], *, here: bool):
        self._args, self._folder, self._env, self._here = args, folder, env, here
        self._seconds: dict[
            bool, float
        ] = {}  # of an undisturbed run, in a process of its own or not
        if args[0] == "report":
            self._make_unpaged()
        self._undisturbed("whole")
        self.whole = contents(folder / "whole")

    def _make_unpaged(self) -> None:
        """Makes a run folder without a page, for `report`."""
        out = self._folder / "unpaged"
        cache = ["--cache", str(self._folder / "unpaged-cache")]
        run_here([*COMMANDS["run"], *cache, "--out", str(out)])
        (out / "report.html").unlink()
        shutil.rmtree(out / "figures")

    def _line(self, name: str) -> list[str]:
        """The command line, with a fresh folder for its results."""
        shutil.rmtree(self._folder / name, ignore_errors=True)
        if self._args[0] == "report":
            shutil.copytree(self._folder / "unpaged", self._folder / name / "out")
        return command(self._args, self._folder / name)

    def _undisturbed(self, name: str, *, apart: bool = False) -> float:
        """Runs the command to its end, in a process of its own or in this one; the seconds.

        Raises:
          RuntimeError: it ended with an error.
        """
        line = self._line(name)
        begun = time.monotonic()
        if apart:
            killed(line, self._env, 3600)
        else:
            code, error = run_here(line)
            if code:
                raise RuntimeError(f"{' '.join(line)} ended with {code}:\n{error}")
        return time.monotonic() - begun

    def attempt(self, kind: str, share: float) -> tuple[float, list[str]] | None:
        """Sends a signal after this share of the time of a run; None when the run ended before.

        Returns the seconds after the start, and what is wrong then and after the next run.
        """
        apart = not self._here or kind in ("KILL", "STOP CONT")
        if apart not in self._seconds:
            self._seconds[apart] = self._undisturbed("timed", apart=apart)
        after = 0.1 + share * max(0.0, self._seconds[apart] - 0.1)
        line = self._line("signalled")
        if apart:
            ended = signalled(line, self._env, kind, after)
        else:
            ended = signalled_here(line, kind, after)
        if ended is None:
            return None
        wrong = complaints(kind, ended)
        code, error = run_here(line)
        if code:
            wrong.append(f"the next run: exit code {code}: {error}")
        there = self._folder / "signalled"
        return after, wrong + differences(self.whole, contents(there)) + hidden(there)


def send_signals(
    lines: dict[str, list[str]],
    count: int,
    folder: Path,
    env: dict[str, str],
    chance: random.Random,
    *,
    here: bool = False,
) -> bool:
    """Sends so many signals, one a case, and prints the table; whether all was well."""
    cases = {name: Cases(args, folder / name, env, here=here) for name, args in lines.items()}
    right: Counter[tuple[str, str]] = Counter()
    tried: Counter[tuple[str, str]] = Counter()
    names, kinds = list(lines), list(KINDS)
    for number in range(count):
        round_, place = divmod(number, len(names))
        name, kind = names[place], kinds[(round_ + place) % len(kinds)]
        found = None
        while found is None:
            found = cases[name].attempt(kind, chance.random())
        after, wrong = found
        tried[name, kind] += 1
        right[name, kind] += not wrong
        print(f"{'FAILED' if wrong else 'ok'}  {name}, {kind} at {after:.2f} s", *wrong, flush=True)
    print("", *kinds, sep="\t")
    for name in names:
        counts = [f"{right[name, kind]} of {tried[name, kind]}" for kind in kinds]
        print(name, *counts, sep="\t")
    return right == tried


def main(
    args: tyro.conf.Positional[tuple[str, ...]] = (),
    kills: int = 25,
    signals: int = 0,
    here: bool = False,
    seed: int = 0,
) -> None:
    """Ends commands and compares.

    Args:
      args: the command line; without one, all that `--signals` knows.
      kills: how often one command is killed.
      signals: how many cases of one signal, instead of the kills.
      here: send them to this process, SIGKILL and SIGSTOP apart.
      seed: of the moments.
    """
    if not args and not signals:
        sys.exit("name a command line after --, or give --signals")
    # Ctrl-C is not ignored then, as it is in jobs that a shell starts in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if here:  # a signal that comes when its command has just ended is nothing
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
    with tempfile.TemporaryDirectory(prefix="emojax-kills-") as name:
        folder = Path(name)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        env, chance = dict(os.environ), random.Random(seed)
        if signals:
            lines = {args[0]: list(args)} if args else COMMANDS
            if len(args) == 1:
                lines = {args[0]: COMMANDS[args[0]]}
            well = send_signals(lines, signals, folder, env, chance, here=here)
        else:
            well = kill(list(args), kills, folder, env, chance)
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    tyro.cli(main)
