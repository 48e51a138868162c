"""What fits into the memory of this machine, asked before work begins.

Estimates are lower bounds, and compared with all the memory there is, not with what happens to be
free: what is refused here could not work. Light: importing this loads neither JAX nor NumPy.
"""

import functools
import os
import resource
from pathlib import Path

from emojax.errors import InputError

GB = 1e9


@functools.cache
def machine_bytes() -> int:
    """Bytes of memory that a process may have: of the machine, within the limits of its control
    groups (containers, Slurm) and of `ulimit -v`.
    """
    limits = [_physical(), resource.getrlimit(resource.RLIMIT_AS)[0], *_group_limits()]
    # RLIM_INFINITY is −1, and a control group without a limit says "max" or a number beyond any.
    return min(limit for limit in limits if limit > 0)


def _physical() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _group_limits(root: Path = Path("/")) -> list[int]:
    """The limits of this process's control groups and of those above them, of version 1 and 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:  # no Linux
        return []
    limits = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers in ("", "memory"):
            version1 = controllers == "memory"
            base = root / "sys/fs/cgroup" / ("memory" if version1 else "")
            name = "memory.limit_in_bytes" if version1 else "memory.max"
            folder = base / group.lstrip("/")
            # A container sees its own group at the base, whatever the name is outside.
            limits += [_number(each / name) for each in (folder, *folder.parents) if each != root]
    return limits


def _number(path: Path) -> int:
    """The limit that a file states; 0 where it states none."""
    try:
        return int(path.read_text("utf-8"))
    except (OSError, ValueError):
        return 0


def check_fits(count: int, each: int, what: str, cure: str, *, fixed: int = 0) -> None:
    """Refuses work that needs more memory than the machine has.

    Args:
      count: how many, as asked for.
      each: bytes that one needs at least.
      what: their name, for the message.
      cure: the setting that makes them fewer or smaller.
      fixed: bytes that are needed beside them.

    Raises:
      InputError: they do not fit; the message has the largest number that does.
    """
    limit = machine_bytes()
    needed = fixed + count * each
    if needed > limit:
        most = max(0, limit - fixed) // each
        raise InputError(
            f"{count} {what} need at least {needed / GB:.4g} GB of memory, and this machine has "
            f"{limit / GB:.4g} GB; {cure} (at most {most} fit)"
        )
