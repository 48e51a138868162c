"""The compact network: against float64 numpy and torch, cut and edited at every layer, and through the commands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import generated_images
from flax import nnx

import emojax
from emojax.cli import main
from emojax.data import weights
from emojax.engine import evaluate as tests
from emojax.engine.edit import sweep
from emojax.engine.inputs import layer_inputs
from emojax.engine.sweep import try_gains
from emojax.errors import InputError
from emojax.models import compact, vgg
from emojax.models.compact import CompactConfig, CompactNet
from emojax.ops.gains import with_scope

TINY = CompactConfig(widths=(4, 6, 8, 10), hidden=12)


def relative(got, want):
    return np.abs(np.asarray(got) - np.asarray(want)).max() / np.abs(np.asarray(want)).max()


@pytest.fixture(scope="module")
def network() -> CompactNet:
    """A random network whose BatchNorm statistics and biases are not trivial."""
    made = nnx.jit(lambda: CompactNet(TINY, rngs=nnx.Rngs(0)))()
    arrays, rng = compact.to_torch_state_dict(made), np.random.default_rng(5)
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
    """The network in float64 numpy, channels first inside: [B, H, W, 1] → logits, raw outputs, and outputs after ReLU."""
    x, raw, relu = np.float64(x).transpose(0, 3, 1, 2), {}, {}

    def conv(name, x):
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        out = np.einsum("bihwkl,oikl->bohw", windows, np.float64(arrays[f"{name}.weight"]))
        raw[name] = out + arrays[f"{name}.bias"][:, None, None]
        scale, bias, mean, var = (
            np.float64(arrays[f"{name}_norm.{leaf}"])[:, None, None]
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        return (raw[name] - mean) / np.sqrt(var + 1e-5) * scale + bias

    def pool(x):
        return x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).max((3, 5))

    relu["stem"] = np.maximum(conv("stem", x), 0)
    x = pool(relu["stem"])
    for stage in "123":
        x = pool(x) if stage != "1" else x
        relu[f"conv{stage}"] = into = np.maximum(conv(f"conv{stage}", x), 0)
        relu[f"res{stage}a"] = np.maximum(conv(f"res{stage}a", into), 0)
        relu[f"res{stage}b"] = x = np.maximum(conv(f"res{stage}b", relu[f"res{stage}a"]) + into, 0)
    x = x.mean((2, 3))
    for name in ("hidden", "logits"):
        raw[name] = x @ np.float64(arrays[f"{name}.weight"]).T + arrays[f"{name}.bias"]
        x = relu[name] = np.maximum(raw[name], 0) if name == "hidden" else raw[name]
    last = lambda found: {n: a.transpose(0, 2, 3, 1) if a.ndim == 4 else a for n, a in found.items()}
    return x, last(raw), last(relu)


@pytest.mark.parametrize("side", [48, 40])
def test_equals_float64_numpy(network, batch, side):
    x = batch[:, :side, :side]
    want, raw, relu = plain_forward(compact.to_torch_state_dict(network), x)
    for taps, wanted in (("raw", raw), ("relu", relu)):
        logits, found = network(jnp.asarray(x), taps=taps)
        assert relative(logits, want) <= 1e-5
        assert tuple(found) == compact.LAYERS
        for layer in compact.LAYERS:
            assert relative(found[layer], wanted[layer]) <= 1e-5, layer


def test_gradients_equal_torchs_in_training(network, batch):
    """Of all parameters, in float64, through BatchNorm's batch statistics; torch is the oracle."""
    torch = pytest.importorskip("torch", reason="the oracle extra (torch) is not installed")
    functional = torch.nn.functional
    arrays, labels = compact.to_torch_state_dict(network), np.arange(len(batch)) % 7
    theirs = {n: torch.tensor(a, dtype=torch.float64, requires_grad=True) for n, a in arrays.items() if "num" not in n}

    def conv(name, x):
        x = functional.conv2d(x, theirs[f"{name}.weight"], theirs[f"{name}.bias"], padding=1)
        return functional.batch_norm(x, None, None, *(theirs[f"{name}_norm.{n}"] for n in ("weight", "bias")), training=True)

    x = functional.max_pool2d(conv("stem", torch.tensor(batch.transpose(0, 3, 1, 2), dtype=torch.float64)).relu(), 2)
    for stage in "123":
        x = functional.max_pool2d(x, 2) if stage != "1" else x
        x = conv(f"conv{stage}", x).relu()
        x = (conv(f"res{stage}b", conv(f"res{stage}a", x).relu()) + x).relu()
    x = functional.linear(x.mean((2, 3)), theirs["hidden.weight"], theirs["hidden.bias"]).relu()
    x = functional.linear(x, theirs["logits.weight"], theirs["logits.bias"])
    functional.cross_entropy(x, torch.from_numpy(labels)).backward()

    def loss(model, images):
        return -(jax.nn.log_softmax(model(images)[0]) * np.eye(7)[labels]).sum(axis=1).mean()

    with jax.enable_x64(True):
        graphdef, state = nnx.split(network)
        model = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), state))
        model.train()
        gradients = nnx.jit(nnx.grad(loss))(model, jnp.asarray(batch, jnp.float64))
        nnx.update(model, gradients)  # where the weights were, so that the gradients take their names and axes
        got = compact.to_torch_state_dict(model)
    for name, parameter in theirs.items():
        if parameter.grad is not None:
            want, scale = parameter.grad.numpy(), max(1e-3, float(parameter.grad.abs().max()))
            assert np.abs(got[name] - want).max() <= 1e-9 * scale, name


def test_size_that_ships():
    model = nnx.eval_shape(lambda: CompactNet(CompactConfig(), rngs=nnx.Rngs(0)))
    count = sum(np.prod(leaf.shape) for _, leaf in nnx.to_flat_state(nnx.state(model)))
    assert count * 2 < 4e6  # bytes in bfloat16, BatchNorm's statistics too


@pytest.mark.parametrize("layer", compact.LAYERS)
def test_cut_and_gain_equal_edited_parameters(network, batch, layer):
    x, units = jnp.asarray(batch), network.config.units()[layer]
    whole = jax.jit(lambda x: network(x)[0])(x)
    np.testing.assert_array_equal(jax.jit(lambda x: network.after(network.until(x, layer), layer))(x), whole)
    for scope in ("weights", "weights_and_bias"):
        gain = with_scope(np.random.default_rng(1).uniform(0.4, 2.5, units).astype(np.float32), scope)
        edited = vgg.with_gains(network, {layer: gain})(x)[0]
        assert relative(network(x, gains={layer: gain})[0], edited) <= 1e-5
        assert relative(network.after(network.until(x, layer), layer, gain), edited) <= 1e-5
        assert relative(edited, whole) > 1e-3  # the edit did something


def test_refuses_a_layer_it_does_not_have(network, batch):
    with pytest.raises(ValueError, match="no layer 'lin2'; layers: stem, conv1"):
        network.until(jnp.asarray(batch), "lin2")
    with pytest.raises(ValueError, match="no layer 'lin2'; layers: "):
        vgg.with_gains(network, {"lin2": with_scope(np.ones(3))})


@pytest.mark.parametrize("layer", ["stem", "res2a", "res3b", "hidden", "logits"])
def test_sweeps_equal_edited_networks(network, images, layer):
    """By the cached outputs of the layer and by ten crops, within residual blocks and without."""
    units = network.config.units()[layer]
    gains = np.random.default_rng(2).choice([0.5, 2.0], (3, units)).astype(np.float32)
    edited = [emojax.edit(network, layer, gain) for gain in gains]
    inputs = layer_inputs(network, images, layer)
    assert (inputs.units, inputs.feeds_logits) == (units, layer in ("hidden", "logits"))
    tried = try_gains(inputs, gains)
    for row, model in enumerate(edited):
        assert tried.correct[row].sum() == (tests.evaluate(model, images).predictions == images.labels).sum()
    found = sweep(network, images, layer, gains, protocol="tencrop")
    for got, model in zip(found, edited, strict=True):
        assert relative(got.logits, tests.evaluate(model, images, protocol="tencrop").logits) <= 1e-5


def test_ten_crops_are_the_mean_of_ten_runs(network, images):
    unit = np.float32(images.images) / 255
    views = [unit[:, t : t + 40, s : s + 40] for t, s in ((0, 0), (0, 8), (8, 0), (8, 8), (4, 4))]
    mirrored = unit[:, :, ::-1]
    views += [mirrored[:, t : t + 40, s : s + 40] for t, s in ((0, 0), (0, 8), (8, 0), (8, 8), (4, 4))]
    want = np.mean([network((jnp.asarray(view) - 0.5) * 4)[0] for view in views], axis=0)
    assert relative(tests.evaluate(network, images, protocol="tencrop").logits, want) <= 1e-5


def test_preprocess_shows_the_whole_face(network):
    faces = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 1), np.uint8)
    np.testing.assert_allclose(network.preprocess(jnp.asarray(faces)), (faces / 255 - 0.5) * 4, atol=1e-6)
    assert network.preprocess(jnp.zeros((2, 96, 64, 3), jnp.uint8)).shape == (2, 48, 48, 1)


def test_weight_files(network, tmp_path):
    path = tmp_path / "compact.safetensors"
    weights.save_network(network, path)
    loaded = weights.load_network(path)
    assert isinstance(loaded, CompactNet)
    assert loaded.config == network.config
    for name, array in compact.to_torch_state_dict(loaded).items():
        np.testing.assert_array_equal(array, compact.to_torch_state_dict(network)[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("hidden.weight"), "not a compact network's state dict: 'hidden.weight'"),
        (lambda a: a.pop("res2a.bias"), "1 parameters are missing: res2a.bias"),
        (lambda a: a.update({"res4a.bias": a["stem.bias"]}), "1 names are not of this network: res4a.bias"),
        (lambda a: a.update({"conv2.weight": a["conv2.weight"][:, :5]}), r"conv2.weight has shape \(8, 5, 3, 3\)"),
        (lambda a: a.update({"stem_norm.running_var": -a["stem_norm.running_var"]}), "variances below zero"),
        (lambda a: a.update({"stem.weight": a["stem.weight"][:0]}), "a layer has no units"),
        (lambda a: a.update({"stem.weight": np.ones((), np.float32)}), "missing or has no shape"),
    ],
)
def test_refuses_other_weights(network, tmp_path, change, message):
    arrays = compact.to_torch_state_dict(network)
    change(arrays)
    path = tmp_path / "x.safetensors"
    weights.save_arrays(arrays, path)
    with pytest.raises(InputError, match=message):
        weights.load_network(path)


def test_by_command(tmp_path, capsys, clip_folder):
    """Trained with all that the recipe uses, tested by ten crops, dissected, edited, all as a VGGNet is."""
    cache = ["--cache", str(tmp_path / "cache")]
    faces = ["--data.kind", "faces", "--data.limit", "64"]
    recipe = ["--train.task", "compact", "--train.epochs", "1", "--train.batch", "32", "--train.augment", "one_crop"]
    recipe += ["--train.mixup", "0.2", "--train.contrast", "0.3", "--train.average", "0.9"]
    assert main(["train", *faces, *recipe, *cache, "--out", str(tmp_path / "t")]) == 0, capsys.readouterr().err
    target = ["--target.weights", str(tmp_path / "t" / "model.safetensors")]
    assert weights.load_network(target[1]).config == CompactConfig.small()
    ten = ["--evaluate.protocol", "tencrop", "--out", str(tmp_path / "e")]
    assert main(["evaluate", *faces, *target, *ten]) == 0, capsys.readouterr().err
    clip = ["--clip.path", str(clip_folder), "--dissect.top-k", "20"]
    few = ["--edit.permutations", "19", "--edit.masks", "20"]
    args = [*faces, *target, *clip, *few, *cache, "--edit.layers", "res3b", "--out", str(tmp_path / "r")]
    assert main(["run", *args]) == 0, capsys.readouterr().err
    table = (tmp_path / "r" / "dissection.csv").read_text().splitlines()
    for layer, units in (("stem", 8), ("res3b", 24), ("hidden", 32), ("logits", 0)):
        assert sum(line.startswith(f"{layer},") for line in table) == units
    assert isinstance(weights.load_network(tmp_path / "r" / "edited.safetensors"), CompactNet)
