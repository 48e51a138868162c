"""Last layers fitted anew: the minimum is scikit-learn's, balanced refits are balanced."""

import numpy as np
import pytest

from emojax.editing import refit
from emojax.editing.refit import Linear
from emojax.errors import InputError


@pytest.fixture(scope="module")
def problem():
    """Features [2, n, U] with labels that a few of them give, with noise."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((2, 160, 6))
    scores = features @ rng.normal(0, 1, (6, 3)) * np.array([1.0, 1.0, 0.2])
    labels = (scores + rng.gumbel(size=scores.shape)).argmax(axis=2)
    return features, labels


def objective(model, features, labels, strength):
    share = refit.softmax(features @ model.weight + model.bias)
    own = share[np.arange(len(labels)), labels]
    return -np.log(own).mean() + strength * np.abs(model.weight).sum()


@pytest.mark.slow
def test_the_minimum_is_that_of_scikit_learn(problem):
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = problem
    strengths = np.array([0.03, 0.003])
    fitted = refit.fit_l1(features, labels, 3, strengths, steps=3000, tolerance=1e-6)
    for number, strength in enumerate(strengths):
        theirs = linear_model.LogisticRegression(
            l1_ratio=1.0, solver="saga", C=1 / (160 * strength), tol=1e-8, max_iter=20_000
        ).fit(features[number], labels[number])
        own = Linear(fitted.weight[number], fitted.bias[number])
        other = Linear(theirs.coef_.T, theirs.intercept_)
        data = features[number], labels[number], strength
        assert objective(own, *data) == pytest.approx(objective(other, *data), abs=1e-5)
        # Both minima are flat: weights agree as far as the square root of that allows.
        np.testing.assert_allclose(own.weight, other.weight, atol=1e-2)


@pytest.mark.slow
def test_a_balanced_refit_does_not_follow_what_most_images_say():
    """Unit 0 tells the class, unit 1 the group, which goes with the class in 19 of 20 images."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 2000)
    shown = np.where(rng.random(2000) < 0.95, labels, 1 - labels)
    features = np.stack([labels * 1.0, shown * 3.0], axis=1) + rng.normal(0, 0.6, (2000, 2))
    groups = 2 * labels + shown
    by_class = refit.refit_balanced(features, labels, labels, 2)
    by_group = refit.refit_balanced(features, labels, groups, 2)
    lean = [
        np.abs(np.diff(model.weight, axis=1)[:, 0]) * features.std(axis=0)
        for model in (by_class, by_group)
    ]
    assert lean[0][1] > lean[0][0]
    assert lean[1][1] < 0.5 * lean[1][0]
    worst = [
        refit.worst_group(model.logits(features).argmax(axis=1) == labels, groups)
        for model in (by_class, by_group)
    ]
    assert worst[1] > worst[0] + 0.2


def test_a_group_of_too_few_images_is_refused():
    features = np.zeros((10, 2))
    groups = np.array([0] * 7 + [1] * 3)
    with pytest.raises(InputError, match="group 1 has 3 images"):
        refit.refit_balanced(features, groups, groups, 2)


def test_subsets_have_as_many_of_each_group():
    groups = np.repeat([0, 1, 5], [40, 9, 20])
    rows = refit._balanced(groups, np.arange(69), np.random.default_rng(0))
    assert np.bincount(groups[rows]).tolist() == [9, 9, 0, 0, 0, 9]
    assert len(set(rows)) == 27


def test_activation_gap_is_that_of_medians_within_a_class():
    rng = np.random.default_rng(2)
    features = rng.standard_normal((300, 4))
    labels, predictions = rng.integers(0, 3, (2, 300))
    features[(labels == 1) & (predictions != 1), 2] += 3
    gap = refit.activation_gap(features, labels, predictions)
    expected = [
        np.median(features[(labels == c) & (predictions != c)], axis=0)
        - np.median(features[(labels == c) & (predictions == c)], axis=0)
        for c in range(3)
    ]
    np.testing.assert_allclose(gap, np.max(expected, axis=0) / features.std(axis=0))
    assert gap.argmax() == 2


def test_adjusted_logits_are_those_over_plain_numpy_grid():
    rng = np.random.default_rng(3)
    labels = rng.choice(3, 400, p=[0.7, 0.2, 0.1])
    logits = 4 * (np.eye(3)[labels] + rng.normal(0, 0.8, (400, 3)))
    adjusted = refit.adjust(logits, labels)(logits)
    share = np.bincount(labels) / 400

    def loss(temperature):
        share_of = refit.softmax(logits / temperature - np.log(share))
        own = -np.log(share_of[np.arange(400), labels])
        return (own / share[labels]).sum() / (1 / share[labels]).sum()

    grid = np.exp(np.linspace(-3, 3, 1201))
    best = grid[np.argmin([loss(temperature) for temperature in grid])]
    np.testing.assert_allclose(adjusted, logits / best - np.log(share), rtol=0.01, atol=0.02)
