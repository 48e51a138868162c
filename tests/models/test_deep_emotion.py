"""Deep-Emotion and its spatial transformer, against torch where it is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx

from emojax.models import deep_emotion
from emojax.models.deep_emotion import DeepEmotion, DeepEmotionConfig
from emojax.ops import image

NO_TORCH = "the oracle extra (torch) is not installed"
EXHAUSTIVE = pytest.mark.exhaustive


@nnx.jit
def run(model, images):
    return model(images)


@pytest.fixture(scope="module", params=[1, 3], ids=["gray", "rgb"])
def arrays(request):
    return reference.deep_emotion_arrays(channels=request.param)


@pytest.fixture(scope="module")
def batch(arrays):
    return reference.smooth(arrays["conv1.weight"].shape[1])


def in_float64(model):
    """The same network with its parameters in float64; for use under `jax.enable_x64`."""
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), state))


@pytest.mark.long
def test_equals_torch(arrays, batch):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    theirs = reference.torch_deep_emotion(torch, arrays)
    with torch.no_grad():
        theta, want = theirs(reference.channels_first(torch, batch))
    assert np.ptp(theta.numpy(), axis=0).min() > 0.02  # each image has its own transform
    model = deep_emotion.from_torch_state_dict(arrays)
    assert (
        reference.relative(model.transform(jnp.asarray(batch)), theta.numpy().reshape(-1, 2, 3))
        <= 1e-5
    )
    logits, taps = run(model, jnp.asarray(batch))
    assert tuple(want) == deep_emotion.LAYERS
    for layer in deep_emotion.LAYERS:
        assert reference.relative(taps[layer], reference.channels_last(want[layer])) <= 1e-5, layer
    np.testing.assert_array_equal(taps["fc2"], logits)


@pytest.mark.long
@pytest.mark.parametrize("mode", [pytest.param("eval", marks=EXHAUSTIVE), "train"])
def test_gradients_equal_torchs_in_float64(arrays, batch, mode):
    """In float32 a pixel on the edge of a ReLU or pooling window may fall on either side."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    theirs = reference.torch_deep_emotion(torch, arrays)
    theirs, labels = theirs.double().train(mode == "train"), np.arange(len(batch)) % 7
    want_taps = theirs(reference.channels_first(torch, batch.astype(np.float64)))[1]
    torch.nn.functional.cross_entropy(want_taps["fc2"], torch.from_numpy(labels)).backward()
    want = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}

    def loss(model, images):
        logits, taps = model(images)
        return -(jax.nn.log_softmax(logits) * np.eye(7)[labels]).sum(axis=1).mean(), taps

    with jax.enable_x64(True):
        model = in_float64(deep_emotion.from_torch_state_dict(arrays))
        model.train() if mode == "train" else model.eval()
        gradients, taps = nnx.jit(nnx.grad(loss, has_aux=True))(
            model, jnp.asarray(batch, jnp.float64)
        )
        nnx.update(
            model, gradients
        )  # where the weights were, so that the gradients take their names and axes
        got = deep_emotion.to_torch_state_dict(model)
    for layer, tap in want_taps.items():
        assert reference.relative(taps[layer], reference.channels_last(tap)) <= 1e-12, layer
    for name, gradient in want.items():
        if (name, mode) == (
            "conv4.bias",
            "train",
        ):  # the norm takes any bias away again: its gradient is rounding
            assert max(np.abs(gradient).max(), np.abs(got[name]).max()) <= 1e-12
        else:
            assert reference.relative(got[name], gradient) <= 1e-11, name


@pytest.mark.long
def test_a_new_network_looks_at_the_image_as_it_is():
    model = nnx.jit(lambda: DeepEmotion(DeepEmotionConfig(), rngs=nnx.Rngs(0)))()
    model.eval()
    images = np.random.default_rng(9).uniform(-1, 1, (3, 48, 48, 1)).astype(np.float32)
    np.testing.assert_array_equal(model.transform(images), np.tile(np.eye(2, 3), (3, 1, 1)))
    np.testing.assert_allclose(run(model, images)[1]["conv1"], model.conv1(images), atol=1e-5)
    gradient = nnx.jit(nnx.grad(lambda m, x: m(x)[0].var()))(model, images)
    assert (
        np.abs(gradient["fc_loc"]["layers"][2]["kernel"][...]).max() > 0
    )  # the transformer can learn from here
    for name, array in deep_emotion.to_torch_state_dict(
        model
    ).items():  # PyTorch's range of starting weights
        if array.ndim > 1 and name != "fc_loc.2.weight":
            bound = array[0].size ** -0.5
            assert 0.9 * bound < np.abs(array).max() <= bound, name


@pytest.mark.slow
def test_dropout_only_while_training(arrays, batch):
    model = deep_emotion.from_torch_state_dict(arrays)
    drop = nnx.jit(lambda m, x, seed: m(x, rngs=nnx.Rngs(dropout=jax.random.key(seed)))[1])
    np.testing.assert_array_equal(drop(model, batch, 1)["fc2"], run(model, batch)[0])
    model.train()
    plain, one, two = run(model, batch)[1], drop(model, batch, 1), drop(model, batch, 2)
    np.testing.assert_array_equal(one["conv4"], plain["conv4"])
    assert reference.relative(one["fc1"], plain["fc1"]) > 0.1
    assert reference.relative(one["fc1"], two["fc1"]) > 0.1


@pytest.mark.slow
def test_training_moves_the_statistics_and_evaluating_does_not(arrays, batch):
    model, before = deep_emotion.from_torch_state_dict(arrays), arrays["norm.running_mean"]
    run(model, batch)
    np.testing.assert_array_equal(model.norm.mean[...], before)
    model.train()
    raw = run(model, batch)[1]["conv4"]
    np.testing.assert_allclose(
        model.norm.mean[...], 0.9 * before + 0.1 * raw.mean((0, 1, 2)), atol=1e-6
    )


def abstract(**settings):
    """A network without values, for what the settings alone decide."""
    return nnx.eval_shape(lambda: DeepEmotion(DeepEmotionConfig(**settings), rngs=nnx.Rngs(0)))


@pytest.mark.slow
def test_preprocess():
    faces = np.random.default_rng(7).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
    gray, colour = abstract(channels=1), abstract(channels=3)
    np.testing.assert_allclose(colour.preprocess(faces), faces / 127.5 - 1, atol=1e-6)
    luma = np.asarray(image.to_gray(faces))
    np.testing.assert_allclose(gray.preprocess(faces), luma / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(
        colour.preprocess(luma), np.repeat(gray.preprocess(luma), 3, axis=-1)
    )


@pytest.mark.parametrize("antialias", [False, True])
def test_preprocess_resizes_as_torch_does(antialias):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    faces = np.random.default_rng(8).integers(0, 256, (2, 96, 60, 3), dtype=np.uint8)
    unit = reference.channels_first(torch, faces.astype(np.float32) / 255)
    want = reference.channels_last(
        torch.nn.functional.interpolate(unit, (48, 48), mode="bilinear", antialias=antialias)
    )
    got = abstract(channels=3).preprocess(faces, antialias=antialias)
    np.testing.assert_allclose(got, (want - 0.5) / 0.5, atol=1e-5)


def test_state_dict_round_trip(arrays):
    again = deep_emotion.to_torch_state_dict(deep_emotion.from_torch_state_dict(arrays))
    assert set(again) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype


def test_settings_are_read_off_the_shapes():
    model = deep_emotion.from_torch_state_dict(reference.deep_emotion_arrays(channels=3, classes=5))
    assert model.config == DeepEmotionConfig(channels=3, classes=5)
    assert model.config.units() == {
        "conv1": 10,
        "conv2": 10,
        "conv3": 10,
        "conv4": 10,
        "fc1": 50,
        "fc2": 5,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("fc_loc.2.bias"), r"1 parameters are missing: fc_loc\.2\.bias"),
        (
            lambda a: a.update({"localization.1.weight": np.ones(3)}),
            r"1 names are not of this network: localization\.1\.weight",
        ),
        (
            lambda a: a.update({"conv2.num_batches_tracked": np.ones(())}),
            "1 names are not of this network",
        ),
        (
            lambda a: a.update({"fc1.weight": np.ones((50, 640))}),
            r"fc1\.weight has shape \(50, 640\), not \(50, 810\)",
        ),
        (
            lambda a: a.update({"norm.running_var": np.full(10, np.nan)}),
            "norm.running_var holds values that are not finite",
        ),
        (lambda a: a.pop("conv1.weight"), r"not a Deep-Emotion state dict: 'conv1\.weight'"),
        (lambda a: a.update({"conv1.weight": np.ones(())}), "not a Deep-Emotion state dict"),
        (
            lambda a: a.update({"conv1.weight": np.ones((10, 2, 3, 3))}),
            r"1 channel \(gray\) or 3 \(RGB\), not 2",
        ),
    ],
)
def test_refuses_other_weights(change, message):
    arrays = reference.deep_emotion_arrays()
    change(arrays)
    with pytest.raises(ValueError, match=message):
        deep_emotion.from_torch_state_dict(arrays)
