"""Networks of one architecture are equal programs; others are never mixed up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx

from emojax.editing import edit
from emojax.errors import InputError
from emojax.models import deep_emotion
from emojax.probing import probe
from emojax.probing.network import _check_model, as_network, pooled_taps, resolve_layers


def test_networks_of_one_architecture_are_the_same_program(tiny_vgg):
    network = as_network(tiny_vgg)
    edited = as_network(edit.edit(tiny_vgg, "lin2", np.linspace(0.5, 2, 20)))
    assert network.key != edited.key
    assert network.reusable
    program = pooled_taps(network, ["lin2"], "avg")
    assert program == pooled_taps(edited, ["lin2"], "avg")
    assert hash(program) == hash(pooled_taps(edited, ["lin2"], "avg"))
    assert program != pooled_taps(as_network(tiny_vgg, taps="relu"), ["lin2"], "avg")
    assert program != pooled_taps(network, ["lin2"], "max")


def test_preprocessing_of_a_module_holds_no_parameters(tiny_vgg, blobs):
    network = as_network(tiny_vgg)
    images = jnp.asarray(blobs.images[0:3])
    np.testing.assert_array_equal(network.preprocess(images), tiny_vgg.preprocess(images))
    leaves = jax.tree.leaves(nnx.state(network.preprocess.module))
    assert leaves
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


def test_antialias_is_another_preprocessing_key_and_program(tiny_vgg, blobs, golden):
    plain, smooth = as_network(tiny_vgg), as_network(tiny_vgg, antialias=True)
    assert (plain.antialias, smooth.antialias) == (False, True)
    assert plain.key != smooth.key
    assert plain.key == as_network(tiny_vgg, antialias=False).key
    programs = [pooled_taps(network, ["lin2"], "avg") for network in (plain, smooth)]
    assert programs[0] != programs[1]
    assert programs[1] == pooled_taps(as_network(tiny_vgg, antialias=True), ["lin2"], "avg")
    data = np.load(golden / "preprocess.npz")
    images = jnp.asarray(data["images_uint8"])[..., None]
    for network in (plain, smooth):
        want = data[f"bilinear40_antialias_{network.antialias}"]
        np.testing.assert_allclose(network.preprocess(images)[..., 0], want, atol=4e-6)


def test_antialias_is_refused_where_it_is_no_choice(tiny_vgg, tiny_clip):
    for model, own in ((lambda x: (x, {}), None), (tiny_vgg, lambda x: x)):
        with pytest.raises(InputError, match=r"antialias .* is not a choice of"):
            as_network(model, preprocess=own, antialias=True)
    wrapped = as_network(tiny_vgg)
    with pytest.raises(InputError, match="of a network that is wrapped already"):
        probe.probe(wrapped, np.zeros((4, 48, 48, 1), np.uint8), tiny_clip, antialias=True)


def test_functions_and_unhashable_settings_are_not_reused(tiny_vgg):
    class Strange(nnx.Module):
        def __init__(self):
            self.settings = nnx.static({"a": 1}) if hasattr(nnx, "static") else {1, 2}
            self.scale = nnx.Param(jnp.ones(2))

        def __call__(self, images):
            return images.mean((1, 2)), {"all": images.mean((1, 2)) * self.scale[...]}

    strange = as_network(Strange())
    assert not strange.reusable
    assert strange.tap_shapes((4, 4, 1)) == {"all": (1, 2)}
    assert not as_network(lambda images: (images, {})).reusable
    assert not as_network(tiny_vgg, preprocess=lambda images: images).reusable


def test_layers_by_pattern():
    available = ("b2", "a1", "b1")
    assert resolve_layers(["b*", "a1"], available) == available
    with pytest.raises(InputError, match="no layer 'c1'"):
        resolve_layers(["c1"], available)


@pytest.fixture(scope="module", params=[1, 3], ids=["gray", "rgb"])
def arrays(request):
    return reference.deep_emotion_arrays(channels=request.param)


def test_network_for_the_probe(arrays):
    model = deep_emotion.from_torch_state_dict(arrays)
    network = as_network(model)
    shapes = network.tap_shapes((96, 64, 3))
    assert tuple(shapes) == deep_emotion.LAYERS
    assert {name: shape[-1] for name, shape in shapes.items()} == model.config.units()
    assert (shapes["conv2"], shapes["conv4"], shapes["fc1"]) == (
        (1, 44, 44, 10),
        (1, 18, 18, 10),
        (1, 50),
    )
    assert network.key == as_network(deep_emotion.from_torch_state_dict(arrays)).key


class FromTorch(type("Module", (), {"__module__": "torch.nn.modules.module"})):
    """What a PyTorch module looks like from outside."""

    def __call__(self, images):
        return images


class Linen(type("Module", (), {"__module__": "flax.linen.module"})):
    """What a flax.linen module looks like from outside."""


@pytest.mark.parametrize(
    ("model", "door"),
    [
        (FromTorch(), r"FromTorch is a PyTorch module.*emojax\.collect.*emojax\.load_network"),
        (Linen(), r"lambda images: model\.apply\(params, images\)"),
        ("vit.safetensors", r"a str is no network; .* emojax\.load_network"),
    ],
    ids=["torch", "linen", "a name"],
)
def test_what_jax_cannot_run_is_shown_the_door(model, door):
    with pytest.raises(InputError, match=door):
        _check_model(model)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda x: x, "the network returns an array alone; it must return"),
        (lambda x: (x, {}), "the network returns no taps; it must return"),
        (lambda x: (x, x), "the network returns taps that are no dict; it must return"),
        (lambda x: (x, {"a": x[0, 0, 0, 0]}), r"tap 'a' is \(\), not \[B, U\]"),
        (lambda x: (x, {"a": [x]}), "tap 'a' is list, not"),
    ],
    ids=["logits alone", "empty", "an array", "a number", "a list"],
)
def test_a_network_without_taps_is_told_what_they_are(returned, message):
    with pytest.raises(InputError, match=message):
        as_network(returned).tap_shapes((4, 4, 1))
