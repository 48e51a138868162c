"""Erases concepts from a network's last layer: it no longer reads how much of them there is.

Where many units carry a little of a concept each, silencing those that it labels removes little of
it, or much else with it. Here the directions of the last hidden layer that go with CLIP's
similarity to the concept, within the classes, are taken out of the last layer's weights. No image
is labelled with the concept: CLIP sees it. Shapes: I images, U units, C classes, N concepts.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from emojax.editing.refit import Linear, softmax

_RIDGE = 1e-3  # of the units' mean variance, added to every variance
_STEPS = 100  # of Newton's method, which needs five or so


def erase(
    last: Linear,
    features: Float[np.ndarray, "I U"],
    labels: Int[np.ndarray, " I"],
    similarities: Float[np.ndarray, "I N"],
) -> Linear:
    """The last layer without what its features tell of some similarities within the classes.

    With d the covariances of features and similarities within the classes and S those of the
    features, a row of features x becomes x − (x − mean) S⁻¹ d (dᵀ S⁻¹ d)⁻¹ dᵀ: the least change
    after which no linear function of x correlates with the similarities (LEACE, Belrose et al.
    2023, here within classes: what a concept has in common with a class is the class's). Then the
    biases alone are fitted to the class labels, since what was erased also held the classes apart.

    Args:
      last: the last layer.
      features: outputs of the last hidden layer, as the last layer reads them.
      labels: classes of these images; the network's own predictions will do where there are none.
      similarities: of the images with each concept, CLIP's cosines.
    """
    return eraser(last, features, labels)(similarities)


def eraser(
    last: Linear, features: Float[np.ndarray, "I U"], labels: Int[np.ndarray, " I"]
) -> Callable[[Float[np.ndarray, "I N"]], Linear]:
    """`erase` for many similarities: what they share, which takes the time, is computed once."""
    from scipy.linalg import cho_factor, cho_solve  # comes with jax

    count = len(labels)
    own = np.eye(labels.max() + 1)[labels]
    sums = own.T @ features
    means = sums / np.maximum(own.sum(axis=0), 1)[:, None]
    mean = features.mean(axis=0)
    spread = (features.T @ features - means.T @ sums) / count
    ridge = _RIDGE * np.trace(spread) / len(spread)
    spread[np.diag_indices_from(spread)] += ridge if ridge > 0 else 1.0  # or no feature varies
    factor = cho_factor(spread, overwrite_a=True)

    def erased(similarities: Float[np.ndarray, "I N"]) -> Linear:
        # These sum to 0 in each class, so the features need not be centred.
        together = features.T @ within(similarities, labels) / count  # [U, N]
        read = cho_solve(factor, together)
        # Least squares, since concepts may be two words for one thing, or be seen in no image.
        shares = np.linalg.lstsq(together.T @ read, together.T @ last.weight, rcond=1e-10)[0]
        lost = read @ shares  # [U, C]
        return fit_bias(Linear(last.weight - lost, last.bias + mean @ lost), features, labels)

    return erased


def within(values: Float[np.ndarray, "I K"], labels: Int[np.ndarray, " I"]) -> np.ndarray:
    """Values less their class's mean."""
    own = np.eye(labels.max() + 1)[labels]
    means = own.T @ values / np.maximum(own.sum(axis=0), 1)[:, None]
    return values - means[labels]


def fit_bias(
    last: Linear, features: Float[np.ndarray, "I U"], labels: Int[np.ndarray, " I"]
) -> Linear:
    """The layer with the biases of least cross-entropy; classes without an image keep theirs.

    Every image counts alike, so classes stay as frequent as among these images: an edit is no place
    to change what is rare.
    """
    there, own = np.unique(labels, return_inverse=True)
    logits = last.logits(features)[:, there]
    bias = np.zeros(len(there))
    for _ in range(_STEPS):
        share = softmax(logits + bias)
        slope = (share - np.eye(len(there))[own]).mean(axis=0)
        curvature = np.diag(share.mean(axis=0)) - share.T @ share / len(share)
        step = np.linalg.lstsq(curvature, slope, rcond=1e-10)[0]  # a shift of all changes nothing
        bias -= np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-6:
            break
    fitted = last.bias.copy()
    fitted[there] += bias
    return Linear(last.weight, fitted)
