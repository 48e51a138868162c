"""What all benchmarks share: options, clocks, and how results are shown, kept and compared."""

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

# Measurements: each says `what`, and where it compares with something, the `ratio`.
Results = list[dict[str, Any]]


@dataclasses.dataclass
class OnDevice:
    """Where to measure, and the file that a JSON line per measurement is appended to."""

    device: Literal["cpu", "gpu"] = "cpu"
    out: Path | None = None


def taking_turns(
    ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int, where: str
) -> tuple[float, float, Any]:
    """Median seconds of either, called in turns after a call of each that warms up, and the result
    of the second.

    In turns, because the speed of a shared machine drifts; the median, because it jumps.
    """
    import jax
    import torch

    jax.block_until_ready(ours())
    theirs()
    times = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(ours())
        middle = time.perf_counter()
        result = theirs()
        if where == "cuda":
            torch.cuda.synchronize()
        times[0].append(middle - start)
        times[1].append(time.perf_counter() - middle)
    return float(np.median(times[0])), float(np.median(times[1])), result


def rate(marks: list[tuple[int, float]]) -> float:
    """Images per second between the first and the last batch."""
    (first, start), (last, end) = marks[0], marks[-1]
    return (last - first) / (end - start)


def report(results: Results, out: Path | None) -> None:
    """Prints a table and appends JSON lines that name the machine and the versions."""
    import jax

    about = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
    }
    table = Table("what", "measurement", "ratio")
    for row in results:
        rest = {key: value for key, value in row.items() if key not in ("what", "ratio")}
        shown = ", ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in rest.items()
        )
        table.add_row(row["what"], shown, f"{row['ratio']:.3f}" if "ratio" in row else "")
    Console().print(table)
    if out is not None:
        with open(out, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(about | row) + "\n" for row in results)
