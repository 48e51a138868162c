"""The compact network against float64 numpy and torch; cut, edited and swept as VGGNet is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import generated_images
from flax import nnx

import emojax
from emojax.cli import main
from emojax.data import weights
from emojax.editing.activations import pre_bias_activations
from emojax.editing.sweep import Sweep
from emojax.errors import InputError
from emojax.models import compact, vgg
from emojax.models.compact import CompactConfig, CompactNet
from emojax.ops.gains import with_scope
from emojax.training.evaluate import evaluate

TINY = CompactConfig(widths=(4, 6, 8, 10), hidden=12)


def relative(got, want):
    return np.abs(np.asarray(got) - np.asarray(want)).max() / np.abs(np.asarray(want)).max()


@pytest.fixture(scope="module")
def network() -> CompactNet:
    """A random network whose BatchNorm statistics and biases are not trivial."""
    made = nnx.jit(lambda: CompactNet(TINY, rngs=nnx.Rngs(0)))()
    arrays = compact.to_torch_state_dict(made)
    rng = np.random.default_rng(5)
    for name, array in arrays.items():
        if array.ndim == 1:
            noise = rng.normal(0, 0.2, array.shape).astype(np.float32)
            arrays[name] = array + (abs(noise) if name.endswith("var") else noise)
    return compact.from_torch_state_dict(arrays)


@pytest.fixture(scope="module")
def batch():
    return np.random.default_rng(0).normal(size=(5, 48, 48, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def images():
    return generated_images(24, 3, "faces")


def plain_forward(arrays, x):
    """In float64 numpy, channels first: [B, H, W, 1] → logits, raw outputs, outputs after ReLU."""
    x = np.float64(x).transpose(0, 3, 1, 2)
    raw, relu = {}, {}

    def conv(name, x, stride=1):
        kernel = np.float64(arrays[f"{name}.weight"])
        side = kernel.shape[-1]
        padded = np.pad(x, ((0, 0), (0, 0), (side // 2,) * 2, (side // 2,) * 2))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(2, 3))
        out = np.einsum("bihwkl,oikl->bohw", windows[:, :, ::stride, ::stride], kernel)
        raw[name] = out + arrays[f"{name}.bias"][:, None, None]
        scale, bias, mean, var = (
            np.float64(arrays[f"{name}_norm.{leaf}"])[:, None, None]
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        return (raw[name] - mean) / np.sqrt(var + 1e-5) * scale + bias

    def pool(x):
        return x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).max((3, 5))

    relu["stem"] = x = np.maximum(conv("stem", x, stride=2), 0)
    for stage in "123":
        x = pool(x) if stage != "1" else x
        relu[f"conv{stage}"] = into = np.maximum(conv(f"conv{stage}", x), 0)
        relu[f"res{stage}a"] = np.maximum(conv(f"res{stage}a", into), 0)
        relu[f"res{stage}b"] = x = np.maximum(conv(f"res{stage}b", relu[f"res{stage}a"]) + into, 0)
    x = x.mean((2, 3))
    for name in ("hidden", "logits"):
        raw[name] = x @ np.float64(arrays[f"{name}.weight"]).T + arrays[f"{name}.bias"]
        x = relu[name] = np.maximum(raw[name], 0) if name == "hidden" else raw[name]

    def channels_last(outputs):
        return {n: a.transpose(0, 2, 3, 1) if a.ndim == 4 else a for n, a in outputs.items()}

    return x, channels_last(raw), channels_last(relu)


@pytest.mark.slow
@pytest.mark.parametrize("side", [48, pytest.param(40, marks=pytest.mark.long)])
def test_equals_float64_numpy(network, batch, side):
    x = batch[:, :side, :side]
    want, raw, relu = plain_forward(compact.to_torch_state_dict(network), x)
    for taps, wanted in (("raw", raw), ("relu", relu)):
        logits, outputs = network(jnp.asarray(x), taps=taps)
        assert relative(logits, want) <= 1e-5
        assert tuple(outputs) == compact.LAYERS
        for layer in compact.LAYERS:
            assert relative(outputs[layer], wanted[layer]) <= 1e-5, layer


@pytest.mark.long
def test_gradients_equal_torchs_in_training(network, batch):
    """Of all parameters, in float64, through BatchNorm's batch statistics; torch is the oracle.

    The biases of convolutions are left out: torch's are zero but for rounding, ours are zero.
    """
    torch = pytest.importorskip("torch", reason="the oracle extra (torch) is not installed")
    functional = torch.nn.functional
    arrays = compact.to_torch_state_dict(network)
    labels = np.arange(len(batch)) % 7
    theirs = {
        name: torch.tensor(array, dtype=torch.float64, requires_grad=True)
        for name, array in arrays.items()
        if "num" not in name
    }

    def conv(name, x, stride=1):
        weight = theirs[f"{name}.weight"]
        padding = weight.shape[-1] // 2
        x = functional.conv2d(x, weight, theirs[f"{name}.bias"], stride=stride, padding=padding)
        norm = (theirs[f"{name}_norm.{leaf}"] for leaf in ("weight", "bias"))
        return functional.batch_norm(x, None, None, *norm, training=True)

    pixels = torch.tensor(batch.transpose(0, 3, 1, 2), dtype=torch.float64)
    x = conv("stem", pixels, stride=2).relu()
    for stage in "123":
        x = functional.max_pool2d(x, 2) if stage != "1" else x
        x = conv(f"conv{stage}", x).relu()
        x = (conv(f"res{stage}b", conv(f"res{stage}a", x).relu()) + x).relu()
    x = x.mean((2, 3))
    x = functional.linear(x, theirs["hidden.weight"], theirs["hidden.bias"]).relu()
    x = functional.linear(x, theirs["logits.weight"], theirs["logits.bias"])
    functional.cross_entropy(x, torch.from_numpy(labels)).backward()

    def loss(model, images):
        return -(jax.nn.log_softmax(model(images)[0]) * np.eye(7)[labels]).sum(axis=1).mean()

    with jax.enable_x64(True):
        graphdef, state = nnx.split(network)
        model = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), state))
        model.train()
        gradients = nnx.jit(nnx.grad(loss))(model, jnp.asarray(batch, jnp.float64))
        # To where the weights were, so that the gradients take their names and axes.
        nnx.update(model, gradients)
        got = compact.to_torch_state_dict(model)
    for name, parameter in theirs.items():
        if parameter.grad is None:
            continue
        want = parameter.grad.numpy()
        if name.endswith(".bias") and name.removesuffix(".bias") in compact.CONVS:
            assert not got[name].any()
            assert np.abs(want).max() < 1e-12
        else:
            assert np.abs(got[name] - want).max() <= 1e-9 * max(1e-3, np.abs(want).max()), name


def test_size_that_ships():
    model = nnx.eval_shape(lambda: CompactNet(CompactConfig(), rngs=nnx.Rngs(0)))
    count = sum(np.prod(leaf.shape) for _, leaf in nnx.to_flat_state(nnx.state(model)))
    assert count * 2 < 4e6  # bytes in bfloat16, BatchNorm's statistics too


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["stem", "res2a", "res3b", "logits"])
def test_cut_and_gain_equal_edited_parameters(network, batch, layer):
    x = jnp.asarray(batch)
    units = network.config.units()[layer]
    whole = network(x)[0]
    assert relative(network.after(network.until(x, layer), layer), whole) <= 1e-6
    for scope in ("weights", "weights_and_bias"):
        gains = np.random.default_rng(1).uniform(0.4, 2.5, units).astype(np.float32)
        gain = with_scope(gains, scope)
        edited = vgg.with_gains(network, {layer: gain})(x)[0]
        assert relative(network(x, gains={layer: gain})[0], edited) <= 1e-5
        assert relative(network.after(network.until(x, layer), layer, gain), edited) <= 1e-5
        assert relative(edited, whole) > 1e-3  # the edit did something


@pytest.mark.slow
def test_refuses_a_layer_it_does_not_have(network, batch):
    with pytest.raises(ValueError, match="no layer 'lin2'; layers: stem, conv1"):
        network.until(jnp.asarray(batch), "lin2")
    with pytest.raises(ValueError, match="no layer 'lin2'; layers: "):
        vgg.with_gains(network, {"lin2": with_scope(np.ones(3), "weights")})


@pytest.mark.long
@pytest.mark.parametrize(
    ("layer", "protocol"), [("res2a", "resize40"), ("res2a", "tencrop"), ("hidden", "resize40")]
)
def test_sweeps_equal_edited_networks(network, images, layer, protocol):
    units = network.config.units()[layer]
    gains = np.random.default_rng(2).choice([0.5, 2.0], (2, units)).astype(np.float32)
    activations = pre_bias_activations(network, images, layer, protocol=protocol)
    assert activations.units == units
    assert activations.feeds_logits == (layer == "hidden")
    for gain, tried in zip(gains, Sweep(activations).evaluate_each(gains), strict=True):
        edited = emojax.edit(network, layer, gain)
        assert relative(tried.logits, evaluate(edited, images, protocol=protocol).logits) <= 1e-5


@pytest.mark.exhaustive
@pytest.mark.slow
def test_ten_crops_are_the_mean_of_ten_runs(network, images):
    unit = np.float32(images.images) / 255
    corners = ((0, 0), (0, 8), (8, 0), (8, 8), (4, 4))
    views = [
        side[:, top : top + 40, left : left + 40]
        for side in (unit, unit[:, :, ::-1])
        for top, left in corners
    ]
    want = np.mean([network(network.normalize(jnp.asarray(view)))[0] for view in views], axis=0)
    assert relative(evaluate(network, images, protocol="tencrop").logits, want) <= 1e-5


@pytest.mark.slow
def test_preprocess_shows_the_whole_face_whatever_its_light(network):
    faces = np.random.default_rng(0).integers(0, 100, (2, 48, 48, 1), np.uint8)
    faces[:, :, :24] += 80
    seen = np.asarray(network.preprocess(jnp.asarray(faces)))
    assert seen.shape == (2, 48, 48, 1)
    np.testing.assert_allclose(seen.mean(axis=(1, 2, 3)), 0, atol=1e-5)
    brighter = np.asarray(network.preprocess(jnp.asarray(faces + 60)))
    np.testing.assert_allclose(brighter, seen, atol=1e-4)
    assert not np.asarray(network.preprocess(jnp.zeros((1, 48, 48, 1), jnp.uint8))).any()
    assert network.preprocess(jnp.zeros((2, 96, 64, 3), jnp.uint8)).shape == (2, 48, 48, 1)


@pytest.mark.slow
def test_weight_files(network, tmp_path):
    path = tmp_path / "compact.safetensors"
    weights.save_network(network, path)
    loaded = weights.load_network(path)
    assert isinstance(loaded, CompactNet)
    assert loaded.config == network.config
    for name, array in compact.to_torch_state_dict(loaded).items():
        np.testing.assert_array_equal(array, compact.to_torch_state_dict(network)[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("hidden.weight"), "not a compact network's state dict: 'hidden.weight'"),
        (lambda a: a.pop("res2a.bias"), "1 parameters are missing: res2a.bias"),
        (
            lambda a: a.update({"res4a.bias": a["stem.bias"]}),
            "1 names are not of this network: res4a.bias",
        ),
        (
            lambda a: a.update({"conv2.weight": a["conv2.weight"][:, :5]}),
            r"conv2.weight has shape \(8, 5, 3, 3\)",
        ),
        (
            lambda a: a.update({"stem_norm.running_var": -a["stem_norm.running_var"]}),
            "variances below zero",
        ),
        (lambda a: a.update({"stem.weight": a["stem.weight"][:0]}), "a layer has no units"),
        (lambda a: a.update({"stem.weight": np.ones((), np.float32)}), "or has no shape"),
    ],
)
def test_refuses_other_weights(network, tmp_path, change, message):
    arrays = compact.to_torch_state_dict(network)
    change(arrays)
    path = tmp_path / "x.safetensors"
    weights.save_arrays(arrays, path)
    with pytest.raises(InputError, match=message):
        weights.load_network(path)


@pytest.mark.long
def test_by_command(tmp_path, capsys, clip_folder):
    """Trained as the recipe does, tested by ten crops, dissected, edited, all as a VGGNet is."""
    cache = ["--cache", str(tmp_path / "cache")]
    faces = ["--data.kind", "faces", "--data.limit", "64"]
    recipe = ["--train.task", "compact", "--train.epochs", "1", "--train.batch", "32"]
    recipe += ["--train.augment", "one_crop", "--train.average", "0.9"]
    trained = tmp_path / "t"
    command = ["train", *faces, *recipe, *cache, "--out", str(trained)]
    assert main(command) == 0, capsys.readouterr().err
    target = ["--target.weights", str(trained / "model.safetensors")]
    config = weights.load_network(target[1]).config
    assert (config.widths, config.hidden) == (CompactConfig.small().widths, 32)
    ten = ["--evaluate.protocol", "tencrop", "--out", str(tmp_path / "e")]
    assert main(["evaluate", *faces, *target, *ten]) == 0, capsys.readouterr().err
    clip = ["--clip.path", str(clip_folder), "--dissect.top-k", "20"]
    few = ["--edit.permutations", "19", "--edit.masks", "5", "--edit.layers", "res3b"]
    few += ["--edit.tau", "0", "--edit.factor", "1", "2", "--report.images", "none"]
    command = ["run", *faces, *target, *clip, *few, *cache, "--out", str(tmp_path / "r")]
    assert main(command) == 0, capsys.readouterr().err
    table = (tmp_path / "r" / "dissection.csv").read_text().splitlines()
    for layer, units in (("stem", 8), ("res3b", 24), ("hidden", 32), ("logits", 0)):
        assert sum(line.startswith(f"{layer},") for line in table) == units
    assert isinstance(weights.load_network(tmp_path / "r" / "edited.safetensors"), CompactNet)
