"""The data behind a page's table of units, as the page's script reads it."""

import math
from typing import Any

import numpy as np

from emojax.data.classes import meaning
from emojax.report.results import Results


def filters(run: Results) -> dict[str, Any]:
    """Which columns and filters the table of units has."""
    details = run.details
    mapped = details is not None and len(details.emotions) > 0
    pictured = details is not None and len(details.classes) > 0
    return {
        "details": details is not None,
        "emotions": ("Label speaks for" if mapped else "Most top images are") if pictured else None,
        "significance": "q_value" in run.units,
        "labelled": "labelled" in run.units,
        "halves": bool((run.units.get("halves_agree", np.array([])) != "").any()),
    }


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
    concept_numbers = {name: i for i, name in enumerate(concepts)}
    layers = list(run.labels.layers)
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
    for key, column in (("halves", "halves_agree"), ("labelled", "labelled")):
        if column in table:
            units[key] = [{"yes": 1, "no": 0}.get(x) for x in table[column].tolist()]
    data: dict[str, Any] = {
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
        known = (details.mix.sum(axis=1) > 0).tolist()
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
        outgoing = {"layer": names[details.outgoing_layer[0].item()], "weights": weights}
    return data | {
        "thumbs": None,
        "images": {"id": details.ids.tolist(), "cls": details.image_class.tolist()},
        "details": {
            "width": details.top.shape[1],
            "top": details.top.ravel().tolist(),
            "same": details.same_as.ravel().tolist(),
            "named": details.best.shape[1],
            "best": details.best.ravel().tolist(),
            "scores": _plain(details.best_scores.ravel(), 4),
            "mix": details.mix.ravel().tolist(),
            "outgoing": outgoing,
        },
    }
