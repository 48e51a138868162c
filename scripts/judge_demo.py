"""How measures of explanations do where the truth is known: on the demo's rendered faces.

Two tables. The first ranks the labelling functions by every measure and compares that with their
ranking by the truth (mean AUROC of the labels, as in `emojax demo`): once with the small CLIP's
cosines as the concepts' values, and once with what the faces show. The second runs the sanity
tests of Neuron_Eval (ICML 2025) with each unit's true attribute, and sets the outcome beside the
published one: on raw outputs, and on those after BatchNorm and ReLU, as the published networks are.

    python scripts/judge_demo.py [--images 3000] [--alpha 0.02] [--sanity-alpha 0.2]
"""

import argparse
from typing import get_args

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau

from emojax.dissection import judge, truth
from emojax.dissection.dissect import dissect
from emojax.dissection.options import Similarity
from emojax.ops import explanation_metrics as metrics
from emojax.ops.affinity import affinity
from emojax.ops.similarity import rank_reorder_size
from emojax.probing.network import as_network
from emojax.probing.probe import probe
from emojax.synthetic.faces import ATTRIBUTES
from emojax.synthetic.shipped import demo_faces, load_demo

RESPONDS = 0.75  # AUROC from which a unit is said to respond to an attribute


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--alpha", type=float, default=0.02)
    # About as many images as show an attribute: with far fewer active than present, half of the
    # labels may go and leave F1 and IoU as they were.
    parser.add_argument("--sanity-alpha", type=float, default=0.2)
    options = parser.parse_args()

    model, clip = load_demo()
    probe_faces, test_faces = demo_faces(options.images)
    tests = [faces.image_set(f"test {n}") for n, faces in enumerate(test_faces)]
    record = probe(
        as_network(model),
        probe_faces.image_set("faces"),
        clip,
        layers=model.config.probed(),
        top_k=max(100, rank_reorder_size(options.images)),
        keep_activations=True,
    )
    presence = np.concatenate([faces.attributes for faces in test_faces])
    raw, relu = (
        np.concatenate(
            [truth.activations(as_network(model, taps=taps), t, list(record.layers)) for t in tests]
        )
        for taps in ("raw", "relu")
    )
    auroc = affinity(raw, presence).auroc
    responding = np.nanmax(auroc, axis=1) >= RESPONDS
    print(f"{responding.sum()} of {len(auroc)} units respond to something (AUROC ≥ {RESPONDS})")

    labels = {
        name: dissect(record, ATTRIBUTES, similarity=name, null_sets=0).labels[responding]
        for name in get_args(Similarity)
        if name not in ("consensus", "correlation")  # which CLIP-Dissect does not have
    }
    right = {
        name: float(np.take_along_axis(auroc[responding], of[:, None], axis=1).mean())
        for name, of in labels.items()
    }
    embeddings = np.concatenate([clip.embed_images(test.images) for test in tests])
    cosines = embeddings @ clip.embed_texts(ATTRIBUTES).T
    present = (presence == 1).astype(np.float32)
    sources = {"CLIP": cosines, "truth": present}
    rank(raw[:, responding], labels, right, sources, options.alpha)

    check({"raw": raw, "relu": relu}, presence, options.sanity_alpha)


def rank(
    activations: np.ndarray,
    labels: dict[str, np.ndarray],
    right: dict[str, float],
    sources: dict[str, np.ndarray],
    alpha: float,
) -> None:
    """Mean of every measure for every labelling function, and Kendall's tau with the truth."""
    measures = metrics.sound(alpha) | metrics.compared(alpha, jax.random.key(0))
    for source, values in sources.items():
        simulated = np.asarray(values, np.float32)
        # Cosines are never 0.5: what counts as present is their top share, as of activations.
        flags = simulated >= np.asarray(metrics.cutoffs(simulated, alpha))
        flags = simulated if source == "truth" else flags.astype(np.float32)
        table = Table("measure", *labels, "tau", title=f"Concepts as {source} sees them")
        table.add_row("truth: AUROC", *(f"{value:.3f}" for value in right.values()), "1.00")
        for name, measure in measures.items():
            used = simulated if name in judge.MEASURES[:3] or "correlation" in name else flags
            used = simulated if name in ("auc", "wpmi", "spearman_top_and_random") else used
            score = jax.jit(lambda a, c, m=measure: metrics.of_pairs(m, a, c))
            used = np.maximum(used, 1e-4) if name == "wpmi" else used  # of which a log is taken
            means = [float(np.mean(score(activations, used[:, of]))) for of in labels.values()]
            tau = kendalltau(means, list(right.values())).statistic
            cells = (f"{value:.3f}" for value in means)
            table.add_row(name, *cells, f"{tau:.2f}")
        Console(width=160).print(table)


def check(activations: dict[str, np.ndarray], presence: np.ndarray, alpha: float) -> None:
    """The sanity tests on either kind of output, and the published verdicts.

    Of units that respond to something, each with the attribute that it tells best.
    """
    outcomes = {}
    for taps, acts in activations.items():
        auroc = np.nan_to_num(affinity(acts, presence).auroc)
        responding = auroc.max(axis=1) >= RESPONDS
        best = auroc.argmax(axis=1)[responding]
        outcomes[taps] = judge.sanity(acts[:, responding], presence == 1, alpha=alpha, labels=best)
        print(f"{taps}: {responding.sum()} units")
    columns = [f"{taps}: {test}" for taps in outcomes for test in ("missing", "extra", "")]
    table = Table("measure", *columns, "published", title="Sanity, share of units that notice")
    verdict = {True: "passes", False: "fails"}
    for name, first in next(iter(outcomes.values())).items():
        cells = []
        for outcome in outcomes.values():
            row = outcome[name]
            cells += [f"{row.missing:.0%}", f"{row.extra:.0%}", verdict[row.passes]]
        table.add_row(name, *cells, verdict[first.sound])
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
