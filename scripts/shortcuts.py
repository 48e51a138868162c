"""Do edits by concept mend networks that lean on a shortcut, and are they quiet without one?

    nice -n 15 python scripts/shortcuts.py --out shortcuts/ --seeds 10

For every seed a VGGNet (the shipped one's convolutions, dense layers anew by the seed) is trained
on rendered faces whose glasses go with "happy" (`planted`), and one on faces whose glasses go with
nothing (`control`). Of each, the contenders of `emojax.editing.arena` are fitted on images like
those of the training and tested on held-out images with glasses in half of every class (`planted`),
or with glasses as rare as in the training (`control`); and the finder looks for shortcuts.

A study of the control world is a network and a random half of its selection and held-out images:
--studies are shared out over the networks. An edit is said to help when McNemar's p and that of the
random controls are both at most 0.05 and more images are gained than lost; the finder finds a
shortcut when it gives any concept a q of at most 0.05.

Every network, its features and its results are files in --out; what is there is not done again.
Prints the tables of docs/shortcuts.md.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro

LEVEL = 0.05


@dataclasses.dataclass
class Options:
    """Sizes of the experiment."""

    out: Path = Path("shortcuts")
    seeds: int = 10
    studies: int = 200
    share: float = 0.95
    nuisance: str = "Glasses"
    emotion: str = "happy"
    training: int = 3000
    epochs: int = 2
    images: int = 4200
    """of the selection, and held out"""
    world: str | None = None
    """planted or control alone"""


def network(options: Options, world: str, seed: int):
    """The network of a seed, trained or read."""
    from emojax.data.provenance import use_of
    from emojax.data.weights import load_vgg, save_vgg
    from emojax.synthetic import shipped, shortcut
    from emojax.training.classifiers import train_classifiers, with_new_head
    from emojax.training.recipe import Recipe

    file = options.out / f"{world}_{seed}.safetensors"
    if file.is_file():
        return load_vgg(file)
    planted = shortcut.Shortcut(options.nuisance, options.emotion, options.share)
    draw = shortcut.planted if world == "planted" else shortcut.without_shortcut
    images = draw(options.training, 1000 + seed, planted).image_set(f"{world} training")
    validation = draw(700, 2000 + seed, planted).image_set(f"{world} validation")
    recipe = Recipe(
        epochs=options.epochs, learning_rate=1e-3, weight_decay=0.01, average=0.98, seed=seed
    )
    start = with_new_head(shipped.load_demo()[0], seed)
    ((model, _),) = train_classifiers(start, recipe, images, validation, batch=64)
    save_vgg(model, file, uses=[use_of(images, "trained"), use_of(validation, "chosen")])
    return model


def features(options: Options, world: str, seed: int) -> dict[str, np.ndarray]:
    """What the contenders need of a network and its images, computed or read."""
    import emojax
    from emojax.dissection.dissect import embed_concepts
    from emojax.editing.activations import pre_bias_activations
    from emojax.editing.shortcuts import features_of, last_layer_of
    from emojax.synthetic import shipped, shortcut
    from emojax.synthetic.faces import ATTRIBUTES

    file = options.out / f"{world}_{seed}.npz"
    if file.is_file():
        with np.load(file) as arrays:
            return dict(arrays)
    model = network(options, world, seed)
    _, clip = shipped.load_demo()
    planted = shortcut.Shortcut(options.nuisance, options.emotion, options.share)
    draws = {"planted": (shortcut.planted, shortcut.fair)}
    draws["control"] = (shortcut.without_shortcut, shortcut.without_shortcut)
    concepts = emojax.ConceptSet(ATTRIBUTES)
    arrays = {}
    for side, draw, first in zip(
        ("selection", "held_out"), draws[world], (3000, 4000), strict=True
    ):
        faces = draw(options.images, first + seed, planted)
        images = faces.image_set(f"{world} {side}")
        layer = pre_bias_activations(model, images, "lin2")
        arrays[f"{side}_features"] = features_of(layer)
        arrays[f"{side}_labels"] = layer.labels
        arrays[f"{side}_groups"] = shortcut.groups(faces, planted)
        record = emojax.probe(model, images, clip, layers=("lin2",))
        texts = embed_concepts(clip, concepts)
        arrays[f"{side}_similarities"] = np.float64(record.embeddings @ texts.T)
        if side == "selection":
            found = emojax.dissect(record, concepts, null_sets=0)
            arrays["unit_labels"] = found.labels
            arrays["trusted"] = found.trusted
            arrays["weight"], arrays["bias"] = last_layer_of(layer)
    with open(file, "wb") as out:
        np.savez(out, **arrays)
    return arrays


def sides(arrays: dict[str, np.ndarray], rows: Any = (slice(None),) * 2):
    """The two sides for the arena, the last layer and the masks of units by concept."""
    from emojax.editing.arena import Images
    from emojax.editing.refit import Linear
    from emojax.synthetic.faces import ATTRIBUTES

    names = ("features", "labels", "groups", "similarities")
    pair = []
    for side, chosen in zip(("selection", "held_out"), rows, strict=True):
        pair.append(Images(*(arrays[f"{side}_{name}"][chosen] for name in names)))
    last = Linear(arrays["weight"], arrays["bias"])
    units = {name: arrays["unit_labels"] == at for at, name in enumerate(ATTRIBUTES)}
    return *pair, last, units


def suspects(selection, held_out, last, units, permutations: int, seed: int):
    """What the finder finds."""
    from emojax.editing.shortcuts import Side, find_shortcuts

    pair = [
        Side(
            side.features,
            side.labels,
            last.logits(side.features).argmax(axis=1),
            side.similarities,
        )
        for side in (selection, held_out)
    ]
    return find_shortcuts(*pair, last.weight, units, permutations=permutations, seed=seed)


def measure(options: Options, world: str, seed: int) -> dict[str, Any]:
    """A row for each contender, the paired tests, the finder's first suspects."""
    from emojax.data.fer2013 import CLASSES
    from emojax.editing import arena
    from emojax.synthetic.faces import ATTRIBUTES

    file = options.out / f"{world}_{seed}.json"
    if file.is_file():
        return json.loads(file.read_text())
    selection, held_out, last, units = sides(features(options, world, seed))
    own = units[options.nuisance]
    concept = ATTRIBUTES.index(options.nuisance)
    contest = arena.contest(selection, held_out, last, own, concept, seed=seed)
    emotion = CLASSES.index(options.emotion)
    minority = (held_out.groups // 2 == emotion) != (held_out.groups % 2 == 1)
    rows = {name: arena.measures(logits, held_out) for name, logits in contest.logits.items()}
    best = max(arena.NO_GROUPS, key=lambda name: rows[name]["worst_group"])
    before = contest.logits[arena.NONE]
    result: dict[str, Any] = {"units": int(own.sum()), "rows": rows, "best_without_groups": best}
    for name in contest.logits:
        result[f"{name} | no edit"] = arena.against(
            before, contest.logits[name], held_out, minority
        )
    for name, drawn in contest.random.items():
        result[f"{name} | best"] = arena.against(
            contest.logits[best], contest.logits[name], held_out, minority
        )
        worst = [arena.measures(logits, held_out)["worst_group"] for logits in drawn]
        result[f"{name} | random"] = {
            "mean": float(np.mean(worst)),
            "p_value": (1 + sum(one >= rows[name]["worst_group"] for one in worst))
            / (1 + len(worst)),
        }
    found = suspects(selection, held_out, last, units, 999, seed)
    result["suspects"] = [one._asdict() | {"class": CLASSES[one.label]} for one in found[:5]]
    file.write_text(json.dumps(result, indent=1))
    print(
        world, seed, {name: round(row["worst_group"], 3) for name, row in rows.items()}, flush=True
    )
    print("  ", [(one.concept, CLASSES[one.label], round(one.q_value, 3)) for one in found[:3]])
    return result


def quiet(options: Options) -> dict[str, float]:
    """How often studies of the control world find what is not there: a help, a shortcut."""
    from emojax.editing import arena
    from emojax.ops.stats import mcnemar_exact

    file = options.out / f"quiet_{options.studies}.json"
    if file.is_file():
        return json.loads(file.read_text())
    counts = {arena.SILENCED: 0, arena.ERASED: 0, "finder": 0}
    for study in range(options.studies):
        rng = np.random.default_rng([7, study])
        arrays = features(options, "control", study % options.seeds)
        halves = [rng.permutation(options.images)[: options.images // 2] for _ in range(2)]
        selection, held_out, last, units = sides(arrays, halves)
        concept = list(units).index(options.nuisance)
        own = units[options.nuisance]
        edits = arena.edits(selection, held_out, last, own, concept, draws=39, rng=rng)
        was = last.logits(held_out.features).argmax(axis=1) == held_out.labels
        for name, (edited, drawn) in edits.items():
            now = edited.argmax(axis=1) == held_out.labels
            gained, lost = int((now & ~was).sum()), int((was & ~now).sum())
            others = (drawn.argmax(axis=2) == held_out.labels).sum(axis=1)
            p_random = (1 + (others >= now.sum()).sum()) / (1 + len(others))
            helps = gained > lost and max(mcnemar_exact(gained, lost), p_random) <= LEVEL
            counts[name] += int(helps)
        found = suspects(selection, held_out, last, units, 199, study)
        counts["finder"] += int(found[0].q_value <= LEVEL)
        if study % 20 == 19:
            print(study + 1, counts, flush=True)
    rates = {name: count / options.studies for name, count in counts.items()}
    file.write_text(json.dumps(rates, indent=1))
    return rates


def table(results: list[dict[str, Any]]) -> str:
    """Means over the seeds, and in how many the paired tests are sure."""
    from emojax.editing import arena

    names = ("accuracy", "macro_recall", "worst_class", "worst_group", "nll", "ece")
    lines = ["| contender | " + " | ".join(name.replace("_", " ") for name in names) + " |"]
    lines.append("|---|" + "---|" * len(names))
    for contender in results[0]["rows"]:
        cells = []
        for name in names:
            values = [result["rows"][contender][name] for result in results]
            scale, form = (1, ".3f") if name == "nll" else (100, ".1f")
            cells.append(
                f"{np.mean(values) * scale:{form}} ± {np.std(values, ddof=1) * scale:{form}}"
            )
        lines.append(f"| {contender} | {' | '.join(cells)} |")
    lines += [
        "",
        "| worst group against no edit | gain, mean | seeds raised | p < 0.001 in the worst "
        "group | p < 0.001 in the misled groups | sign-flip p over seeds | share of DFR's |",
    ]
    lines.append("|---|---|---|---|---|---|---|")
    dfr = np.mean([r[f"{arena.DFR} | no edit"]["worst_group"]["change"] for r in results])
    for contender in list(results[0]["rows"])[1:]:
        tests = [result[f"{contender} | no edit"] for result in results]
        changes = np.array([test["worst_group"]["change"] for test in tests])
        sure = sum(test["worst_group"]["p_value"] < 1e-3 for test in tests)
        misled = sum(
            test["minority"]["p_value"] < 1e-3
            and test["minority"]["gained"] > test["minority"]["lost"]
            for test in tests
        )
        lines.append(
            f"| {contender} | {100 * changes.mean():+.1f} | {(changes > 0).sum()} | {sure} "
            f"| {misled} | {arena.sign_flip_p_value(changes):.3g} | {changes.mean() / dfr:.2f} |"
        )
    for name in (arena.SILENCED, arena.ERASED):
        best = [result[f"{name} | best"] for result in results]
        changes = np.array([test["worst_group"]["change"] for test in best])
        beaten = sum(
            result[f"{name} | random"]["mean"] < result["rows"][name]["worst_group"]
            for result in results
        )
        p_values = [result[f"{name} | random"]["p_value"] for result in results]
        lines += [
            "",
            f"{name}: above the best baseline without group labels by "
            f"{100 * changes.mean():+.1f} (p over seeds {arena.sign_flip_p_value(changes):.3g}); "
            f"above the mean of random controls in {beaten} of {len(results)}, with p ≤ 0.05 in "
            f"{sum(p <= LEVEL for p in p_values)}.",
        ]
    return "\n".join(lines)


def main(options: Options) -> None:
    """Runs what is missing and prints the tables."""
    options.out.mkdir(parents=True, exist_ok=True)
    worlds = (options.world,) if options.world else ("planted", "control")
    for world in worlds:
        results = [measure(options, world, seed) for seed in range(options.seeds)]
        print(f"\n{world}\n\n{table(results)}\n")
        first = [result["suspects"][0] for result in results]
        ranked = sum(one["concept"] == options.nuisance for one in first)
        sure = sum(one["q_value"] <= LEVEL for one in first)
        print(f"finder: {options.nuisance} first in {ranked} of {len(first)}, q ≤ 0.05 in {sure}")
    if "control" in worlds:
        print("\nfalse findings in the control world:", quiet(options))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
