"""One page from a run folder: self-contained, and safe with whatever the folder holds.

Text from files reaches the page escaped by jinja2, as JSON that the page's script puts in as text,
or inside a figure.
"""

import base64
import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from emojax.data.classes import ALIASES, meaning
from emojax.data.image_set import ImageSet
from emojax.dissection.encoder_check import AT_HOME
from emojax.dissection.options import method
from emojax.editing.search import MEANING
from emojax.editing.study_result import SplitResult, StudySummary, pooled
from emojax.errors import InputError
from emojax.report import explanations, judgement, sprites
from emojax.report.explorer import explorer_data, filters, trust_order
from emojax.report.page_figures import Shown, draw, inline
from emojax.report.results import Results
from emojax.report.units import Details

PEOPLE = (
    "If this page shows faces of people, share it only where those people or the terms of the data "
    "set allow it, for research,"
    " and not to judge anybody by."
)
_KINDS = {"folder": "folder", "faces": "rendered faces", "fer2013": "FER2013"}


# Percentages have one decimal; before and after an edit two, as an edit changes few images.


def number(value: float | None, digits: int = 2) -> str:
    """A number as tables show it; a dash for None and NaN."""
    return "–" if value is None or math.isnan(value) else f"{value:,.{digits}f}".replace("-", "−")


def p_text(value: float | None) -> str:
    """A p-value as tables show it."""
    return (
        "–" if value is None or math.isnan(value) else "<0.0001" if value < 1e-4 else f"{value:.2g}"
    )


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
    data = None if run.labels is None else explorer_data(run)
    if data is not None and run.explanations is not None:
        places = zip(run.units["layer"].tolist(), run.units["unit"].tolist(), strict=True)
        units = {(layer, int(unit)): place for place, (layer, unit) in enumerate(places)}
        data["explanations"] = explanations.page_data(run.explanations, units)
    scripts = ("theme.js", "explorer.js") if data else ("theme.js",)
    make = functools.partial(fill, "report.html.j2", scripts, **context)
    if images is None or data is None or run.details is None:
        (data or {}).pop("maps", None)  # which lie over images
        page = make(data=data and json_text(data), sheets=[])
    else:
        page = _with_thumbnails(run, run.details, images, data, make, int(size * 1e6))
    check_size(page, size)
    return page, drawn


def check_size(page: str, size: float) -> None:
    """Raises InputError for a page of more than `size` million bytes."""
    taken = len(page.encode()) / 1e6
    if taken > size:
        raise InputError(f"the page takes {taken:.1f} MB of {size:g}; give a larger --report.size")


def _with_thumbnails(
    run: Results,
    details: Details,
    images: ImageSet,
    data: dict[str, Any],
    make: Callable[..., str],
    size: int,
) -> str:
    """The page that `make` fills in, with thumbnails that leave it within `size` bytes."""
    data["thumbs"] = {
        "columns": sprites.SIDE,
        "shown": 0,
        "side": 0,
        "inRows": sprites.IN_ROWS,
        "images": details.images.tolist(),
    }
    # What the page takes without thumbnails is known once it is filled in, with the list of images
    # at its longest; the sheets get the rest, less 50 kB for the markup around them.
    room = size - len(make(data=json_text(data), sheets=[]).encode()) - 50_000
    order = trust_order(run.units)
    bottom = details.bottom if details.bottom.size else np.zeros((len(order), 0), int)
    packed = sprites.pack(images, details.images, details.top[order], bottom[order], room)
    images_packed = packed.images.tolist()
    data["thumbs"] |= {"shown": packed.per_unit, "side": packed.side, "images": images_packed}
    return make(data=json_text(data), sheets=packed.sheets)


def _context(run: Results) -> dict[str, Any]:
    study = run.study
    sections = [("summary", "Summary"), ("run", "What was run")]
    sections += [("labels", "Labels"), ("explorer", "Units")] if run.labels is not None else []
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
        "emotions": speaks_of_emotions([run]),
        "sections": sections,
        "words": _words(run),
        "beware": _beware(run),
        "cards": _cards(run),
        "verdict": study and study.verdict,
        "finding": study and study.finding,
        "evidence": run.evidence,
        "what": _what(run),
        "settings": list(_flat(run.settings)),
        "versions": [*versions.items(), ("devices", devices), *timings],
        "keys": list(run.manifest.get("inputs", {}).items()),
        "flagged": _flagged(run),
        "table1": _table1(run),
        "undescribed": run.summary.get("undescribed"),
        "explorer": None if run.labels is None else filters(run),
        "edit": study and _edit(run, study),
        "judgement": run.judgement and judgement.section(run.judgement),
        "explained": run.explanations is not None,
        "truth": [_truth(title, rows) for title, rows in (run.summary.get("truth") or {}).items()],
    }


def speaks_of_emotions(runs: Sequence[Results]) -> bool:
    """Whether a class of some run is an emotion; runs that do not name their classes count, too."""
    named = [run.details.classes.tolist() for run in runs if run.details is not None]
    classes = [name for names in named for name in names]
    return not classes or name_emotions(classes)


def name_emotions(classes: Sequence[str]) -> bool:
    """Whether some class is an emotion."""
    return any(meaning(name) in ALIASES for name in classes)


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
    sentences = []
    summary = run.summary
    if run.labels is not None:
        units = sum(run.labels.layers.values())
        above = sum(row.interpretable for row in run.table1)
        sentences.append(
            f"{len(run.labels.layers)} layers with {units:,} units were dissected on "
            f"{summary['images']:,} images with"
            f" {summary['concepts']:,} concepts by {_method(summary)}. {above:,} units "
            f"({above / units:.1%}) are"
            f" interpretable: their maximum similarity exceeds tau = {summary['tau']:g}."
        )
        sure = summary.get("confidence") or {}
        trusted = "do, and hold on the images that did not choose them"
        if not _beware(run):
            trusted = f"can be trusted: they {trusted}"
        lines = {
            "significant_at_q05": "are above chance (q ≤ 0.05)",
            "halves_agree": "stay the same on either half of the images",
            "trusted": trusted,
        }
        counts = [
            f"{sure[name]:,} {line}" for name, line in lines.items() if sure.get(name) is not None
        ]
        if counts:
            sentences.append(f"Of the labels {'; '.join(counts)}.")
        known = [row for row in run.table1 if row.adjusted_overall is not None]
        if known:
            best = max(known, key=lambda row: row.adjusted_overall or 0.0)
            sentences.append(
                f"Labels describe their units best in {best.layer}: the class of "
                f"{best.overall_acc:.1%} of a unit's top"
                " images is one that its label speaks for, where chance gives "
                f"{best.chance_overall:.1%}."
            )
    if run.study is None:
        sentences.append("No edit was tried.")
    elif not run.study.verdict:
        sentences.append("An edit was tried; its evidence was not assessed.")
    return sentences


def _beware(run: Results) -> list[str]:
    """What is to be known of the encoder before a label is believed."""
    encoder = run.summary.get("encoder") or {}
    lines = []
    check = encoder.get("zero_shot") or {}
    at_home = run.rendered or check.get("kappa", 0) >= AT_HOME
    if encoder.get("trained_on") and not at_home:
        lines.append(
            f"{encoder['name']} was trained on {encoder['trained_on']} alone: of other images its "
            "labels mean little, however many are above chance."
        )
    if check.get("weak"):
        lines.append(
            f"{encoder['name']} puts {check['accuracy']:.1%} of the images into the right class by "
            f"the class names alone (chance {check['chance']:.1%}): it hardly sees what tells them "
            "apart, so labels may be of anything."
        )
    return lines


def _sees(run: Results) -> list[tuple[str, str]]:
    """How well the CLIP tells the classes apart, where that is known."""
    check = (run.summary.get("encoder") or {}).get("zero_shot")
    if check is None:
        return []
    shares = f"{check['accuracy']:.1%} of {check['images']:,} images (chance {check['chance']:.1%})"
    return [("classes by name", f"the CLIP finds the right one for {shares}")]


def _cards(run: Results) -> list[tuple[str, str]]:
    if run.labels is None:
        return []
    units = sum(run.labels.layers.values())
    above = sum(row.interpretable for row in run.table1)
    cards = [(f"{units:,}", "units"), (f"{above:,}", "interpretable")]
    sure = run.summary.get("confidence") or {}
    trusted = "labels that can be trusted"
    if _beware(run):
        trusted = "labels hold on other images too, but see the warning of this CLIP"
    for name, title in (("significant_at_q05", "labels above chance"), ("trusted", trusted)):
        if sure.get(name) is not None:
            cards.append((f"{sure[name]:,}", title))
    before = None if run.study is None else pooled(run.study.baseline)
    if before is not None:
        cards.append((f"{before.top1:.1%}", f"correct of {before.images:,} test images, unedited"))
    return cards


def _what(run: Results) -> list[tuple[str, str]]:
    """Data, networks, concepts and the checkpoint's provenance."""
    settings = run.settings
    demo = run.command == "demo"
    data = settings.get("data", {})
    where = (
        "rendered faces"
        if demo or data.get("kind") == "faces"
        else str(data.get("path") or run.summary.get("image_set") or "a record")
    )
    tests = data.get("test_splits", ["public_test", "private_test"])
    pairs = [
        ("images", where),
        *([("probe split", "rendered for the demo")] if demo else _splits(data)),
        ("test splits", ", ".join(map(str, tests)) if run.study else "none"),
        ("network", "the demo's small VGGNet" if demo else _network(run)),
        *_pooled(run.summary),
        *_resized(run.summary.get("antialias")),
        ("splits that shaped it", provenance(run.manifest)),
        (
            "CLIP",
            "the demo's small CLIP"
            if demo
            else str(settings.get("clip", {}).get("path") or run.summary.get("clip") or "unknown"),
        ),
        *_sees(run),
        (
            "concepts",
            str(
                settings.get("concepts", {}).get("path")
                or run.summary.get("concept_set")
                or "unknown"
            ),
        ),
        ("similarity", _method(run.summary or settings.get("dissect", {}))),
    ]
    return pairs


def _splits(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The split that was probed; from Python there is none."""
    return [("probe split", str(data["probe_split"]))] if "probe_split" in data else []


def _network(run: Results) -> str:
    """The network as the settings name it, or as the record does."""
    target = run.settings.get("target", {})
    named = (target.get(setting) for setting in ("weights", "path", "factory"))
    return str(next(filter(None, named), None) or run.summary.get("network") or "unknown")


def _method(stated: Mapping[str, Any]) -> str:
    """Similarity function and prior, as a summary or settings state them."""
    prior = stated.get("prior")
    return method(str(stated.get("similarity", "unknown")), None if prior is None else str(prior))


def _pooled(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How outputs with places or tokens became one number per unit, where the record says it."""
    over_space = {"avg": "mean over space", "max": "maximum over space"}
    over_tokens = {"cls": "the first token", "mean": "mean of tokens", "max": "maximum of tokens"}
    ways = [over_space.get(str(summary.get("pool"))), over_tokens.get(str(summary.get("tokens")))]
    return [("a unit's number", "; ".join(filter(None, ways)))] if any(ways) else []


def _resized(antialias: bool | None) -> list[tuple[str, str]]:
    """How the probe brought images to the network's size, where the record says it."""
    if antialias is None:
        return []
    how = "with antialiasing (tests: without)" if antialias else "without antialiasing, as in tests"
    return [("resized for the probe", how)]


def provenance(manifest: Mapping[str, Any]) -> str:
    """What the checkpoint is known to have been trained and selected on."""
    target = manifest.get("target")
    if not isinstance(target, dict) or "seen" not in target:
        return "unknown"
    if target["seen"] is None:
        return "unknown origin: counts as having seen all test splits"
    what = {"trained": "trained on", "chosen": "epoch or edit chosen on"}
    entries = [use for use in target["seen"] if isinstance(use, dict)]
    return (
        ", ".join(f"{use.get('name')} ({what.get(str(use.get('role')), '?')})" for use in entries)
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
        counts = [f"{row.interpretable:,}", f"{row.not_interpretable:,}"]
        rows.append([row.layer, *counts, *map(number, row.shares)])
    return rows


def _edit(run: Results, study: StudySummary) -> dict[str, Any]:
    """What the page says of the edit, as text."""
    setting = study.setting
    evidence = run.evidence
    numbers = {"tau": setting.tau, "factor": setting.factor}
    parts = [
        f"{name} {value:g}".replace("-", "−")
        for name, value in numbers.items()
        if value is not None
    ]
    kind = setting.kind.replace("_", " ")
    what = kind if setting.concepts is None else f"{kind} ({setting.concepts})"
    text = ", ".join([f"Layer {setting.layer}", what, *parts, f"gains on {study.scope}"]) + "."
    if setting.kind == "erased":
        text = f"{setting.concepts}."
    if study.tested is not None:
        text += f" Tested on {', '.join(study.tested.on)}"
        if study.selected_on_test:
            text += ", where it was selected."
        else:
            text += ", which took no part in its selection."
    if study.limited is not None:
        text += f" To save time: {study.limited}."
    before = study.baseline or {}
    after = study.edited
    return {
        "kind": setting.kind,
        "setting": text,
        "meaning": MEANING.get(setting.kind, "An edit scales the units of a layer by given gains."),
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
            for name, row in (evidence.per_class if evidence else {}).items()
        ],
        "change": evidence and _signed(evidence.change),
        "controls": [
            _control(name, row) for name, row in (evidence.controls if evidence else {}).items()
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
    "random_directions": "random directions erased",
    "permuted_scores": "selection and test with permuted scores",
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


def _truth(title: str, by_function: Mapping[str, Mapping[str, Any]]) -> tuple[str, list[list[str]]]:
    first = next(iter(by_function.values()))
    attributes = first["attributes"]

    def line(name: str, best: float, among: float, auroc: float, rank: float) -> list[str]:
        return [name, f"{best:.1%}", f"{among:.1%}", f"{auroc:.3f}", number(rank)]

    rows = [
        line(n, r["best"], r["among_three"], r["auroc_of_label"], r["rank_correlation"])
        for n, r in by_function.items()
    ]
    rows.append(line("random", 1 / attributes, 3 / attributes, first["auroc_of_random"], 0.0))
    rows.append(line("the truth", 1.0, 1.0, first["auroc_of_best"], 1.0))
    return f"{first['units']:,} {title}", rows
