"""How often the procedure of `emojax.evidence.assess` says that an edit helps: when it must not,
and when it should.

    python scripts/simulate_evidence.py --studies 200

A study is a random dense layer that feeds the logits, images with labels drawn from a hidden layer
of the same weights, a grid of thresholds and factors, and scores. `null`: scores are noise. `null,
noisy network`: they are noise, and many edits change accuracy at random. `null, one set`: the same,
tested on the images of the selection. `planted`: some units of the network are weaker than in the
hidden layer, and the scores say which, with noise. Prints one line for each, and one JSON line to
--out. `mcnemar_below_alpha` counts changes for better and worse.
"""

import dataclasses
import json
import os
import time
from pathlib import Path

import numpy as np
import tyro


@dataclasses.dataclass
class Options:
    """Sizes of the simulation."""

    studies: int = 200
    images: int = 600
    """on each of the two sets"""
    units: int = 40
    classes: int = 4
    permutations: int = 99
    masks: int = 200
    alpha: float = 0.05
    seed: int = 0
    out: Path | None = None


KINDS = ("null", "null, noisy network", "null, one set", "planted")


def subject(rng: np.random.Generator, kind: str, options: Options):
    """A simulated network with its scores on the two sets."""
    from emojax.editing.activations import Head, PreBiasActivations
    from emojax.evidence.subject import Subject

    units, classes = options.units, options.classes
    weak = rng.random(units) < 0.4
    true = np.ones(units) if kind == "null" else rng.lognormal(0, 0.5, units)
    if kind == "planted":
        true = np.where(weak, 2.5, 0.6)  # what the network's units should be multiplied by
    weight, bias = rng.normal(0, 0.8, (units, classes)), rng.normal(0, 0.3, units)
    head = Head(bias.astype(np.float32), weight.astype(np.float32), np.zeros(classes, np.float32))
    scores = weak + rng.normal(0, 0.7, units) if kind == "planted" else rng.standard_normal(units)

    def activations(name: str) -> PreBiasActivations:
        values = rng.standard_normal((options.images, units))
        logits = np.maximum(values * true + bias, 0) @ weight
        labels = (logits + 1.5 * rng.gumbel(size=logits.shape)).argmax(1).astype(np.int32)
        names = tuple(f"class {c}" for c in range(classes))
        sums = np.abs(weight).sum(1)
        values = values.astype(np.float32)
        return PreBiasActivations("dense", values, labels, names, head, sums, name, name)

    first, second = {"dense": activations("selection")}, {"dense": activations("held out")}
    return Subject({"dense": scores}, first, None if kind == "null, one set" else second)


def simulate(options: Options, kind: str) -> dict[str, float | int | str]:
    """Rates of the findings over the studies of a kind."""
    from emojax.editing.search import Search
    from emojax.evidence.assess import assess

    search = Search(tau=tuple(np.linspace(-1, 1.5, 6)), factor=(1.25, 1.5, 2.0, 2.5))
    rng = np.random.default_rng([options.seed, KINDS.index(kind)])
    start, found = time.perf_counter(), []
    for _ in range(options.studies):
        sizes = {"permutations": options.permutations, "masks": options.masks, "resamples": 64}
        evidence = assess(
            [subject(rng, kind, options)],
            search,
            alpha=options.alpha,
            seed=int(rng.integers(2**31)),
            **sizes,
        )
        found.append(
            (evidence.finding, evidence.selection["p_search"], evidence.p_scores, evidence.p_value)
        )
    findings, p_search, p_scores, p_value = map(np.array, zip(*found, strict=True))
    return {
        "kind": kind,
        "studies": options.studies,
        "alpha": options.alpha,
        "helps": float((findings == "helps").mean()),
        "helps_whatever_the_scores": float((findings == "helps whatever the scores").mean()),
        "harms": float((findings == "harms").mean()),
        "p_search_below_alpha": float((p_search <= options.alpha).mean()),
        "p_scores_below_alpha": float((p_scores <= options.alpha).mean()),
        "mcnemar_below_alpha": float((p_value <= options.alpha).mean()),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """Runs the simulation."""
    options = tyro.cli(Options, description=__doc__)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    for kind in KINDS:
        row = simulate(options, kind)
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        if options.out is not None:
            with open(options.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
