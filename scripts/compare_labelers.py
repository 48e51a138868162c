"""Which similarity function names what units respond to? On rendered faces, where that is known.

    python scripts/compare_labelers.py --out labelers

Fresh sets of rendered faces × trained networks × a CLIP as it ships, squeezed and noisy × three
truths. Every function and prior labels the units; a label is right where it is the attribute that
the unit responds to most. `labelers.csv` has every share, `ranks.csv` the mean ranks by which the
default was chosen. Networks and activations stay in the folder: a second run reads them.
"""

import dataclasses
import functools
import itertools
import operator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tyro

from emojax import settings, store
from emojax.data.image_set import ImageSet
from emojax.data.network_folder import load_network, save_new
from emojax.data.weights import save_network
from emojax.dissection import truth
from emojax.models.vgg import VggConfig, VggNet
from emojax.models.vit import Vit
from emojax.ops import similarity as ops
from emojax.ops.affinity import affinity
from emojax.probing.network import as_network
from emojax.synthetic import faces, shipped
from emojax.training.classifiers import new_network, train_classifiers

FUNCTIONS = {
    "consensus": (ops.consensus, {}),
    "correlation": (ops.correlation, {}),
    "soft_wpmi, units": (ops.soft_wpmi, {"prior": "units"}),
    "soft_wpmi, images": (ops.soft_wpmi, {"prior": "images"}),
    "soft_wpmi, none": (ops.soft_wpmi, {"prior": "none"}),
    "wpmi, units": (ops.wpmi, {"prior": "units"}),
    "wpmi, images": (ops.wpmi, {"prior": "images"}),
    "wpmi, none": (ops.wpmi, {"prior": "none"}),
    "rank_reorder": (ops.rank_reorder, {}),
    "cos_similarity": (ops.cos_similarity, {}),
    "cos_similarity_cubed": (ops.cos_similarity_cubed, {}),
}
CLIPS = ("as shipped", "squeezed, hubs", "noisy")


@dataclasses.dataclass
class Options:
    """What is compared, and where."""

    out: Path = Path("labelers")
    seeds: tuple[int, ...] = (101, 102, 103, 104, 105)
    """of the sets of faces; each is probed and tested on faces of its own"""
    images: int = 3000
    """faces to probe with, and as many to measure the truth on"""
    networks: tuple[str, ...] = ("shipped", "vgg_slim", "deep_emotion")
    train_images: int = 5000
    epochs: int = 4
    responds: float = 0.75
    """AUROC from which a unit takes part"""


def trained(options: Options) -> dict[str, Path]:
    """The networks' files: the shipped one, and others that are trained where they are missing."""
    folder = options.out / "networks"
    folder.mkdir(parents=True, exist_ok=True)
    slim = VggConfig(
        widths=(8, 8, 16, 16, 24, 24, 32, 32), hidden=(64, 64), class_names=faces.CLASSES
    )

    def slim_vgg(seed: int) -> VggNet:
        from flax import nnx

        return VggNet(slim, rngs=nnx.Rngs(seed))

    builds = {
        "vgg_slim": (lambda _, seed: slim_vgg(seed), 2),
        "deep_emotion": (lambda images, seed: new_network("deep_emotion", images, seed), 3),
        "vit": (lambda images, seed: new_network("vit", images, seed), 4),
    }
    for name, (build, seed) in builds.items():
        path = _file(folder, name)
        if path.exists() or name not in options.networks:
            continue
        images = faces.split("training", options.train_images).image_set("faces/training")
        validation = faces.split("public_test", 400).image_set("faces/public_test")
        recipe = settings.Train(
            epochs=options.epochs,
            learning_rate=3e-3,
            weight_decay=0.01,
            average=0.99,
            seed=seed,
        )
        start = functools.partial(build, images)
        ((model, _),) = train_classifiers(start, recipe, images, validation, batch=64)
        save_new(model, path) if isinstance(model, Vit) else save_network(model, path)
    files = {"shipped": shipped.ASSETS / "vgg.safetensors"}
    files |= {name: _file(folder, name) for name in builds}
    return {name: files[name] for name in options.networks}


def _file(folder: Path, network: str) -> Path:
    """Where a trained network lies: a ViT in a folder of its own."""
    return folder / (network if network == "vit" else f"{network}.safetensors")


def responses(path: Path, images: ImageSet, cached: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pooled activations [I, U] of all layers but the logits, and each unit's layer [U]."""
    model = load_network(path)
    layers = model.config.probed()
    sizes = [model.config.units()[name] for name in layers]
    if not cached.exists():
        np.save(cached, truth.activations(as_network(model), images, layers))
    return np.load(cached), np.repeat(np.arange(len(sizes)), sizes)


def variants(cosines: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """The cosines of image and concept [I, C] as CLIPs of other kinds would give them.

    Squeezed to a real CLIP's spread, ×0.15, some concepts closer to every image than others are (an
    offset of standard deviation 0.02); or with noise of half the concept's standard deviation.
    """
    rng = np.random.default_rng(seed)
    offsets = 0.02 * rng.standard_normal(cosines.shape[1])
    noise = 0.5 * cosines.std(axis=0) * rng.standard_normal(cosines.shape)
    squeezed = 0.25 + 0.15 * (cosines - cosines.mean(axis=0)) + offsets
    kinds = (cosines, squeezed, cosines + noise)
    return {name: np.float32(kind) for name, kind in zip(CLIPS, kinds, strict=True)}


def compare(options: Options, networks: dict[str, Path], seed: int) -> list[list]:
    """Rows of `labelers.csv` for one set of faces."""
    folder = options.out / "responses"
    folder.mkdir(parents=True, exist_ok=True)
    probed, tested = (faces.random_faces(options.images, number) for number in (seed, seed + 1000))
    sets = {"probed": probed.image_set("probed"), "tested": tested.image_set("tested")}
    _, clip = shipped.load_demo()
    embedded = folder / f"clip-{seed}.npy"
    if not embedded.exists():
        np.save(embedded, clip.embed_images(sets["probed"].images))
    cosines = np.load(embedded) @ clip.embed_texts(faces.ATTRIBUTES).T
    rows = []
    for network, path in networks.items():
        files = {name: folder / f"{network}-{name}-{seed}.npy" for name in sets}
        activations, layers = responses(path, sets["probed"], files["probed"])
        answers, _ = responses(path, sets["tested"], files["tested"])
        measured = affinity(answers, tested.attributes)
        truths = {
            "auroc": measured.auroc,
            "lift": truth.lift(measured.auprc, tested.attributes),
            "enrichment": truth.enrichment(answers, tested.attributes),
        }
        takes_part = np.nanmax(measured.auroc, axis=1) >= options.responds
        for kind, features in variants(cosines, seed).items():
            for name, (function, extra) in FUNCTIONS.items():
                more = {"segment_ids": layers} if "wpmi" in name else {}
                scores = np.asarray(
                    function(jnp.asarray(features), jnp.asarray(activations), **extra, **more)
                )
                for of, values in truths.items():
                    agreed = truth.agreement(scores[takes_part], values[takes_part])
                    certain = certain_half(scores[takes_part], values[takes_part])
                    shares = [agreed.units, agreed.best, agreed.among_three, certain]
                    rows.append([seed, network, kind, of, name, *shares])
        print(seed, network, int(takes_part.sum()), "units", flush=True)
    return rows


def certain_half(scores: np.ndarray, values: np.ndarray) -> float:
    """Share of labels that are right among the half of the units with the largest margins."""
    ordered = np.sort(scores, axis=1)
    margin = ordered[:, -1] - ordered[:, -2]
    half = np.argsort(-margin, kind="stable")[: -(-len(margin) // 2)]
    return truth.agreement(scores[half], values[half]).best


def mean_ranks(rows: list[list]) -> list[list]:
    """Per function: mean rank over all comparisons, and mean and spread over the sets of faces of
    the share right by each truth.
    """
    names = list(FUNCTIONS)
    ranks = {name: [] for name in names}
    comparison = operator.itemgetter(0, 1, 2, 3)  # faces, network, CLIP and truth
    for _, group in itertools.groupby(sorted(rows, key=comparison), comparison):
        best = {row[4]: row[6] for row in group}
        shares = np.array([best[name] for name in names])
        for name, share in zip(names, shares, strict=True):
            # Equal shares share their ranks.
            ranks[name].append(1 + (shares > share).sum() + ((shares == share).sum() - 1) / 2)
    table = []
    for name in sorted(names, key=lambda name: np.mean(ranks[name])):
        cells = [name, np.mean(ranks[name])]
        for kind, of in itertools.product(CLIPS, ("auroc", "lift", "enrichment")):
            own = [row for row in rows if row[2:5] == [kind, of, name]]
            by_seed = [
                np.mean([row[6] for row in own if row[0] == seed]) for seed in {r[0] for r in own}
            ]
            cells += [np.mean(by_seed), np.std(by_seed)]
        table.append(cells)
    return table


def main(options: Options) -> None:
    """Trains, compares, writes and prints."""
    networks = trained(options)
    rows = [row for seed in options.seeds for row in compare(options, networks, seed)]
    header = ["seed", "network", "clip", "truth", "function"]
    header += ["units", "best", "among_three", "certain_half"]
    store.write_csv(options.out / "labelers.csv", header, rows)
    table = mean_ranks(rows)
    header = ["function", "mean_rank"]
    for kind, of in itertools.product(CLIPS, ("auroc", "lift", "enrichment")):
        header += [f"{of} ({kind})", "spread"]
    store.write_csv(options.out / "ranks.csv", header, table)
    for name, rank, *shares in table:
        print(f"{name:22} {rank:5.2f}  " + "  ".join(f"{share:.0%}" for share in shares[::2]))


if __name__ == "__main__":
    main(tyro.cli(Options))
