"""Erases concepts from a network's last layer: it no longer reads how much of them there is.

Where many units carry a little of a concept each, silencing those that it labels removes little of
it, or much else with it. Here the directions of the last hidden layer that go with CLIP's
similarity to the concept, within the classes, are taken out of the last layer's weights. No image
is labelled with the concept: CLIP sees it. Shapes: I images, U units, C classes, N concepts.
"""

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
    mean = features.mean(axis=0)
    centred = within(features, labels)
    together = centred.T @ within(similarities, labels) / len(labels)  # [U, N]
    spread = centred.T @ centred / len(labels)
    spread[np.diag_indices_from(spread)] += _RIDGE * np.trace(spread) / len(spread)
    read = np.linalg.solve(spread, together)
    lost = read @ np.linalg.solve(together.T @ read, together.T @ last.weight)  # [U, C]
    erased = Linear(last.weight - lost, last.bias + mean @ lost)
    return fit_bias(erased, features, labels)


def within(values: Float[np.ndarray, "I K"], labels: Int[np.ndarray, " I"]) -> np.ndarray:
    """Values less their class's mean."""
    own = np.eye(labels.max() + 1)[labels]
    means = own.T @ values / np.maximum(own.sum(axis=0), 1)[:, None]
    return values - means[labels]


def fit_bias(
    last: Linear, features: Float[np.ndarray, "I U"], labels: Int[np.ndarray, " I"]
) -> Linear:
    """The layer with the biases of least cross-entropy, every class counting alike."""
    logits = last.logits(features)
    classes = logits.shape[1]
    weights = 1.0 / np.maximum(np.bincount(labels, minlength=classes), 1)[labels]
    weights /= weights.sum()
    bias = np.zeros(classes)
    for _ in range(_STEPS):
        share = softmax(logits + bias)
        slope = weights @ (share - np.eye(classes)[labels])
        curvature = np.diag(weights @ share) - (share * weights[:, None]).T @ share
        step = np.linalg.lstsq(curvature, slope, rcond=1e-10)[0]  # a shift of all changes nothing
        bias -= np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-6:
            break
    return Linear(last.weight, last.bias + bias)
