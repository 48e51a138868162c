"""The page in a real browser."""

import io
import shutil
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
from hostile_run import HOSTILE, columns, copy_of
from PIL import Image

from emojax import cli, settings
from emojax.commands import report as reporting
from emojax.dissection.find import places
from emojax.report import explanations, units
from emojax.report.explorer import trust_order
from emojax.report.results import read_run

pytestmark = pytest.mark.slow


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

    # The most trusted labels come first, with their top images
    trusted = view.locator("#units th", has_text="trusted")
    assert trusted.get_attribute("aria-sort") == "ascending"
    stand = [row["labelled"] for row in table]
    drawn = view.locator("#units tbody tr:not(.gap) td:last-child, #units td.looks")
    assert drawn.count() > 0
    order = trust_order(read_run(hostile[0]).units)
    first = [f"{table[i]['layer']} {table[i]['unit']}" for i in order[: len(visit.rows())]]
    assert [row.split("\t")[0] for row in visit.rows()] == first
    assert [stand[i] for i in order] == sorted(stand, reverse=True)
    assert view.locator("#units tbody tr:not(.gap)").first.locator(".thumb").count() == 3

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
    view.fill("#search", "angry")
    assert visit.count() == f"{len(wanted)} of 48 units"  # those whose label speaks for it
    view.fill("#search", "")
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
    row = next(row for row in table if (row["layer"], row["unit"]) == ("lin2", "7"))
    stands = row["labelled"] == "yes"
    title = row["concept"] if stands else f"({row['concept']})"
    shown = f"lin2 7: {title}".replace("\u2028", "")
    assert view.inner_text("#unit-name").replace("\n", "").replace("\u2028", "") == shown
    assert view.evaluate("location.hash") == "#unit/lin2/7"
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
    assert view.inner_text("#unit-name").startswith(f"{last}:")
    assert view.locator("#later").is_disabled()
    view.keyboard.press("ArrowLeft")
    assert not view.inner_text("#unit-name").startswith(f"{last}:")
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


def test_every_unit_has_an_address(browser, hostile):
    """A link opens its unit; back closes what was opened; stepping leaves no trail."""
    path = hostile[0] / "report.html"
    visit = Visit(browser, path, viewport={"width": 1280, "height": 900})
    view = visit.page
    name = "document.querySelector('#unit-name').textContent.split(':')[0]"
    view.locator("#units tbody button").first.click()
    first = view.evaluate(name)
    layer, unit = first.split(" ")
    assert view.evaluate("location.hash") == f"#unit/{layer}/{unit}"
    view.keyboard.press("ArrowRight")
    assert view.evaluate(name) != first
    opened = view.locator("#unit")
    view.go_back()
    opened.wait_for(state="hidden")
    view.go_forward()
    opened.wait_for(state="visible")
    view.keyboard.press("Escape")
    view.wait_for_url(lambda url: "#" not in url)  # the list is what was before the unit
    view.goto("about:blank")
    view.goto(f"{visit.at}#unit/lin1/3")
    opened.wait_for(state="visible")
    assert view.evaluate(name) == "lin1 3"
    view.goto(f"{visit.at}#unit/lin1/99")
    opened.wait_for(state="hidden")
    view.goto("about:blank")
    view.goto(f"{visit.at}#unit/lin1/3")
    opened.wait_for(state="visible")
    view.keyboard.press("Escape")
    view.wait_for_url(lambda url: url.endswith("#explorer"))  # nothing is behind a link
    assert visit.wrong == []


def test_units_are_ranked_mapped_and_compared(browser, hostile):
    """By a text of the list; dots of the map open their units, and units name their likes."""
    run = read_run(hostile[0])
    visit = Visit(browser, hostile[0] / "report.html", viewport={"width": 1280, "height": 900})
    view = visit.page
    place = run.details.texts.tolist().index("Smile")
    names = [f"{a} {int(b)}" for a, b in zip(run.units["layer"], run.units["unit"], strict=True)]
    profiles = np.float32(run.details.profiles)
    usual = visit.rows()
    view.fill("#like", "smile")
    shown = [row.split("\t")[0] for row in visit.rows()]
    values = [profiles[names.index(name), place] for name in shown]
    assert len(values) > 5
    assert (np.diff(values) < 1e-3).all()  # falling, but for the steps of the page's letters
    assert values[0] == profiles[:, place].max()
    assert view.locator("#units th.like").get_attribute("aria-sort") == "descending"
    view.fill("#like", "")
    assert visit.rows() == usual

    centred = profiles - profiles.mean(axis=0)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    view.fill("#search", "lin1 3")
    view.locator("#units tbody button").first.click()
    near = view.locator("#unit .links li").all_inner_texts()
    cosines = centred @ centred[names.index("lin1 3")]
    best = np.sort(cosines)[::-1][1:7]
    assert [float(line.split()[-1].replace("−", "-")) for line in near] == pytest.approx(
        best, abs=0.011
    )
    view.locator("#unit .links button").first.click()
    assert view.inner_text("#unit-name").startswith(near[0].split(":")[0])
    view.keyboard.press("Escape")  # goes back over both
    view.wait_for_url(lambda url: "#" not in url)
    assert not view.locator("#unit").is_visible()
    view.fill("#search", "")

    view.locator("#map-part summary").click()
    view.locator("#map").scroll_into_view_if_needed()
    assert view.locator("#map-legend i").count() == 3  # layers
    box = view.locator("#map").bounding_box()
    x, y = places(profiles)[names.index("lin1 3")].tolist()
    at = 12 + (box["width"] - 24) * (x + 1) / 2, 12 + (box["height"] - 24) * (1 - y) / 2
    view.mouse.click(box["x"] + at[0], box["y"] + at[1])
    assert view.inner_text("#unit-name").startswith("lin1 3:")
    assert visit.wrong == []


def test_activation_maps_lie_over_the_top_images(browser, hostile):
    """Painted as `units.npz` has them; switched off they stay off; dense units have none."""
    kept = units.load(hostile[0])
    visit = Visit(browser, hostile[0] / "report.html", viewport={"width": 1280, "height": 900})
    view = visit.page
    view.fill("#search", "conv1a 2")
    view.locator("#units tbody button").first.click()
    canvases = view.locator("#unit canvas.map")
    assert canvases.count() == kept.mapped_images == 6
    alpha = canvases.nth(3).evaluate(
        "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    )[3::4]
    assert kept.map_units.tolist() == [0, 1, 2, 3]
    values = kept.maps.reshape(4, 6, -1)[2, 3]
    np.testing.assert_allclose(alpha, 0.65 * values, atol=0.51)
    assert canvases.first.bounding_box() == view.locator("#unit .thumb").first.bounding_box()
    assert "in 10 × 10 cells" in view.inner_text("#unit")
    view.locator("#maps").uncheck()
    assert not canvases.first.is_visible()
    view.keyboard.press("Escape")
    view.fill("#search", "conv1a 3")
    view.locator("#units tbody button").first.click()
    assert not canvases.first.is_visible()
    assert not view.locator("#maps").is_checked()
    view.keyboard.press("Escape")
    view.fill("#search", "lin1 3")
    view.locator("#units tbody button").first.click()
    assert canvases.count() == view.locator("#maps").count() == 0
    assert visit.wrong == []


def test_explanations_in_a_browser(browser, hostile, tmp_path):
    """Bars of either sign, the scatter, and the search for any concept of an explanation."""
    run = copy_of(hostile[0], tmp_path)
    explained = tmp_path / "explained"
    explained.mkdir()
    concept = "<img onerror=c()> zygomatic"
    (explained / explanations.TABLE).write_text(
        "layer,unit,weight0,concept0,weight1,concept1,bias,correlation,label,label_correlation\n"
        f"lin2,7,1.5,{concept},-0.5,Frown,0.1,0.7,Smile,0.5\n"
        "lin1,3,0.8,Tears,0,,0.1,0.4,Tears,0.4\n"
    )
    values = np.random.default_rng(0).normal(size=(30, 2))
    np.savez_compressed(explained / explanations.SAMPLE, real=values, simulated=values / 2)
    reporting.add(run, settings.Report(images="none"), None, explanations=explained)
    visit = Visit(browser, run / "report.html", viewport={"width": 1280, "height": 900})
    view = visit.page
    view.fill("#search", "zygomatic")
    assert visit.count() == "1 of 48 units"
    view.locator("#units tbody button").first.click()
    assert view.inner_text("#unit-name").startswith("lin2 7: ")
    part = view.locator("#unit section", has_text="Held-out correlation 0.70")
    text = part.inner_text()
    assert concept in text
    assert "Frown" in text
    assert "0.50 with the best single concept" in text
    assert part.locator("svg.scatter circle").count() == 30
    view.keyboard.press("Escape")
    view.fill("#search", "lin1 4")
    view.locator("#units tbody button").first.click()
    assert "Held-out correlation" not in view.inner_text("#unit")  # this unit has no explanation
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
