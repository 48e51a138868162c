"""Tests of networks: counts, a direct call, ensembles, refusals, compilations."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emojax.data import map_images
from emojax.data.image_set import ImageSet
from emojax.distributed.mesh import make_mesh
from emojax.editing import edit
from emojax.errors import InputError
from emojax.probing.network import as_network
from emojax.training import evaluate
from emojax.training.evaluate import Evaluation, average


def test_evaluation_numbers():
    logits = np.array([[3.0, 1, 0], [0, 2, 1], [1, 1, 0], [0, 5, 1]], np.float32)
    result = evaluate.Evaluation(logits, np.array([0, 2, 1, 1]), ("a", "b", "c"))
    assert result.predictions.tolist() == [0, 1, 0, 1]  # a tie goes to the lower class
    assert (result.top(1), result.top(2)) == (0.5, 1.0)
    assert result.confusion().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]
    e = np.exp(np.float64(logits))
    assert result.nll() == pytest.approx(
        -np.log((e / e.sum(1, keepdims=True))[np.arange(4), [0, 2, 1, 1]]).mean()
    )
    summary = result.summary()
    assert summary["macro_recall"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert summary["correct_per_class"] == {"a": 1, "b": 1, "c": 0}


@pytest.mark.slow
def test_calibration_and_interval():
    """Four confidences in two of ten bins; Wilson's interval by its formula."""
    confidence = np.array([0.62, 0.68, 0.93, 0.97])
    logits = np.stack([np.log(confidence), np.log(1 - confidence)], axis=1).astype(np.float32)
    result = evaluate.Evaluation(logits, np.array([0, 1, 0, 0]), ("a", "b"))
    calibration = result.calibration(bins=10)
    assert [(row.images, row.accuracy) for row in calibration.bins] == [(2, 0.5), (2, 1.0)]
    np.testing.assert_allclose([row.start for row in calibration.bins], [0.6, 0.9])
    np.testing.assert_allclose([row.confidence for row in calibration.bins], [0.65, 0.95])
    assert calibration.error == pytest.approx((2 * 0.15 + 2 * 0.05) / 4)
    overflowed = dataclasses.replace(result, logits=np.float32([[np.inf, 0]] * 4))
    assert overflowed.calibration() is None
    z, share = 1.959964, 0.75
    middle = (share + z**2 / 8) / (1 + z**2 / 4)
    half = z / (1 + z**2 / 4) * np.sqrt(share * (1 - share) / 4 + z**2 / 64)
    np.testing.assert_allclose(result.accuracy_interval(), (middle - half, middle + half), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["resize40", "tencrop"])
def test_evaluate_equals_a_direct_call(tiny_vgg, blobs, protocol):
    few = blobs.first(50)
    x = jnp.asarray(few.images[0:50])
    if protocol == "resize40":
        want = tiny_vgg(tiny_vgg.preprocess(x))[0]
    else:
        crops = evaluate.tencrop_views(40)(x)
        want = jnp.stack([tiny_vgg(crops[:, i])[0] for i in range(10)]).mean(0)
    results = [
        evaluate.evaluate(tiny_vgg, few, protocol=protocol, batch=batch, tile=4)
        for batch in (7, 64)
    ]
    np.testing.assert_allclose(results[0].logits, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(results[0].logits, results[1].logits)


def test_evaluate_refusals(tiny_vgg, blobs):
    images = blobs.images[0:20]
    with pytest.raises(InputError, match="has no labels"):
        evaluate.evaluate(tiny_vgg, ImageSet.from_arrays(images))
    with pytest.raises(InputError, match="has 2 classes, the network 7"):
        evaluate.evaluate(tiny_vgg, ImageSet.from_arrays(images, [0] * 20, ("a", "b")))


@pytest.mark.slow
def test_average_is_the_mean_of_probabilities():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3, 10, 7)).astype(np.float32)
    labels, names = rng.integers(0, 7, 10).astype(np.int32), tuple("abcdefg")
    found = average(*(Evaluation(each, labels, names) for each in logits))
    softmax = np.exp(np.float64(logits))
    softmax /= softmax.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(np.exp(found.logits), softmax.mean(axis=0), rtol=1e-5)


@pytest.mark.slow
def test_networks_of_one_architecture_are_compiled_once(tiny_vgg, blobs):
    """As after each epoch of training: another network object, other weights, the same program."""
    few = blobs.first(30)
    edited = edit.edit(tiny_vgg, "lin2", np.linspace(0.5, 2, 20))
    map_images._cached_program.cache_clear()
    plain, other = (evaluate.evaluate(model, few, tile=4) for model in (tiny_vgg, edited))
    assert np.abs(plain.logits - other.logits).max() > 0.01
    graphdef = nnx.split(edited)[0]
    program = map_images._cached_program(
        evaluate._module_logits(graphdef, "resize40"), make_mesh(), 4
    )
    assert (map_images._cached_program.cache_info().misses, program._cache_size()) == (1, 1)


def test_a_wrapped_network_is_traced_once(tiny_vgg, blobs):
    network = as_network(tiny_vgg)
    traced = []

    def counting(params, images):
        traced.append(images.shape)
        return network.apply(params, images)

    counted = dataclasses.replace(network, apply=counting)
    first = evaluate.evaluate(counted, blobs.first(30), tile=4)
    count = len([shape for shape in traced if shape[0] == 4])
    again = evaluate.evaluate(counted, blobs.first(30), tile=4)
    np.testing.assert_array_equal(first.logits, again.logits)
    assert count == len([shape for shape in traced if shape[0] == 4]) > 0
