"""Edits of lin2 against full evaluations of an edited network; needs no torch."""

import dataclasses
import time

import numpy as np
from common import OnDevice, Results, rate
from networks import random_vgg

# Sizes for a first look.
QUICK = "--images 1024 --plain-images 768 --masks 128 --repeats 3 --permutations 19"


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

    from emojax.editing import edit
    from emojax.editing.activations import pre_bias_activations
    from emojax.editing.sweep import Sweep
    from emojax.evidence import assess as evidence
    from emojax.models.vgg import VggConfig
    from emojax.synthetic import faces
    from emojax.training import evaluate

    rng = np.random.default_rng(0)
    images, model = (
        faces.random_faces(options.images, 0).image_set("faces"),
        random_vgg(VggConfig.paper()),
    )
    units = model.config.hidden[1]
    model.lin2.bias = nnx.Param(jax.numpy.asarray(rng.normal(0, 0.3, units), jax.numpy.float32))
    few = images.first(options.plain_images)

    def plain_seconds() -> float:
        """Of a full evaluation of all images, without compilation."""
        marks: list[tuple[int, float]] = []
        evaluate.evaluate(
            model, few, progress=lambda done, total: marks.append((done, time.perf_counter()))
        )
        return options.images / rate(marks)

    start = time.perf_counter()
    layer = pre_bias_activations(model, images, "lin2")
    read_seconds = time.perf_counter() - start

    tried = Sweep(layer)
    scores, factor = rng.standard_normal(units).astype(np.float32), 1.5
    masks = rng.random((options.masks, units)) < 0.5
    calls = {
        "every threshold": (units + 1, lambda: tried.thresholds(scores, [factor])[0].outcomes),
        "masks": (len(masks), lambda: tried.masks(masks, factor)),
        "gains": (32, lambda: tried.gains(0.5 + masks[:32])),
    }
    results, seen = [], {}
    for name, (settings, call) in calls.items():
        seen[name] = call()
        times, plain = [], [plain_seconds()]
        for _ in range(options.repeats):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        plain.append(
            plain_seconds()
        )  # before and after, because the speed of a shared machine drifts
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

    # The same predictions as edited networks
    different = 0
    rank = np.argsort(np.argsort(-scores, kind="stable"))
    for name, at, mask in (
        ("every threshold", units // 3, rank < units // 3),
        ("masks", 1, masks[1]),
    ):
        edited = edit.edit(
            model, "lin2", np.where(mask, np.float32(factor), np.float32(1) / np.float32(factor))
        )
        want = evaluate.evaluate(edited, few).predictions
        different += int((seen[name].predictions[at, : len(few)] != want).sum())
    results.append(
        {
            "what": "predictions unlike the edited network's",
            "images": 2 * len(few),
            "different": different,
        }
    )
    results.append(
        {
            "what": "inputs of lin2, with compilation",
            "images": options.images,
            "seconds": read_seconds,
        }
    )
    if options.permutations:
        start = time.perf_counter()
        subject = evidence.Subject({"lin2": scores}, {"lin2": layer})
        found = evidence.assess([subject], permutations=options.permutations)
        seconds = time.perf_counter() - start
        draws = {
            "permutations": options.permutations,
            "random_masks": found.controls["random_masks"]["draws"],
        }
        results.append(
            {
                "what": "the paper's grid with all controls",
                "images": found.total,
                "seconds": seconds,
            }
            | draws
        )
    return results
