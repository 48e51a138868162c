"""The figures of a page: those that a run folder's results allow, with captions, as SVG."""

import io
import re
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from emojax.data.image_set import ImageSet
from emojax.editing.study_result import pooled
from emojax.report import figures
from emojax.report.results import Results


@dataclass(frozen=True)
class Shown:
    """A figure, what is said below it, and the figure as SVG."""

    figure: Figure
    caption: str
    svg: str


# Figures that may not come about, each with its caption, by name.
_Drawn = dict[str, tuple[Figure | None, str]]


def draw(run: Results, images: ImageSet | None = None) -> dict[str, Shown]:
    """All figures that the folder's results allow, by name; those of images only with the probe
    images.
    """
    drawn = _of_network(run)
    if images is not None and images.labels is not None:
        drawn |= _of_images(run, images)
    drawn |= _of_labels(run) | _of_search(run)
    if run.evidence is not None:
        drawn["per_class"] = (
            figures.plot_per_class(run.evidence),
            "Images that the edit puts right and wrong, by class.",
        )
    return {
        name: Shown(figure, caption, _svg(name, figure))
        for name, (figure, caption) in drawn.items()
        if figure is not None
    }


def _of_network(run: Results) -> _Drawn:
    """The network's layers, those dissected and the one edited told apart."""
    if run.details is None:
        return {}
    names, units = run.details.network.tolist(), run.details.network_units.tolist()
    figure = figures.plot_network(
        dict(zip(names, units, strict=True)),
        run.details.layers.tolist(),
        None if run.study is None else run.study.setting.layer,
    )
    return {"network": (figure, "The network's layers and their units.")}


def _of_images(run: Results, images: ImageSet) -> _Drawn:
    """Samples of the probe images, and those that the audit flagged."""
    drawn: _Drawn = {
        "samples": (figures.plot_samples(images), f"Samples of {images.name}, by class.")
    }
    flagged = flagged_images(run, images)
    if flagged:
        drawn["flagged"] = (
            figures.plot_flagged(images, flagged),
            "Images that the audit flagged, with their numbers.",
        )
    return drawn


def _of_labels(run: Results) -> _Drawn:
    """The labels: how well they describe, how similar they are, how many units have them."""
    drawn: _Drawn = {}
    if run.labels is not None:
        tau = run.summary["tau"]
        drawn["descriptions"] = (
            figures.plot_descriptions(run.table1),
            "Description accuracy by layer, and chance.",
        )
        drawn["similarities"] = (
            figures.plot_similarities(run.labels, tau),
            f"Maximum similarities by layer, tau = {tau:g}.",
        )
        drawn["labels"] = (
            figures.plot_labels(run.labels),
            "Labels by how many units have them. Correctly described: the label speaks for the "
            "class of more than half of the unit's top 10 images.",
        )
    if run.summary.get("certainty"):
        drawn["certainty"] = (
            figures.plot_certainty(run.summary["certainty"], run.summary.get("abstaining")),
            "Labels that are right, if only the units with the largest margins get one. Cross: the "
            "labels that stand by the rule by which labels are withheld.",
        )
    return drawn


def _of_search(run: Results) -> _Drawn:
    """The grid of edits and the accuracy at every threshold, with the selected setting marked."""
    if run.study is None or not run.study.setting.layer:
        return {}
    drawn: _Drawn = {}
    setting = run.study.setting
    selected = None
    if setting.kind == "threshold" and setting.tau is not None and setting.factor is not None:
        selected = setting.tau, setting.factor
    if run.sweep:
        caption = f"The grid of edits of {setting.layer}, all test splits."
        if "p_adjusted" in run.sweep:
            caption += (
                " Framed and starred: different from the unedited network by McNemar's exact test "
                "at 0.05, adjusted over the cells. As the grid was searched, the verdict and not "
                "the grid says whether the edit helps."
            )
        drawn["grid"] = figures.plot_grid(run.sweep, setting.layer, chosen=selected), caption
    if run.thresholds and setting.factor:
        caption = f"Accuracy of {setting.layer} at every threshold, all test splits."
        caption += " Band: as many random units instead." if run.bands else ""
        baseline = pooled(run.study.baseline)
        figure = figures.plot_thresholds(
            run.thresholds,
            setting.layer,
            setting.factor,
            run.bands,
            unedited=None if baseline is None else baseline.top1,
            chosen=None if selected is None else selected[0],
        )
        drawn["thresholds"] = figure, caption
    return drawn


def flagged_images(run: Results, images: ImageSet) -> dict[str, list[int]]:
    """Images of the probe set that the run's `audit.csv` names, by reason."""
    flagged: dict[str, list[int]] = {}
    if run.audit:
        numbers = {str(images.ids[i]): i for i in range(len(images))}
        for name, reason in zip(run.audit["file"], run.audit["reason"], strict=True):
            if name in numbers:
                flagged.setdefault(reason, []).append(numbers[name])
    return flagged


def _svg(name: str, figure: Figure) -> str:
    """A figure as SVG whose text is text; equal figures give equal bytes."""
    file = io.StringIO()
    quiet = dict.fromkeys(("Date", "Creator", "Format", "Type"))
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
