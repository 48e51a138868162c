"""The paper's Table 1: how many units of each layer are interpretable.

It also says how well labels describe the units, beside what chance alone would give.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emojax.dissection.labels import Dissection


@dataclass(frozen=True)
class LayerSummary:
    """One row of Table 1, with what chance alone would give.

    Accuracies are means over units of the share of a unit's top 10 images whose class its label
    speaks for, over units whose label speaks for one; None where there is no such unit or no class
    labels. `adjusted_*` is (accuracy − chance) / (1 − chance): 0 for random labels.
    """

    layer: str
    interpretable: int
    not_interpretable: int
    overall_acc: float | None
    interp_acc: float | None
    uninterp_acc: float | None
    share: float
    chance_overall: float | None
    chance_interp: float | None
    adjusted_overall: float | None
    adjusted_interp: float | None

    @property
    def shares(self) -> tuple[float | None, ...]:
        """What people read of the row beside the counts: share above tau, accuracies (all, above,
        not), chance, and accuracy adjusted for it.
        """
        accuracies = (self.overall_acc, self.interp_acc, self.uninterp_acc)
        return (self.share, *accuracies, self.chance_overall, self.adjusted_overall)


def interpretability(dissection: Dissection, tau: float = 0.0) -> list[LayerSummary]:
    """Table 1, a row per layer: a unit is interpretable when its maximum similarity exceeds tau."""
    record = dissection.record
    return [
        _summary(dissection, layer, record.segment_ids == number, tau)
        for number, layer in enumerate(record.layers)
    ]


def _summary(dissection: Dissection, layer: str, in_layer: np.ndarray, tau: float) -> LayerSummary:
    above = in_layer & (dissection.best > tau)
    below = in_layer & ~above
    description = dissection.description
    accuracy = None if description is None else description.accuracy
    chance = None if description is None else description.chance
    overall_acc = _mean(accuracy, in_layer)
    interp_acc = _mean(accuracy, above)
    chance_overall = _mean(chance, in_layer)
    chance_interp = _mean(chance, above)
    interpretable = int(above.sum())
    units = int(in_layer.sum())
    return LayerSummary(
        layer=layer,
        interpretable=interpretable,
        not_interpretable=units - interpretable,
        overall_acc=overall_acc,
        interp_acc=interp_acc,
        uninterp_acc=_mean(accuracy, below),
        share=interpretable / units,
        chance_overall=chance_overall,
        chance_interp=chance_interp,
        adjusted_overall=_above_chance(overall_acc, chance_overall),
        adjusted_interp=_above_chance(interp_acc, chance_interp),
    )


def _mean(values: np.ndarray | None, group: np.ndarray) -> float | None:
    """The mean over the units of a group whose value is known; None where there is none."""
    known = np.array([]) if values is None else values[group & ~np.isnan(values)]
    return float(known.mean()) if known.size else None


def _above_chance(accuracy: float | None, chance: float | None) -> float | None:
    """Accuracy on the scale where chance is 0; None where chance is always right."""
    if accuracy is None or chance is None or chance == 1.0:
        return None
    return (accuracy - chance) / (1.0 - chance)


def most_interpretable_layer(rows: Sequence[LayerSummary]) -> str:
    """The paper's rule for the layer to edit: the one with the most interpretable units.

    Ties go to the later layer.
    """
    return max(reversed(rows), key=lambda row: row.interpretable).layer
