"""What labels cost: the functions beside soft_wpmi as published, a record's correlation, settings.

    python scripts/benchmarks/labels.py            # --quick for small sizes

Random numbers in the shapes of a VGGNet's record. Prints a JSON line per measurement; seconds are
medians, ratios are to soft_wpmi with the prior over units in the same run.
"""

import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
import tyro
from jax.sharding import NamedSharding, PartitionSpec

from emojax.data.concepts import ConceptSet
from emojax.dissection import label_settings
from emojax.dissection import scores as similarities
from emojax.dissection.dissect import dissect
from emojax.distributed.mesh import AXIS, make_mesh, use_all_cores
from emojax.models.vgg import VggConfig
from emojax.ops import similarity
from emojax.ops.moments import Moments
from emojax.ops.topk import TopK
from emojax.probing.record import ProbeRecord


@dataclasses.dataclass
class Options:
    """Sizes, and how often."""

    units: int = 1024
    concepts: int = 20_000
    images: int = 10_000
    embedding: int = 512
    repeats: int = 5
    quick: bool = False


def random_record(images: int, embedding: int) -> ProbeRecord:
    """A record of all layers of the published VGGNet but the logits."""
    rng = np.random.default_rng(0)
    layers = {name: units for name, units in VggConfig.paper().units().items() if name != "lin3"}
    units = sum(layers.values())
    embeddings = rng.standard_normal((images, embedding), dtype=np.float32) + 1
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    values = -np.sort(-rng.standard_normal((2, units, 100), dtype=np.float32), axis=2)
    indices = 2 * rng.integers(0, images // 2, values.shape, dtype=np.int32)
    indices[1] += 1
    halves = []
    for half in (0, 1):
        e = np.float64(embeddings[half::2])
        mean = 0.1 * rng.standard_normal(units)
        cross = np.outer(mean, e.sum(0)) + rng.standard_normal((units, embedding))
        halves.append((mean * len(e), (1 + mean**2) * len(e), cross, e.T @ e, e.sum(0)))
    sums = Moments(*map(np.stack, zip(*halves, strict=True)))
    ids = [str(number) for number in range(images)]
    return ProbeRecord(layers, TopK(values, indices), sums, embeddings, None, (), ids, None, "")


def random_texts(concepts: int, embedding: int) -> np.ndarray:
    """Unit text embeddings."""
    texts = np.random.default_rng(1).standard_normal((concepts, embedding), dtype=np.float32)
    return texts / np.linalg.norm(texts, axis=1, keepdims=True)


def in_turns(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each call, after one that compiles; they take turns."""
    for call in calls.values():
        jax.block_until_ready(call())
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def functions(options: Options) -> None:
    """The new functions beside soft_wpmi with the prior over units."""
    rng = np.random.default_rng(0)
    mesh = make_mesh()
    whole, by_concept = PartitionSpec(), PartitionSpec(None, AXIS)
    shape = (options.images, options.concepts)
    cosines = 0.2 + 0.03 * rng.standard_normal(shape, dtype=np.float32)
    activations = rng.standard_normal((options.images, options.units), dtype=np.float32)
    placed = [
        jax.device_put(array, NamedSharding(mesh, spec))
        for array, spec in ((cosines, by_concept), (activations, whole))
    ]
    specs = {"in_specs": (by_concept, whole), "out_specs": by_concept, "check_vma": False}

    def soft_wpmi(prior: str) -> Callable[[], object]:
        local = functools.partial(similarity.soft_wpmi, prior=prior, axis_name=AXIS)
        return functools.partial(jax.jit(jax.shard_map(local, mesh=mesh, **specs)), *placed)

    # From a record's covariances, as `dissect` has them: no product over the images is left.
    cross = rng.standard_normal((options.units, options.embedding), dtype=np.float32)
    texts = jax.device_put(random_texts(options.concepts, options.embedding))
    spreads = (np.ones(options.units, np.float32), np.ones(options.concepts, np.float32))
    correlation = jax.jit(similarity.correlation_from_covariances)
    seconds = in_turns(
        {
            "soft_wpmi, units": soft_wpmi("units"),
            "soft_wpmi, images": soft_wpmi("images"),
            "correlation from covariances": lambda: correlation(cross, *spreads, texts),
        },
        options.repeats,
    )
    for name, value in seconds.items():
        print(
            json.dumps(
                {"what": name, "seconds": value, "ratio": value / seconds["soft_wpmi, units"]}
            ),
            flush=True,
        )


def of_a_record(options: Options) -> None:
    """Correlation of every unit of a VGGNet with all concepts, from the record on."""
    record = random_record(options.images, options.embedding)
    texts = jax.device_put(random_texts(options.concepts, options.embedding))

    def score() -> np.ndarray:
        fresh = dataclasses.replace(record)  # nothing is remembered of the last time
        return similarities.correlation(fresh.covariances, texts)

    seconds = in_turns({"correlation": score}, min(3, options.repeats))["correlation"]
    units = sum(record.layers.values())
    print(
        json.dumps({"what": f"correlation, {units} units from a record", "seconds": seconds}),
        flush=True,
    )


def many_settings(options: Options) -> None:
    """60 label settings of all units with 25 concepts, first time, compilation included."""
    record = random_record(options.images, options.embedding)
    concepts = ConceptSet(tuple(f"c{number}" for number in range(25)))
    texts = random_texts(25, options.embedding)
    grid = label_settings.grid(
        ("correlation", "soft_wpmi", "wpmi"),
        a=(2.0, 5.0, 10.0),
        lam=(0.0, 0.3, 0.6, 0.8, 1.0),
        top_k=(50, 100),
        prior=("images", "units"),
    )[:60]
    start = time.perf_counter()
    found = list(label_settings.dissect_by(record, concepts, texts, grid))
    for dissection in found:
        assert dissection.confidence is not None
    seconds = time.perf_counter() - start
    same = []
    for number in (0, 7, 21, 40, 59):
        setting = grid[number]
        alone = dissect(
            record,
            concepts,
            similarity=setting.similarity,
            text_embeddings=texts,
            null_sets=0,
            trust=False,
            **vars(setting.options),
        )
        same.append(float((alone.labels == found[number].labels).mean()))
    print(
        json.dumps(
            {
                "what": f"{len(grid)} label settings",
                "seconds": seconds,
                "same labels as own runs": same,
            }
        ),
        flush=True,
    )


def main(options: Options) -> None:
    """All measurements."""
    if options.quick:
        options = dataclasses.replace(options, units=64, concepts=500, images=1000, repeats=2)
    functions(options)
    of_a_record(options)
    many_settings(options)


if __name__ == "__main__":
    use_all_cores()
    main(tyro.cli(Options))
