"""Two result files, measurement by measurement."""

import dataclasses
import json
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table


@dataclasses.dataclass
class Options:
    """Two result files, measurement by measurement."""

    old: tyro.conf.Positional[Path]
    new: tyro.conf.Positional[Path]
    tolerance: float = 0.25
    """share by which a ratio may fall before it counts; on shared machines they move by that much
    by themselves
    """


def compare(options: Options) -> int:
    """Prints the ratios of two files side by side; 1 where one got worse by more than the
    tolerance, else 0.
    """
    old, new = (_last_ratios(path) for path in (options.old, options.new))
    table, worse = Table("what", "sizes", "old", "new", "change"), 0
    for name in sorted(old.keys() & new.keys()):
        change = new[name] / old[name] - 1
        fell = (
            -change if name[0].startswith("peak memory") else change
        ) < -options.tolerance  # less memory is better
        worse += fell
        table.add_row(
            *name,
            f"{old[name]:.3g}",
            f"{new[name]:.3g}",
            f"{change:+.0%}{' worse' if fell else ''}",
        )
    Console().print(table)
    for name in sorted(old.keys() ^ new.keys()):
        print(f"only in {options.old if name in old else options.new}: {name[0]} ({name[1]})")
    return 1 if worse else 0


def _last_ratios(path: Path) -> dict[tuple[str, str], float]:
    """The last ratio of every measurement at its sizes, which are the whole numbers of its line."""
    found = {}
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        if "ratio" in row:
            sizes = [
                f"{k} {v}"
                for k, v in row.items()
                if isinstance(v, int) and k not in ("cores", "peak_bytes")
            ]
            found[row["what"], ", ".join(sizes)] = row["ratio"]
    return found
