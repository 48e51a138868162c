"""Sweeps over thousands of settings: against evaluating edited parameters, against float64, and on any device count."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from emojax.data.image_set import ImageSet
from emojax.distributed.mesh import make_mesh
from emojax.editing import activations as inputs
from emojax.editing import baselines as learn
from emojax.editing import edit, sweep
from emojax.errors import InputError
from emojax.models import vgg
from emojax.ops import gains as ops
from emojax.training import evaluate

SCOPES = ("weights", "weights_and_bias")


@pytest.fixture(scope="module")
def few(blobs):
    return blobs.first(60)


@pytest.fixture(scope="module")
def read(tiny_vgg, few):
    """Inputs of any layer, computed once per test session."""
    return functools.cache(lambda layer: inputs.layer_inputs(tiny_vgg, few, layer, tile=4))


@pytest.fixture(scope="module")
def forward(tiny_vgg, few):
    """Logits of a network of this architecture, by nothing but its forward pass."""
    x = tiny_vgg.preprocess(jax.numpy.asarray(few.images[0:60]))
    run = jax.jit(lambda graphdef, state: nnx.merge(graphdef, state)(x)[0], static_argnums=0)
    return lambda model: np.asarray(run(*nnx.split(model)))


@pytest.fixture(scope="module")
def dense():
    """A dense layer with more units than a block and more images than a tile; some scores are equal."""
    return random_layer(np.random.default_rng(0), images=300, units=70, classes=5)


def random_layer(rng, images, units, classes):
    head = inputs.Head(
        rng.normal(0, 0.3, units).astype(np.float32),
        rng.normal(0, 0.3, (units, classes)).astype(np.float32),
        rng.normal(0, 0.3, classes).astype(np.float32),
    )
    values = rng.standard_normal((images, units)).astype(np.float32)
    labels = rng.integers(0, classes - 1, images).astype(np.int32)  # the last class has no images
    names = tuple(f"class {c}" for c in range(classes))
    return inputs.LayerInputs("lin2", values, labels, names, head, rng.random(units), f"random {units}", "random")


def scores_of(units):
    return np.round(np.random.default_rng(units).standard_normal(units), 1).astype(np.float32)


def float64_logits(layer, gains, scope):
    head, gains = layer.params, np.float64(gains)
    bias = head.bias * (gains if scope == "weights_and_bias" else 1)
    return np.maximum(np.float64(layer.values) * gains + bias, head.floor) @ np.float64(head.weight) + head.offset


def check_outcome(outcomes, at, logits, labels):
    """One setting of `outcomes` against plain float64 statistics of its logits."""
    predicted = logits.argmax(1)
    present = np.unique(labels)
    e = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_array_equal(outcomes.predictions[at], predicted)
    assert outcomes.correct[at] == (predicted == labels).sum()
    assert outcomes.accuracy[at] == pytest.approx((predicted == labels).mean())
    recalls = [(predicted == labels)[labels == c].mean() for c in present]
    assert outcomes.macro_recall[at] == pytest.approx(np.mean(recalls))
    nll = -np.log((e / e.sum(1, keepdims=True))[np.arange(len(labels)), labels]).mean()
    assert outcomes.nll[at] == pytest.approx(nll, rel=1e-5)
    second, best = np.sort(logits, axis=1)[:, -2:].T
    near = best - second <= 1e-5 * (1 + np.abs(logits - logits[:, :1]).max(1))
    assert outcomes.near_ties[at] == near.sum()


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("layer", vgg.LAYERS)
def test_every_fast_path_equals_evaluating_edited_parameters(tiny_vgg, few, read, forward, layer, scope):
    found = read(layer)
    assert found.feeds_logits == (layer in ("lin2", "lin3"))
    units, factor, scores = found.units, 2.5, scores_of(found.units)
    order = np.argsort(-scores, kind="stable")
    cuts = np.arange(units + 1)[:, None] > np.argsort(order)[None, :]
    masks = np.random.default_rng(1).random((7, units)) < 0.5
    gains = np.asarray(ops.from_mask(np.concatenate([cuts, masks]), factor))
    thresholds = sweep.every_threshold(found, scores, [factor], scope=scope)[0].outcomes
    by_mask = sweep.try_masks(found, masks, factor, scope=scope)
    by_gain = sweep.try_gains(found, gains, scope=scope)
    for name in ("predictions", "hits", "near_ties"):
        two_ways = np.concatenate([getattr(thresholds, name), getattr(by_mask, name)])
        np.testing.assert_array_equal(two_ways, getattr(by_gain, name))
    np.testing.assert_allclose(np.concatenate([thresholds.nll, by_mask.nll]), by_gain.nll, rtol=1e-6)
    for at, gain in enumerate(gains):
        want = forward(edit.edit(tiny_vgg, layer, gain, scope=scope))
        check_outcome(by_gain, at, np.float64(want), few.labels)
    own = sweep.evaluate_gains(found, gains[-1], scope=scope)
    np.testing.assert_allclose(own.logits, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", ["conv2b", "lin1", "lin2", "lin3"])
def test_factor_one_changes_nothing(tiny_vgg, few, read, layer):
    base = evaluate.evaluate(tiny_vgg, few, tile=4)
    masks = np.random.default_rng(1).random((3, read(layer).units)) < 0.5
    for outcomes in (
        sweep.every_threshold(read(layer), scores_of(read(layer).units), [1.0])[0].outcomes,
        sweep.try_masks(read(layer), masks, 1.0),
        sweep.try_gains(read(layer), np.ones((1, read(layer).units))),
    ):
        np.testing.assert_array_equal(outcomes.predictions, np.broadcast_to(base.predictions, outcomes.predictions.shape))
        np.testing.assert_allclose(outcomes.nll, base.nll(), rtol=1e-6)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("factor", [0.5, 1.5, 4.0])
def test_thresholds_and_masks_equal_float64(dense, scope, factor):
    scores = scores_of(70)
    found = sweep.every_threshold(dense, scores, [factor], scope=scope)[0]
    assert len(found.outcomes) == 71
    rank = np.argsort(np.argsort(-scores, kind="stable"))
    masks = np.random.default_rng(2).random((70, 70)) < 0.4
    by_mask = sweep.try_masks(dense, masks, factor, scope=scope)
    for at in range(70):
        for outcomes, mask in ((found.outcomes, rank < at), (by_mask, masks[at])):
            gains = np.where(mask, np.float32(factor), np.float32(1 / np.float32(factor)))
            check_outcome(outcomes, at, float64_logits(dense, gains, scope), dense.labels)
    for tau in (-9.0, -0.3, 0.0, 0.1, 9.0, float(scores[3])):
        gains = np.asarray(ops.threshold(scores, tau, factor))
        assert found.reachable()[found.cut(tau)]
        check_outcome(found.outcomes, found.cut(tau), float64_logits(dense, gains, scope), dense.labels)
    assert found.reachable().sum() == len(np.unique(scores)) + 1


def test_near_ties_are_counted(dense):
    """Two classes with the same weights tie on every image that prefers them; plain arithmetic picks the lower one."""
    head = dense.params
    weight, offset = head.weight.copy(), head.offset.copy()
    weight[:, 3], offset[3] = weight[:, 1], offset[1]
    twin = inputs.LayerInputs(
        "lin2", dense.values, dense.labels, dense.classes, head._replace(weight=weight, offset=offset),
        dense.weight_sums, "twin", "twin",
    )  # fmt: skip
    outcomes = sweep.try_masks(twin, np.ones((1, 70), bool), 2.0)
    logits = float64_logits(twin, np.full(70, 2.0), "weights")
    assert outcomes.near_ties[0] == np.isin(logits.argmax(1), (1, 3)).sum() > 0


@pytest.mark.parametrize("devices", [1, 2])
def test_same_outcomes_on_any_device_count(dense, devices):
    scores, masks = scores_of(70), np.random.default_rng(2).random((20, 70)) < 0.4
    calls = (
        lambda mesh: sweep.every_threshold(dense, scores, [2.0], mesh=mesh)[0].outcomes,
        lambda mesh: sweep.try_masks(dense, masks, 2.0, mesh=mesh),
        lambda mesh: sweep.try_gains(dense, masks + 0.5, mesh=mesh),
    )
    for call in calls:
        one, many = call(make_mesh(devices)), call(make_mesh(8))
        for name in ("hits", "nll", "near_ties", "predictions"):
            np.testing.assert_array_equal(getattr(one, name), getattr(many, name), err_msg=name)


def test_inputs_too_large_for_the_devices_are_sent_in_batches(dense, monkeypatch):
    masks = np.random.default_rng(2).random((20, 70)) < 0.4
    whole = sweep.try_masks(dense, masks, 2.0, mesh=make_mesh(2))
    monkeypatch.setattr(inputs, "_BATCH", 130 * 70 * 4)
    monkeypatch.setattr(inputs, "_RESIDENT", 0)
    dense._placed.clear()
    parts = sweep.try_masks(dense, masks, 2.0, mesh=make_mesh(2))
    assert not dense._placed
    for name in ("hits", "nll", "near_ties", "predictions"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


def test_hits_alone_and_one_compilation(dense, monkeypatch):
    monkeypatch.setattr(sweep, "_CHUNK", 16)
    sweep._program.cache_clear()
    masks = np.random.default_rng(3).random((37, 70)) < 0.4
    done = []
    hits = sweep.try_masks(dense, masks, 2.0, full=False, progress=lambda *x: done.append(x))
    sweep.try_masks(dense, masks, 3.0, full=False)
    assert done == [(16, 37), (32, 37), (37, 37)]
    assert (hits.nll, hits.predictions, len(hits)) == (None, None, 37)
    np.testing.assert_array_equal(hits.hits, sweep.try_masks(dense, masks, 2.0).hits)
    tile = 4 * sweep.default_tile()
    program = sweep._program(sweep._by_masks, dense.after, "weights", False, make_mesh(), tile)
    assert program._cache_size() == 1


def test_a_stopped_sweep_goes_on(dense, monkeypatch, tmp_path):
    monkeypatch.setattr(sweep, "_CHUNK", 16)
    masks = np.random.default_rng(3).random((37, 70)) < 0.4
    want = sweep.try_masks(dense, masks, 2.0)

    def stop(done, total):
        if done == 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.try_masks(dense, masks, 2.0, store=tmp_path, progress=stop)
    assert len(list(tmp_path.iterdir())) == 2
    counted = []
    plain = sweep._count
    monkeypatch.setattr(sweep, "_count", lambda *args: counted.append(1) or plain(*args))
    for times in (1, 1):  # the third chunk, then nothing
        got = sweep.try_masks(dense, masks, 2.0, store=tmp_path)
        assert len(counted) == times
        for name in ("hits", "nll", "near_ties", "predictions"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    sweep.try_masks(dense, masks, 2.5, store=tmp_path)
    assert len(counted) == 4  # another factor is another key
    next(tmp_path.rglob("hits.npy")).write_bytes(b"damaged")
    for factor in (2.0, 2.5):
        sweep.try_masks(dense, masks, factor, store=tmp_path)
    assert len(counted) == 5
    thresholds = [sweep.every_threshold(dense, scores_of(70), [2.0, 3.0], store=tmp_path) for _ in range(2)]
    assert len(counted) == 7
    np.testing.assert_array_equal(thresholds[0][1].outcomes.nll, thresholds[1][1].outcomes.nll)


def test_inputs_are_kept_and_joined(tiny_vgg, few, read, tmp_path, monkeypatch):
    first = inputs.layer_inputs(tiny_vgg, few, "lin1", tile=4, cache=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [f"inputs-{first.key}"]
    two = read("lin2")
    monkeypatch.setattr(inputs, "map_images", None)
    again = inputs.layer_inputs(tiny_vgg, few, "lin1", tile=4, cache=tmp_path)
    np.testing.assert_array_equal(first.values, again.values)
    np.testing.assert_allclose(first.weight_sums, np.abs(vgg.to_torch_state_dict(tiny_vgg)["lin1.weight"]).sum(1), rtol=1e-5)
    gains = np.random.default_rng(0).uniform(0.5, 2, (2, 20))
    one, two = sweep.try_gains(two, gains), sweep.try_gains(inputs.join_inputs(two, two), gains)
    np.testing.assert_array_equal(two.hits, 2 * one.hits)
    np.testing.assert_array_equal(two.predictions, np.tile(one.predictions, 2))


def test_several_layers_at_once(tiny_vgg, few):
    gains = {"conv1a": np.full(4, 2.0), "lin2": np.full(20, 0.5)}
    both = edit.edit_layers(tiny_vgg, gains)
    step = edit.edit(edit.edit(tiny_vgg, "lin2", gains["lin2"]), "conv1a", gains["conv1a"])
    for name, array in vgg.to_torch_state_dict(both).items():
        np.testing.assert_array_equal(array, vgg.to_torch_state_dict(step)[name])
    with pytest.raises(InputError, match="no layer 'lin9'"):
        edit.edit_layers(tiny_vgg, {"lin9": np.ones(3)})


def test_gains_from_scores_and_weights():
    scores = np.array([2.0, -1.0, 5.0, 2.0], np.float32)
    np.testing.assert_allclose(ops.continuous(scores, 3.0), 3 * (np.float64(scores) + 1) / 6, rtol=1e-6)
    np.testing.assert_array_equal(ops.continuous(np.full(4, 7.0), 3.0), np.ones(4))
    assert ops.top_fraction(scores, 0.5).tolist() == [True, False, True, False]  # the tie goes to the lower unit
    assert ops.top_fraction(scores, 1.0).all()
    np.testing.assert_array_equal(ops.from_mask([True, False], 4.0), [4, 0.25])
    kernel = np.random.default_rng(0).standard_normal((3, 3, 5, 6)).astype(np.float32)
    np.testing.assert_allclose(ops.weight_sums(jax.numpy.asarray(kernel)), np.abs(kernel).sum((0, 1, 2)), rtol=1e-6)
    assert ops.above_mean(np.array([1.0, 2.0, 6.0])).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("name", "content", "factor", "message"),
    [
        ("none.txt", None, None, "cannot read the gains file"),
        ("a.csv", "1,2,x", None, "could not convert string to float: 'x'; write one number per unit"),
        ("a.csv", "1,2", None, "holds 2 numbers, the layer has 3 units"),
        ("a.txt", "1\n2\nnan", None, "number 3 is nan; write a finite number"),
        ("a.txt", "1\n0\n2", 2.0, "number 3 is 2; write 0 or 1"),
    ],
)
def test_gains_files_are_refused_in_one_line(tmp_path, name, content, factor, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as refused:
        edit.read_gains(tmp_path / name, 3, factor=factor)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


def test_gains_files(tmp_path):
    (tmp_path / "a.csv").write_text("1, 2.5\n3\n")
    np.testing.assert_array_equal(edit.read_gains(tmp_path / "a.csv", 3), [1, 2.5, 3])
    np.save(tmp_path / "m.npy", np.array([True, False, True]))
    np.testing.assert_array_equal(edit.read_gains(tmp_path / "m.npy", 3, factor=2.0), [2, 0.5, 2])
    np.save(tmp_path / "objects.npy", np.array([object()]))
    with pytest.raises(InputError, match=r"objects\.npy"):
        edit.read_gains(tmp_path / "objects.npy", 3)


def test_refusals(tiny_vgg, blobs, read):
    layer = read("lin2")
    for call, message in (
        (lambda: sweep.try_gains(layer, np.ones((2, 21))), "layer lin2 has 20 units, the gains have shape"),
        (lambda: sweep.try_gains(layer, np.full((1, 20), np.nan)), "not all finite"),
        (lambda: sweep.try_masks(layer, np.ones(20, bool), 2.0), "layer lin2 has 20 units, the masks"),
        (lambda: sweep.try_masks(layer, np.ones((1, 20), bool), 0.0), "a factor is a positive number, not 0.0"),
        (lambda: sweep.every_threshold(layer, np.ones(3), [2.0]), "the scores have shape"),
        (lambda: sweep.every_threshold(layer, np.full(20, np.nan), [2.0]), "the scores for layer lin2 are not all finite"),
        (lambda: inputs.layer_inputs(tiny_vgg, blobs, "lin4"), "no layer 'lin4'; did you mean"),
        (lambda: inputs.layer_inputs(tiny_vgg, ImageSet.from_arrays(blobs.images[0:20]), "lin2"), "has no labels"),
    ):
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize("layer", ["conv4b", "lin1", "lin2"])
def test_learned_gains_lower_the_loss_and_are_pulled_to_one(read, layer):
    found = read(layer)
    before = sweep.try_gains(found, np.ones((1, found.units))).nll[0]
    free, held = (learn.learn_gains(found, pull=pull, epochs=30, batch=16, rate=0.02) for pull in (0.01, 1e4))
    assert sweep.try_gains(found, free[None]).nll[0] < before - 0.01
    assert (free > 0).all()
    np.testing.assert_allclose(held, 1.0, atol=0.02)
    np.testing.assert_array_equal(free, learn.learn_gains(found, pull=0.01, epochs=30, batch=16, rate=0.02))


def test_learned_gains_find_what_was_hidden():
    """A layer whose logits were made by known gains: fitting them back on its own predictions comes close."""
    rng = np.random.default_rng(0)
    layer = random_layer(rng, images=4000, units=6, classes=4)
    true = np.array([0.4, 3.0, 1.0, 1.0, 2.0, 0.5], np.float32)
    logits = 3 * float64_logits(layer, true, "weights")
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1).astype(np.int32)
    head = layer.params._replace(weight=3 * layer.params.weight, offset=3 * layer.params.offset)
    made = inputs.LayerInputs("lin2", layer.values, labels, layer.classes, head, layer.weight_sums, "made", "made")
    found = learn.learn_gains(made, pull=0.0, epochs=40, rate=0.05)
    np.testing.assert_allclose(found, true, rtol=0.25)


def test_lin2_of_the_published_network(blobs):
    """4,096 units: thresholds and masks against the forward pass of edited parameters, a few hundred images."""
    model = nnx.jit(lambda: vgg.VggNet(vgg.VggConfig.paper(), rngs=nnx.Rngs(0)))()
    rng = np.random.default_rng(0)
    model.lin2.bias = nnx.Param(jax.numpy.asarray(rng.normal(0, 0.3, 4096), jax.numpy.float32))
    model.eval()
    x = model.preprocess(jax.numpy.asarray(blobs.images[0:300]))
    run = jax.jit(lambda graphdef, state, x: nnx.merge(graphdef, state)(x)[0], static_argnums=0)
    found = inputs.layer_inputs(model, blobs, "lin2")
    scores, masks = rng.standard_normal(4096), rng.random((3, 4096)) < 0.5
    thresholds = sweep.every_threshold(found, scores, [1.5])[0]
    by_mask = sweep.try_masks(found, masks, 1.5)
    for outcomes, at, mask in ((thresholds.outcomes, thresholds.cut(0.3), scores > 0.3), (by_mask, 1, masks[1])):
        edited = edit.edit(model, "lin2", ops.from_mask(mask, 1.5))
        logits = np.concatenate([run(*nnx.split(edited), part) for part in np.split(np.asarray(x), 3)])
        check_outcome(outcomes, at, np.float64(logits), blobs.labels)
