"""What is erased from a last layer is gone from it, and nothing else of note."""

import numpy as np
import pytest

from emojax.editing.erase import erase, fit_bias, within
from emojax.editing.refit import Linear, softmax


@pytest.fixture(scope="module")
def shortcut():
    """Unit 0 and 1 mix the class and a nuisance, 2 tells the class, 3 nothing; two classes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 3000)
    nuisance = np.where(rng.random(3000) < 0.9, labels, 1 - labels)
    clean = np.stack([nuisance, nuisance + 0.3 * labels, labels, np.zeros(3000)], axis=1)
    features = 2.0 * clean + rng.normal(0, 0.7, (3000, 4))
    similarities = (nuisance + rng.normal(0, 0.2, 3000))[:, None]
    weight = np.array([[-1.0, 1.0], [-1.0, 1.0], [-1.0, 1.0], [0.5, 0.2]])
    return features, labels, nuisance, similarities, Linear(weight, np.array([3.0, -3.0]))


def test_logits_no_longer_go_with_the_concept_within_a_class(shortcut):
    features, labels, _, similarities, last = shortcut
    edited = erase(last, features, labels, similarities)

    def together(layer):
        logits = within(layer.logits(features), labels)
        return np.abs(logits.T @ within(similarities, labels)).max() / len(labels)

    assert together(last) > 0.1
    assert together(edited) < 1e-9


def test_images_that_the_nuisance_misleads_are_put_right(shortcut):
    features, labels, nuisance, similarities, last = shortcut
    edited = erase(last, features, labels, similarities)
    misled = nuisance != labels

    def right(layer):
        return (layer.logits(features).argmax(axis=1) == labels)[misled].mean()

    assert right(edited) > right(last) + 0.3


def test_several_concepts_are_erased_at_once(shortcut):
    features, labels, _, similarities, last = shortcut
    rng = np.random.default_rng(1)
    second = features[:, 2:3] + rng.normal(0, 0.5, (3000, 1))
    both = np.concatenate([similarities, second], axis=1)
    logits = within(erase(last, features, labels, both).logits(features), labels)
    np.testing.assert_allclose(logits.T @ within(both, labels) / len(labels), 0, atol=1e-9)


def test_two_words_for_one_thing_erase_what_one_does(shortcut):
    features, labels, _, similarities, last = shortcut
    once = erase(last, features, labels, similarities)
    unseen = np.ones_like(similarities)  # the same for all images: there is nothing to erase
    more = np.concatenate([similarities, 2 * similarities, unseen], axis=1)
    np.testing.assert_allclose(erase(last, features, labels, more).weight, once.weight, atol=1e-9)
    np.testing.assert_array_equal(erase(last, features, labels, unseen).weight, last.weight)
    still = np.ones_like(features)
    assert np.isfinite(erase(last, still, labels, similarities).weight).all()


def test_biases_are_those_of_least_loss(shortcut):
    features, labels, _, _, last = shortcut
    rare = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:100]])
    features, labels = features[rare], labels[rare]
    fitted = fit_bias(last, features, labels)
    np.testing.assert_array_equal(fitted.weight, last.weight)

    def loss(bias):
        share = softmax(features @ last.weight + bias)
        return -np.log(share[np.arange(len(labels)), labels]).mean()

    best = loss(fitted.bias)
    for step in (0.05, -0.05):
        assert loss(fitted.bias + np.array([step, 0.0])) > best
    # The classes stay as frequent as they are.
    shares = softmax(fitted.logits(features)).mean(axis=0)
    np.testing.assert_allclose(shares, np.bincount(labels) / len(labels), atol=1e-6)


def test_a_class_without_images_keeps_its_bias(shortcut):
    features, labels, _, _, last = shortcut
    three = Linear(np.insert(last.weight, 1, 0.0, axis=1), np.array([3.0, 7.0, -3.0]))
    fitted = fit_bias(three, features, 2 * labels)
    two = fit_bias(last, features, labels)
    np.testing.assert_allclose(fitted.bias, [two.bias[0], 7.0, two.bias[1]], atol=1e-9)


def test_values_within_a_class_have_mean_zero():
    rng = np.random.default_rng(2)
    labels = np.array([0, 0, 2, 2, 2])  # a class without images between
    centred = within(rng.normal(size=(5, 3)), labels)
    for label in (0, 2):
        np.testing.assert_allclose(centred[labels == label].mean(axis=0), 0, atol=1e-15)
