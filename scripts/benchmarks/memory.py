"""Peak memory of a probe against the number of images."""

import dataclasses
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from common import Results
from networks import generated_set, random_clip, random_vgg

# Sizes for a first look.
QUICK = "--images 5000 20000"


@dataclasses.dataclass
class Options:
    """Peak resident memory of a probe over generated images with tiny networks, each size in a
    process of its own.
    """

    images: tuple[int, ...] = (100_000, 1_000_000)
    batch: int = 1024
    out: Path | None = None


@dataclasses.dataclass
class Once:
    """One process of `memory`."""

    images: int
    batch: int


def measure(options: Options) -> Results:
    """Peak memory for each number of images, and its ratio to the first."""
    results = []
    for images in options.images:
        command = [
            sys.executable,
            str(Path(__file__).parent),
            "memory-once",
            "--images",
            str(images),
            "--batch",
            str(options.batch),
        ]
        peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        first = results[0]["peak_bytes"] if results else peak
        results.append(
            {
                "what": "peak memory of a probe",
                "images": images,
                "peak_bytes": peak,
                "ratio": peak / first,
            }
        )
    return results


def measure_once(options: Once) -> None:
    """Probes in this process and prints its peak resident memory in bytes."""
    from emojax.models.vgg import VggConfig
    from emojax.probing import probe as engine

    with tempfile.TemporaryDirectory() as cache:
        record = engine.probe(
            random_vgg(VggConfig(widths=(4, 4, 8, 8, 8, 8, 8, 8), hidden=(16, 16))),
            generated_set(options.images),
            random_clip("tiny"),
            batch=options.batch,
            cache=Path(cache),
        )
        assert record.images == options.images
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
