"""How a training went, as a picture."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito: for all eyes


def training_curves(histories: Sequence[Sequence[Mapping[str, float]]], best_epochs: Sequence[int] = ()) -> "Figure":
    """Metrics of every epoch: a panel each, training dashed and validation drawn out, a colour for each network.

    `histories` are the rows of `metrics.jsonl` of each network; `best_epochs`, counted from 1, are marked.
    """
    from matplotlib.figure import Figure

    names = [name for name in histories[0][0] if name not in ("epoch", "member", "seconds", "images_per_second")]
    panels = [name for name in names if not name.startswith("validation_")]
    panels += [name for name in names if name.startswith("validation_") and _plain(name) not in panels]
    figure = Figure(figsize=(4 * len(panels), 3.2), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, rows in enumerate(histories):
            colour, epochs = _COLOURS[number % len(_COLOURS)], [row["epoch"] for row in rows]
            both = [(panel, "--", "training"), (f"validation_{panel}", "-", "validation")]
            for name, style, label in both if f"validation_{panel}" in names else [(panel, "-", None)]:
                axes.plot(epochs, [row[name] for row in rows], style, color=colour, label=label if number == 0 else None)
            if number < len(best_epochs):
                axes.axvline(best_epochs[number], color=colour, linewidth=0.8, linestyle=":")
        axes.set_title(_plain(panel).replace("_", " "), fontsize=11)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=9)
    return figure


def _plain(name: str) -> str:
    return name.removeprefix("validation_")
