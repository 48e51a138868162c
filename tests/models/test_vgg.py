import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx

from emojax.models import vgg
from emojax.ops.gains import with_scope


def golden_weights():
    """The weights of `golden/vgg_torch.npz`, made as its README says; and the generator."""
    rng = np.random.default_rng(7)
    config = vgg.VggConfig.paper()
    shapes, inputs = [], 1
    for name, width in zip(vgg.CONVS, config.widths, strict=True):
        shapes += [(f"{name}.weight", (width, inputs, 3, 3)), (f"{name}.bias", (width,))]
        inputs = width
    for name, width in zip(vgg.CONVS, config.widths, strict=True):
        norm = name.replace("conv", "bn")
        shapes += [
            (f"{norm}.{leaf}", (width,))
            for leaf in ("weight", "bias", "running_mean", "running_var")
        ]
    inputs = 2048
    for name, width in (("lin1", 4096), ("lin2", 4096), ("lin3", 7)):
        shapes += [(f"{name}.weight", (width, inputs)), (f"{name}.bias", (width,))]
        inputs = width
    arrays = {}
    for name, shape in shapes:
        n = rng.standard_normal(shape).astype(np.float32)
        layer, leaf = name.split(".")
        if layer.startswith("bn"):
            value = {
                "weight": 1 + 0.1 * n,
                "bias": 0.1 * n,
                "running_mean": 0.1 * n,
                "running_var": 1 + 0.1 * abs(n),
            }[leaf]
        else:
            value = n * np.sqrt(2 / np.prod(shape[1:])) if leaf == "weight" else 0.1 * n
        arrays[name] = value.astype(np.float32)
    return arrays, rng


@pytest.mark.slow
def test_golden(golden):
    data = np.load(golden / "vgg_torch.npz")
    arrays, rng = golden_weights()
    images = rng.random((8, 1, 40, 40), dtype=np.float32)
    np.testing.assert_array_equal(images, data["images"])
    model = vgg.from_torch_state_dict(arrays)
    assert model.config == vgg.VggConfig.paper()
    logits, taps = nnx.jit(lambda m, x: m(x))(model, jnp.asarray(images.transpose(0, 2, 3, 1)))
    assert reference.relative(logits, data["logits"]) <= 1e-5
    for layer in (*vgg.CONVS, *vgg.HIDDEN):
        tap = np.asarray(taps[layer])
        for how, pooled in (
            (("avg", tap.mean((1, 2))), ("max", tap.max((1, 2))))
            if tap.ndim == 4
            else (("avg", tap),)
        ):
            assert reference.relative(pooled, data[f"{how}/{layer}"]) <= 1e-5, layer
    np.testing.assert_array_equal(taps["lin3"], logits)


@pytest.mark.slow
def test_paper_size():
    model = nnx.eval_shape(lambda: vgg.VggNet(vgg.VggConfig.paper(), rngs=nnx.Rngs(0)))
    count = sum(np.prod(leaf.shape) for _, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)))
    assert round(count / 1e6, 2) == 29.89


def plain_forward(arrays, x):
    """The network in float64 numpy: [B, 40, 40, 1] → logits and raw layer outputs."""
    x, taps = np.float64(x).transpose(0, 3, 1, 2), {}
    for name in vgg.CONVS:
        w = np.float64(arrays[f"{name}.weight"])
        p = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(p, (3, 3), axis=(2, 3))
        x = np.einsum("bihwkl,oikl->bohw", windows, w) + arrays[f"{name}.bias"][:, None, None]
        taps[name] = x.transpose(0, 2, 3, 1)
        g, b, m, v = (
            np.float64(arrays[f"{name.replace('conv', 'bn')}.{leaf}"])[:, None, None]
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        x = np.maximum((x - m) / np.sqrt(v + 1e-5) * g + b, 0)
        if name.endswith("b"):
            h, w_ = x.shape[2] // 2, x.shape[3] // 2
            x = x[:, :, : 2 * h, : 2 * w_].reshape(*x.shape[:2], h, 2, w_, 2).max((3, 5))
    x = x.reshape(len(x), -1)
    for name in ("lin1", "lin2", "lin3"):
        x = x @ np.float64(arrays[f"{name}.weight"]).T + arrays[f"{name}.bias"]
        taps[name] = x
        x = np.maximum(x, 0) if name != "lin3" else x
    return x, taps


@pytest.fixture(scope="module")
def batch():
    return np.random.default_rng(0).random((5, 40, 40, 1), dtype=np.float32)


@pytest.mark.slow
def test_equals_float64_numpy(tiny_vgg, batch):
    logits, taps = tiny_vgg(jnp.asarray(batch))
    want, want_taps = plain_forward(vgg.to_torch_state_dict(tiny_vgg), batch)
    assert reference.relative(logits, want) <= 1e-5
    for layer in vgg.LAYERS:
        assert reference.relative(taps[layer], want_taps[layer]) <= 1e-5, layer


@pytest.mark.slow
def test_relu_taps_are_what_the_next_layer_sees(tiny_vgg, batch):
    raw, relu = tiny_vgg(jnp.asarray(batch))[1], tiny_vgg(jnp.asarray(batch), taps="relu")[1]
    np.testing.assert_array_equal(relu["lin1"], np.maximum(raw["lin1"], 0))
    np.testing.assert_array_equal(relu["lin3"], raw["lin3"])
    assert relu["conv2a"].min() == 0
    np.testing.assert_array_equal(relu["conv2a"], nnx.relu(tiny_vgg.bn2a(raw["conv2a"])))


def test_state_dict_round_trip(tiny_vgg):
    arrays = vgg.to_torch_state_dict(tiny_vgg)
    again = vgg.from_torch_state_dict(arrays)
    assert again.config.widths == tiny_vgg.config.widths
    for name, array in vgg.to_torch_state_dict(again).items():
        np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("bn2b.bias"), "1 parameters are missing: bn2b.bias"),
        (lambda a: a.update(extra=np.ones(3)), "1 names are not of this network: extra"),
        (lambda a: a.update({"bn2b.bias": np.ones(5)}), "bn2b.bias has shape"),
        (
            lambda a: a.update({"lin1.bias": np.full_like(a["lin1.bias"], np.nan)}),
            "lin1.bias holds values that are not finite",
        ),
        (lambda a: a.pop("lin2.weight"), "not a VGGNet state dict: 'lin2.weight'"),
    ],
)
def test_refuses_other_weights(tiny_vgg, change, message):
    arrays = vgg.to_torch_state_dict(tiny_vgg)
    change(arrays)
    with pytest.raises(ValueError, match=message):
        vgg.from_torch_state_dict(arrays)


@pytest.mark.slow
@pytest.mark.parametrize("layer", vgg.LAYERS)
def test_cutting_at_a_layer_changes_nothing(tiny_vgg, batch, layer):
    x = jnp.asarray(batch)
    whole = jax.jit(lambda x: tiny_vgg(x)[0])(x)
    cut = jax.jit(lambda x: tiny_vgg.after(tiny_vgg.until(x, layer), layer))(x)
    np.testing.assert_array_equal(whole, cut)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["weights", "weights_and_bias"])
@pytest.mark.parametrize("layer", vgg.LAYERS)
def test_gain_inside_equals_edited_parameters(tiny_vgg, batch, layer, scope):
    x, units = jnp.asarray(batch), tiny_vgg.config.units()[layer]
    gain = with_scope(np.random.default_rng(1).uniform(0.4, 2.5, units).astype(np.float32), scope)
    edited = vgg.with_gains(tiny_vgg, {layer: gain})(x)[0]
    inside = tiny_vgg(x, gains={layer: gain})[0]
    after = tiny_vgg.after(tiny_vgg.until(x, layer), layer, gain)
    assert reference.relative(inside, np.asarray(edited)) <= 1e-5
    assert reference.relative(after, np.asarray(edited)) <= 1e-5
    assert (inside.argmax(1) == edited.argmax(1)).all()
    assert reference.relative(edited, np.asarray(tiny_vgg(x)[0])) > 1e-3  # the edit did something


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["conv1a", "conv4b", "lin2"])
def test_factor_one_is_the_identity_to_the_bit(tiny_vgg, batch, layer):
    x, gain = jnp.asarray(batch), with_scope(np.ones(tiny_vgg.config.units()[layer]))
    plain = tiny_vgg(x)[0]
    np.testing.assert_array_equal(tiny_vgg(x, gains={layer: gain})[0], plain)
    edited = vgg.with_gains(tiny_vgg, {layer: gain})
    for name, array in vgg.to_torch_state_dict(edited).items():
        np.testing.assert_array_equal(array, vgg.to_torch_state_dict(tiny_vgg)[name])
    np.testing.assert_array_equal(edited(x)[0], plain)


def test_edit_leaves_the_model_alone(tiny_vgg):
    before = vgg.to_torch_state_dict(tiny_vgg)
    vgg.with_gains(tiny_vgg, {"lin1": with_scope(np.full(24, 3.0))})
    for name, array in vgg.to_torch_state_dict(tiny_vgg).items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.slow
def test_loads_into_torch_with_strict(tiny_vgg, batch):
    torch = pytest.importorskip("torch", reason="the oracle extra (torch) is not installed")

    oracle = reference.torch_vgg(torch, tiny_vgg.config)
    gain = with_scope(np.linspace(0.5, 2, 20, dtype=np.float32))
    edited = vgg.with_gains(tiny_vgg, {"lin2": gain})
    arrays = vgg.to_torch_state_dict(edited)
    oracle.load_state_dict(
        {name: torch.from_numpy(array) for name, array in arrays.items()}, strict=True
    )
    oracle.eval()
    with torch.no_grad():
        want = oracle(torch.from_numpy(batch.transpose(0, 3, 1, 2).copy())).numpy()
    assert reference.relative(edited(jnp.asarray(batch))[0], want) <= 1e-5
