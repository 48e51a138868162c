"""How far two dissections of the same units in the same concepts agree in their labels.

Asked where a probe computes in less than full precision: of a sample of the images, probed both
ways. Shapes: U units.
"""

from typing import Any, NamedTuple

import numpy as np

from emojax.dissection.labels import Dissection


class Agreement(NamedTuple):
    """Shares of units with the same label in both.

    Attributes:
      images: of the sample.
      units: how many were compared.
      share: of all units.
      clear: units whose label either half of the sample gives too, so that it exceeds the noise of
        the sample; None where the similarity function has no halves.
      clear_share: of those; None where there are none.
    """

    images: int
    units: int
    share: float
    clear: int | None
    clear_share: float | None

    def as_json(self) -> dict[str, Any]:
        """By name."""
        return self._asdict()


def agreement(exact: Dissection, other: Dissection) -> Agreement:
    """How many units have the label of `exact` in `other`, too.

    Raises:
      ValueError: the units or the concepts are not the same.
    """
    if exact.scores.shape != other.scores.shape or exact.concepts != other.concepts:
        raise ValueError("labels agree or not where units and concepts are the same")
    same = np.asarray(exact.labels) == np.asarray(other.labels)
    holds = None if exact.confidence is None else exact.confidence.holds(exact.labels)
    clear = None if holds is None else int(holds.sum())
    return Agreement(
        images=exact.record.images,
        units=len(same),
        share=float(same.mean()),
        clear=clear,
        clear_share=float(same[holds].mean()) if holds is not None and clear else None,
    )
