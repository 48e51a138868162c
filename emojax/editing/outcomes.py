"""What settings of a sweep gave on a labelled set: counts, losses and predictions.

`editing/sweep.py` makes them; the study's tables and the evidence read them.
Shapes: I images, C classes, S settings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int, UInt8


@dataclass(frozen=True)
class Outcomes:
    """What each of S settings gave on a labelled set.

    Attributes:
      hits: correct images per class [S, C].
      sizes: images per class [C].
      nll: mean negative log-likelihood [S] float64.
      near_ties: images [S] whose two best logits are too close for float32 to order; `correct` is
        exact up to these.
      predictions: predicted class [S, I].

    The last three are None where only hits were asked for.
    """

    hits: Int[np.ndarray, "S C"]
    sizes: Int[np.ndarray, " C"]
    nll: Float[np.ndarray, " S"] | None = None
    near_ties: Int[np.ndarray, " S"] | None = None
    predictions: UInt8[np.ndarray, "S I"] | None = None

    def __len__(self) -> int:
        return len(self.hits)

    @property
    def correct(self) -> Int[np.ndarray, " S"]:
        """Correct images."""
        return self.hits.sum(axis=1)

    @property
    def accuracy(self) -> Float[np.ndarray, " S"]:
        """Share of correct images."""
        return self.correct / self.sizes.sum()

    @property
    def macro_recall(self) -> Float[np.ndarray, " S"]:
        """Mean recall of the classes that have images."""
        present = self.sizes > 0
        return (self.hits[:, present] / self.sizes[present]).mean(axis=1)

    def select(self, rows: np.ndarray | slice) -> "Outcomes":
        """The outcomes of some settings, or of all in another order."""
        named = vars(self).items()
        arrays = {name: array[rows] for name, array in named if _has_settings(name, array)}
        return replace(self, **arrays)

    @staticmethod
    def join(chunks: Sequence["Outcomes"]) -> "Outcomes":
        """The outcomes of several chunks of settings on the same set."""
        first = chunks[0]
        arrays = {
            name: np.concatenate([getattr(chunk, name) for chunk in chunks])
            for name, array in vars(first).items()
            if _has_settings(name, array)
        }
        return replace(first, **arrays)


def _has_settings(name: str, array: np.ndarray | None) -> bool:
    """Whether an array of `Outcomes` is there and has a row per setting."""
    return array is not None and name != "sizes"
