"""Edits by concept beside last-layer baselines on real faces, where no shortcut is known.

    python scripts/arena_fer2013.py FER2013 [--clip CLIP]

FER2013 is a prepared set (`emojax prepare`); the network is fer2013-compact. Every contender is
fitted on PublicTest and tested on PrivateTest, whole faces. No groups are known there, so DFR has
none to balance. Prints the table of docs/shortcuts.md.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

DRAWS = 39
LAYER = "hidden"


@dataclasses.dataclass
class Options:
    """What is compared."""

    data: Annotated[Path, tyro.conf.Positional]
    """a prepared FER2013"""
    clip: Path | None = None
    """a CLIP folder; the demo's small CLIP, which knows drawings alone, when left out"""
    concepts: tuple[str, ...] = ("Glasses", "Beard", "Long Hair", "Dark Lighting")
    """to edit by"""


def main(options: Options) -> None:
    """Fits, tests and prints."""
    import emojax
    from emojax.dissection.dissect import embed_concepts
    from emojax.editing import arena
    from emojax.editing.activations import pre_bias_activations
    from emojax.editing.shortcuts import features_of, last_layer_of
    from emojax.ops.stats import mcnemar_exact
    from emojax.synthetic import shipped

    network = emojax.load_network("fer2013-compact")
    clip = shipped.load_demo()[1] if options.clip is None else emojax.load_clip(options.clip)
    concepts = emojax.load_concepts("faces30")
    texts = embed_concepts(clip, concepts)
    sides = []
    for name in ("public_test", "private_test"):
        images = emojax.open_split(options.data, name)
        layer = pre_bias_activations(network, images, LAYER)
        record = emojax.probe(network, images, clip, layers=(LAYER,))
        similarities = np.float64(record.embeddings @ texts.T)
        labels = np.asarray(layer.labels)
        sides.append(arena.Images(features_of(layer), labels, 2 * labels, similarities))
        if name == "public_test":
            found = emojax.dissect(record, concepts, null_sets=0)
            last = last_layer_of(layer)
    selection, held_out = sides

    contenders = {}
    for name in options.concepts:
        number = concepts.by_name[name]
        contest = arena.contest(
            selection, held_out, last, found.labels == number, number, draws=DRAWS
        )
        base = {key: contest.logits[key] for key in (arena.NONE, *arena.NO_GROUPS)}
        contenders = base | contenders
        units = int((found.labels == number).sum())
        contenders[f"{units} units of {name!r} silenced"] = contest.logits[arena.SILENCED]
        contenders[f"{name!r} erased"] = contest.logits[arena.ERASED]

    before = contenders[arena.NONE].argmax(axis=1) == held_out.labels
    print("| contender | accuracy | macro recall | worst class | nll | ece | gained | lost | p |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, logits in contenders.items():
        measured = arena.measures(logits, held_out)
        after = logits.argmax(axis=1) == held_out.labels
        gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
        cells = [
            f"{100 * measured[key]:.2f}" for key in ("accuracy", "macro_recall", "worst_class")
        ]
        cells += [f"{measured['nll']:.3f}", f"{100 * measured['ece']:.1f}"]
        cells += [str(gained), str(lost), f"{mcnemar_exact(gained, lost):.2g}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
