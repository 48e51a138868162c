"""Labels of a probe against plain torch and float64 numpy, on images of yours.

    python scripts/check_labels.py --data FER --split training --images 3000
    python scripts/check_labels.py --data FER --split training --weights VGGNET --clip CLIP

The reference is independent of emojax's preprocessing, network, statistics and scores: torch
resizes (`interpolate`, bilinear, antialiased as the paper's probe) and runs the VGGNet with hooks
on the raw outputs, and `tests/support/reference.py` scores soft_wpmi a unit at a time in float64.
Only CLIP's embeddings are shared: the towers have tests of their own. Without `--weights` the
shipped network takes part and one of the published size with random weights; the CLIP is the
shipped one unless `--clip` names another.

Prints per network: labels that differ, and by how much float64 prefers its own to ours there; how
many units have other top images, or these in another order, because two activations are equal but
for rounding; how many labels the other resize would change; and the units above tau = 0 of both.
A list in another order changes the scores of its unit and, through the prior, a little those of its
whole layer. So labels are also scored in float64 from the activations that emojax recorded: where
they differ there, too, and are no near tie, the script exits 1. Needs the `oracle` extra (torch).
"""

import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tyro

if TYPE_CHECKING:
    from emojax.data.clip_encoder import ClipEncoder
    from emojax.data.image_set import ImageSet
    from emojax.models.vgg import VggNet

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
import reference

_BATCH = 128
_TOP = 100  # images that soft_wpmi looks at
_TIE = 2e-4  # what float32 does to a sum of 100 logarithms of ten times a cosine, about an eps each


@dataclasses.dataclass
class Options:
    """What is compared, on which images."""

    data: Path
    split: str = "training"
    images: int = 3000
    """spread evenly over the split"""
    weights: Path | None = None
    clip: str | None = None


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How labels compare with the reference's.

    Attributes:
      units: of all layers.
      different: units whose label differs.
      largest_gap: the largest preference of the reference, in its score, for its own label there.
      other_images: units whose top images, or their order, differ.
      unexplained: units whose label differs from float64's on the recorded activations, too, and is
        no near tie.
      activation_error: the largest difference of activations, relative to the layer's largest.
      changed: labels that probing without antialiasing changes.
      above: units of each layer above tau = 0: ours, the reference's, ours without antialiasing.
    """

    units: int
    different: int
    largest_gap: float
    other_images: int
    unexplained: int
    activation_error: float
    changed: int
    above: dict[str, tuple[int, int, int]]


def torch_activations(model: "VggNet", images: np.ndarray) -> dict[str, np.ndarray]:
    """Mean over space of every layer's raw output [I, units], by torch alone."""
    import torch

    from emojax.models.vgg import LAYERS, to_torch_state_dict

    network = reference.torch_vgg(torch, model.config)
    arrays = to_torch_state_dict(model)
    network.load_state_dict({name: torch.from_numpy(x.copy()) for name, x in arrays.items()})
    network.eval()
    kept: dict[str, list[np.ndarray]] = {name: [] for name in LAYERS[:-1]}
    for name, parts in kept.items():
        getattr(network, name).register_forward_hook(
            lambda _module, _inputs, out, parts=parts: parts.append(
                (out.mean((2, 3)) if out.ndim == 4 else out).numpy()
            )
        )
    side = model.config.input_size
    with torch.inference_mode():
        for start in range(0, len(images), _BATCH):
            unit = torch.from_numpy(images[start : start + _BATCH, None, :, :, 0]).float() / 255
            network(
                torch.nn.functional.interpolate(unit, (side, side), mode="bilinear", antialias=True)
            )
    return {name: np.concatenate(parts) for name, parts in kept.items()}


def compare(model: "VggNet", clip: "ClipEncoder", images: "ImageSet") -> Agreement:
    """Labels of the 25 concepts by emojax and by the reference, antialiased; and ours without.

    Raises:
      ImportError: torch is missing.
    """
    import emojax
    from emojax.data.concepts import load_concepts

    concepts = load_concepts("paper25")
    layers = model.config.probed()

    def label(antialias: bool):
        record = emojax.probe(
            model, images, clip, layers=layers, keep_activations=antialias, antialias=antialias
        )
        return record, emojax.dissect(record, concepts, similarity="soft_wpmi", null_sets=0)

    record, ours = label(True)
    _, without = label(False)
    acts = torch_activations(model, np.asarray(images.images[0 : len(images)]))
    cosines = np.float64(record.embeddings) @ np.float64(clip.embed_texts(concepts.concepts)).T
    joined = np.concatenate(list(acts.values()), axis=1)
    scores = reference.soft_wpmi(cosines, joined, segments=record.segment_ids)
    assert record.activations is not None

    different, gaps = preferred(scores, ours.labels)
    recorded = reference.soft_wpmi(cosines, record.activations, segments=record.segment_ids)
    differs_there, gaps_there = preferred(recorded, ours.labels)
    # In order, for soft_wpmi weighs an image by its rank.
    own_lists, lists = (
        np.argsort(-x, axis=0, kind="stable")[:_TOP] for x in (record.activations, joined)
    )
    other_images = (own_lists != lists).any(axis=0)
    errors, above = [], {}
    for number, (layer, own) in enumerate(acts.items()):
        mine = record.segment_ids == number
        errors.append(np.abs(record.activations[:, mine] - own).max() / np.abs(own).max())
        counts = [int((best[mine] > 0).sum()) for best in (ours.best, scores.max(1), without.best)]
        above[layer] = (counts[0], counts[1], counts[2])
    return Agreement(
        units=len(scores),
        different=int(different.sum()),
        largest_gap=float(gaps[different].max(initial=0.0)),
        other_images=int(other_images.sum()),
        unexplained=int((differs_there & (gaps_there > _TIE)).sum()),
        activation_error=float(max(errors)),
        changed=int((ours.labels != without.labels).sum()),
        above=above,
    )


def preferred(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where scores [U, C] prefer another label than `labels` [U], and by how much: two of [U]."""
    own = scores[np.arange(len(scores)), labels]
    return scores.argmax(axis=1) != labels, scores.max(axis=1) - own


def networks(options: Options) -> "Iterator[tuple[str, VggNet]]":
    """The network of the options, or the shipped one and a random one of the published size."""
    from flax import nnx

    from emojax.data.weights import load_vgg
    from emojax.models.vgg import VggConfig, VggNet
    from emojax.synthetic import shipped

    if options.weights is not None:
        yield options.weights.name, load_vgg(options.weights)
        return
    yield "the shipped VGGNet, trained on rendered faces", shipped.load_demo()[0]
    random = nnx.jit(lambda: VggNet(VggConfig.paper(), rngs=nnx.Rngs(0)))()
    random.eval()
    yield "a VGGNet of the published size with random weights", random


def main() -> None:
    """Compares, prints, and exits 1 where labels differ for no reason."""
    options = tyro.cli(Options, description=__doc__)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import emojax
    from emojax.data.image_set import ImageSet
    from emojax.data.opening import open_split
    from emojax.synthetic import shipped

    split = open_split(options.data, options.split)
    rows = np.linspace(0, len(split) - 1, min(options.images, len(split))).round().astype(int)
    images = ImageSet.from_arrays(np.asarray(split.images[0 : len(split)])[rows], name=split.name)
    clip = shipped.load_demo()[1] if options.clip is None else emojax.load_clip(options.clip)
    unexplained = 0
    for name, model in networks(options):
        agreement = compare(model, clip, images)
        unexplained += agreement.unexplained
        print(
            f"{name}, {len(images)} images: {agreement.different} of {agreement.units} labels "
            f"differ (largest gap {agreement.largest_gap:.2g}), {agreement.unexplained} of them "
            f"unexplained; activations within {agreement.activation_error:.1e}, other top images "
            f"in {agreement.other_images} units; without antialiasing {agreement.changed} labels "
            f"({agreement.changed / agreement.units:.1%}) change",
            flush=True,
        )
        for layer, counts in agreement.above.items():
            print(f"  {layer}: above 0 {counts[0]}, reference {counts[1]}, without {counts[2]}")
    sys.exit(unexplained > 0)


if __name__ == "__main__":
    main()
