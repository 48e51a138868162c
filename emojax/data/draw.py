"""Which images of a split a limit leaves: a draw that is balanced over the classes, or the first.

The files of a folder stand class by class, so the first of them would be of one class alone.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int, Int32

How = Literal["balanced", "first"]


@dataclass(frozen=True)
class Draw:
    """How many images of a split are taken, and which.

    Attributes:
      limit: how many; None takes all.
      how: `balanced` draws as many of each class as there are, or as the limit allows; `first`
        takes the first, whatever their class.
      seed: of the balanced draw.
    """

    limit: int | None = None
    how: How = "balanced"
    seed: int = 0

    def rows(
        self, labels: Int32[np.ndarray, " I"] | None, count: int
    ) -> Int[np.ndarray, " rows"] | None:
        """The rows that are taken of `count` images, rising; None where all are.

        Without labels, all images are of one class.
        """
        if self.limit is None or self.limit >= count:
            return None
        if self.how == "first":
            return np.arange(self.limit)
        if labels is None:
            labels = np.zeros(count, np.int32)
        rng = np.random.default_rng(self.seed)
        shares = _shares(np.bincount(labels), self.limit)
        drawn = [
            rng.choice(np.flatnonzero(labels == label), share, replace=False)
            for label, share in enumerate(shares)
        ]
        return np.sort(np.concatenate(drawn))


def _shares(sizes: Int[np.ndarray, " classes"], limit: int) -> Int[np.ndarray, " classes"]:
    """How many images of each class: equal, but for classes that have fewer; `limit` in all."""
    shares = np.zeros_like(sizes)
    left = limit
    while left:
        unfilled = np.flatnonzero(shares < sizes)
        share = left // len(unfilled)
        if share:
            shares[unfilled] = np.minimum(shares[unfilled] + share, sizes[unfilled])
        else:  # fewer images than classes that still have some: the first classes get one more
            shares[unfilled[:left]] += 1
        left = limit - int(shares.sum())
    return shares
