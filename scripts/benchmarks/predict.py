"""`emojax predict` of image files against its network alone on the same images in memory."""

import contextlib
import dataclasses
import io
import re
import tempfile
import time
from pathlib import Path

import numpy as np
from common import Results

# Sizes for a first look.
QUICK = "--images 1000 --repeats 2"


@dataclasses.dataclass
class Options:
    """Images a second that the command says, from opened network to written table, and those of the
    network's passes over the same batches in memory, in turns; each once before, to compile.
    """

    images: int = 7178
    """rendered faces, written as PNG"""
    data: Path | None = None
    """a folder of image files, instead"""
    target: str = "fer2013-compact"
    batch: int = 256
    repeats: int = 5
    out: Path | None = None


def measure(options: Options) -> Results:
    """Both rates: medians."""
    from emojax import load_network
    from emojax.data.sources import open_sources, read_batches
    from emojax.training.predict import batch_size, predict

    with tempfile.TemporaryDirectory() as folder:
        files = options.data or write_faces(Path(folder) / "faces", options.images)
        network = load_network(options.target)
        size = batch_size(options.batch)
        (source,) = open_sources([str(files)], 48, network.config.channels)
        batches = [read.images for read in read_batches(source, size)]

        def alone() -> float:
            start = time.perf_counter()
            done = sum(len(p.classes) for p in predict(network, batches, size=size))
            return done / (time.perf_counter() - start)

        def command() -> float:
            from emojax import cli

            table = Path(folder) / "table.csv"
            arguments = ["predict", str(files), "--target.weights", options.target]
            arguments += ["--out", str(table), "--overwrite", "--batch", str(options.batch)]
            with contextlib.redirect_stdout(io.StringIO()) as said:
                assert cli.main(arguments) == 0
            (rate,) = re.findall(r"\(([\d.]+) images/s\)", said.getvalue())
            return float(rate)

        rates = np.array([(command(), alone()) for _ in range(options.repeats + 1)][1:])
    ours, bare = np.median(rates, axis=0)
    return [
        {
            "what": f"predict of {'files' if options.data else 'PNG files'}, {options.target}",
            "images": len(source.names),
            "images_per_second": float(ours),
            "network_images_per_second": float(bare),
            "ratio": float(np.median(rates[:, 0] / rates[:, 1])),
        }
    ]


def write_faces(folder: Path, count: int) -> Path:
    """Rendered faces as 48×48 PNG files."""
    from PIL import Image

    from emojax.synthetic import faces

    folder.mkdir()
    for number, face in enumerate(faces.random_faces(count, 0).render()):
        Image.fromarray(face[..., 0]).save(folder / f"{number:06}.png")
    return folder
