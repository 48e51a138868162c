"""What linear explanations cost from a record, and whether they are those of a plain greedy search.

Units of the published VGGNet that are mixtures of one to eight concepts with noise. The reference
searches units one after the other in float64 NumPy: of each set of concepts one longer, the least
squares fit with the largest correlation.
"""

import dataclasses
import time
from pathlib import Path

import numpy as np
from common import Results
from labels import random_texts

from emojax.data.concepts import ConceptSet
from emojax.dissection.explain import explain
from emojax.models.vgg import VggConfig
from emojax.ops.moments import Moments
from emojax.ops.topk import TopK
from emojax.probing.record import ProbeRecord

QUICK = "--units 200 --concepts 100 --images 2000 --plain 5"


@dataclasses.dataclass
class Options:
    """Sizes; `units` None are those of the published VGGNet."""

    units: int | None = None
    concepts: int = 1000
    images: int = 10_000
    embedding: int = 512
    plain: int = 50
    """units that the reference searches too"""
    out: Path | None = None


def _record(options: Options, texts: np.ndarray) -> ProbeRecord:
    """A record of mixtures of concepts, with the sums that a probe would have kept."""
    rng = np.random.default_rng(0)
    units = options.units or sum(VggConfig.paper().units().values()) - VggConfig.paper().classes
    embeddings = rng.standard_normal((options.images, options.embedding), dtype=np.float32) + 0.5
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    mix = np.zeros((len(texts), units), np.float32)
    for unit in range(units):
        chosen = rng.choice(len(texts), rng.integers(1, 9), replace=False)
        mix[chosen, unit] = rng.normal(size=len(chosen))
    activations = embeddings @ (texts.T @ mix)
    activations /= activations.std(axis=0)
    activations += 0.7 * rng.standard_normal(activations.shape, dtype=np.float32)
    halves = []
    for half in (0, 1):
        a, e = activations[half::2], embeddings[half::2]
        square = np.einsum("iu,iu->u", a, a, dtype=np.float64)
        sums = (a.sum(0, dtype=np.float64), square, np.float64(a.T @ e), e.T @ e, e.sum(0))
        halves.append(tuple(np.float64(each) for each in sums))
    top = TopK(np.zeros((2, units, 1), np.float32), np.zeros((2, units, 1), np.int32))
    ids = [str(number) for number in range(options.images)]
    moments = Moments(*map(np.stack, zip(*halves, strict=True)))
    layers = {"units": units}
    return ProbeRecord(layers, top, moments, embeddings, None, (), ids, None, "", activations)


def plain_greedy(
    activation: np.ndarray, cosines: np.ndarray, *, most: int = 10, tolerance: float = 0.02
) -> list[int]:
    """Concepts of one unit, on the images given."""
    values = np.float64(cosines) - np.float64(cosines).mean(axis=0)
    target = np.float64(activation) - np.float64(activation).mean()
    gram, cross = values.T @ values, values.T @ target
    total = float(target @ target)
    chosen: list[int] = []
    reached = 0.0
    while len(chosen) < most:
        best = (0.0, -1)
        for concept in set(range(len(gram))) - set(chosen):
            rows = [*chosen, concept]
            weights = np.linalg.lstsq(gram[np.ix_(rows, rows)], cross[rows], rcond=None)[0]
            best = max(best, (float(np.sqrt(max(0.0, weights @ cross[rows]) / total)), -concept))
        if best[0] - reached < tolerance:
            break
        reached = best[0]
        chosen.append(-best[1])
    return chosen


def measure(options: Options) -> Results:
    """Seconds from the record on, the first time and again, and the reference's."""
    texts = random_texts(options.concepts, options.embedding)
    record = _record(options, texts)
    concepts = ConceptSet(tuple(f"c{number}" for number in range(options.concepts)))
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        found = explain(record, concepts, text_embeddings=texts)
        seconds.append(time.perf_counter() - start)

    assert record.activations is not None
    units = record.activations.shape[1]
    even = slice(0, None, 2)
    cosines = record.embeddings[even] @ texts.T
    same = 0
    start = time.perf_counter()
    for unit in range(min(options.plain, units)):
        expected = plain_greedy(record.activations[even, unit], cosines)
        same += expected == [c for c in found.chosen[unit].tolist() if c >= 0]
    each = (time.perf_counter() - start) / min(options.plain, units)
    return [
        {
            "what": f"explanations of {units} units from {options.concepts} concepts",
            "first seconds": seconds[0],
            "seconds": seconds[1],
            "mean concepts": float(found.lengths.mean()),
            "same as plain": f"{same} of {min(options.plain, units)}",
            "ratio": each * units / seconds[1],
        }
    ]
