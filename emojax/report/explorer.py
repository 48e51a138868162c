"""The data behind a page's table of units, as the page's script reads it."""

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from emojax.data.classes import meaning
from emojax.dissection.find import places
from emojax.report.explanations import ALPHABET, LEVELS
from emojax.report.results import Results, Table
from emojax.report.units import Details


def filters(run: Results) -> dict[str, Any]:
    """Which columns and filters the table of units has."""
    details = run.details
    mapped = details is not None and len(details.emotions) > 0
    pictured = details is not None and len(details.classes) > 0
    return {
        "details": details is not None,
        "example": _example(run),
        "texts": details is not None and len(details.texts) > 0,
        "emotions": ("Label speaks for" if mapped else "Most top images are") if pictured else None,
        "significance": "q_value" in run.units,
        "labelled": "labelled" in run.units,
        "halves": bool((run.units.get("halves_agree", np.array([])) != "").any()),
    }


def _example(run: Results) -> str:
    """A search that finds something: the most trusted label, a layer and a unit."""
    first = int(trust_order(run.units)[0])
    concept, layer = run.units["concept"][first], run.units["layer"][first]
    return f"{concept}, {layer} {int(run.units['unit'][first])}"


def trust_order(table: Table) -> np.ndarray:
    """Units by how far their labels can be trusted, the most first [U].

    Labels that stand come before others; within them the lower end of the held-out correlation's
    interval decides, then q, the margin over the runner-up, and the similarity.
    """
    nothing = np.full(len(table["unit"]), np.nan)

    def column(name: str, unknown: float) -> np.ndarray:
        return np.nan_to_num(table.get(name, nothing), nan=unknown)

    said = table.get("labelled", table.get("halves_agree", nothing))
    stands = np.array([cell in ("yes", True) for cell in said.tolist()])  # of a file, or of Python
    keys = (
        -np.nan_to_num(table["similarity"], nan=-np.inf),
        -column("margin", -np.inf),
        column("q_value", 1.0),
        -column("held_out_low", -1.0),
        ~stands,
    )
    return np.lexsort(keys)  # the last key decides first


def _plain(values: np.ndarray, digits: int = 5) -> list[float | None]:
    """Numbers for JSON, NaN as null."""
    return [None if math.isnan(x) else float(f"{x:.{digits}g}") for x in values.tolist()]


def explorer_data(run: Results) -> dict[str, Any]:
    """The units by column, and what the page shows of one that is opened."""
    if run.labels is None:
        raise ValueError("a run without labels has no units to explore")
    details = run.details
    table = run.units
    named = [] if details is None else details.concepts.tolist()
    concepts = list(dict.fromkeys([*named, *table["concept"].tolist()]))
    layers = list(run.labels.layers)
    units = _columns(table, layers, concepts)
    data: dict[str, Any] = {
        "truth": _truth(run.truth),
        "layers": layers,
        "classes": [],
        "concepts": concepts,
        "emotions": None,
        "units": units,
    }
    if details is None:
        return data | {"details": None, "thumbs": None}
    data["classes"] = details.classes.tolist()
    if details.mix.any():
        commonest = details.mix.argmax(axis=1).tolist()
        most = details.mix.max(axis=1, keepdims=True)
        known = ((details.mix == most).sum(axis=1) == 1).tolist()  # of a tie there is none
        units["main"] = [
            number if is_known else None for number, is_known in zip(commonest, known, strict=True)
        ]
    if len(details.emotions):
        folded = [meaning(name) for name in data["classes"]]
        named = [[meaning(emotion) for emotion in text.split(";")] for text in details.emotions]
        spoken = [
            [folded.index(emotion) for emotion in emotions if emotion in folded]
            for emotions in named
        ]
        data["emotions"] = spoken + [[]] * (len(concepts) - len(spoken))
    outgoing = None
    if len(details.outgoing_layer):
        weights = _plain(details.outgoing.ravel(), 4)
        outgoing = {"layer": layers.index(details.outgoing_layer[0].item()), "weights": weights}
    if len(details.texts):
        data["profiles"] = {
            "texts": details.texts.tolist(),
            "values": _coded(details.profiles),
            "places": _plain(places(details.profiles.astype(np.float32)).ravel(), 3),
        }
    if len(details.maps):
        data["maps"] = _maps(run, details)
    return data | {
        "thumbs": None,
        "images": {"id": details.ids.tolist(), "cls": details.image_class.tolist()},
        "details": {
            "width": details.top.shape[1],
            "top": details.top.ravel().tolist(),
            "same": details.same_as.ravel().tolist(),
            "values": _plain(details.values.ravel(), 4),
            "lowest": details.bottom.shape[1],
            "bottom": details.bottom.ravel().tolist(),
            "bottomValues": _plain(details.bottom_values.ravel(), 4),
            "named": details.best.shape[1],
            "best": details.best.ravel().tolist(),
            "scores": _plain(details.best_scores.ravel(), 4),
            "mix": details.mix.ravel().tolist(),
            "outgoing": outgoing,
        },
    }


def _maps(run: Results, details: Details) -> dict[str, Any]:
    """Activation maps, their values as base64 text."""
    return {
        "units": details.map_units.tolist(),
        "images": details.mapped_images,
        "sides": details.map_sides.tolist(),
        "part": details.map_part.tolist(),
        "ofPatches": run.summary.get("tokens") == "cls",
        "values": base64.b64encode(details.maps.tobytes()).decode("ascii"),
    }


def _truth(table: Table) -> dict[str, Any] | None:
    """What each unit responds to most, and how well it tells that; None where it is not known."""
    if not table:
        return None
    names, which = np.unique(table["responds_to"].astype(str), return_inverse=True)
    return {"names": names.tolist(), "most": which.tolist(), "auroc": _plain(table["auroc"], 3)}


def _columns(table: Table, layers: Sequence[str], concepts: Sequence[str]) -> dict[str, Any]:
    """What the page's table has of each unit; layers and concepts by their place."""
    concept_numbers = {name: i for i, name in enumerate(concepts)}
    names = {name: i for i, name in enumerate(layers)}
    units: dict[str, Any] = {
        "layer": [names[name] for name in table["layer"].tolist()],
        "unit": [int(x) for x in table["unit"].tolist()],
        "concept": [concept_numbers[name] for name in table["concept"].tolist()],
        "similarity": _plain(table["similarity"]),
    }
    optional = {
        "margin": "margin",
        "p": "p_value",
        "q": "q_value",
        "accuracy": "description_accuracy",
        "chance": "chance",
        "held": "held_out",
        "low": "held_out_low",
        "high": "held_out_high",
    }
    for key, column in optional.items():
        if column in table:
            units[key] = _plain(table[column])
    if {"labelled", "halves_agree", "q_value", "held_out"} & set(table):
        units["trust"] = np.argsort(trust_order(table)).tolist()  # each unit's place, 0 the first
    for key, column in (("halves", "halves_agree"), ("labelled", "labelled")):
        if column in table:
            units[key] = [{"yes": 1, "no": 0}.get(x) for x in table[column].tolist()]
    return units


def _coded(correlation: np.ndarray) -> str:
    """Correlations as text, two letters each: 4,096 steps from −1 to 1."""
    steps = np.rint((np.float64(correlation).ravel() + 1) / 2 * (LEVELS**2 - 1)).astype(int)
    letters = np.array(list(ALPHABET))
    return "".join(letters[np.stack(np.divmod(steps, LEVELS), axis=1).ravel()].tolist())
