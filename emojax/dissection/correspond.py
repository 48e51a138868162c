"""Which units of two networks correspond: those whose activations go together on the same images.

Numbers and layers of units mean nothing across networks; activations do. Shapes: I images, U units
of the first network's layers side by side, V of the second's.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from emojax.brief import brief
from emojax.errors import InputError
from emojax.probing.record import ProbeRecord
from emojax.tables import Tabular, unit_columns

_UNITS_AT_A_TIME = 512  # of the first network: bounds the memory of their correlations


@brief
@dataclass(frozen=True)
class Correspondence(Tabular):
    """Of every unit of the first network, the unit of the second that goes with it most.

    Attributes:
      first: layers and units of the first network; `second` of the second.
      best: the unit of the second network with the largest correlation, ties to the lower.
      correlation: with it, over the images; 0 for a unit that does not vary.
      mutual: whether the unit is in turn the best of its best.
      layers: mean over a layer's units of the largest correlation with a unit of the other
        network's layer, by layers of both.
    """

    first: dict[str, int]
    second: dict[str, int]
    best: Int[np.ndarray, " U"]
    correlation: Float[np.ndarray, " U"]
    mutual: Bool[np.ndarray, " U"]
    layers: Float[np.ndarray, "L M"]

    def columns(self) -> dict[str, np.ndarray]:
        """A row per unit of the first network."""
        other = unit_columns(self.second)
        return unit_columns(self.first) | {
            "other_layer": other["layer"][self.best],
            "other_unit": other["unit"][self.best],
            "correlation": self.correlation,
            "mutual": self.mutual,
        }


def correspond(first: ProbeRecord, second: ProbeRecord) -> Correspondence:
    """Finds the units of two networks that go together, from records with activations.

    Args:
      first: of a network, probed with `keep_activations`.
      second: of another one, on the same images in the same order.

    Raises:
      InputError: a record has no activations, or they are of different images.
    """
    if first.activations is None or second.activations is None:
        raise InputError(
            "units are compared by their activations, which a record lacks; probe both networks "
            "with --probe.keep-activations"
        )
    if list(first.ids) != list(second.ids):
        raise InputError(
            f"the records are of different images ({first.images} and {second.images}); probe both "
            "networks on the same ones"
        )
    others = _standardized(second.activations)
    starts = np.cumsum([0, *second.layers.values()])[:-1]
    units, count = sum(first.layers.values()), others.shape[1]
    best, largest = np.empty(units, np.int64), np.empty(units)
    back, largest_back = np.zeros(count, np.int64), np.full(count, -np.inf)
    by_layer = np.empty((units, len(starts)))
    for start in range(0, units, _UNITS_AT_A_TIME):
        rows = slice(start, start + _UNITS_AT_A_TIME)
        part = _standardized(first.activations[:, rows]).T @ others
        best[rows], largest[rows] = part.argmax(axis=1), part.max(axis=1)
        by_layer[rows] = np.maximum.reduceat(part, starts, axis=1)
        better = part.max(axis=0) > largest_back
        back[better] = start + part.argmax(axis=0)[better]
        largest_back = np.maximum(largest_back, part.max(axis=0))
    own_starts = np.cumsum([0, *first.layers.values()])[:-1]
    sizes = np.array(list(first.layers.values()))[:, None]
    return Correspondence(
        dict(first.layers),
        dict(second.layers),
        best,
        largest,
        back[best] == np.arange(units),
        np.add.reduceat(by_layer, own_starts, axis=0) / sizes,
    )


def _standardized(activations: np.ndarray) -> Float[np.ndarray, "I units"]:
    """Columns of mean 0 and length 1, float64; 0 for one that does not vary."""
    values = np.asarray(activations, np.float64)
    centred = values - values.mean(axis=0)
    centred[:, np.ptp(values, axis=0) == 0] = 0.0
    length = np.linalg.norm(centred, axis=0)
    return centred / np.where(length > 0, length, 1.0)
