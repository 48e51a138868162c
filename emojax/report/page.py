"""One page from a run folder: self-contained, and safe with whatever the folder holds.

Text from files reaches the page escaped by jinja2, as JSON that the page's script puts in as text,
or inside a figure.
"""

import base64
import functools
import hashlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from emojax.data.classes import meaning
from emojax.data.image_set import ImageSet
from emojax.editing.study import SplitResult, StudySummary
from emojax.errors import InputError
from emojax.report import explanations, figures, judgement, sprites
from emojax.report.results import Results

PEOPLE = (
    "This page shows faces of people. Share it only where those people or the terms of the data "
    "set allow it, for research,"
    " and not to judge anybody by."
)
_KINDS = {"folder": "folder", "faces": "rendered faces", "fer2013": "FER2013"}


@dataclass(frozen=True)
class Shown:
    """A figure, what is said below it, and the figure as SVG."""

    figure: Figure
    caption: str
    svg: str


def number(value: float | None, digits: int = 2) -> str:
    """A number as tables show it; a dash for None and NaN."""
    return "–" if value is None or math.isnan(value) else f"{value:,.{digits}f}".replace("-", "−")


def p_text(value: float | None) -> str:
    """A p-value as tables show it."""
    return (
        "–" if value is None or math.isnan(value) else "<0.0001" if value < 1e-4 else f"{value:.2g}"
    )


def pooled(splits: Mapping[str, SplitResult] | None) -> SplitResult | None:
    """Results on all test splits together, or on the only one."""
    return splits.get("all", next(iter(splits.values()))) if splits else None


# Figures


def draw(run: Results, images: ImageSet | None = None) -> dict[str, Shown]:
    """All figures that the folder's results allow, by name; those of images only with the probe
    images.
    """
    found: dict[str, tuple[Figure | None, str]] = {}
    layer = None if run.study is None else run.study.setting.layer
    factor = None if run.study is None else run.study.setting.factor
    if run.details is not None:
        network = dict(
            zip(run.details.network.tolist(), run.details.network_units.tolist(), strict=True)
        )
        dissected = run.details.layers.tolist()
        found["network"] = (
            figures.plot_network(network, dissected, layer),
            "The network's layers and their units.",
        )
    if images is not None and images.labels is not None:
        found["samples"] = figures.plot_samples(images), f"Samples of {images.name}, by class."
        flagged = flagged_images(run, images)
        if flagged:
            found["flagged"] = (
                figures.plot_flagged(images, flagged),
                "Images that the audit flagged, with their numbers.",
            )
    if run.labels is not None:
        tau = run.summary["tau"]
        found["descriptions"] = (
            figures.plot_descriptions(run.table1),
            "Description accuracy by layer, and chance.",
        )
        found["similarities"] = (
            figures.plot_similarities(run.labels, tau),
            f"Maximum similarities by layer, tau = {tau:g}.",
        )
        found["labels"] = (
            figures.plot_labels(run.labels),
            "Labels by how many units have them. Correctly described: the label speaks for the "
            "class of more than half of the unit's top 10 images.",
        )
    if run.sweep and layer:
        caption = f"The grid of edits of {layer}, all test splits."
        if "p_adjusted" in run.sweep:
            caption += (
                " Framed and starred: different from the unedited network by McNemar's exact test "
                "at 0.05, adjusted over the cells. As the grid was searched, the verdict and not "
                "the grid says whether the edit helps."
            )
        found["grid"] = figures.plot_grid(run.sweep, layer), caption
    if run.thresholds and layer and factor:
        caption = f"Accuracy of {layer} at every threshold, all test splits."
        caption += " Band: as many random units instead." if run.bands else ""
        baseline = None if run.study is None else pooled(run.study.baseline)
        unedited = None if baseline is None else baseline.top1
        found["thresholds"] = (
            figures.plot_thresholds(run.thresholds, layer, factor, run.bands, unedited),
            caption,
        )
    if run.evidence is not None:
        found["per_class"] = (
            figures.plot_per_class(run.evidence),
            "Images that the edit puts right and wrong, by class.",
        )
    return {
        name: Shown(each, caption, _svg(name, each))
        for name, (each, caption) in found.items()
        if each is not None
    }


def flagged_images(run: Results, images: ImageSet) -> dict[str, list[int]]:
    """Images of the probe set that the run's `audit.csv` names, by reason."""
    found: dict[str, list[int]] = {}
    if run.audit:
        at = {str(images.ids[i]): i for i in range(len(images))}
        for name, reason in zip(run.audit["file"], run.audit["reason"], strict=True):
            if name in at:
                found.setdefault(reason, []).append(at[name])
    return found


def _svg(name: str, figure: Figure) -> str:
    """A figure as SVG whose text is text; equal figures give equal bytes."""
    file, quiet = io.StringIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figures.save(figure, file, format="svg", facecolor="none", metadata=quiet)
    return file.getvalue()


def inline(shown: Shown) -> dict[str, Any]:
    """A figure as markup in the page's colours, which follow its theme."""
    text = (
        shown.svg[shown.svg.index("<svg") :]
        .replace(figures.INK, "currentColor")
        .replace(figures.FAINT, "var(--line)")
    )
    text = re.sub(
        r'<g id="[\w.]+_\d+"', "<g", text
    )  # numbered anew in every figure, and used by nobody
    label = str(Markup(' role="img" aria-label="{}"').format(shown.caption))
    least = min(int(shown.figure.get_size_inches()[0] * 76), 500)
    return {"svg": Markup(text[:4] + label + text[4:]), "caption": shown.caption, "least": least}


# The page


@functools.cache
def _environment() -> Environment:
    loader = PackageLoader("emojax.report")
    return Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def fill(template: str, scripts: Sequence[str], **context: Any) -> str:
    """A page from a template, with its one style sheet and its scripts, which are all that may run
    on it.
    """
    folder = resources.files("emojax.report") / "templates"
    script = "\n".join((folder / name).read_text("utf-8") for name in scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return (
        _environment()
        .get_template(template)
        .render(
            script=Markup(script),
            script_hash=f"sha256-{digest}",
            style=Markup((folder / "page.css").read_text("utf-8")),
            **context,
        )
    )


def json_text(value: Any) -> Markup:
    """JSON for a script element: no character of it can end the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def build(
    run: Results, images: ImageSet | None = None, *, people: bool = True, size: float = 25.0
) -> tuple[str, dict[str, Shown]]:
    """The page of a run, and its figures.

    Args:
      run: from `results.read_run`.
      images: the probe set, to show its images; None shows none.
      people: whether these are people's faces, which the page then says.
      size: bound of the page, in millions of bytes.

    Raises:
      InputError: the page cannot be made that small, or images are wanted of a run that does not
        say which it showed.
    """
    drawn = draw(run, images)
    context = _context(run) | {
        "figures": dict.fromkeys(
            (
                "network",
                "samples",
                "flagged",
                "descriptions",
                "similarities",
                "labels",
                "grid",
                "thresholds",
                "per_class",
            )
        )
        | {name: inline(shown) for name, shown in drawn.items()},
        "consent": PEOPLE if images is not None and people else None,
    }
    data = None if run.labels is None else _explorer(run)
    if data is not None and run.explanations is not None:
        places = zip(run.units["layer"].tolist(), run.units["unit"].tolist(), strict=True)
        units = {(layer, int(unit)): place for place, (layer, unit) in enumerate(places)}
        data["explanations"] = explanations.page_data(run.explanations, units)
    scripts = ("theme.js", "explorer.js") if data else ("theme.js",)
    make = functools.partial(fill, "report.html.j2", scripts, **context)
    if images is None or data is None or run.details is None:
        page = make(data=data and json_text(data), sheets=[])
    else:
        data["thumbs"] = {
            "columns": sprites.SIDE,
            "shown": 0,
            "images": run.details.images.tolist(),
        }
        room = int(size * 1e6) - len(make(data=json_text(data), sheets=[]).encode()) - 50_000
        packed = sprites.pack(images, run.details.images, run.details.top, room)
        data["thumbs"] |= {"shown": packed.per_unit, "images": packed.images.tolist()}
        page = make(data=json_text(data), sheets=packed.sheets)
    if len(page.encode()) > size * 1e6:
        raise InputError(
            f"the page takes {len(page.encode()) / 1e6:.1f} MB of {size:g}; give a larger "
            "--report.size"
        )
    return page, drawn


def _context(run: Results) -> dict[str, Any]:
    study = run.study
    sections = [("summary", "Summary"), ("run", "What was run")]
    sections += [("labels", "Labels"), ("explorer", "Neurons")] if run.labels is not None else []
    sections += [("edit", "The edit")] if study else []
    sections += [("truth", "Truth")] if run.summary.get("truth") else []
    sections += [("judgement", "Judgement")] if run.judgement else []
    versions = run.manifest.get("versions", {})
    timings = [
        (f"{name}, seconds", value) for name, value in run.manifest.get("timings", {}).items()
    ]
    devices = ", ".join(map(str, run.manifest.get("devices", [])))
    return {
        "title": f"emojax {run.command}: {run.folder.resolve().name}",
        "subtitle": f"Started {run.manifest.get('started', 'at an unknown time')}",
        "version": versions.get("emojax", "of an unknown version"),
        "sections": sections,
        "words": _words(run),
        "cards": _cards(run),
        "verdict": study and study.verdict,
        "finding": study and study.finding,
        "what": _what(run),
        "settings": list(_flat(run.settings)),
        "versions": [*versions.items(), ("devices", devices), *timings],
        "keys": list(run.manifest.get("inputs", {}).items()),
        "flagged": _flagged(run),
        "table1": _table1(run),
        "explorer": None if run.labels is None else _filters(run),
        "edit": study and _edit(run, study),
        "judgement": run.judgement and judgement.section(run.judgement),
        "explained": run.explanations is not None,
        "truth": [_truth(title, rows) for title, rows in (run.summary.get("truth") or {}).items()],
    }


def _flat(values: Mapping[str, Any], before: str = "") -> Any:
    """Nested settings as (dotted name, text)."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield (
                before + name,
                " ".join(map(str, value)) if isinstance(value, list) else str(value),
            )


def _words(run: Results) -> list[str]:
    """What was found, in plain words."""
    said, summary = [], run.summary
    if run.labels is not None:
        units, above = sum(run.labels.layers.values()), sum(row.interpretable for row in run.table1)
        said.append(
            f"{len(run.labels.layers)} layers with {units:,} units were dissected on "
            f"{summary['images']:,} images with"
            f" {summary['concepts']:,} concepts by {summary['similarity']}. {above:,} units "
            f"({above / units:.0%}) are"
            f" interpretable: their maximum similarity exceeds tau = {summary['tau']:g}."
        )
        sure = summary.get("confidence")
        if sure:
            line = f"{sure['significant_at_q05']:,} labels are above chance (q ≤ 0.05)"
            if sure.get("halves_agree") is not None:
                line += f"; {sure['halves_agree']:,} stay the same on either half of the images"
            said.append(line + ".")
        known = [row for row in run.table1 if row.adjusted_overall is not None]
        if known:
            best = max(known, key=lambda row: row.adjusted_overall or 0.0)
            said.append(
                f"Labels describe their units best in {best.layer}: the class of "
                f"{best.overall_acc:.0%} of a unit's top"
                " images is one that its label speaks for, where chance gives "
                f"{best.chance_overall:.0%}."
            )
    if run.study is None:
        said.append("No edit was tried.")
    elif not run.study.verdict:
        said.append("An edit was tried; its evidence was not assessed.")
    return said


def _cards(run: Results) -> list[tuple[str, str]]:
    if run.labels is None:
        return []
    units, above = sum(run.labels.layers.values()), sum(row.interpretable for row in run.table1)
    cards = [(f"{units:,}", "units"), (f"{above:,}", "interpretable")]
    sure = run.summary.get("confidence")
    cards += [(f"{sure['significant_at_q05']:,}", "labels above chance")] if sure else []
    before = None if run.study is None else pooled(run.study.baseline)
    if before is not None:
        cards.append((f"{before.top1:.1%}", f"correct of {before.images:,} test images, unedited"))
    return cards


def _what(run: Results) -> list[tuple[str, str]]:
    """Data, networks, concepts and what the checkpoint has seen."""
    s, demo = run.settings, run.command == "demo"
    data = s.get("data", {})
    where = (
        "rendered faces"
        if demo or data.get("kind") == "faces"
        else str(data.get("path") or "a record")
    )
    tests = data.get("test_splits", ["public_test", "private_test"])
    pairs = [
        ("images", where),
        (
            "probe split",
            "rendered for the demo" if demo else str(data.get("probe_split", "unknown")),
        ),
        ("test splits", ", ".join(map(str, tests)) if run.study else "none"),
        (
            "network",
            "the demo's small VGGNet"
            if demo
            else str(s.get("target", {}).get("weights") or "unknown"),
        ),
        ("splits that it has seen", seen(run.manifest)),
        (
            "CLIP",
            "the demo's small CLIP" if demo else str(s.get("clip", {}).get("path") or "unknown"),
        ),
        ("concepts", "paper25" if demo else str(s.get("concepts", {}).get("path", "unknown"))),
        (
            "similarity",
            str(run.summary.get("similarity", s.get("dissect", {}).get("similarity", "soft_wpmi"))),
        ),
    ]
    return pairs


def seen(manifest: Mapping[str, Any]) -> str:
    """What the checkpoint is known to have seen."""
    target = manifest.get("target")
    if not isinstance(target, dict) or "seen" not in target:
        return "unknown"
    if target["seen"] is None:
        return "unknown origin: counts as having seen all test splits"
    what = {"trained": "trained on", "chosen": "epoch or edit chosen on"}
    entries = [each for each in target["seen"] if isinstance(each, dict)]
    return (
        ", ".join(
            f"{each.get('name')} ({what.get(str(each.get('role')), '?')})" for each in entries
        )
        or "none"
    )


def _flagged(run: Results) -> list[tuple[str, str]]:
    if not run.audit:
        return []
    names, counts = np.unique(run.audit["reason"].astype(str), return_counts=True)
    return [(name, f"{count:,}") for name, count in zip(names, counts, strict=True)]


def _table1(run: Results) -> list[list[str]]:
    rows = []
    for row in run.table1:
        shares = (
            row.share,
            row.overall_acc,
            row.interp_acc,
            row.uninterp_acc,
            row.chance_overall,
            row.adjusted_overall,
        )
        counts = [f"{row.interpretable:,}", f"{row.not_interpretable:,}"]
        rows.append([row.layer, *counts, *map(number, shares)])
    return rows


def _edit(run: Results, study: StudySummary) -> dict[str, Any]:
    """What the page says of the edit, as text."""
    setting = study.setting
    found = run.evidence
    numbers = {"tau": setting.tau, "factor": setting.factor}
    parts = [
        f"{name} {value:g}".replace("-", "−")
        for name, value in numbers.items()
        if value is not None
    ]
    kind = setting.kind.replace("_", " ")
    said = ", ".join([f"Layer {setting.layer}", kind, *parts, f"gains on {study.scope}"]) + "."
    if study.tested is not None:
        said += f" Tested on {', '.join(study.tested.on)}"
        where_chosen = ", where it was chosen."
        said += where_chosen if study.selected_on_test else ", which took no part in its choice."
    before = study.baseline or {}
    after = study.edited
    return {
        "setting": said,
        "accuracy": [
            _accuracy(name, before[name], after[name]) for name in before if name in after
        ],
        "per_class": [
            [
                name,
                f"{row['images']:,}",
                row["gained"],
                row["lost"],
                p_text(row["p_value"]),
                p_text(row["p_adjusted"]),
            ]
            for name, row in (found.per_class if found else {}).items()
        ],
        "change": found and _signed(found.change),
        "controls": [
            _control(name, row) for name, row in (found.controls if found else {}).items()
        ],
    }


def _signed(value: float | None) -> str:
    return "±0" if not value else f"{value:+,.4g}".replace("-", "−")


def _accuracy(name: str, before: SplitResult, after: SplitResult) -> list[str]:
    cells = [name, f"{before.images:,}", f"{before.correct:,}", f"{after.correct:,}"]
    cells += [f"{before.top1:.2%}", f"{after.top1:.2%}"]
    cells += [f"{before.macro_recall:.2%}", f"{after.macro_recall:.2%}"]
    return [*cells, number(before.nll, 4), number(after.nll, 4)]


_CONTROLS = {
    "all_up": "all units up",
    "all_down": "all units down",
    "inverted": "the edit inverted",
    "weight_sum": "units of large weights",
    "learned": "gains learned from labels",
    "random_masks": "as many random units",
    "permuted_scores": "choice and test with permuted scores",
}


def _control(name: str, row: Mapping[str, Any]) -> list[str]:
    """One line of the table of controls: single edits have a change, draws a mean, a range and a
    p-value.
    """
    title = _CONTROLS.get(name, name)
    if "change" in row:
        against = row["edit_against_it"]
        wins = (
            f"{against['gained']} better, {against['lost']} worse, p = {p_text(against['p_value'])}"
        )
        return [title, _signed(row["change"]), "–", "–", wins]
    if "mean" not in row:
        return [title, "–", "–", str(row.get("draws", 0)), "–"]
    between = f"{_signed(row['low'])} and {_signed(row['high'])}"
    as_good = f"as good with p = {p_text(row['p_value'])}"
    return [title, f"{_signed(row['mean'])} on average", between, f"{row['draws']:,}", as_good]


def _truth(title: str, found: Mapping[str, Mapping[str, Any]]) -> tuple[str, list[list[str]]]:
    one = next(iter(found.values()))
    attributes = one["attributes"]

    def line(name: str, best: float, among: float, auroc: float, rank: float) -> list[str]:
        return [name, f"{best:.0%}", f"{among:.0%}", f"{auroc:.3f}", number(rank)]

    rows = [
        line(n, r["best"], r["among_three"], r["auroc_of_label"], r["rank_correlation"])
        for n, r in found.items()
    ]
    rows.append(line("random", 1 / attributes, 3 / attributes, one["auroc_of_random"], 0.0))
    rows.append(line("the truth", 1.0, 1.0, one["auroc_of_best"], 1.0))
    return f"{one['units']:,} {title}", rows


# The data of the explorer


def _filters(run: Results) -> dict[str, Any]:
    details = run.details
    mapped = details is not None and len(details.emotions) > 0
    pictured = details is not None and len(details.classes) > 0
    return {
        "details": details is not None,
        "emotions": ("Label speaks for" if mapped else "Most top images are") if pictured else None,
        "significance": "q_value" in run.units,
        "halves": bool((run.units.get("halves_agree", np.array([])) != "").any()),
    }


def _plain(values: np.ndarray, digits: int = 5) -> list[float | None]:
    """Numbers for JSON, NaN as null."""
    return [None if math.isnan(x) else float(f"{x:.{digits}g}") for x in values.tolist()]


def _explorer(run: Results) -> dict[str, Any]:
    """The units by column, and what the page shows of one that is opened."""
    if run.labels is None:
        raise ValueError("a run without labels has no units to explore")
    details = run.details
    table = run.units
    named = [] if details is None else details.concepts.tolist()
    concepts = list(dict.fromkeys([*named, *table["concept"].tolist()]))
    at = {name: i for i, name in enumerate(concepts)}
    layers = list(run.labels.layers)
    names = {name: i for i, name in enumerate(layers)}
    units: dict[str, Any] = {
        "layer": [names[name] for name in table["layer"].tolist()],
        "unit": [int(x) for x in table["unit"].tolist()],
        "concept": [at[name] for name in table["concept"].tolist()],
        "similarity": _plain(table["similarity"]),
    }
    optional = {
        "margin": "margin",
        "p": "p_value",
        "q": "q_value",
        "accuracy": "description_accuracy",
        "chance": "chance",
    }
    for key, column in optional.items():
        if column in table:
            units[key] = _plain(table[column])
    if "halves_agree" in table:
        units["halves"] = [{"yes": 1, "no": 0}.get(x) for x in table["halves_agree"].tolist()]
    data: dict[str, Any] = {
        "layers": layers,
        "classes": [],
        "concepts": concepts,
        "emotions": None,
        "units": units,
    }
    if details is None:
        return data | {"details": None, "thumbs": None}
    data["classes"] = details.classes.tolist()
    if details.mix.any():
        commonest = details.mix.argmax(axis=1).tolist()
        known = (details.mix.sum(axis=1) > 0).tolist()
        units["main"] = [
            number if is_known else None for number, is_known in zip(commonest, known, strict=True)
        ]
    if len(details.emotions):
        folded = [meaning(name) for name in data["classes"]]
        named = [[meaning(emotion) for emotion in text.split(";")] for text in details.emotions]
        spoken = [[folded.index(each) for each in emotions if each in folded] for emotions in named]
        data["emotions"] = spoken + [[]] * (len(concepts) - len(spoken))
    outgoing = None
    if len(details.outgoing_layer):
        weights = _plain(details.outgoing.ravel(), 4)
        outgoing = {"layer": names[details.outgoing_layer[0].item()], "weights": weights}
    return data | {
        "thumbs": None,
        "images": {"id": details.ids.tolist(), "cls": details.image_class.tolist()},
        "details": {
            "width": details.top.shape[1],
            "top": details.top.ravel().tolist(),
            "same": details.same_as.ravel().tolist(),
            "named": details.best.shape[1],
            "best": details.best.ravel().tolist(),
            "scores": _plain(details.best_scores.ravel(), 4),
            "mix": details.mix.ravel().tolist(),
            "outgoing": outgoing,
        },
    }
