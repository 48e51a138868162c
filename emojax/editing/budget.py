"""How long a study takes on layers that do not feed the logits, and what fits into the time for it.

On such a layer the rest of the network runs for every setting, and the evidence asks for thousands
of them. So a few settings are timed on a few images first, and the study is planned from that: with
fewer permutations and random masks where all of them would take longer than the options allow, and
on another layer, or not at all, where even the fewest that can reach alpha would.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from emojax.dissection.table import LayerSummary, most_interpretable_layer
from emojax.distributed.processes import broadcast_from_main
from emojax.editing.activations import PreBiasActivations
from emojax.editing.edit import gains_of
from emojax.editing.search import AUTO, Edit
from emojax.editing.sweep import Sweep
from emojax.errors import InputError

_log = logging.getLogger("emojax")
_IMAGES = 512  # that settings are timed on
_SETTINGS = 2
_REPEATS = 3
_CONTROLS = 10  # single settings beside the grid: unedited, edited, all up, inverted, …


@dataclass(frozen=True)
class Images:
    """Numbers of images: all that are tested on, those of the selection, those of the test."""

    all: int
    selection: int
    test: int


@dataclass(frozen=True)
class Allowed:
    """What the time allows.

    Attributes:
      layers: to edit.
      permutations: of the scores.
      masks: random choices of units.
      limited: what is left out, in words; None for nothing.
    """

    layers: tuple[str, ...]
    permutations: int
    masks: int
    limited: str | None = None


def within_minutes(
    options: Edit,
    layers: tuple[str, ...],
    sizes: Sequence[int],
    costs: Mapping[str, float],
    quick: Sequence[LayerSummary],
    different: Mapping[str, int] | None = None,
) -> Allowed:
    """Plans a study from timed settings, and logs the estimate before the work begins.

    Where the layer is chosen (`auto`) and `options.minutes` are too few for it, the most
    interpretable one among those that feed the logits is taken. Those take seconds and are not
    timed.

    Args:
      options: of the study.
      layers: to edit.
      sizes: images of every test split.
      costs: `seconds_per_image` of every layer that does not feed the logits.
      quick: Table 1 of the probed layers that feed the logits.
      different: `different_settings` of the same layers as `costs`; None, all of the options'.

    Raises:
      InputError: layers that were named take longer, or no probed layer feeds the logits.
    """
    if not costs:
        return Allowed(layers, options.permutations, options.masks)
    total = sum(sizes)
    images = Images(total, total, total)
    if options.choose_on == "first_split" and len(sizes) > 1:
        images = Images(total, sizes[0], total - sizes[0])
    named = ", ".join(costs)
    given = f"--edit.minutes {options.minutes:g}"
    full = Size(options.permutations, options.masks)
    size = largest_size(costs, options, images, different)
    if size is not None:
        limited = None
        if size != full:
            limited = (
                f"{size.permutations} permutations and {size.masks} random masks instead of "
                f"{full.permutations} and {full.masks}, which would take about "
                f"{in_words(seconds(costs, options, images, full, different))}"
            )
        _log.info(
            "edit: %s does not feed the logits, so the rest of the network runs for every setting: "
            "about %s beside compilation%s",
            named,
            in_words(seconds(costs, options, images, size, different)),
            "" if limited is None else f" with {limited} ({given})",
        )
        return Allowed(layers, size.permutations, size.masks, limited)

    least = math.ceil(seconds(costs, options, images, _sizes(options)[-1], different) / 60)
    if options.layers != (AUTO,) or not quick:
        raise InputError(
            f"an edit of {named}, which does not feed the logits, takes about {least} min at "
            f"least, more than {given}; give --edit.minutes {2 * least}, fewer settings, or "
            f"another layer with --edit.layers"
        )
    chosen = most_interpretable_layer(quick)
    limited = (
        f"{chosen}, the layer with the most interpretable units of those that feed the logits, "
        f"instead of {named}, which would take about {least} min at least"
    )
    _log.info("edit: %s (%s)", limited, given)
    return Allowed((chosen,), options.permutations, options.masks, limited)


def seconds_per_image(splits: Sequence[PreBiasActivations], options: Edit) -> float:
    """Seconds that one setting takes for one image behind a layer, measured on the largest split.

    The same number in every process, for they must plan the same.
    """
    largest = max(splits, key=lambda split: len(split.labels))
    few = dataclasses.replace(
        largest, values=largest.values[:_IMAGES], labels=largest.labels[:_IMAGES]
    )
    sweep = Sweep(few, scope=options.scope)
    gains = np.ones((_SETTINGS, few.units), np.float32)
    sweep.gains(gains, full=False)  # compiles
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        sweep.gains(gains, full=False)
        times.append(time.perf_counter() - start)
    measured = np.median(times) / (_SETTINGS * len(few.labels))
    shared = broadcast_from_main(lambda: {"seconds": np.array([measured])})
    if shared is None:
        raise ValueError("the main process measured nothing")
    return float(shared["seconds"][0])


@dataclass(frozen=True)
class Size:
    """Permutations and random masks of a study."""

    permutations: int
    masks: int


def _sizes(options: Edit) -> list[Size]:
    """Sizes from what the options ask for down to the smallest that can reach alpha.

    Permutations go down in the steps at which a p-value of just alpha exists (…, 39, 19 at 0.05),
    random masks in the same proportion and to no fewer than the smallest step.
    """
    step = math.ceil(1 / options.alpha)
    sizes = [Size(options.permutations, options.masks)]
    for permutations in range(step - 1, options.permutations, step)[::-1]:
        masks = max(step - 1, options.masks * permutations // options.permutations)
        sizes.append(Size(permutations, min(options.masks, masks)))
    return sizes


def different_settings(options: Edit, layer: str, scores: Float[np.ndarray, "U C"]) -> int:
    """How many of a layer's settings give different gains: equal ones are evaluated once."""
    return len({gains_of(setting, scores).tobytes() for setting in options.settings([layer])})


def seconds(
    costs: Mapping[str, float],
    options: Edit,
    images: Images,
    size: Size,
    different: Mapping[str, int] | None = None,
) -> float:
    """Estimate for a study of a size.

    Args:
      costs: `seconds_per_image` of every layer that does not feed the logits.
      options: of the study.
      images: how many there are.
      size: permutations and masks.
      different: `different_settings` of every layer; None, all of the options'.
    """
    highest = max(costs.values())  # the layer of the chosen setting is not known yet
    if different is None:
        different = {layer: len(options.settings([layer])) for layer in costs}
    per_image = sum(cost * different[layer] for layer, cost in costs.items())
    grid = (per_image + sum(costs.values())) * images.all  # with factor 1
    selection = per_image * images.selection
    tested = 0.0  # of a permutation's own best setting, which was already tried on the same images
    if images.test != images.all:
        tested = highest * images.test
    single = highest * images.test * (_CONTROLS + size.masks)
    return grid + selection + size.permutations * (selection + tested) + single


def largest_size(
    costs: Mapping[str, float],
    options: Edit,
    images: Images,
    different: Mapping[str, int] | None = None,
) -> Size | None:
    """The largest size that takes no more than `options.minutes`; None where none does."""
    for size in _sizes(options):
        if seconds(costs, options, images, size, different) <= 60 * options.minutes:
            return size
    return None


def in_words(duration: float) -> str:
    """Seconds as a person says them."""
    if duration < 120:
        return f"{duration:.0f} s"
    return f"{duration / 60:.0f} min" if duration < 7200 else f"{duration / 3600:.1f} h"
