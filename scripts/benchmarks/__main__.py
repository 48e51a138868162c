"""Speeds as ratios to plain PyTorch loops in the same run, memory, and the page in a browser.

    python scripts/benchmarks score               # similarity functions against a loop over units
    python scripts/benchmarks probe               # one pass for all layers against a pass for each
    python scripts/benchmarks originals           # whole processes against both originals' ways
    python scripts/benchmarks resnet              # the same for a ResNet-50 of transformers
    python scripts/benchmarks memory              # peak memory of a probe against number of images
    python scripts/benchmarks loader              # images a second from array_record and JPEG files
    python scripts/benchmarks explain             # linear explanations against a plain search
    python scripts/benchmarks sweep               # edits of lin2 against full evaluations
    python scripts/benchmarks train               # steps of training against PyTorch's
    python scripts/benchmarks predict             # predict against its network alone
    python scripts/benchmarks page                # the page of a large run in a headless Chromium
    python scripts/benchmarks all --out NEW       # all, each in its own process; --quick: small
    python scripts/benchmarks compare OLD NEW     # which ratios got worse; exits 1 if any did

score, probe, originals, resnet and train need the `oracle` extra (torch), page playwright and a
Chromium. Prints a table, and one JSON line per measurement to --out. Sizes are options (`--help`);
`--device` picks the CPU or GPU.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import compare
import explain
import loader
import memory
import originals
import page
import predict
import probe
import resnet
import score
import sweep
import train
import tyro
from common import OnDevice, report

BENCHMARKS = {
    "score": score,
    "probe": probe,
    "originals": originals,
    "resnet": resnet,
    "memory": memory,
    "loader": loader,
    "explain": explain,
    "sweep": sweep,
    "train": train,
    "predict": predict,
    "page": page,
}


@dataclasses.dataclass
class All:
    """Every benchmark, at its own sizes or small ones."""

    out: Path
    quick: bool = False
    """sizes for a first look: minutes instead of an hour; the ratios are lower"""
    device: Literal["cpu", "gpu"] = "cpu"


Commands = (
    Annotated[score.Options, tyro.conf.subcommand("score")]
    | Annotated[probe.Options, tyro.conf.subcommand("probe")]
    | Annotated[originals.Options, tyro.conf.subcommand("originals")]
    | Annotated[resnet.Options, tyro.conf.subcommand("resnet")]
    | Annotated[memory.Options, tyro.conf.subcommand("memory")]
    | Annotated[loader.Options, tyro.conf.subcommand("loader")]
    | Annotated[explain.Options, tyro.conf.subcommand("explain")]
    | Annotated[sweep.Options, tyro.conf.subcommand("sweep")]
    | Annotated[train.Options, tyro.conf.subcommand("train")]
    | Annotated[predict.Options, tyro.conf.subcommand("predict")]
    | Annotated[page.Options, tyro.conf.subcommand("page")]
    | Annotated[All, tyro.conf.subcommand("all")]
    | Annotated[compare.Options, tyro.conf.subcommand("compare")]
    | Annotated[memory.Once, tyro.conf.subcommand("memory-once")]
)


def run_all(options: All) -> None:
    """Runs every benchmark in a process of its own, for none to warm another's caches."""
    for name, benchmark in BENCHMARKS.items():
        if benchmark is page and page.find_browser() is None:
            print("page is left out: no Chromium on this machine")
            continue
        on_device = issubclass(benchmark.Options, OnDevice)
        device = ["--device", options.device] if on_device else []
        sizes = benchmark.QUICK.split() if options.quick else []
        command = [sys.executable, str(Path(__file__).parent), name, "--out", str(options.out)]
        subprocess.run([*command, *device, *sizes], check=True)


def main() -> None:
    """Runs a benchmark."""
    options = tyro.cli(Commands, description=__doc__)
    if isinstance(options, All):
        return run_all(options)
    if isinstance(options, compare.Options):
        sys.exit(compare.compare(options))
    if getattr(options, "device", "cpu") == "cpu":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from emojax.distributed.mesh import use_all_cores

    use_all_cores()
    if isinstance(options, memory.Once):
        return memory.measure_once(options)
    (benchmark,) = (b for b in BENCHMARKS.values() if isinstance(options, b.Options))
    return report(benchmark.measure(options), options.out)


if __name__ == "__main__":
    main()
