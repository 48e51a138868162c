"""A network before and after an edit, on the same images: gains, losses, intervals, classes.

Shapes: I images, C classes.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from emojax.ops import stats
from emojax.training.evaluate import Evaluation

Pair = tuple[Evaluation, Evaluation]  # of one network, before and after the edit


def right(result: Evaluation) -> np.ndarray:
    """Which images are predicted right [I]."""
    return result.predictions == result.labels


def numbers(result: Evaluation) -> dict[str, float]:
    """Accuracy, macro recall, NLL and calibration error."""
    summary = result.summary()
    logits = np.float64(result.logits)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = 1.0 / shifted.sum(axis=1)  # of the predicted class, whose shifted logit is 0
    ece = stats.calibration_error(jnp.asarray(confidence, jnp.float32), jnp.asarray(right(result)))
    return {
        "correct": summary["correct"],
        "accuracy": summary["top1"],
        "macro_recall": summary["macro_recall"],
        "nll": summary["nll"],
        "ece": float(ece),
    }


def net_wins(pairs: Sequence[Pair]) -> Int[np.ndarray, " I"]:
    """Networks that an edit puts right less those it puts wrong, for each image."""
    changes = [right(after).astype(int) - right(before) for before, after in pairs]
    return np.sum(changes, axis=0)


def wins(net: Int[np.ndarray, " I"]) -> dict[str, Any]:
    """Images gained and lost, by more networks than not, and McNemar's p."""
    gained = int((net > 0).sum())
    lost = int((net < 0).sum())
    return {"gained": gained, "lost": lost, "p_value": stats.mcnemar_exact(gained, lost)}


def intervals(pairs: Sequence[Pair], resamples: int, level: float, seed: int) -> dict[str, Any]:
    """Percentile intervals of the differences, after − before, over resampled images.

    Differences are means over the networks. Macro recall is a ratio of sums over images, so a
    resample needs only column sums: of losses, of images per class, and of wins per class.
    """
    labels = pairs[0][0].labels
    classes = len(pairs[0][0].classes)
    own = np.eye(classes)[labels]
    better = net_wins(pairs)[:, None] / len(pairs)
    loss = np.mean([after.losses() - before.losses() for before, after in pairs], axis=0)
    columns = np.concatenate([loss[:, None], own, own * better], axis=1)
    key = jax.random.key(seed)
    drawn = stats.bootstrap_totals(key, jnp.asarray(columns, jnp.float32), resamples)

    def differences(totals: np.ndarray) -> dict[str, np.ndarray]:
        sizes = totals[:, 1 : classes + 1]
        gains = totals[:, classes + 1 :]
        recalls = np.where(sizes > 0, gains / np.maximum(sizes, 1), 0.0)
        return {
            "accuracy": gains.sum(axis=1) / len(labels),
            "macro_recall": recalls.sum(axis=1) / (sizes > 0).sum(axis=1),
            "nll": totals[:, 0] / len(labels),
        }

    observed = differences(columns.sum(axis=0)[None])
    spread = differences(np.asarray(drawn, np.float64))
    edges = [(1 - level) / 2, (1 + level) / 2]
    return {
        name: {
            "difference": float(observed[name][0]),
            "interval": [float(x) for x in np.quantile(spread[name], edges)],
        }
        for name in observed
    }


def per_class(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Wins and losses within each true class; p-values adjusted for their number (BH)."""
    before = pairs[0][0]
    net = net_wins(pairs)
    present = [c for c in range(len(before.classes)) if (before.labels == c).any()]
    rows = [wins(net[before.labels == c]) for c in present]
    p_values = jnp.asarray([row["p_value"] for row in rows])
    adjusted = stats.benjamini_hochberg(p_values)
    return {
        before.classes[c]: row | {"images": int((before.labels == c).sum()), "p_adjusted": float(p)}
        for c, row, p in zip(present, rows, adjusted, strict=True)
    }


def permutation_p_value(observed: float, null: np.ndarray) -> float | None:
    """As `stats.permutation_p_values`, in float64: a p-value of just alpha must compare as such.

    The observed outcome counts as one of the draws, so no p-value is 0. None without draws.
    """
    return (1 + int((null >= observed).sum())) / (1 + len(null)) if len(null) else None


def spread_of(values: np.ndarray) -> dict[str, float]:
    """Mean and 95 % range of what controls changed."""
    if not len(values):
        return {}
    low, high = np.quantile(values, [0.025, 0.975])
    return {
        "mean": float(values.mean()),
        "low": float(low),
        "high": float(high),
        "best": float(values.max()),
    }
