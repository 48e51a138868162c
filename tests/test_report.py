"""Figures, the page of a run in a real browser, runs side by side, and what they refuse."""

import csv
import io
import json
import shutil
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
from conftest import generated_images
from PIL import Image

import emojax
from emojax import cli, store
from emojax import settings as config
from emojax.commands import report as reporting
from emojax.commands import steps
from emojax.commands.base import Studying
from emojax.commands.opening import StudyInputs
from emojax.commands.study import begin_study, finish_study
from emojax.data.concepts import ConceptSet
from emojax.data.image_set import ImageSet
from emojax.editing.study import run_study
from emojax.errors import InputError
from emojax.evidence.verdict import Evidence
from emojax.report import page, page_figures, sprites, units
from emojax.report.compare import compare
from emojax.report.results import Labels, read_run

HOSTILE = (
    "<script>alert(1)</script>",
    "\"quotes\" & 'more' $x$ </svg>",
    "a\u2028</script><img onerror=b()>",
)
PLAIN = ("Smile", "Frown", "Raised Brows", "Tears")


def twice(images: ImageSet, first: int) -> ImageSet:
    """The first images and then the same again."""
    pixels = np.concatenate([images.images[:first]] * 2)
    return ImageSet.from_arrays(
        pixels, np.tile(images.labels[:first], 2), images.classes, name="blobs"
    )


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, tiny_vgg, tiny_clip) -> tuple[Path, ImageSet]:
    """A run whose concepts, file names and settings try to break out, with its images, half of
    which are repeats.
    """
    images = twice(generated_images(120, 2, "<b>blobs</b>"), 120)
    tests = [
        generated_images(40, seed, name) for seed, name in ((3, "public_test"), (4, "private_test"))
    ]
    emotions = [(name,) for name in images.classes]
    concepts = ConceptSet((*HOSTILE, *PLAIN), tuple(emotions), name="hostile")
    options = {
        "tau": (-0.5, 0.0),
        "factor": (1.0, 2.0),
        "permutations": 19,
        "masks": 50,
        "layers": ("lin2",),
    }
    settings = Studying(
        cache=tmp_path_factory.mktemp("cache"),
        edit=config.Edit(**options),
        target=config.Target(weights=Path("</td><i>vgg")),
        probe=config.Probe(layers=("conv1a", "lin1", "lin2")),
    )
    out = tmp_path_factory.mktemp("runs") / "a <b> & run"
    with store.run_folder(out, "run", settings.model_dump(mode="json")) as run:
        inputs = StudyInputs(tiny_vgg, tiny_clip, concepts, images, tests, None)
        model = steps.check_study_inputs(settings, inputs)
        record = steps.probe(settings, run, model, images, tiny_clip)
        dissection, table1, summary = steps.label(settings, run, record, concepts, tiny_clip, model)
        options = begin_study(settings, run, table1, tests)
        study = run_study(model, dissection, table1, images, tests, **options)
        summary["edit"] = finish_study(run, study)
        store.write_json(run.folder / "summary.json", summary)
    reporting.add(out, config.Report(images="thumbnails"), images)
    return out, images


def copy_of(run: Path, tmp_path: Path, name: str = "copy") -> Path:
    return Path(shutil.copytree(run, tmp_path / name))


def columns(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def page_data(text: str) -> dict:
    return json.loads(text.partition('id="data">')[2].partition("</script>")[0])


# What the folder holds


def test_units_file(hostile):
    folder, images = hostile
    kept, table = units.load(folder), columns(folder / "dissection.csv")
    assert kept.concepts[kept.best[:, 0]].tolist() == [row["concept"] for row in table]
    np.testing.assert_allclose(
        kept.best_scores[:, 0], [float(row["similarity"]) for row in table], rtol=1e-5
    )
    margins = kept.best_scores[:, 0] - kept.best_scores[:, 1]
    np.testing.assert_allclose(margins, [float(row["margin"]) for row in table], atol=1e-4)
    np.testing.assert_array_equal(kept.mix.sum(axis=1), 100)
    assert kept.outgoing.shape == (20, 7)
    assert [str(x) for x in kept.ids] == [images.ids[i] for i in kept.images]
    # What is marked as repeated is, pixel for pixel, and nothing else is
    shown = np.asarray(images.images)[kept.images]
    for unit in range(0, len(kept.top), 5):
        pixels = shown[kept.top[unit]].reshape(kept.top.shape[1], -1)
        for place, same in enumerate(kept.same_as[unit]):
            equal = np.flatnonzero((pixels[:place] == pixels[place]).all(axis=1))
            assert same == (equal[0] if len(equal) else -1)
    assert (kept.same_as >= 0).any()


def test_sweep_has_tests_of_cells_and_bands(hostile):
    rows = columns(hostile[0] / "sweep.csv")
    base = next(int(row["correct"]) for row in rows if row["factor"] == "1")
    for row in rows:
        assert int(row["gained"]) - int(row["lost"]) == int(row["correct"]) - base
        assert float(row["p_adjusted"]) >= float(row["p_value"]) * 0.999
    bands = columns(hostile[0] / "bands.csv")
    assert [int(row["units_above"]) for row in bands][:: len(bands) - 1] == [0, 20]
    assert all(float(row["low"]) <= float(row["mean"]) <= float(row["high"]) for row in bands)
    ends = {row["units_above"]: row for row in columns(hostile[0] / "thresholds.csv")}
    for row in (bands[0], bands[-1]):  # no choice there: the threshold with as many units above
        assert (
            float(row["low"])
            == float(row["high"])
            == pytest.approx(float(ends[row["units_above"]]["accuracy"]), abs=1e-6)
        )


def test_page_is_one_escaped_file(hostile):
    folder, _ = hostile
    text = (folder / "report.html").read_text("utf-8")
    assert text.count("<script") == text.count("</script>")
    assert "<script>alert" not in text
    assert "onerror" not in text.partition('id="data">')[0].replace("onerror=b()&gt;", "")
    assert "<b>" not in text.partition("<h1>")[2].partition("</h1>")[0]
    assert "\u2028" not in text.partition('id="data">')[2]
    assert "default-src 'none'" in text
    assert not [word for word in ('src="http', 'href="http', "@import", "fetch(") if word in text]
    data = page_data(text)
    assert set(HOSTILE) <= set(data["concepts"])
    assert data["thumbs"]["shown"] == 16
    assert page.PEOPLE in text
    names = {p.name for p in (folder / "figures").iterdir()}
    expected = (
        "network",
        "samples",
        "descriptions",
        "similarities",
        "labels",
        "grid",
        "thresholds",
        "per_class",
    )
    assert names == {f"{name}.{kind}" for name in expected for kind in ("png", "svg")}
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_no_images_unless_asked_for(hostile, tmp_path):
    folder = copy_of(hostile[0], tmp_path)
    reporting.add(folder, config.Report(), hostile[1])
    text = (folder / "report.html").read_text("utf-8")
    assert page_data(text)["thumbs"] is None
    assert page.PEOPLE not in text
    assert 'class="pack"' not in text
    assert not (folder / "figures" / "samples.png").exists()


def test_the_page_says_what_the_network_has_seen(hostile, tmp_path):
    for target, said in (
        ({}, "unknown"),
        ({"target": {}}, "unknown"),
        ({"target": {"seen": None}}, "unknown origin: counts as having seen all test splits"),
        ({"target": {"seen": []}}, "none"),
    ):
        assert page.provenance(target) == said
    folder = copy_of(hostile[0], tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    store.write_json(
        folder / "manifest.json",
        manifest | {"target": {"seen": [{"name": "<i>", "role": "trained"}]}},
    )
    assert (
        "splits that shaped it</th><td>&lt;i&gt; (trained on)</td>"
        in page.build(read_run(folder))[0]
    )


def test_size_bounds_the_page():
    """Noise is the hardest to pack; pages shrink by showing fewer and smaller images, and never
    exceed their bound.
    """
    rng = np.random.default_rng(0)
    images = ImageSet.from_arrays(rng.integers(0, 256, (600, 48, 48), dtype=np.uint8))
    top = rng.integers(0, 600, (300, 16)).astype(np.int32)
    looks = []
    for budget in (2_000_000, 400_000, 120_000):
        packed = sprites.pack(images, np.arange(600), top, budget)
        assert sum(map(len, packed.sheets)) <= budget
        assert set(np.unique(top[:, : packed.per_unit])) == set(packed.images.tolist())
        looks.append((packed.per_unit, packed.side))
    assert looks == sorted(looks, reverse=True)
    assert looks[0][0] == 16
    with pytest.raises(InputError, match=r"give a larger --report\.size"):
        sprites.pack(images, np.arange(600), top, 2_000)


def test_flagged_images(hostile, tmp_path):
    folder, images = copy_of(hostile[0], tmp_path), hostile[1]
    lines = [
        [images.ids[3], "training", "happy", "blank", ""],
        ["elsewhere", "training", "sad", "duplicate", "of <x>"],
    ]
    store.write_csv(tmp_path / "audit.csv", ["file", "split", "label", "reason", "detail"], lines)
    found = read_run(folder, tmp_path)
    assert page_figures.flagged_images(found, images) == {"blank": [3]}
    text, drawn = page.build(found, images)
    assert "flagged" in drawn
    assert "Flagged images" in text
    assert "flagged" not in page.build(found)[1]
    with pytest.raises(InputError, match="no audit at"):
        read_run(folder, tmp_path / "none.csv")


# Refusals


def refusal(capsys, *args) -> str:
    code = cli.main([str(arg) for arg in args])
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (2, 1), err
    return err


def test_refusals(capsys, hostile, tmp_path):
    assert "name a run folder" in refusal(capsys, "report")
    assert "no run folder 'nowhere'" in refusal(capsys, "report", "nowhere")
    (tmp_path / "foreign").mkdir()
    assert "is not an emojax run" in refusal(capsys, "report", tmp_path / "foreign")
    whole = json.loads((hostile[0] / "summary.json").read_text())
    for name, damage, message in (
        ("manifest.json", b"{", "not JSON"),
        (
            "manifest.json",
            b'{"verb": "train", "settings": {}}',
            "is a run of `train`, which has no page",
        ),
        ("manifest.json", b"[]", "not an object"),
        (
            "manifest.json",
            b'{"verb": "run", "settings": {"data": 3}}',
            "settings.data: Input should be a valid dictionary",
        ),
        ("summary.json", b"{}", "images: Field required"),
        ("summary.json", b'{"images": "many"}', "images: Input should be a valid integer"),
        ("summary.json", whole | {"edit": {"setting": 3}}, "edit.setting: Input should be"),
        ("summary.json", whole | {"confidence": []}, "confidence: Input should be"),
        (
            "summary.json",
            whole | {"truth": {"units": {"wpmi": {"best": None}}}},
            "truth.units.wpmi.units: Field required",
        ),
        ("dissection.csv", None, "is half a run: dissection.csv missing"),
        ("dissection.csv", b"layer,unit\n", "no column concept"),
        (
            "dissection.csv",
            b"layer,unit,concept,similarity\nlin2,0,a\n",
            "line 2: 3 values for 4 columns",
        ),
        ("dissection.csv", b"layer,unit,concept,similarity\nlin2,0,a,b\n", "column similarity"),
        ("units.npz", b"PK", "units.npz: "),
        ("evidence.json", b'{"verdict": 3}', "gained: Field required"),
        (
            "evidence.json",
            {"gained": 1, "lost": 2, "total": 3, "networks": 4},
            "networks: Input should be",
        ),
        (
            "evidence.json",
            {"gained": 3, "lost": 2, "total": 1},
            "evidence.json: Value error, 3 gained and 2 lost of 1",
        ),
    ):
        folder = copy_of(hostile[0], tmp_path)
        before = (folder / "report.html").read_bytes()
        (folder / name).unlink()
        if damage is not None:
            (folder / name).write_bytes(
                json.dumps(damage).encode() if isinstance(damage, dict) else damage
            )
        assert message in refusal(capsys, "report", folder)
        assert (folder / "report.html").read_bytes() == before
        shutil.rmtree(folder)
    assert "cannot be shown" in refusal(capsys, "report", hostile[0], "--images", "thumbnails")
    assert "compare takes two or more" in refusal(
        capsys, "compare", hostile[0], "--out", tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()


def test_pickled_arrays_are_not_loaded(hostile, tmp_path):
    folder = copy_of(hostile[0], tmp_path)
    with np.load(folder / "units.npz") as file:
        arrays = dict(file)
    np.savez(
        folder / "units.npz", **arrays | {"ids": np.array([{}] * len(arrays["ids"]), dtype=object)}
    )
    with pytest.raises(InputError, match=r"units\.npz"):
        units.load(folder)
    np.savez(folder / "units.npz", **arrays | {"top": arrays["top"] + 10_000})
    with pytest.raises(InputError, match="do not fit each other"):
        units.load(folder)


# Figures from Python


def test_figures_of_results(hostile):
    run = read_run(hostile[0])
    found = emojax.plot_similarities(run.labels, tau=0.0)
    assert len(found.axes) == len(run.labels.layers)
    drawn = sum(patch.get_height() for axes in found.axes for patch in axes.patches)
    assert drawn == len(run.labels.concept)
    names = [text.get_text() for text in emojax.plot_labels(run.labels).axes[0].get_yticklabels()]
    assert len(names) == len(set(run.labels.concept))
    assert any(name.startswith('"quotes"') and "$x$" in name for name in names)
    cells = {
        text.get_text().rstrip("*") for text in emojax.plot_grid(run.sweep, "lin2").axes[0].texts
    }
    changes = {int(x) for x in run.sweep["gained"] - run.sweep["lost"]}
    assert cells == {"±0" if not x else f"{x:+d}".replace("-", "−") for x in changes}
    assert emojax.plot_thresholds(run.thresholds, "conv1a", 2.0) is None
    assert emojax.plot_per_class(Evidence(gained=1, lost=0, total=5)) is None
    assert len(emojax.plot_per_class(run.evidence).axes[0].patches) == 2 * len(
        run.evidence.per_class
    )
    assert emojax.plot_descriptions(run.table1).axes[0].get_ylim() == (0, 1)
    assert (
        emojax.plot_network({"a": 3, "b": 900}, ["a"], "b").axes[0].get_xticklabels()[1].get_text()
        == "b"
    )


def test_significant_cells_are_framed():
    rows = [(tau, factor) for tau in (0.0, 1.0) for factor in (1.0, 2.0)]
    table = {
        "layer": np.array(["lin2"] * 4, dtype=object),
        "kind": np.array(["threshold"] * 4, dtype=object),
        "tau": np.array([tau for tau, _ in rows]),
        "factor": np.array([factor for _, factor in rows]),
        "gained": np.array([0.0, 30, 0, 2]),
        "lost": np.array([0.0, 2, 0, 3]),
        "p_adjusted": np.array([1, 0.001, 1, 0.9]),
    }
    axes = emojax.plot_grid(table, "lin2").axes[0]
    assert [text.get_text() for text in axes.texts] == ["±0", "+28*", "±0", "−1"]
    assert len(axes.patches) == 1


def test_labels_of_a_dissection_are_those_of_its_table(hostile, tiny_vgg, tiny_clip):
    record = emojax.probe(tiny_vgg, hostile[1], tiny_clip, layers=["conv1a", "lin1", "lin2"])
    concepts = ConceptSet(PLAIN, tuple((name,) for name in hostile[1].classes[:4]))
    found = emojax.dissect(record, concepts, null_sets=0)
    labels = Labels.of(found)
    assert labels.layers == {"conv1a": 4, "lin1": 24, "lin2": 20}
    assert labels.concept.tolist() == [PLAIN[i] for i in found.labels]
    np.testing.assert_array_equal(labels.accuracy, found.description.accuracy)


# Runs side by side


def test_compare(capsys, hostile, tmp_path):
    other = copy_of(hostile[0], tmp_path, "other")
    rows = columns(other / "dissection.csv")
    for row in rows[:3]:
        row["concept"] = "Something Else"
    for row in rows:
        row["similarity"] = str(-2 * float(row["similarity"]) + 1)
    store.write_csv(other / "dissection.csv", list(rows[0]), ([*row.values()] for row in rows))
    found = compare([read_run(hostile[0]), read_run(other)])
    assert [row[:4] for row in found.layers][:2] == [
        ["other", "conv1a", 4, 1],
        ["other", "lin1", 24, 24],
    ]
    assert all(row[5] == pytest.approx(-1) and row[6] == pytest.approx(-1) for row in found.layers)
    assert [row[:2] for row in found.changed] == [["conv1a", 0], ["conv1a", 1], ["conv1a", 2]]
    assert found.changed[0][3] == "Something Else"
    assert found.warnings == []
    summary = json.loads((other / "summary.json").read_text())
    assert [row[:5] for row in found.accuracy if row[0] == "other"] == [
        ["other", split, r["images"], r["correct"], r["top1"]]
        for split, r in summary["edit"]["baseline"].items()
    ]
    assert cli.main(["compare", str(hostile[0]), str(other), "--out", str(tmp_path / "both")]) == 0
    assert "3 units have labels that changed" in capsys.readouterr().out
    names = {p.name for p in (tmp_path / "both").iterdir()}
    assert names == {"accuracy.csv", "compare.html", "labels.csv", "layers.csv", "manifest.json"}
    text = (tmp_path / "both" / "compare.html").read_text("utf-8")
    assert "<script>alert" not in text
    assert "Something Else" in text
    manifest = json.loads((other / "manifest.json").read_text())
    store.write_json(
        other / "manifest.json", manifest | {"inputs": manifest["inputs"] | {"target": "0"}}
    )
    assert "different networks" in compare([read_run(hostile[0]), read_run(other)]).warnings[0]


# In a browser


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if path is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


class Visit:
    """A page, and what went wrong on it."""

    def __init__(self, browser, path: Path, **options):
        self.wrong: list[str] = []
        self.page = browser.new_context(**options).new_page()
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.wrong.append("dialog"), dialog.dismiss()))
        self.page.on("request", self.see)
        self.at = path.resolve().as_uri()
        self.page.goto(self.at)

    def see(self, request):
        scheme = urllib.parse.urlsplit(request.url).scheme
        if scheme not in ("data", "blob") and request.url.partition("#")[0] != self.at:
            self.wrong.append(f"request to {request.url}")

    def rows(self) -> list[str]:
        return self.page.locator("#units tbody tr:not(.gap)").evaluate_all(
            "rows => rows.map(row => row.innerText)"
        )

    def count(self) -> str:
        return self.page.inner_text("#count")


def test_explorer_in_a_browser(browser, hostile):
    visit = Visit(
        browser,
        hostile[0] / "report.html",
        viewport={"width": 1280, "height": 900},
        color_scheme="light",
    )
    view = visit.page
    assert visit.count() == "48 of 48 units"
    assert len(visit.rows()) < 60  # rows in view, not all
    table = columns(hostile[0] / "dissection.csv")

    # Search and filters
    view.fill("#search", "<script>")
    wanted = [f"{row['layer']} {row['unit']}" for row in table if row["concept"] == HOSTILE[0]]
    assert visit.count() == f"{len(wanted)} of 48 units"
    assert wanted
    assert HOSTILE[0] in visit.rows()[0]
    view.fill("#search", "lin2/7")
    assert visit.count() == "1 of 48 units"
    view.fill("#search", "nobody")
    assert "No unit fits" in view.inner_text("#units")
    view.fill("#search", "")
    view.select_option("#layer", label="lin1")
    assert visit.count() == "24 of 48 units"
    view.select_option("#emotion", label="angry")
    mine = sum(row["layer"] == "lin1" and row["concept"] == HOSTILE[0] for row in table)
    assert visit.count() == f"{mine} of 48 units"
    view.select_option("#layer", "")
    view.select_option("#emotion", "")
    view.select_option("#sure", "q05")
    assert visit.count() == f"{sum(float(row['q_value']) <= 0.05 for row in table)} of 48 units"
    view.select_option("#sure", "any")

    # Sorting, by a real button
    head = view.locator("#units th", has_text="similarity")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    best = max(table, key=lambda row: float(row["similarity"]))
    assert visit.rows()[0].startswith(f"{best['layer']} {best['unit']}")
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"

    # A unit opens with Enter, shows its facts, Escape closes it and focus comes back
    view.fill("#search", "lin2 7")
    view.locator("#units tbody button").first.focus()
    view.keyboard.press("Enter")
    dialog = view.locator("#unit")
    assert dialog.is_visible()
    assert view.inner_text("#unit-name") == "lin2 7"
    row = next(row for row in table if (row["layer"], row["unit"]) == ("lin2", "7"))
    assert row["concept"].replace("\u2028", "") in dialog.inner_text().replace(
        "\u2028", ""
    ).replace("\n", "")
    assert "Outgoing weights" in dialog.inner_text()
    assert dialog.locator(".thumb").count() == 16
    kept = units.load(hostile[0])
    at = next(i for i, r in enumerate(table) if r is row)
    assert dialog.locator(".twin").count() == (kept.same_as[at] >= 0).sum()
    view.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert view.evaluate("document.activeElement.textContent") == "lin2 7"
    view.fill("#search", "")
    view.locator("#units tbody button").first.focus()
    view.keyboard.press("ArrowDown")
    view.keyboard.press("End")  # far below what is drawn
    last = view.evaluate("document.activeElement.textContent")
    view.keyboard.press("Enter")
    assert view.inner_text("#unit-name") == last
    assert view.locator("#later").is_disabled()
    view.keyboard.press("ArrowLeft")
    assert view.inner_text("#unit-name") != last
    view.keyboard.press("Escape")

    # The theme
    paper = "getComputedStyle(document.body).backgroundColor"
    light = view.evaluate(paper)
    view.locator("#theme").press("Enter")
    assert view.evaluate(paper) != light
    assert view.inner_text("#theme") == "Light"

    # Nothing of a file became markup, nothing left the page
    assert (
        view.locator("main script, main img, main i:not(.track i), main b:not(.card b)").count()
        == 0
    )
    assert view.evaluate("document.title") == "emojax run: a <b> & run"
    assert visit.wrong == []


def test_phone_and_dark(browser, hostile, tmp_path):
    phone = Visit(
        browser,
        hostile[0] / "report.html",
        viewport={"width": 390, "height": 844},
        color_scheme="dark",
    )
    assert phone.page.evaluate("document.documentElement.scrollWidth") == 390
    assert phone.page.inner_text("#theme") == "Light"
    phone.page.locator("#units tbody button").first.click()
    assert phone.page.locator("#unit").bounding_box()["width"] <= 390
    assert phone.page.locator("#unit").evaluate("node => node.scrollWidth <= node.clientWidth")
    assert phone.wrong == []
    code = cli.main(["compare", str(hostile[0]), str(hostile[0]), "--out", str(tmp_path / "same")])
    assert code == 0
    both = Visit(
        browser, tmp_path / "same" / "compare.html", viewport={"width": 390, "height": 844}
    )
    assert both.page.evaluate("document.documentElement.scrollWidth") == 390
    both.page.click("#theme")
    assert both.wrong == []


def test_thumbnails_are_the_right_images(browser, hostile):
    """A unit's first thumbnail, as the browser paints it, is nearest its own image among all."""
    folder, images = hostile
    visit, kept = (
        Visit(browser, folder / "report.html", viewport={"width": 1280, "height": 900}),
        units.load(folder),
    )
    pixels = np.asarray(images.images)[..., 0].astype(float)
    for unit in (0, 20, 47):
        layer = np.repeat(kept.layers, kept.sizes)[unit]
        number = unit - int(kept.sizes[: list(kept.layers).index(layer)].sum())
        visit.page.fill("#search", f"{layer} {number}")
        visit.page.locator("#units tbody button").first.click()
        visit.page.wait_for_timeout(200)
        shot = visit.page.locator("#unit .thumb").first.screenshot()
        visit.page.keyboard.press("Escape")
        with Image.open(io.BytesIO(shot)) as painted:
            inner = np.asarray(painted.convert("L").resize((48, 48)), float)[6:-6, 6:-6]
        nearest = np.abs(pixels[:, 6:-6, 6:-6] - inner).mean(axis=(1, 2)).argmin()
        np.testing.assert_array_equal(pixels[nearest], pixels[kept.images[kept.top[unit, 0]]])
    assert visit.wrong == []
