"""Several processes against one: the same labels, lists and predictions; and what is left when one
of them is killed.

    python scripts/check_hosts.py                      # 4 processes × 2 devices, and 2 × 2 to go on
      after the kill

Runs `probe`, `dissect` and `sweep` of the networks that ship with emojax on rendered faces as one
process and as several on this machine, and compares all that they write. Then kills one process of
a probe, a later and the first one, looks at how the rest end, resumes with other numbers of
processes, and compares again. Prints a line for each; exits 1 on a difference.
"""

import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

ASSETS = Path(__file__).parents[1] / "emojax" / "synthetic" / "assets"
NETWORKS = [
    "--target.weights",
    str(ASSETS / "vgg.safetensors"),
    "--clip.path",
    str(ASSETS / "clip"),
]
CLOSE = 1e-5


class Ended(NamedTuple):
    """A process that has ended: its exit code, its stderr, and when."""

    code: int
    error: str
    at: float


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(args: list[str], processes: int, devices: int, compiled: Path) -> list[subprocess.Popen]:
    """Starts `emojax` as so many processes with so many CPU devices each; one process is no job."""
    quick = {
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    env = os.environ | quick | {"JAX_NUM_CPU_DEVICES": str(devices), "HF_HUB_OFFLINE": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), env.get("PYTHONPATH", "")])
    job = (
        ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(processes)]
        if processes > 1
        else []
    )
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    own = ([*job, "--index", str(at)] if job else [] for at in range(processes))
    return [
        subprocess.Popen([sys.executable, "-m", "emojax", *args, *each], env=env, **streams)
        for each in own
    ]


def wait(started: list[subprocess.Popen], timeout: float = 600) -> list[Ended]:
    """Waits for all of them; one that does not end in time is killed and the timeout raised."""
    until, ended = time.monotonic() + timeout, []
    try:
        for process in started:
            error = process.communicate(timeout=max(0.1, until - time.monotonic()))[1]
            ended.append(Ended(process.returncode, error, time.monotonic()))
    finally:
        for process in started:
            process.kill()
    return ended


def run(args: list[str], processes: int, devices: int, compiled: Path) -> None:
    """Runs `emojax` to its end; another port is tried if somebody took the one that was free.

    Raises:
      RuntimeError: a process did not end well.
    """
    for last in (False, False, True):
        ended = wait(start(args, processes, devices, compiled))
        if all(one.code == 0 for one in ended):
            return
        errors = "\n".join(one.error for one in ended)
        if last or not re.search("did not find each other|cannot listen there", errors):
            raise RuntimeError(
                f"emojax {' '.join(args)} ended with {[one.code for one in ended]}:\n{errors}"
            )


def kill_one(
    args: list[str], processes: int, devices: int, compiled: Path, cache: Path, victim: int
) -> list[Ended]:
    """Kills a process of a probe after its first snapshot; the others, with `at` in seconds after
    the kill.

    Raises:
      RuntimeError: the probe ended before it could be killed.
    """
    for _ in range(3):
        started = start(args, processes, devices, compiled)
        while all(process.poll() is None for process in started) and not list(
            cache.glob("probes/*/snapshot-*")
        ):
            time.sleep(0.01)
        started[victim].kill()
        killed = time.monotonic()
        ended = wait(started)
        if ended[victim].code == -9:
            return [
                one._replace(at=one.at - killed) for at, one in enumerate(ended) if at != victim
            ]
        if not any("did not find each other" in one.error for one in ended):
            raise RuntimeError(f"the probe ended before it was killed: {ended}")
    raise RuntimeError("no free port")


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two run folders or record folders, but for their manifests and pages,
    which say when they were made; empty when nothing does.

    Text and whole numbers must be equal, other numbers close: within 1e-5 of the largest of their
    column or array. All of a record must be equal.
    """
    names = {
        path.relative_to(root)
        for root in (one, other)
        for path in root.rglob("*")
        if path.is_file()
    }
    found = []
    for name in sorted(names):
        if name.name in ("manifest.json", "log.txt", "checksums.json", "report.html"):
            continue
        if name.parts[0] == "figures":
            continue
        if not (one / name).exists() or not (other / name).exists():
            found.append(f"{name} is in one only")
            continue
        a, b = (_contents(root / name) for root in (one, other))
        exact = name.suffix in (".npy", ".jsonl") or name.name == "statistics.safetensors"
        if why := _differ(a, b, exact):
            found.append(f"{name}: {why}")
    return found


def _contents(path: Path) -> Any:
    match path.suffix:
        case ".csv":
            with open(path, newline="", encoding="utf-8") as file:
                header, *rows = csv.reader(file)
            return {
                name: _column(cells)
                for name, cells in zip(header, zip(*rows, strict=True), strict=True)
            }
        case ".json":
            return json.loads(path.read_text("utf-8"))
        case ".jsonl":
            return path.read_text("utf-8").splitlines()
        case ".npy" | ".npz":
            found = np.load(path)
            text = lambda array: array.tolist() if array.dtype.kind == "U" else array  # noqa: E731
            return (
                found
                if path.suffix == ".npy"
                else {name: text(array) for name, array in found.items()}
            )
        case ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
        case _:
            return path.read_bytes()


def _column(cells: tuple[str, ...]) -> list[str] | np.ndarray:
    """A column of a table: whole numbers, numbers (NaN where empty), or text."""
    for kind, filled in ((np.int64, cells), (np.float64, [cell or "nan" for cell in cells])):
        try:
            return np.array(filled).astype(kind)
        except ValueError:
            pass
    return list(cells)


def _differ(a: Any, b: Any, exact: bool = False, where: str = "") -> str | None:
    """The first difference of two values, in words."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return next(
            (why for key in a if (why := _differ(a[key], b[key], exact, f"{where}/{key}"))), None
        )
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return next(
            (why for at, (x, y) in pairs if (why := _differ(x, y, exact, f"{where}/{at}"))), None
        )
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.shape == b.shape:
        exact |= not a.dtype.kind == b.dtype.kind == "f"
        within = 0.0 if exact or not a.size else CLOSE * np.max(abs(np.nan_to_num(a)))
        if np.array_equal(a, b) or (np.isclose(a, b, rtol=0, atol=within, equal_nan=True).all()):
            return None
        differ = int((a != b).sum())
        most = np.max(abs(np.nan_to_num(a - b)))
        return f"{where}: {differ} of {a.size} differ, by {most:g} at most"
    if float in (type(a), type(b)) and isinstance(a, float | int) and isinstance(b, float | int):
        return None if abs(a - b) <= CLOSE * (1 + abs(a)) else f"{where} is {a} and {b}"
    return (
        None
        if type(a) is type(b) and not isinstance(a, np.ndarray) and a == b
        else f"{where} is {a!r} and {b!r}"
    )


class Report:
    """Lines as they come; whether all was well."""

    def __init__(self) -> None:
        self.well = True

    def __call__(self, what: str, problems: list[str]) -> None:
        """A line, and what is wrong below it."""
        self.well &= not problems
        print(f"{'FAILED' if problems else 'ok'}  {what}", *problems, sep="\n        ", flush=True)


def main(images: int = 640, processes: int = 4, devices: int = 2, keep: Path | None = None) -> None:
    """Compares and kills.

    Args:
      images: faces to render, in the probe split and in each test split.
      processes: how many against one.
      devices: CPU devices of each.
      keep: folder for what is written, instead of a temporary one that is removed.
    """
    folder, report = keep or Path(tempfile.mkdtemp(prefix="emojax-hosts-")), Report()
    data = ["--data.kind", "faces", "--data.limit", str(images), *NETWORKS]
    probing = [
        *data,
        "--probe.batch",
        "64",
        "--probe.layers",
        "conv*",
        "lin*",
        "--probe.save-every",
        "0",
    ]
    several = f"{processes} processes × {devices} devices"
    for verb in ("probe", "dissect", "sweep"):
        for name, many in (("one", 1), ("several", processes)):
            out = [
                "--out",
                str(folder / name / verb),
                "--cache",
                str(folder / name / f"cache-{verb}"),
            ]
            run([verb, *probing, *out], many, devices if many > 1 else 1, folder / "compiled")
        report(
            f"{verb}: {several} as one process",
            differences(folder / "one" / verb, folder / "several" / verb),
        )
    for victim, after in ((processes - 1, 2), (0, 1)):
        cache = folder / f"cache-{victim}"
        args = ["probe", *probing, "--out", str(folder / f"killed-{victim}"), "--cache", str(cache)]
        rest = kill_one(args, processes, devices, folder / "compiled", cache, victim)
        last, codes = max(one.at for one in rest), [one.code for one in rest]
        silent = [
            one.error
            for one in rest
            if f"process {victim} of {processes} ended before" not in one.error
        ]
        report(f"process {victim} killed: the rest ended after {last:.1f} s, with {codes}", silent)
        if victim:
            noise = [one.error for one in rest if one.error.count("\n") != 1]
            report("  with one line each", noise)
        run(args, after, 2, folder / "compiled")
        report(
            f"  resumed with {after} processes × 2 devices: the same",
            differences(folder / "one" / "probe", folder / f"killed-{victim}"),
        )
    if keep is None:
        shutil.rmtree(folder)
    sys.exit(0 if report.well else 1)


if __name__ == "__main__":
    tyro.cli(main)
