"""The report's figures: functions of result objects that return matplotlib figures, for a page, a
paper or a notebook.

Colours are told apart by colour-blind readers (Okabe and Ito's, and matplotlib's PuOr). Names from
files are never read as formulas. A figure belongs to nobody's window: show it in a notebook, or
`savefig` it.
"""

import functools
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib import patches, ticker
from matplotlib.figure import Figure

from emojax.dissection.labels import Dissection
from emojax.dissection.table import LayerSummary
from emojax.errors import InputError
from emojax.evidence.verdict import Evidence
from emojax.report.results import Labels, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from emojax.data.image_set import ImageSet

BLUE, ORANGE, SKY = "#0072B2", "#E69F00", "#56B4E9"
_MEMBERS = (BLUE, "#D55E00", "#009E73", "#CC79A7", ORANGE, SKY, "#000000")
INK, FAINT = "#1b2430", "#c9ced6"  # lines and text; the page puts its own colours in their place
_Arguments = ParamSpec("_Arguments")
_Drawn = TypeVar("_Drawn", bound=Figure | None)
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "text.usetex": False,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "white",
}


class _Figure(Figure):
    """A figure that a notebook shows, without pyplot."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        save(self, file, format="png", dpi=110)
        return file.getvalue()


def _figure(plot: Callable[_Arguments, _Drawn]) -> Callable[_Arguments, _Drawn]:
    """Draws in the report's style, whatever the caller's matplotlib is set to."""

    @functools.wraps(plot)
    def styled(*args: _Arguments.args, **options: _Arguments.kwargs) -> _Drawn:
        with mpl.rc_context(_STYLE):
            figure = plot(*args, **options)
            if figure is not None:
                # Ticks are made when first drawn, and would take the caller's style.
                figure.draw_without_rendering()
                figure.set_layout_engine("none")  # the layout stands
            return figure

    return styled


def save(figure: Figure, file: Any, **options: Any) -> None:
    """`savefig` in the report's style; options as there."""
    with mpl.rc_context(_STYLE):
        figure.savefig(file, **{"dpi": 160, "facecolor": "white"} | options)


def _short(name: object, width: int = 28) -> str:
    return textwrap.shorten(str(name), width, placeholder="…") or str(name)[:width]


# Labels


@_figure
def plot_similarities(dissection: Dissection | Labels, tau: float = 0.0) -> Figure:
    """Histogram of the units' maximum similarities, a panel per layer, with tau: the paper's Figure
    4 for every layer.
    """
    labels = Labels.of(dissection)
    wide = min(len(labels.layers), 2)
    high = -(-len(labels.layers) // wide)
    figure = _Figure(figsize=(3.1 * wide, 1.5 * high + 0.5))
    edges = np.histogram_bin_edges(np.append(labels.similarity, tau), 40)
    for panel, name in enumerate(labels.layers):
        axes: Axes = figure.add_subplot(high, wide, panel + 1)
        own = labels.similarity[labels.layer_of == name]
        above = own[own > tau]
        axes.hist([above, own[own <= tau]], list(edges), stacked=True, color=[BLUE, ORANGE])
        axes.axvline(tau, color=INK, linewidth=1, linestyle="--")
        axes.set_title(f"{_short(name, 14)}: {len(above)} of {len(own)}")
        axes.yaxis.set_major_locator(ticker.MaxNLocator(3, integer=True))
    figure.supxlabel("maximum similarity of a unit (blue: above tau; dashed: tau)", fontsize=10)
    figure.supylabel("units", fontsize=10)
    return figure


@_figure
def plot_labels(dissection: Dissection | Labels, most: int = 25) -> Figure:
    """Shares of labels over all units and over the correctly described ones: the paper's Figure 5.

    A unit is correctly described when its label speaks for the class of more than half of its top
    10 images.

    Raises:
      InputError: there is no unit.
    """
    labels = Labels.of(dissection)
    if not len(labels.concept):
        raise InputError("there is no unit to draw labels of")
    names, which = np.unique(labels.concept.astype(str), return_inverse=True)
    right = labels.accuracy > 0.5
    known = np.isfinite(labels.accuracy).any()
    counts = np.bincount(which, minlength=len(names))
    good = np.bincount(which[right], minlength=len(names))
    order = np.lexsort((names, -counts, -good if right.any() else -counts))[:most]
    figure = _Figure(figsize=(6.4, 0.34 * len(order) + 1.1))
    axes = figure.add_subplot()
    y = np.arange(len(order))
    bars = [(counts, len(which), SKY, f"all {len(which):,} units")]
    if known:
        bars.insert(
            0, (good, max(int(right.sum()), 1), BLUE, f"{int(right.sum()):,} correctly described")
        )
    for number, (values, total, colour, title) in enumerate(bars):
        height = 0.8 / len(bars)
        axes.barh(
            y + (number - (len(bars) - 1) / 2) * height,
            100 * values[order] / total,
            height,
            color=colour,
            label=title,
        )
    axes.set_yticks(y, [_short(names[i]) for i in order])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("share of units, %")
    axes.margins(y=0.01)
    figure.legend(loc="outside upper left", ncols=2)
    return figure


@_figure
def plot_descriptions(rows: Sequence[LayerSummary]) -> Figure | None:
    """How well labels describe their units, layer by layer, beside chance; None where that is not
    known.
    """
    rows = [row for row in rows if row.overall_acc is not None]
    if not rows:
        return None
    figure = _Figure(figsize=(6.4, 3.0))
    axes = figure.add_subplot()
    x = np.arange(len(rows))
    for values, colour, marker, title in (
        ([row.interp_acc for row in rows], BLUE, "o", "units above tau"),
        ([row.uninterp_acc for row in rows], ORANGE, "s", "other units"),
        ([row.chance_overall for row in rows], INK, "_", "chance"),
    ):
        axes.plot(
            x,
            [np.nan if value is None else value for value in values],
            marker=marker,
            color=colour,
            label=title,
            markersize=7,
            linestyle="--" if marker == "_" else "-",
            linewidth=1.4,
        )
    axes.set_xticks(x, [_short(row.layer, 12) for row in rows], rotation=30, ha="right")
    axes.set_ylim(0, 1)
    axes.set_ylabel("description accuracy")
    figure.legend(loc="outside upper left", ncols=3)
    return figure


# Images and networks


@_figure
def plot_samples(images: "ImageSet", per_class: int = 6) -> Figure:
    """The first images of each class: the paper's Figure 1. Mind whose faces they are before you
    show
    them.

    Raises:
      InputError: the set has no labels.
    """
    if images.labels is None:
        raise InputError(f"{images.name} has no labels to draw samples by")
    rows = [
        (name, np.flatnonzero(images.labels == c)[:per_class])
        for c, name in enumerate(images.classes)
    ]
    return _sheet(
        images,
        [(name, [(int(i), "") for i in numbers]) for name, numbers in rows if len(numbers)],
        per_class,
    )


@_figure
def plot_flagged(images: "ImageSet", flagged: Mapping[str, Sequence[int]], most: int = 8) -> Figure:
    """Images of a set by what an audit found in them, {reason: image numbers}: the paper's Figure
    3.
    """
    rows = [
        (f"{reason} ({len(numbers)})", [(int(i), f"{int(i)}") for i in numbers[:most]])
        for reason, numbers in flagged.items()
    ]
    return _sheet(images, rows, most)


def _sheet(
    images: "ImageSet", rows: Sequence[tuple[str, Sequence[tuple[int, str]]]], wide: int
) -> Figure:
    """Rows of images as one picture, with a name before each row and captions below the images."""
    side = images.images.shape[1:3]
    gap = 16 if any(caption for _, row in rows for _, caption in row) else 6
    step = (side[0] + max(gap, side[0] * gap // 48), side[1] + max(4, side[1] // 12))
    figure = _Figure(figsize=(1.4 + 0.8 * wide, 0.8 * len(rows) * step[0] / step[1] + 0.1))
    axes = figure.add_subplot()
    for row, (_, cells) in enumerate(rows):
        for column, (image, caption) in enumerate(cells):
            pixels = np.asarray(images.images[image : image + 1])[0]
            left, top = column * step[1], row * step[0]
            place = (left, left + side[1], top + side[0], top)
            shown = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
            axes.imshow(shown, cmap="gray", vmin=0, vmax=255, extent=place, interpolation="none")
            axes.text(
                left + side[1] / 2, top + side[0] * 1.02, caption, fontsize=8, ha="center", va="top"
            )
    axes.set_xlim(0, wide * step[1])
    axes.set_ylim(len(rows) * step[0], 0)
    axes.set_xticks([])
    axes.set_yticks(
        [row * step[0] + side[0] / 2 for row in range(len(rows))],
        [_short(name, 24) for name, _ in rows],
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


@_figure
def plot_network(
    network: Mapping[str, int], dissected: Sequence[str] = (), edited: str | None = None
) -> Figure:
    """The layers of a network with their units, those dissected and the one edited told apart: the
    paper's Figure 2.
    """
    figure = _Figure(figsize=(6.4, 2.7))
    axes = figure.add_subplot()
    counts = np.array(list(network.values()), float)
    heights = 0.35 + 0.65 * np.log(counts) / max(np.log(counts.max()), 1)
    colours = [
        ORANGE if name == edited else BLUE if name in dissected else FAINT for name in network
    ]
    for x, (units, height, colour) in enumerate(
        zip(network.values(), heights, colours, strict=True)
    ):
        axes.add_patch(
            patches.Rectangle((x - 0.3, -height / 2), 0.6, height, color=colour, linewidth=0)
        )
        axes.text(x, height / 2 + 0.03, f"{units:,}", ha="center", va="bottom", fontsize=9)
        if x:
            axes.annotate(
                "",
                (x - 0.32, 0),
                (x - 0.68, 0),
                arrowprops={"arrowstyle": "->", "color": INK, "lw": 1},
            )
    axes.set_xticks(
        range(len(network)), [_short(name, 14) for name in network], rotation=30, ha="right"
    )
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.6, len(network) - 0.4)
    axes.set_ylim(-0.55, 0.68)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    kinds = {BLUE: "dissected", ORANGE: "edited", FAINT: "not dissected"}
    handles = [
        patches.Patch(color=colour, label=title)
        for colour, title in kinds.items()
        if colour in colours
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3)
    return figure


# Edits


@_figure
def plot_grid(
    sweep: Table, layer: str, alpha: float = 0.05, chosen: tuple[float, float] | None = None
) -> Figure | None:
    """Heatmap of a layer's tau × factor grid: correct images above the unedited network's.

    `chosen` is a setting to mark, by tau and factor.

    A cell framed and starred differs from the unedited network at level alpha (McNemar's exact
    test, adjusted over the cells by Benjamini and Hochberg); None where fewer than two thresholds
    or factors were tried.
    """
    of_layer = (sweep["kind"] == "threshold") & (sweep["layer"] == layer)
    taus, factors = np.unique(sweep["tau"][of_layer]), np.unique(sweep["factor"][of_layer])
    if min(len(taus), len(factors)) < 2:
        return None
    cells = (
        np.searchsorted(taus, sweep["tau"][of_layer]),
        np.searchsorted(factors, sweep["factor"][of_layer]),
    )
    change = np.full((len(taus), len(factors)), np.nan)
    sure = np.zeros((len(taus), len(factors)), bool)
    if "gained" in sweep:
        change[cells] = (sweep["gained"] - sweep["lost"])[of_layer]
        sure[cells] = sweep["p_adjusted"][of_layer] <= alpha
        title = "correct images, against the unedited network"
    else:
        change[cells] = sweep["correct"][of_layer]
        change -= (
            np.nanmedian(change[:, factors == 1]) if (factors == 1).any() else np.nanmax(change)
        )
        title = "correct images, against " + (
            "factor 1" if (factors == 1).any() else "the best cell"
        )
    figure = _Figure(figsize=(max(4.2, 0.78 * len(factors) + 2), max(2.4, 0.33 * len(taus) + 1.1)))
    axes = figure.add_subplot()
    limit = max(1.0, float(np.nanmax(np.abs(change))))
    shown = axes.imshow(change, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
    for row, column in np.argwhere(np.isfinite(change)):
        value = change[row, column]
        text = f"{value:+,.0f}".replace("-", "−") if value else "±0"
        if sure[row, column]:
            text += "*"
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold" if sure[row, column] else None,
            color="white" if abs(value) > 0.6 * limit else "black",
        )
        if sure[row, column]:
            frame = patches.Rectangle(
                (column - 0.46, row - 0.44), 0.92, 0.88, fill=False, edgecolor="black", linewidth=2
            )
            axes.add_patch(frame)
    if chosen is not None:
        column, row = np.searchsorted(factors, chosen[1]), np.searchsorted(taus, chosen[0])
        dotted = {"fill": False, "edgecolor": BLUE, "linewidth": 2, "linestyle": ":"}
        axes.add_patch(patches.Rectangle((column - 0.46, row - 0.44), 0.92, 0.88, **dotted))
    axes.set_xticks(range(len(factors)), [f"{f:g}" for f in factors])
    axes.set_yticks(range(len(taus)), [f"{t:g}".replace("-", "−") for t in taus])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("factor" if chosen is None else "factor (dotted: the chosen setting)")
    axes.set_ylabel("tau")
    bar = figure.colorbar(shown, shrink=0.8)
    bar.set_label(title, fontsize=9)
    bar.outline.set_visible(False)
    return figure


@_figure
def plot_thresholds(
    thresholds: Table,
    layer: str,
    factor: float,
    bands: Table | None = None,
    unedited: float | None = None,
    chosen: float | None = None,
) -> Figure | None:
    """Accuracy at every threshold of a layer: the given factor, the others faintly, and the band of
    random masks.

    `unedited` is the accuracy of the network as it was, `chosen` a threshold to mark; None where
    the layer has no thresholds.
    """
    of_layer = thresholds["layer"] == layer
    if not of_layer.any():
        return None
    figure = _Figure(figsize=(6.4, 3.6))
    axes = figure.add_subplot()
    others = [f for f in np.unique(thresholds["factor"][of_layer]) if f != factor]
    faint = {"color": FAINT, "linewidth": 0.8}
    styles = [
        (line_factor, faint | {"label": "_" * bool(i) + "other factors"})
        for i, line_factor in enumerate(others)
    ]
    styles.append((factor, {"color": BLUE, "linewidth": 1.8, "label": f"factor {factor:g}"}))
    style: dict[str, Any]
    for line_factor, style in styles:
        rows = of_layer & (thresholds["factor"] == line_factor)
        axes.plot(thresholds["units_above"][rows], 100 * thresholds["accuracy"][rows], **style)
    if bands:
        rows = (bands["layer"] == layer) & (bands["factor"] == factor)
        x, low, mean, high = (bands[name][rows] for name in ("units_above", "low", "mean", "high"))
        axes.fill_between(
            x,
            100 * low,
            100 * high,
            color=ORANGE,
            alpha=0.35,
            linewidth=0,
            label="random units, 95 %",
        )
        axes.plot(x, 100 * mean, color=ORANGE, linewidth=1.2, label="their mean")
    if unedited is not None:
        axes.axhline(100 * unedited, color=INK, linewidth=1, linestyle=":", label="unedited")
    if chosen is not None:
        rows = of_layer & (thresholds["factor"] == factor)
        # The thresholds of the curve are the units' scores, so those above count the units.
        above = (rows & (thresholds["tau"] > chosen)).sum()
        axes.axvline(above, color=BLUE, linewidth=1, linestyle="--", label="the chosen setting")
    figure.legend(loc="outside upper left", ncols=3)
    axes.set_xlabel("units above the threshold")
    axes.set_ylabel("accuracy, %")
    return figure


@_figure
def plot_per_class(evidence: Evidence) -> Figure | None:
    """Images gained and lost by the edit in each class; None where that was not counted."""
    if not evidence.per_class:
        return None
    names = list(evidence.per_class)
    rows = list(evidence.per_class.values())
    figure = _Figure(figsize=(6.4, 0.36 * len(names) + 1.0))
    axes = figure.add_subplot()
    y = np.arange(len(names))
    gained, lost = (np.array([row[key] for row in rows]) for key in ("gained", "lost"))
    axes.barh(y, gained, 0.66, color=BLUE, label="gained")
    axes.barh(y, -lost, 0.66, color=ORANGE, label="lost")
    for place, (more, less) in enumerate(zip(gained, lost, strict=True)):
        for value, side in ((more, 1), (-less, -1)):
            axes.annotate(
                f"{abs(value)}",
                (value, place),
                (4 * side, 0),
                textcoords="offset points",
                va="center",
                ha="left" if side > 0 else "right",
                fontsize=9,
            )
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(y, [_short(name, 20) for name in names])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    limit = 1.25 * max(1, gained.max(), lost.max())
    axes.set_xlim(-limit, limit)
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    axes.set_xlabel("images")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


@_figure
def plot_training(
    histories: Sequence[Sequence[Mapping[str, float]]], best_epochs: Sequence[int] = ()
) -> Figure:
    """Metrics of every epoch: a panel each, training dashed and validation drawn out, a colour for
    each network.

    `histories` are the rows of `metrics.jsonl` of each network; `best_epochs`, counted from 1, are
    marked.
    """
    known = ("epoch", "member", "seconds", "images_per_second")
    names = [name for name in histories[0][0] if name not in known]
    panels = [name for name in names if not name.startswith("validation_")]
    panels += [
        name
        for name in names
        if name.startswith("validation_") and name.removeprefix("validation_") not in panels
    ]
    figure = _Figure(figsize=(4 * len(panels), 3.2))
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        watched = f"validation_{panel}" in names
        lines = (
            [(panel, "--", "training"), (f"validation_{panel}", "-", "validation")]
            if watched
            else [(panel, "-", None)]
        )
        for number, rows in enumerate(histories):
            colour = _MEMBERS[number % len(_MEMBERS)]
            for name, style, label in lines:
                label = label if number == 0 else None  # noqa: PLW2901
                axes.plot(
                    [row["epoch"] for row in rows],
                    [row[name] for row in rows],
                    style,
                    color=colour,
                    label=label,
                )
            if number < len(best_epochs):
                axes.axvline(best_epochs[number], color=colour, linewidth=0.8, linestyle=":")
        axes.set_title(panel.replace("_", " "))
        axes.set_xlabel("epoch")
        if watched:
            axes.legend()
    return figure


@_figure
def plot_label_settings(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Label settings: how many units keep the default's label, against the held-out correlation.

    `rows` are those of `settings.csv`.
    """
    figure = _Figure(figsize=(6.4, 4.2))
    axes = figure.subplots()
    known = [row for row in rows if row["held_out"] != ""]
    kinds = list(dict.fromkeys((row["similarity"], row["prior"]) for row in known))
    for number, kind in enumerate(kinds):
        own = [row for row in known if (row["similarity"], row["prior"]) == kind]
        axes.scatter(
            [row["held_out"] for row in own],
            [row["same_as_default"] for row in own],
            label=", prior over ".join(filter(None, kind)),
            color=_MEMBERS[number % len(_MEMBERS)],
            marker="os^vDPX"[number // len(_MEMBERS) % 7],
        )
    axes.set_xlabel("mean correlation on the half of the images that did not choose the label")
    axes.set_ylabel("units labelled as by default")
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
    axes.set_title("Labels by setting")
    if known:
        axes.legend()
    return figure


@_figure
def plot_certainty(
    curve: Sequence[Mapping[str, float]], by_rule: Mapping[str, float] | None = None
) -> Figure:
    """Share of units labelled against share of labels right, most certain units first.

    `curve` and `by_rule` have `labelled` and `right`, from 0 to 1; `by_rule` is the point of the
    labels that stand.
    """
    figure = _Figure(figsize=(5.2, 3.4))
    axes = figure.subplots()
    shares = [point["labelled"] for point in curve]
    axes.plot(shares, [point["right"] for point in curve], color=BLUE, marker="o", markersize=3)
    if by_rule is not None:
        axes.plot([by_rule["labelled"]], [by_rule["right"]], "x", color=ORANGE, markersize=9)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="units labelled", ylabel="labels right")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ticker.PercentFormatter(1.0))
    axes.set_title("The more certain, the more often right")
    return figure
