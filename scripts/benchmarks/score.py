"""soft_wpmi, wpmi and rank_reorder against loops over units in PyTorch."""

import dataclasses
import functools

import numpy as np
from common import OnDevice, Results, taking_turns

# Sizes for a first look.
QUICK = "--units 128 --concepts 2000 --images 2000 --rank-units 2 --repeats 3"


@dataclasses.dataclass
class Options(OnDevice):
    """soft_wpmi, wpmi and rank_reorder from image-concept cosines and activations."""

    units: int = 1024
    concepts: int = 20_000
    images: int = 10_000
    rank_units: int = 8
    """units that rank_reorder is timed on; it costs far more per unit"""
    repeats: int = 5


def measure(options: Options) -> Results:
    """Times and errors of the similarity functions."""
    import jax
    import jax.numpy as jnp
    import torch
    from jax.sharding import NamedSharding, PartitionSpec

    from emojax.distributed.mesh import AXIS, make_mesh
    from emojax.ops import similarity

    mesh = make_mesh(next(n for n in range(len(jax.devices()), 0, -1) if options.concepts % n == 0))
    by_concept, whole = PartitionSpec(None, AXIS), PartitionSpec()
    rng = np.random.default_rng(0)
    cosines = 0.2 + 0.03 * rng.standard_normal((options.images, options.concepts), dtype=np.float32)
    activations = rng.standard_normal((options.images, options.units), dtype=np.float32)
    where = "cuda" if options.device == "gpu" else "cpu"
    places = [NamedSharding(mesh, spec) for spec in (by_concept, whole)]
    ours = list(jax.device_put((cosines, activations), tuple(places)))
    theirs = [torch.from_numpy(x).to(where) for x in (cosines, activations)]
    some = rng.choice(options.concepts, min(100, options.concepts), replace=False)
    results = []
    for name in ("soft_wpmi", "wpmi", "rank_reorder"):
        if name == "rank_reorder":
            few = options.rank_units
            ours = [jnp.asarray(cosines), jnp.asarray(activations[:, :few])]
            theirs = [theirs[0], theirs[1][:, :few]]
            function = jax.jit(similarity.rank_reorder)
            loop = functools.partial(torch_rank_reorder_loop, *theirs)
        else:
            local = functools.partial(getattr(similarity, name), axis_name=AXIS)
            specs = {"in_specs": (by_concept, whole), "out_specs": by_concept, "check_vma": False}
            function = jax.jit(jax.shard_map(local, mesh=mesh, **specs))
            loop = functools.partial(torch_wpmi_loop, *theirs, soft=name == "soft_wpmi")
        seconds, loop_seconds, reference = taking_turns(
            functools.partial(function, *ours), loop, options.repeats, where
        )
        units = ours[1].shape[1]
        row = {
            "what": name,
            "units": units,
            "concepts": options.concepts,
            "images": options.images,
            "devices": mesh.size,
            "seconds": seconds,
            "torch_loop_seconds": loop_seconds,
            "ratio": loop_seconds / seconds,
            "pairs_per_second": units * options.concepts / seconds,
        }
        if name != "rank_reorder":
            exact = float64_scores(cosines, activations, some, soft=name == "soft_wpmi")
            row["error"] = float(np.abs(np.asarray(function(*ours))[:, some] - exact).max())
            row["torch_loop_error"] = float(np.abs(reference.cpu().numpy()[:, some] - exact).max())
        results.append(row)
    return results


# The plain loops, written from the formulas of the CLIP-Dissect paper


def torch_wpmi_loop(cosines, activations, *, soft: bool):
    """Scores [U, C], one unit at a time."""
    import torch

    top_k, a, lam = (100, 10.0, 1.0) if soft else (28, 2.0, 0.6)
    probs = torch.softmax(a * cosines, dim=1)
    indices = torch.topk(activations, top_k, dim=0).indices
    weights = (0.998 - torch.arange(top_k) / top_k * (0.998 - 0.97))[:, None].to(cosines)
    rows = []
    for unit in range(activations.shape[1]):
        own = probs[indices[:, unit]]
        if soft:
            own = 1 + weights * (own - 1)
        rows.append(torch.log(own + 1e-7).sum(0))
    loglik = torch.stack(rows)
    return loglik - lam * (torch.logsumexp(loglik, 0) - np.log(len(loglik)))


def torch_rank_reorder_loop(cosines, activations):
    """Scores [U, C], one unit at a time."""
    import torch

    n = int(len(activations) * 0.05)
    values, indices = torch.topk(activations, n, dim=0)
    rows = []
    for unit in range(activations.shape[1]):
        own, target = cosines[indices[:, unit]], values[:, unit]
        ascending = target.flip(0)
        shuffled = torch.stack([ascending[torch.randperm(n)] for _ in range(5)], 1)
        baseline = ((ascending[:, None] - shuffled).abs() ** 3).mean()
        rank = own.argsort(0).argsort(0)
        error = ((target[:, None] - ascending[rank]).abs() ** 3).mean(0) / baseline
        rows.append(-error / own.mean(0) ** 0.5)
    return torch.stack(rows)


def float64_scores(
    cosines: np.ndarray, activations: np.ndarray, some: np.ndarray, *, soft: bool
) -> np.ndarray:
    """Scores [U, some concepts] in float64."""
    top_k, a, lam = (100, 10.0, 1.0) if soft else (28, 2.0, 0.6)
    wide = a * cosines.astype(np.float64)
    probs = np.exp(wide[:, some] - np.log(np.exp(wide).sum(1, keepdims=True)))
    order = np.argsort(-activations, axis=0, kind="stable")[:top_k]
    weights = (0.998 - np.arange(top_k) / top_k * (0.998 - 0.97))[:, None] if soft else 1.0
    loglik = np.stack(
        [
            np.log(1 + weights * (probs[order[:, u]] - 1) + 1e-7).sum(0)
            for u in range(order.shape[1])
        ]
    )
    return loglik - lam * (
        np.log(np.exp(loglik - loglik.max(0)).sum(0)) + loglik.max(0) - np.log(len(loglik))
    )
