"""Deep-Emotion's weight files and its probe."""

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from safetensors.numpy import save_file

import emojax
from emojax.data import weights
from emojax.errors import InputError
from emojax.models import deep_emotion
from emojax.ops import image
from emojax.probing.network import as_network

NO_TORCH = "the oracle extra (torch) is not installed"


@nnx.jit
def run(model, images):
    return model(images)


@pytest.fixture(scope="module", params=[1, 3], ids=["gray", "rgb"])
def arrays(request):
    return reference.deep_emotion_arrays(channels=request.param)


@pytest.fixture(scope="module")
def batch(arrays):
    """Images as smooth as faces, in the network's range: [6, 48, 48, C]."""
    coarse = np.random.default_rng(0).uniform(-1, 1, (6, 12, 12, arrays["conv1.weight"].shape[1]))
    return np.asarray(image.resize_bilinear(jnp.asarray(coarse, jnp.float32), (48, 48)))


def test_weight_files(arrays, tmp_path):
    path = tmp_path / "deep_emotion.safetensors"
    emojax.save_deep_emotion(deep_emotion.from_torch_state_dict(arrays), path)
    again = deep_emotion.to_torch_state_dict(emojax.load_deep_emotion(path))
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)
    with pytest.raises(
        InputError, match=r"deep_emotion\.safetensors: this is not a VGGNet state dict"
    ):
        weights.load_vgg(path)
    save_file({"a": np.ones(2, np.float32)}, path)
    with pytest.raises(
        InputError, match=r"deep_emotion\.safetensors: this is not a Deep-Emotion state dict"
    ):
        weights.load_deep_emotion(path)
    with pytest.raises(InputError, match="no weights file"):
        weights.load_deep_emotion(tmp_path / "none.pt")


def test_file_that_torch_saved(arrays, batch, tmp_path):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    theirs = reference.torch_deep_emotion(torch, arrays)
    torch.save(theirs.state_dict(), tmp_path / "deep_emotion-20-128-0.001.pt")
    model = emojax.load_deep_emotion(tmp_path / "deep_emotion-20-128-0.001.pt")
    with torch.no_grad():
        want = theirs(reference.channels_first(torch, batch))[1]["fc2"].numpy()
    assert reference.relative(run(model, batch)[0], want) <= 1e-5


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


def test_probe(tiny_clip, blobs):
    model = deep_emotion.from_torch_state_dict(reference.deep_emotion_arrays())
    images = blobs.images[:24]
    record = emojax.probe(
        model, images, tiny_clip, layers=["conv4", "fc2"], top_k=5, batch=16, tile=8
    )
    taps = run(model, model.preprocess(images))[1]
    pooled = np.concatenate(
        [np.asarray(taps["conv4"]).mean((1, 2)), np.asarray(taps["fc2"])], axis=1
    )
    np.testing.assert_allclose(record.top_k(5).values, -np.sort(-pooled, axis=0)[:5].T, atol=1e-5)
