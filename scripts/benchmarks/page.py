"""The page of a run of the published VGGNet's size in a headless Chromium; needs playwright.

Its size, opening, search, sorting, one unit. The units' lists of top images are drawn at random, so
that every face is in some list: no real run has more to show.
"""

import dataclasses
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import Results

# Sizes for a first look.
QUICK = "--images 2000 --repeats 3"

ACT = """async ([id, value]) => {
  const start = performance.now(), node = document.querySelector(id);
  if (value === null) node.click();
  else { node.value = value; node.dispatchEvent(new Event("input")); }
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return performance.now() - start;
}"""


@dataclasses.dataclass
class Options:
    """The page of 10,112 units over rendered faces, in a browser."""

    images: int = 28_709
    repeats: int = 5
    size: float = 25.0
    """bound of the page in MB"""
    keep: Path | None = None
    """folder to keep the run in"""
    out: Path | None = None


def measure(options: Options) -> Results:
    """Size of the page, and seconds to make it, to open it and to work with it."""
    from emojax import read_run, write_report
    from emojax.report.write import add_page
    from emojax.synthetic import faces

    browser = find_browser()
    if browser is None:
        sys.exit("no Chromium on this machine")
    images = faces.random_faces(options.images, 0).image_set("faces")
    dissection = random_dissection(options.images, images.labels, images.classes)
    with tempfile.TemporaryDirectory() as scratch:
        out = options.keep or Path(scratch) / "run"
        write_report(dissection, out)
        add_what_random_units_lack(out)
        start = time.perf_counter()
        path, _ = add_page(read_run(out), images, people=False, size=options.size)
        seconds = time.perf_counter() - start
        sizes = {"units": len(dissection.best), "images": len(images)}
        made = {"what": "page: make", **sizes, "bytes": path.stat().st_size, "seconds": seconds}
        actions = visit(path, browser, options.repeats)
    visited = [{"what": f"page: {name}", **sizes, "seconds": s} for name, s in actions.items()]
    return [made, *visited]


def find_browser() -> str | None:
    """The path of a Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


def random_dissection(count: int, labels: np.ndarray, classes: tuple[str, ...]):
    """A dissection of all layers of the published VGGNet from random lists and embeddings."""
    from emojax.data.concepts import load_concepts
    from emojax.dissection.dissect import dissect
    from emojax.models.vgg import VggConfig
    from emojax.ops.moments import Moments
    from emojax.ops.topk import TopK
    from emojax.probing.record import ProbeRecord

    rng, concepts = np.random.default_rng(0), load_concepts("paper25")
    layers = {name: units for name, units in VggConfig.paper().units().items() if name != "lin3"}
    units = sum(layers.values())
    values = -np.sort(-rng.standard_normal((2, units, 100)).astype(np.float32), axis=2)
    indices = 2 * rng.integers(0, count // 2, values.shape, dtype=np.int32)
    indices[1] += 1
    embeddings, texts = (
        rng.standard_normal((n, 64)).astype(np.float32) for n in (count, len(concepts))
    )
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (embeddings, texts)]
    halves = [np.float64(unit[0][half::2]) for half in (0, 1)]
    sums = Moments(
        total=np.zeros((2, units)),
        square=np.full((2, units), count / 2),
        cross=rng.standard_normal((2, units, 64)) * np.sqrt(count / 128),
        gram=np.stack([rows.T @ rows for rows in halves]),
        embedding=np.stack([rows.sum(axis=0) for rows in halves]),
    )
    record = ProbeRecord(
        layers=layers,
        top=TopK(values, indices),
        half_moments=sums,
        embeddings=unit[0],
        labels=labels,
        classes=classes,
        ids=[f"training/Training_{i}.jpg" for i in range(count)],
        key=None,
        clip_key="random",
    )
    return dissect(record, concepts, text_embeddings=unit[1])


def add_what_random_units_lack(folder: Path) -> None:
    """Lowest images, correlations with texts and activation maps, drawn at random: all that a page
    can have.
    """
    from emojax.probing import maps
    from emojax.report import units

    details = units.load(folder)
    rng, count = np.random.default_rng(1), len(details.top)
    profiles = rng.uniform(-1, 1, (count, len(details.concepts))).astype(np.float16)
    bottom = rng.integers(0, len(details.images), (count, units.LOWEST), dtype=np.int32)
    drawn = {"texts": details.concepts, "profiles": profiles, "bottom": bottom}
    values = rng.standard_normal(bottom.shape).astype(np.float32)
    mapped = {
        "map_sides": np.full((len(details.layers), 2), maps.SIDE),
        "map_units": np.arange(maps.UNITS),
        "maps": rng.integers(0, 256, maps.UNITS * maps.IMAGES * maps.SIDE**2, dtype=np.uint8),
    }
    units.save(dataclasses.replace(details, bottom_values=values, **drawn, **mapped), folder)


def visit(path: Path, browser: str, repeats: int) -> dict[str, float]:
    """Median seconds of each action."""
    from playwright.sync_api import sync_playwright

    names = ("open", "open, CPU", "search", "sort", "unit")
    times: dict[str, list[float]] = {name: [] for name in names}
    with sync_playwright() as play:
        chromium = play.chromium.launch(
            executable_path=browser, args=["--no-sandbox", "--disable-gpu"]
        )
        for _ in range(repeats):
            page = chromium.new_page(viewport={"width": 1280, "height": 900})
            meter = page.context.new_cdp_session(page)
            meter.send("Performance.enable", {"timeDomain": "threadTicks"})
            start = time.perf_counter()
            page.goto(path.resolve().as_uri())
            page.wait_for_selector("html[data-ready=yes]")
            times["open"].append(time.perf_counter() - start)
            spent = meter.send("Performance.getMetrics")["metrics"]
            own = {metric["name"]: metric["value"] for metric in spent}
            times["open, CPU"].append(own["TaskDuration"])  # whatever else the machine does
            for action, arguments in (
                ("search", ["#search", "brows"]),
                ("sort", ["#units th:nth-child(4) button", None]),
                ("unit", ["#units tbody button", None]),
            ):
                times[action].append(page.evaluate(ACT, arguments) / 1000)
            page.close()
        chromium.close()
    return {name: float(np.median(seconds)) for name, seconds in times.items()}
