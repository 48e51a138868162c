"""Figures from Python."""

import numpy as np

import emojax
from emojax.evidence.verdict import Evidence
from emojax.report.figures import plot_training
from emojax.report.results import read_run


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
    curve = emojax.plot_thresholds(run.thresholds, "lin2", 2.0, chosen=-0.5).axes[0]
    lin2 = np.repeat(list(run.labels.layers), list(run.labels.layers.values())) == "lin2"
    above = (np.asarray(run.labels.similarity)[lin2] > -0.5).sum()
    assert any(set(line.get_xdata()) == {above} for line in curve.lines)
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
    marked = emojax.plot_grid(table, "lin2", chosen=(1.0, 2.0)).axes[0]
    significant, dotted = marked.patches
    assert (significant.get_linestyle(), dotted.get_linestyle()) == ("solid", ":")
    assert dotted.get_center().tolist() == [1, 1]
    assert "dotted: the chosen setting" in marked.get_xlabel()


def test_curves():
    rows = [
        {
            "epoch": e,
            "loss": 1 / e,
            "accuracy": 0.1 * e,
            "validation_accuracy": 0.09 * e,
            "validation_nll": 1.5,
            "seconds": 1,
        }
        for e in (1, 2, 3)
    ]
    panels = plot_training([rows, rows], [2, 3]).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["loss", "accuracy", "validation nll"]
    np.testing.assert_array_equal(
        panels[1].lines[1].get_ydata(), [row["validation_accuracy"] for row in rows]
    )
