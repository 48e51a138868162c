"""Weights files of VGGNets and Deep-Emotions, and the one that ships."""

from pathlib import Path

import numpy as np
import pytest
import reference
from flax import nnx
from safetensors.numpy import save_file

import emojax
from emojax.data import fer2013, weights
from emojax.data.named_weights import NAMED
from emojax.data.provenance import read_provenance
from emojax.errors import InputError
from emojax.models import deep_emotion, vgg
from emojax.settings import Target, Train


@pytest.mark.slow
def test_weight_files(tiny_vgg, tmp_path):
    path = tmp_path / "vgg.safetensors"
    weights.save_vgg(tiny_vgg, path)
    again = weights.load_vgg(path)
    for name, array in vgg.to_torch_state_dict(again).items():
        np.testing.assert_array_equal(array, vgg.to_torch_state_dict(tiny_vgg)[name])
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"vgg.safetensors: not a readable safetensors file"):
        weights.load_vgg(path)
    save_file({"a": np.ones(2, np.float32)}, path)
    with pytest.raises(InputError, match=r"vgg.safetensors: this is not a VGGNet state dict"):
        weights.load_vgg(path)
    with pytest.raises(InputError, match="no weights file"):
        weights.load_vgg(tmp_path / "none.pt")


def test_published_checkpoint(tiny_vgg, tmp_path):
    torch = pytest.importorskip("torch", reason="the oracle extra (torch) is not installed")
    state = {name: torch.tensor(array) for name, array in vgg.to_torch_state_dict(tiny_vgg).items()}
    torch.save({"logs": {"acc": [1.0]}, "params": state}, tmp_path / "best")
    loaded = weights.load_vgg(tmp_path / "best")
    np.testing.assert_array_equal(
        vgg.to_torch_state_dict(loaded)["lin2.weight"], state["lin2.weight"].numpy()
    )

    torch.save(
        {"params": state, "code": np.random.default_rng}, tmp_path / "evil"
    )  # needs arbitrary unpickling
    with pytest.raises(InputError, match="weights_only=True"):
        weights.load_vgg(tmp_path / "evil")
    torch.save([1, 2], tmp_path / "list")
    with pytest.raises(InputError, match="no state dict"):
        weights.load_vgg(tmp_path / "list")


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_deep_emotion_that_torch_saved(channels, tmp_path):
    torch = pytest.importorskip("torch", reason="the oracle extra (torch) is not installed")
    arrays, batch = reference.deep_emotion_arrays(channels=channels), reference.smooth(channels)
    theirs = reference.torch_deep_emotion(torch, arrays)
    torch.save(theirs.state_dict(), tmp_path / "deep_emotion-20-128-0.001.pt")
    model = emojax.load_deep_emotion(tmp_path / "deep_emotion-20-128-0.001.pt")
    with torch.no_grad():
        want = theirs(reference.channels_first(torch, batch))[1]["fc2"].numpy()
    assert reference.relative(nnx.jit(model)(batch)[0], want) <= 1e-5


@pytest.mark.parametrize("channels", [1, 3])
def test_deep_emotion_weight_files(channels, tmp_path):
    arrays = reference.deep_emotion_arrays(channels=channels)
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


@pytest.mark.slow
def test_the_network_for_real_faces_opens_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = emojax.load_network("fer2013-compact")
    assert network.config.class_names == fer2013.CLASSES
    logits, _ = network(network.preprocess(np.full((2, 48, 48, 1), 99, np.uint8)))
    assert np.isfinite(np.asarray(logits)).all()
    uses = read_provenance(NAMED["fer2013-compact"])
    assert [(use.name, use.role) for use in uses] == [
        ("FER2013 training", "trained"),
        ("FER2013 public_test", "chosen"),
    ]
    assert Target(weights=Path("fer2013-compact")).weights == NAMED["fer2013-compact"]
    assert Train(start=Path("fer2013-compact")).start == NAMED["fer2013-compact"]
    (tmp_path / "fer2013-compact").write_bytes(b"a file of that name")
    assert Target(weights=Path("fer2013-compact")).weights == Path("fer2013-compact")
