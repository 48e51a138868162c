"""Which labels to trust: those that hold on images that did not choose them.

A label's correlation on the images that chose it is flattered by the choice. So each half of the
images chooses a label, and the other half says how well the unit follows it. Shapes: U units of all
layers side by side, C concepts, D embedding.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from emojax.probing.record import ProbeRecord

LEVEL = 0.95  # of the interval of a held-out correlation
_NORMAL = 1.959964  # the standard normal's quantile of (1 + LEVEL) / 2


@dataclass(frozen=True)
class HeldOut:
    """Correlation of each unit with the label that one half of the images chose, on the other half.

    Both halves choose and both answer; the two correlations are averaged on Fisher's scale, with
    the interval that this scale gives (exact for normal variables, an approximation here).

    Attributes:
      correlation: 0 for a unit that does not vary.
      low: lower end of the 95 % interval.
      high: upper end.
    """

    correlation: Float[np.ndarray, " U"]
    low: Float[np.ndarray, " U"]
    high: Float[np.ndarray, " U"]


class Hubs(NamedTuple):
    """How labels spread over the concepts.

    Attributes:
      effective: effective number of labels, e to the entropy of their shares.
      concept: index of the most frequent label.
      share: of the units that it labels.
    """

    effective: float
    concept: int
    share: float

    @property
    def crowded(self) -> bool:
        """Whether one label stands for so many units that it says little: over a third of them."""
        return self.share > 1 / 3


def held_out(
    record: ProbeRecord,
    texts: Float[Array, "C D"] | Float[np.ndarray, "C D"],
    half_labels: Int[np.ndarray, "2 U"],
) -> HeldOut | None:
    """Correlations on the half that did not choose; None when a half has fewer than four images."""
    if record.half_sizes[1] < 4:  # Fisher's interval takes three off
        return None
    weights = np.array(record.half_sizes, np.float64)[::-1] - 3.0  # of the halves that answer
    answers = [_correlation(record, texts, 1 - half, half_labels[half]) for half in (0, 1)]
    # A correlation of 1 would be infinite on Fisher's scale.
    fisher = np.arctanh(np.clip(answers, -1 + 1e-7, 1 - 1e-7))
    middle = weights @ fisher / weights.sum()
    radius = _NORMAL / np.sqrt(weights.sum())
    return HeldOut(np.tanh(middle), np.tanh(middle - radius), np.tanh(middle + radius))


def _correlation(
    record: ProbeRecord, texts: Array | np.ndarray, half: int, labels: np.ndarray
) -> np.ndarray:
    """Correlation [U] of each unit with one concept, on one half of the images; float64."""
    of_half = record.half_covariances[half]
    text = np.asarray(texts, np.float64)
    concepts = np.einsum("cd,cd->c", text @ of_half.gram, text)
    spread = np.sqrt(of_half.unit * np.maximum(concepts[labels], 0.0))
    product = np.einsum("ud,ud->u", of_half.cross, text[labels])
    return np.divide(product, spread, out=np.zeros(len(labels)), where=spread > 0)


def hubs(labels: Int[np.ndarray, " U"]) -> Hubs:
    """How the labels of all units spread over the concepts."""
    counts = np.bincount(labels)
    shares = counts[counts > 0] / len(labels)
    most = int(counts.argmax())
    effective = float(np.exp(-(shares * np.log(shares)).sum()))
    return Hubs(effective, most, share=float(counts[most] / len(labels)))
