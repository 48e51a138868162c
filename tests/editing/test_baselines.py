"""Gains learned from labels: they lower the loss, are pulled to one, and find what was hidden."""

import functools

import numpy as np
import pytest
from layers import float64_logits, random_layer

from emojax.editing.activations import PreBiasActivations, pre_bias_activations
from emojax.editing.baselines import learn_gains
from emojax.editing.sweep import Sweep


@pytest.fixture(scope="module")
def read(tiny_vgg, blobs):
    """Activations of any layer, computed once per test session."""
    few = blobs.first(60)
    return functools.cache(lambda layer: pre_bias_activations(tiny_vgg, few, layer, tile=4))


@pytest.mark.slow
@pytest.mark.parametrize(
    "layer", [*(pytest.param(name, marks=pytest.mark.long) for name in ("conv4b", "lin1")), "lin2"]
)
def test_learned_gains_lower_the_loss_and_are_pulled_to_one(read, layer):
    found = read(layer)
    before = Sweep(found).gains(np.ones((1, found.units))).nll[0]
    free, held = (
        learn_gains(found, pull=pull, epochs=30, batch=16, rate=0.02) for pull in (0.01, 1e4)
    )
    assert Sweep(found).gains(free[None]).nll[0] < before - 0.01
    assert (free > 0).all()
    np.testing.assert_allclose(held, 1.0, atol=0.02)
    np.testing.assert_array_equal(
        free, learn_gains(found, pull=0.01, epochs=30, batch=16, rate=0.02)
    )


@pytest.mark.slow
def test_learned_gains_find_what_was_hidden():
    """Gains that made a layer's logits are found again, nearly, from its own predictions."""
    rng = np.random.default_rng(0)
    layer = random_layer(rng, images=4000, units=6, classes=4)
    true = np.array([0.4, 3.0, 1.0, 1.0, 2.0, 0.5], np.float32)
    logits = 3 * float64_logits(layer, true, "weights")
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1).astype(np.int32)
    head = layer.params._replace(weight=3 * layer.params.weight, offset=3 * layer.params.offset)
    made = PreBiasActivations(
        "lin2", layer.values, labels, layer.classes, head, layer.weight_sums, "made", "made"
    )
    found = learn_gains(made, pull=0.0, epochs=40, rate=0.05)
    np.testing.assert_allclose(found, true, rtol=0.25)
