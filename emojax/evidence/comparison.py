"""A network before and after an edit, on the same images: gains, losses, intervals, classes.

Shapes: I images, C classes.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int

from emojax.ops import stats
from emojax.training.evaluate import Evaluation

Pair = tuple[Evaluation, Evaluation]  # of one network, before and after the edit


def right(result: Evaluation) -> np.ndarray:
    """Which images are predicted right [I]."""
    return result.predictions == result.labels


def numbers(result: Evaluation) -> dict[str, float]:
    """Accuracy, macro recall, NLL and calibration error."""
    summary = result.summary()
    ece = stats.calibration_error(jnp.asarray(_confidence(result)), jnp.asarray(right(result)))
    return {
        "correct": summary["correct"],
        "accuracy": summary["top1"],
        "macro_recall": summary["macro_recall"],
        "nll": summary["nll"],
        "ece": float(ece),
    }


def _confidence(result: Evaluation) -> Float32[np.ndarray, " I"]:
    """Probability of the predicted class."""
    logits = np.float64(result.logits)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = 1.0 / shifted.sum(axis=1)  # the predicted class's shifted logit is 0
    return confidence.astype(np.float32)


def _gaps(result: Evaluation) -> Float[np.ndarray, "I bins"]:
    """Each image's accuracy less confidence, in the column of its bin of confidence, else 0.

    The calibration error is a function of these columns' sums.
    """
    confidence = _confidence(result)
    in_bin = np.eye(stats.BINS)[np.asarray(stats.confidence_bins(confidence))]
    return in_bin * (right(result) - confidence)[:, None]


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
    resample needs only column sums: of losses, of images per class, of wins per class, and of the
    gaps of each bin of confidence. A resample's calibration error is larger than the images' own,
    the more the smaller that is, so the interval of its difference leans towards 0.
    """
    labels = pairs[0][0].labels
    classes = len(pairs[0][0].classes)
    own = np.eye(classes)[labels]
    better = net_wins(pairs)[:, None] / len(pairs)
    loss = np.mean([after.losses() - before.losses() for before, after in pairs], axis=0)
    # The gaps of every network before, then after the edit: [networks × 2 × bins] columns
    gaps = np.concatenate([_gaps(result) for pair in pairs for result in pair], axis=1)
    columns = np.concatenate([loss[:, None], own, own * better, gaps], axis=1)
    key = jax.random.key(seed)
    drawn = stats.bootstrap_totals(key, jnp.asarray(columns, jnp.float32), resamples)

    def differences(totals: np.ndarray) -> dict[str, np.ndarray]:
        sizes = totals[:, 1 : classes + 1]
        gains = totals[:, classes + 1 : 2 * classes + 1]
        by_bin = np.abs(totals[:, 2 * classes + 1 :]).reshape(-1, len(pairs), 2, stats.BINS)
        errors = by_bin.sum(axis=3).mean(axis=1) / len(labels)  # before and after [R, 2]
        recalls = np.where(sizes > 0, gains / np.maximum(sizes, 1), 0.0)
        return {
            "accuracy": gains.sum(axis=1) / len(labels),
            "macro_recall": recalls.sum(axis=1) / (sizes > 0).sum(axis=1),
            "nll": totals[:, 0] / len(labels),
            "ece": errors[:, 1] - errors[:, 0],
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
