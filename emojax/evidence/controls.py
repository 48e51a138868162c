"""What an edit is compared with: other edits of its layer, gains on random units, permuted scores.

Each answers a simpler explanation of what the edit does. Shapes: U units, M masks, R permutations.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from emojax.editing.edit import gains_of
from emojax.editing.search import Setting
from emojax.evidence.comparison import net_wins, right, wins
from emojax.evidence.subject import Scores, Side, Subject
from emojax.ops import gains as ops
from emojax.training.evaluate import Evaluation

_GROUP = 256  # permutations tried together


def single_controls(
    test: Side,
    chosen: Setting,
    subjects: Sequence[Subject],
    scores: Sequence[Scores],
    gains: Sequence[np.ndarray],
    after: Sequence[Evaluation],
) -> dict[str, Any]:
    """What other edits of the layer change, and how the edit fares against each, by image.

    Any scaling of the layer would do (`all_up`, `all_down`), either direction would do
    (`inverted`), large weights rather than scores say which units matter (`weight_sum`). Learned
    gains show what is possible.

    Args:
      test: the images.
      chosen: the edit's setting.
      subjects: the networks.
      scores: of the units of each.
      gains: of the edit [U], for each.
      after: each network with the edit.
    """
    layer = chosen.layer
    count = len(subjects)
    alike = [np.full(len(own), chosen.factor, np.float32) for own in gains]
    heavy = []
    for sweeps in test.sweeps:
        sums = jnp.asarray(sweeps[layer].activations.weight_sums)
        heavy.append(np.asarray(ops.from_mask(ops.above_mean(sums), chosen.factor)))
    if chosen.kind == "continuous":  # of a gain of 0 there is no inverse
        inverted = [gains_of(chosen, -own[layer]) for own in scores]
    else:
        inverted = [1 / own for own in gains]
    edits = {
        "all_up": alike,
        "all_down": [1 / own for own in alike],
        "inverted": inverted,
        "weight_sum": heavy,
    }
    learned = [subject.learned[layer] for subject in subjects if layer in subject.learned]
    if len(learned) == count:
        edits["learned"] = learned
    controls = {}
    for name, other_gains in edits.items():
        networks = zip(test.sweeps, other_gains, strict=True)
        results = [sweeps[layer].evaluate(own) for sweeps, own in networks]
        change = sum(int(right(result).sum()) for result in results) - test.correct
        against = wins(net_wins(list(zip(results, after, strict=True))))
        controls[name] = {"change": change / count, "edit_against_it": against}
    return controls


def random_gains(
    gains: Sequence[np.ndarray], masks: int, rng: np.random.Generator
) -> list[Float[np.ndarray, "M U"]]:
    """For each network its gains [U] on random units: as many of each gain as the edit has.

    These keep how strong the edit is and forget which units it chose. They say less than permuted
    scores, since their setting was not selected.
    """
    return [rng.permuted(np.tile(own, (masks, 1)), axis=1) for own in gains]


def permuted_scores(
    scores: Sequence[Scores], permutations: int, rng: np.random.Generator
) -> Iterator[list[list[Scores]]]:
    """Permuted scores of each network, a group of permutations at a time.

    Which score belongs to which unit is what the null hypothesis calls arbitrary, so scores change
    places within their layer and keep their values: thresholds and fractions scale as many units
    up as before. Networks and layers are permuted independently. They go together in groups
    because a sweep of thousands of masks is one matrix product.
    """
    for start in range(0, permutations, _GROUP):
        drawn = min(_GROUP, permutations - start)
        # The order of the draws fixes the results for a seed: by network, permutation, layer.
        yield [
            [
                {layer: rng.permutation(values) for layer, values in own.items()}
                for _ in range(drawn)
            ]
            for own in scores
        ]
