"""Last layers fitted anew on a network's features: what edits by concepts are compared with.

The features are the outputs of the last hidden layer. The fit is multinomial logistic regression
with an L1 penalty, as in "Last Layer Re-Training is Sufficient" (Kirichenko, Izmailov and Wilson,
ICLR 2023). Shapes: I images, U
units, C classes, R fits at once, n images of each fit.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from emojax.errors import InputError

# Of the L1 penalty beside the mean loss, from strong to weak; a fit takes the first of the best.
STRENGTHS = (0.03, 0.01, 0.003, 0.001)
REFITS = 10  # balanced subsets whose fits are averaged
_MOST = 150  # images of a group in a subset: the mean of several fits sees them all
_STEPS = 500
_TOLERANCE = 1e-3  # of the largest change of a weight in a step; units are scaled to deviations


class Linear(NamedTuple):
    """logits = features @ weight + bias."""

    weight: Float[np.ndarray, "*fits U C"]
    bias: Float[np.ndarray, "*fits C"]

    def logits(self, features: Float[np.ndarray, "I U"]) -> Float[np.ndarray, "*fits I C"]:
        """Logits of features [I, U]."""
        return features @ self.weight + self.bias[..., None, :]


def fit_l1(
    features: Float[np.ndarray, "R n U"],
    labels: Int[np.ndarray, "R n"],
    classes: int,
    strengths: Float[np.ndarray, " R"],
    *,
    steps: int = _STEPS,
    tolerance: float = _TOLERANCE,
) -> Linear:
    """Minimises mean cross-entropy + strength · Σ|weight|, for R sets of images at once.

    In float32. The bias is not penalised. scikit-learn's `LogisticRegression(penalty="l1",
    solver="saga")` has the same minimum with C = 1 / (n · strength). It stops when no weight moves
    by `tolerance` in a step, or after `steps`.
    """
    augmented = np.concatenate([features, np.ones((*features.shape[:2], 1))], axis=2)
    # The cross-entropy's curvature is at most half that of the squares.
    gram = np.swapaxes(augmented, 1, 2) @ augmented / features.shape[1]
    rates = 2.0 / np.linalg.eigvalsh(gram)[:, -1]
    arrays = map(np.float32, (augmented, np.eye(classes)[labels], strengths, rates))
    weight = np.asarray(_fista(*arrays, steps, np.float32(tolerance)), np.float64)
    return Linear(weight[:, :-1], weight[:, -1])


@functools.partial(jax.jit, static_argnames="steps")
def _fista(
    augmented: Float[Array, "R n U1"],
    targets: Float[Array, "R n C"],
    strengths: Float[Array, " R"],
    rates: Float[Array, " R"],
    steps: int,
    tolerance: Float[Array, ""],
) -> Float[Array, "R U1 C"]:
    """Accelerated proximal gradient (Beck and Teboulle 2009).

    It begins anew where the momentum points uphill (O'Donoghue and Candès 2015). The last row of
    the weights is the bias.
    """
    rate = rates[:, None, None]
    shrink = rate * strengths[:, None, None]
    penalised = jnp.arange(augmented.shape[2])[None, :, None] < augmented.shape[2] - 1

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        weight, ahead, momentum, number, _ = state
        wrong = jax.nn.softmax(augmented @ ahead) - targets
        slope = jnp.swapaxes(augmented, 1, 2) @ wrong / augmented.shape[1]
        moved = ahead - rate * slope
        shrunk = jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - shrink, 0.0)
        new = jnp.where(penalised, shrunk, moved)
        change = new - weight
        uphill = ((ahead - new) * change).sum(axis=(1, 2), keepdims=True) > 0
        following = jnp.where(uphill, 1.0, (1.0 + jnp.sqrt(1.0 + 4.0 * momentum**2)) / 2.0)
        ahead = jnp.where(uphill, new, new + (momentum - 1.0) / following * change)
        return new, ahead, following, number + 1, jnp.abs(change).max()

    def going(state: tuple[Array, ...]) -> Array:
        return (state[3] < steps) & (state[4] >= tolerance)

    first = jnp.zeros((augmented.shape[0], augmented.shape[2], targets.shape[2]))
    start = (first, first, jnp.ones((len(first), 1, 1)), jnp.int32(0), jnp.float32(jnp.inf))
    return jax.lax.while_loop(going, step, start)[0]


def softmax(logits: Float[np.ndarray, "*shape C"]) -> Float[np.ndarray, "*shape C"]:
    """Probabilities over the last axis."""
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def refit_balanced(
    features: Float[np.ndarray, "I U"],
    labels: Int[np.ndarray, " I"],
    groups: Int[np.ndarray, " I"],
    classes: int,
    *,
    seed: int = 0,
) -> Linear:
    """Deep feature reweighting (DFR): the mean of fits on subsets in which all groups are as large.

    The strength is that of the best accuracy in the worst group, of fits on one half of the images,
    tested on the other. With the classes as groups it is the class-balanced refit.

    Raises:
      InputError: a group has fewer than four images.
    """
    sizes = np.bincount(groups)
    if sizes[sizes > 0].min() < 4:
        raise InputError(
            f"group {int(np.where(sizes > 0, sizes, sizes.max() + 1).argmin())} has "
            f"{sizes[sizes > 0].min()} images; a balanced refit needs four of each"
        )
    mean = features.mean(axis=0)
    scale = features.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    scaled = (features - mean) / scale
    rng = np.random.default_rng(seed)
    half = np.zeros(len(labels), bool)
    for group in np.flatnonzero(sizes):
        rows = rng.permutation(np.flatnonzero(groups == group))
        half[rows[: len(rows) // 2]] = True

    def fit(among: np.ndarray, strengths: np.ndarray) -> Linear:
        rows = np.stack([_balanced(groups, among, rng) for _ in strengths])
        return fit_l1(scaled[rows], labels[rows], classes, strengths)

    tried = fit(np.flatnonzero(half), np.array(STRENGTHS)).logits(scaled[~half])
    right = tried.argmax(axis=-1) == labels[~half]
    worst = [worst_group(own, groups[~half]) for own in right]
    strength = STRENGTHS[int(np.argmax(worst))]
    fits = fit(np.arange(len(labels)), np.full(REFITS, strength))
    weight = fits.weight.mean(axis=0) / scale[:, None]
    return Linear(weight, fits.bias.mean(axis=0) - mean @ weight)


def _balanced(
    groups: Int[np.ndarray, " I"], among: Int[np.ndarray, " n"], rng: np.random.Generator
) -> Int[np.ndarray, " m"]:
    """Rows of a random subset of `among` that has as many of every group."""
    present, counts = np.unique(groups[among], return_counts=True)
    size = min(counts.min(), _MOST)
    return np.concatenate(
        [rng.permutation(among[groups[among] == group])[:size] for group in present]
    )


def worst_group(right: np.ndarray, groups: Int[np.ndarray, " I"]) -> float:
    """The smallest accuracy of a group that has images."""
    return min(float(right[groups == group].mean()) for group in np.unique(groups))


def activation_gap(
    features: Float[np.ndarray, "I U"],
    labels: Int[np.ndarray, " I"],
    predictions: Int[np.ndarray, " I"],
) -> Float[np.ndarray, " U"]:
    """How much more active each unit is on wrongly than on rightly classified images of a class.

    After NeuronTune (Zheng, Ye and Zhang 2025): the difference of medians within a true class, the
    largest over the classes, here in the unit's standard deviations.
    """
    spread = features.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    gaps = []
    for label in np.unique(labels):
        own = labels == label
        wrong = own & (predictions != label)
        if wrong.any() and (own & ~wrong).any():
            gap = np.median(features[wrong], axis=0) - np.median(features[own & ~wrong], axis=0)
            gaps.append(gap / spread)
    return np.max(gaps, axis=0) if gaps else np.zeros(features.shape[1])


def adjust(
    logits: Float[np.ndarray, "I C"], labels: Int[np.ndarray, " I"]
) -> Callable[[np.ndarray], np.ndarray]:
    """Logit adjustment and temperature: a function of logits, fitted on labelled ones.

    The logarithm of each class's share among the labels is taken off (Menon et al. 2021), so that
    all classes count alike, and the temperature is the one of the least loss on these images
    weighted to equal classes.
    """
    from scipy.optimize import minimize_scalar

    share = np.bincount(labels, minlength=logits.shape[1]) / len(labels)
    offset = np.log(np.maximum(share, 1.0 / len(labels)))
    weights = 1.0 / share[labels]

    def adjusted(values: np.ndarray, log_temperature: float) -> np.ndarray:
        return values / np.exp(log_temperature) - offset

    def loss(log_temperature: float) -> float:
        likely = softmax(adjusted(np.asarray(logits, np.float64), log_temperature))
        own = likely[np.arange(len(labels)), labels]
        return float(-(weights * np.log(np.maximum(own, 1e-300))).sum() / weights.sum())

    optimum: Any = minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded")
    best = float(optimum.x)
    return lambda values: adjusted(np.asarray(values, np.float64), best)
