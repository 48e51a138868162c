"""Edits of lin2 against full evaluations of an edited network; needs no torch."""

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from common import OnDevice, Results, rate
from networks import random_vgg

if TYPE_CHECKING:
    from emojax.data.image_set import ImageSet
    from emojax.editing.activations import PreBiasActivations
    from emojax.editing.outcomes import Outcomes
    from emojax.editing.sweep import Sweep
    from emojax.models.vgg import VggNet

# Sizes for a first look.
QUICK = "--images 1024 --plain-images 768 --masks 128 --repeats 3 --permutations 19"

_FACTOR = 1.5


@dataclasses.dataclass
class Options(OnDevice):
    """Edits of lin2 of the published VGGNet with random weights, over generated images, against
    full evaluations.
    """

    images: int = 7178
    plain_images: int = 1024
    """images that a full evaluation is timed on, and the first of which its predictions are
    compared on
    """
    masks: int = 1024
    repeats: int = 5
    permutations: int = 199
    """of the evidence for the paper's grid, with 1,000 random masks; 0 leaves it out"""


def measure(options: Options) -> Results:
    """Thresholds and masks per second, how many times a full evaluation's speed that is, and the
    time of the evidence.
    """
    import jax
    from flax import nnx

    from emojax.editing.activations import pre_bias_activations
    from emojax.editing.sweep import Sweep
    from emojax.models.vgg import VggConfig
    from emojax.synthetic import faces

    rng = np.random.default_rng(0)
    images = faces.random_faces(options.images, 0).image_set("faces")
    model = random_vgg(VggConfig.paper())
    units = model.config.hidden[1]
    model.lin2.bias = nnx.Param(jax.numpy.asarray(rng.normal(0, 0.3, units), jax.numpy.float32))
    few = images.first(options.plain_images)

    start = time.perf_counter()
    layer = pre_bias_activations(model, images, "lin2")
    read_seconds = time.perf_counter() - start

    scores = rng.standard_normal(units).astype(np.float32)
    masks = rng.random((options.masks, units)) < 0.5
    results, seen = _speeds(Sweep(layer), scores, masks, model, few, options)
    results += [
        {
            "what": "predictions unlike the edited network's",
            "images": 2 * len(few),
            "different": _different(seen, scores, masks, model, few),
        },
        {
            "what": "inputs of lin2, with compilation",
            "images": options.images,
            "seconds": read_seconds,
        },
    ]
    if options.permutations:
        results.append(_evidence(layer, scores, options.permutations))
    return results


def _speeds(
    tried: "Sweep",
    scores: np.ndarray,
    masks: np.ndarray,
    model: "VggNet",
    few: "ImageSet",
    options: Options,
) -> tuple[Results, "dict[str, Outcomes]"]:
    """Settings per second of each kind, and what came of them."""
    from emojax.training import evaluate

    def plain_seconds() -> float:
        """Of a full evaluation of all images, without compilation."""
        marks: list[tuple[int, float]] = []
        evaluate.evaluate(
            model, few, progress=lambda done, total: marks.append((done, time.perf_counter()))
        )
        return options.images / rate(marks)

    calls = {
        "every threshold": (
            len(scores) + 1,
            lambda: tried.thresholds(scores, [_FACTOR])[0].outcomes,
        ),
        "masks": (len(masks), lambda: tried.masks(masks, _FACTOR)),
        "gains": (32, lambda: tried.gains(0.5 + masks[:32])),
    }
    results, seen = [], {}
    for name, (settings, call) in calls.items():
        seen[name] = call()
        # Full evaluations before and after, because the speed of a shared machine drifts.
        times, plain = [], [plain_seconds()]
        for _ in range(options.repeats):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        plain.append(plain_seconds())
        seconds = float(np.median(times))
        results.append({
            "what": f"lin2, {name}",
            "images": options.images,
            "settings": settings,
            "seconds": seconds,
            "settings_per_second": settings / seconds,
            "full_evaluation_seconds": plain,
            "near_ties_per_setting": float(seen[name].near_ties.mean()),
            "ratio": min(plain) * settings / seconds,
        })  # fmt: skip
    return results, seen


def _different(
    seen: "dict[str, Outcomes]",
    scores: np.ndarray,
    masks: np.ndarray,
    model: "VggNet",
    few: "ImageSet",
) -> int:
    """Predictions of a threshold and of a mask that are not those of the edited network."""
    from emojax.editing import edit
    from emojax.training import evaluate

    third = len(scores) // 3
    rank = np.argsort(np.argsort(-scores, kind="stable"))
    different = 0
    for name, at, mask in (("every threshold", third, rank < third), ("masks", 1, masks[1])):
        gains = np.where(mask, np.float32(_FACTOR), np.float32(1) / np.float32(_FACTOR))
        want = evaluate.evaluate(edit.edit(model, "lin2", gains), few).predictions
        different += int((seen[name].predictions[at, : len(few)] != want).sum())
    return different


def _evidence(layer: "PreBiasActivations", scores: np.ndarray, permutations: int) -> dict[str, Any]:
    """Seconds of the paper's grid with all controls."""
    from emojax.evidence import assess as evidence

    start = time.perf_counter()
    subject = evidence.Subject({"lin2": scores}, {"lin2": layer})
    found = evidence.assess([subject], permutations=permutations)
    return {
        "what": "the paper's grid with all controls",
        "images": found.total,
        "seconds": time.perf_counter() - start,
        "permutations": permutations,
        "random_masks": found.controls["random_masks"]["draws"],
    }
