"""Evaluate and edit: against plain references, and the same on every batch and device."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emojax.data import map_images
from emojax.data.image_set import ImageSet
from emojax.distributed.mesh import make_mesh
from emojax.editing import edit
from emojax.errors import InputError
from emojax.models import vgg
from emojax.training import evaluate


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


@pytest.mark.parametrize("scope", ["weights", "weights_and_bias"])
@pytest.mark.parametrize("layer", vgg.LAYERS)
def test_sweep_equals_evaluating_edited_parameters(tiny_vgg, blobs, layer, scope):
    few, units = blobs.first(60), tiny_vgg.config.units()[layer]
    gains = np.random.default_rng(0).uniform(0.5, 2, (3, units)).astype(np.float32)
    gains[0] = 1.0
    swept = edit.sweep(tiny_vgg, few, layer, gains, scope=scope, tile=4)
    plain = evaluate.evaluate(tiny_vgg, few, tile=4)
    np.testing.assert_array_equal(swept[0].predictions, plain.predictions)
    for setting in range(3):
        want = evaluate.evaluate(
            edit.edit(tiny_vgg, layer, gains[setting], scope=scope), few, tile=4
        )
        np.testing.assert_array_equal(swept[setting].predictions, want.predictions)
        np.testing.assert_allclose(swept[setting].logits, want.logits, rtol=1e-4, atol=1e-5)


def test_sweep_with_ten_crops(tiny_vgg, blobs):
    few, gains = blobs.first(12), np.full((1, 20), 1.5, np.float32)
    swept = edit.sweep(tiny_vgg, few, "lin2", gains, protocol="tencrop", tile=4)
    want = evaluate.evaluate(edit.edit(tiny_vgg, "lin2", gains[0]), few, protocol="tencrop", tile=4)
    np.testing.assert_allclose(swept[0].logits, want.logits, rtol=1e-4, atol=1e-5)


def test_threshold_grid_cells(tiny_vgg, blobs):
    few, scores = blobs.first(40), np.linspace(-1, 1, 20).astype(np.float32)
    cells = edit.threshold_grid(tiny_vgg, few, "lin2", scores, (-2.0, 0.0), (1.0, 3.0), tile=4)
    assert [(c.tau, c.factor) for c in cells] == [(-2, 1), (-2, 3), (0, 1), (0, 3)]
    np.testing.assert_array_equal(
        cells[0].evaluation.logits, cells[2].evaluation.logits
    )  # factor 1: nothing changes
    gains = np.where(scores > 0, 3.0, 1 / 3).astype(np.float32)
    want = evaluate.evaluate(edit.edit(tiny_vgg, "lin2", gains), few, tile=4)
    np.testing.assert_array_equal(cells[3].evaluation.predictions, want.predictions)


def test_edit_refusals(tiny_vgg):
    for layer, gains, message in (
        ("lin9", np.ones(20), "no layer 'lin9'; did you mean"),
        ("lin2", np.ones(21), "layer lin2 has 20 units"),
        ("lin2", np.full(20, np.inf), "not all finite"),
    ):
        with pytest.raises(InputError, match=message):
            edit.edit(tiny_vgg, layer, gains)


def test_networks_of_one_architecture_are_compiled_once(tiny_vgg, blobs):
    """As after each epoch of training: another network object, other weights, the same program."""
    few = blobs.first(30)
    edited = edit.edit(tiny_vgg, "lin2", np.linspace(0.5, 2, 20))
    map_images._cached_program.cache_clear()
    plain, other = (evaluate.evaluate(model, few, tile=4) for model in (tiny_vgg, edited))
    assert np.abs(plain.logits - other.logits).max() > 0.01
    graphdef = nnx.split(edited)[0]
    program = map_images._cached_program(evaluate._logits_of(graphdef, "resize40"), make_mesh(), 4)
    assert (map_images._cached_program.cache_info().misses, program._cache_size()) == (1, 1)
