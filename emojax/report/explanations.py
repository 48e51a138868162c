"""What the page shows of linear explanations: signed weights, and simulated against real.

Read from the folder of `emojax explain` or of a demo, whose files may have passed through other
hands: every value is checked. Shapes: U units of all layers in a row, K concepts of an explanation
at most, S images of the scatter.
"""

import csv
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emojax.dissection import explanation_files
from emojax.dissection.explanation_files import ExplanationFile
from emojax.errors import InputError

TABLE, SAMPLE = "explanations.csv", "simulated.npz"
LEVELS = 64  # of a coordinate of the scatter: one character each
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


@dataclass(frozen=True)
class UnitExplanations:
    """The explanations of a run's units.

    Attributes:
      file: the explanations, as the judge reads them.
      correlation: held-out correlation of each, NaN where the file does not say.
      label_correlation: that of the best single concept.
      real: activations of some held-out images, None without them; `simulated` theirs.
    """

    file: ExplanationFile
    correlation: np.ndarray
    label_correlation: np.ndarray
    real: np.ndarray | None
    simulated: np.ndarray | None


def read(folder: Path, layers: Mapping[str, int]) -> UnitExplanations | None:
    """Reads the explanations that a folder holds; None where it has none.

    Raises:
      InputError: they are damaged, or not of these layers.
    """
    path = folder / TABLE
    if not path.exists():
        return None
    file = explanation_files.read(path, layers)
    with open(path, newline="", encoding="utf-8-sig") as lines:
        rows = [row for row in csv.DictReader(lines) if row]
    correlation, of_label = (
        np.array([_number(row.get(name)) for row in rows])
        for name in ("correlation", "label_correlation")
    )
    real, simulated = _read_sample(folder / SAMPLE, len(file.explanations))
    return UnitExplanations(file, correlation, of_label, real, simulated)


def _number(text: Any) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return math.nan
    return value if math.isfinite(value) else math.nan


def _read_sample(path: Path, units: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    if not path.exists():
        return None, None
    try:
        with np.load(path, allow_pickle=False) as file:
            real, simulated = file["real"], file["simulated"]
        fits = real.shape == simulated.shape and real.ndim == 2 and real.shape[1] == units
        if not fits or not (np.isfinite(real).all() and np.isfinite(simulated).all()):
            raise ValueError("its arrays do not fit the explanations")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split()) or "damaged"
        raise InputError(f"{path}: {reason}; explain again") from None
    return real, simulated


def page_data(
    explanations: UnitExplanations, units: Mapping[tuple[str, int], int]
) -> dict[str, Any]:
    """What the page's script shows of each unit, by the unit's place in the page's table.

    A scatter is two texts of one character an image, in 64 steps from the least to the largest of
    the unit's real, and of its simulated values.

    Args:
      explanations: of the run.
      units: place of each (layer, unit).
    """
    concepts = list(explanations.file.concepts)
    places = {name: place for place, name in enumerate(concepts)}
    shown: dict[int, Any] = {}
    for number, explanation in enumerate(explanations.file.explanations):
        place = units.get((explanation.layer, explanation.unit))
        if place is None:
            continue
        entry: dict[str, Any] = {
            "concepts": [places[name] for name in explanation.concepts],
            "weights": [float(f"{weight:.4g}") for weight in explanation.weights],
            "bias": float(f"{explanation.bias:.4g}"),
            "correlation": _plain(explanations.correlation[number]),
            "label": _plain(explanations.label_correlation[number]),
        }
        if explanations.real is not None and explanations.simulated is not None:
            entry["real"] = _coded(explanations.real[:, number])
            entry["simulated"] = _coded(explanations.simulated[:, number])
        shown[place] = entry
    return {"concepts": concepts, "units": shown}


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.4g}")


def _coded(values: np.ndarray) -> str:
    """Values as letters, the least A and the largest the last."""
    low, high = float(values.min()), float(values.max())
    steps = (values - low) / (high - low or 1.0) * (LEVELS - 1)
    return "".join(ALPHABET[round(float(step))] for step in steps)
