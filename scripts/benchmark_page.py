"""The page of a run of the published VGGNet's size in a headless Chromium: its size, opening,
search, sorting, one unit.

    python scripts/benchmark_page.py                  # 10,112 units, 28,709 rendered faces; needs
      playwright and Chromium

The units' lists of top images are drawn at random, so that every face is in some list: no real run
has more to show.
"""

import dataclasses
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tyro

from emojax import write_report
from emojax.data.concepts import load_concepts
from emojax.dissection.dissect import dissect
from emojax.dissection.labels import Dissection
from emojax.models.vgg import VggConfig
from emojax.ops.moments import Moments
from emojax.ops.topk import TopK
from emojax.probing.record import ProbeRecord
from emojax.synthetic import faces

ACT = """async ([id, value]) => {
  const start = performance.now(), node = document.querySelector(id);
  if (value === null) node.click();
  else { node.value = value; node.dispatchEvent(new Event("input")); }
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return performance.now() - start;
}"""


@dataclasses.dataclass
class Options:
    """What to build, and how often to measure."""

    images: int = 28_709
    repeats: int = 5
    size: float = 25.0
    """bound of the page in MB"""
    keep: Path | None = None
    """folder to keep the run in"""


def random_dissection(options: Options, labels: np.ndarray, classes: tuple[str, ...]) -> Dissection:
    """A dissection of all layers of the published VGGNet from random lists and embeddings."""
    rng, concepts = np.random.default_rng(0), load_concepts("paper25")
    layers = {name: units for name, units in VggConfig.paper().units().items() if name != "lin3"}
    units = sum(layers.values())
    values = -np.sort(-rng.standard_normal((2, units, 100)).astype(np.float32), axis=2)
    indices = 2 * rng.integers(0, options.images // 2, values.shape, dtype=np.int32)
    indices[1] += 1
    embeddings, texts = (
        rng.standard_normal((n, 64)).astype(np.float32) for n in (options.images, len(concepts))
    )
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (embeddings, texts)]
    nothing = np.zeros(0)
    record = ProbeRecord(
        layers=layers,
        top=TopK(values, indices),
        half_moments=Moments(*(nothing for _ in Moments._fields)),
        embeddings=unit[0],
        labels=labels,
        classes=classes,
        ids=[f"training/Training_{i}.jpg" for i in range(options.images)],
        key=None,
        clip_key="random",
    )
    return dissect(record, concepts, text_embeddings=unit[1])


def measure(page_path: Path, repeats: int) -> dict[str, float]:
    """Medians in milliseconds."""
    from playwright.sync_api import sync_playwright

    executable = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if executable is None:
        sys.exit("no Chromium on this machine")
    times: dict[str, list[float]] = {"open": [], "search": [], "sort": [], "unit": []}
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--disable-gpu"]
        )
        for _ in range(repeats):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            start = time.perf_counter()
            page.goto(page_path.resolve().as_uri())
            page.wait_for_selector("html[data-ready=yes]")
            times["open"].append(1000 * (time.perf_counter() - start))
            times["search"].append(page.evaluate(ACT, ["#search", "brows"]))
            times["sort"].append(page.evaluate(ACT, ["#units th:nth-child(3) button", None]))
            times["unit"].append(page.evaluate(ACT, ["#units tbody button", None]))
            page.close()
        browser.close()
    return {name: float(np.median(each)) for name, each in times.items()}


def main() -> None:
    """Builds the page and measures it."""
    options = tyro.cli(Options, description=__doc__)
    images = faces.random_faces(options.images, 0).image_set("faces")
    found = random_dissection(options, images.labels, images.classes)
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        path = write_report(
            found,
            options.keep or Path(scratch) / "run",
            images=images,
            people=False,
            size=options.size,
        )
        print(
            f"{len(found.best):,} units, {len(images):,} images: {path.stat().st_size / 1e6:.1f} "
            "MB",
            end=" ",
        )
        print(f"in {time.perf_counter() - start:.0f} s")
        for name, value in measure(path, options.repeats).items():
            print(f"  {name:<7} {value:6.0f} ms")


if __name__ == "__main__":
    main()
