"""Sweeps against evaluating edited parameters, against float64, and on any device count."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from layers import float64_logits, random_layer

from emojax.data.image_set import ImageSet
from emojax.distributed.mesh import make_mesh
from emojax.editing import activations, edit, kernels, sweep
from emojax.editing.activations import PreBiasActivations, pool_activations, pre_bias_activations
from emojax.editing.sweep import Sweep
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
    return functools.cache(lambda layer: pre_bias_activations(tiny_vgg, few, layer, tile=4))


@pytest.fixture(scope="module")
def forward(tiny_vgg, few):
    """Logits of a network of this architecture, by nothing but its forward pass."""
    x = tiny_vgg.preprocess(jax.numpy.asarray(few.images[0:60]))
    run = jax.jit(lambda graphdef, state: nnx.merge(graphdef, state)(x)[0], static_argnums=0)
    return lambda model: np.asarray(run(*nnx.split(model)))


@pytest.fixture(scope="module")
def dense():
    """A dense layer of more units than a block and more images than a tile; scores with ties."""
    return random_layer(np.random.default_rng(0), images=300, units=70, classes=5)


def scores_of(units):
    return np.round(np.random.default_rng(units).standard_normal(units), 1).astype(np.float32)


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


# Each kind of layer (first, before a pooling, last, dense) with one of the scopes, some with both.
CASES = [
    (layer, SCOPES[number % 2])
    for number, layer in enumerate(vgg.LAYERS)
    if layer in ("conv2b", "conv4b", "lin1", "lin2", "lin3")
]
LONG = [("conv1a", SCOPES[0]), ("conv1a", SCOPES[1]), ("lin1", SCOPES[1]), ("lin3", SCOPES[1])]
FURTHER = [(layer, scope) for layer in vgg.LAYERS for scope in SCOPES]
FURTHER = [
    pytest.param(*case, marks=pytest.mark.long if case in LONG else pytest.mark.exhaustive)
    for case in FURTHER
    if case not in CASES
]


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "scope"), CASES + FURTHER)
def test_every_fast_path_equals_evaluating_edited_parameters(
    tiny_vgg, few, read, forward, layer, scope
):
    found = read(layer)
    assert found.feeds_logits == (layer in ("lin2", "lin3"))
    units, factor, scores = found.units, 2.5, scores_of(found.units)
    order = np.argsort(-scores, kind="stable")
    cuts = np.arange(units + 1)[:, None] > np.argsort(order)[None, :]
    masks = np.random.default_rng(1).random((7, units)) < 0.5
    gains = np.asarray(ops.from_mask(np.concatenate([cuts, masks]), factor))
    thresholds = Sweep(found, scope=scope).thresholds(scores, [factor])[0].outcomes
    by_mask = Sweep(found, scope=scope).masks(masks, factor)
    by_gain = Sweep(found, scope=scope).gains(gains)
    for name in ("predictions", "hits", "near_ties"):
        two_ways = np.concatenate([getattr(thresholds, name), getattr(by_mask, name)])
        np.testing.assert_array_equal(two_ways, getattr(by_gain, name))
    np.testing.assert_allclose(
        np.concatenate([thresholds.nll, by_mask.nll]), by_gain.nll, rtol=1e-6
    )
    for at, gain in enumerate(gains):
        want = forward(edit.edit(tiny_vgg, layer, gain, scope=scope))
        check_outcome(by_gain, at, np.float64(want), few.labels)
    own = Sweep(found, scope=scope).evaluate(gains[-1])
    np.testing.assert_allclose(own.logits, want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["conv2b", "lin1", "lin2", "lin3"])
def test_factor_one_changes_nothing(tiny_vgg, few, read, layer):
    base = evaluate.evaluate(tiny_vgg, few, tile=4)
    masks = np.random.default_rng(1).random((3, read(layer).units)) < 0.5
    for outcomes in (
        Sweep(read(layer)).thresholds(scores_of(read(layer).units), [1.0])[0].outcomes,
        Sweep(read(layer)).masks(masks, 1.0),
        Sweep(read(layer)).gains(np.ones((1, read(layer).units))),
    ):
        np.testing.assert_array_equal(
            outcomes.predictions, np.broadcast_to(base.predictions, outcomes.predictions.shape)
        )
        np.testing.assert_allclose(outcomes.nll, base.nll(), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("factor", [0.5, 1.5, 4.0])
def test_thresholds_and_masks_equal_float64(dense, scope, factor):
    scores = scores_of(70)
    found = Sweep(dense, scope=scope).thresholds(scores, [factor])[0]
    assert len(found.outcomes) == 71
    rank = np.argsort(np.argsort(-scores, kind="stable"))
    masks = np.random.default_rng(2).random((70, 70)) < 0.4
    by_mask = Sweep(dense, scope=scope).masks(masks, factor)
    for at in range(70):
        for outcomes, mask in ((found.outcomes, rank < at), (by_mask, masks[at])):
            gains = np.where(mask, np.float32(factor), np.float32(1 / np.float32(factor)))
            check_outcome(outcomes, at, float64_logits(dense, gains, scope), dense.labels)
    for tau in (-9.0, -0.3, 0.0, 0.1, 9.0, float(scores[3])):
        gains = np.asarray(ops.threshold(scores, tau, factor))
        assert found.reachable()[found.cut(tau)]
        check_outcome(
            found.outcomes, found.cut(tau), float64_logits(dense, gains, scope), dense.labels
        )
    assert found.reachable().sum() == len(np.unique(scores)) + 1


def test_near_ties_are_counted(dense):
    """Two classes with the same weights tie on every image that prefers them."""
    head = dense.params
    weight, offset = head.weight.copy(), head.offset.copy()
    weight[:, 3], offset[3] = weight[:, 1], offset[1]
    twin = PreBiasActivations(
        "lin2", dense.values, dense.labels, dense.classes,
        head._replace(weight=weight, offset=offset),
        dense.weight_sums, "twin", "twin",
    )  # fmt: skip
    outcomes = Sweep(twin).masks(np.ones((1, 70), bool), 2.0)
    logits = float64_logits(twin, np.full(70, 2.0), "weights")
    assert outcomes.near_ties[0] == np.isin(logits.argmax(1), (1, 3)).sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.long), 2])
def test_same_outcomes_on_any_device_count(dense, devices):
    scores, masks = scores_of(70), np.random.default_rng(2).random((20, 70)) < 0.4
    calls = (
        lambda mesh: Sweep(dense, mesh=mesh).thresholds(scores, [2.0])[0].outcomes,
        lambda mesh: Sweep(dense, mesh=mesh).masks(masks, 2.0),
        lambda mesh: Sweep(dense, mesh=mesh).gains(masks + 0.5),
    )
    for call in calls:
        one, many = call(make_mesh(devices)), call(make_mesh(8))
        for name in ("hits", "nll", "near_ties", "predictions"):
            np.testing.assert_array_equal(getattr(one, name), getattr(many, name), err_msg=name)


@pytest.mark.slow
def test_activations_too_large_for_the_devices_are_sent_in_batches(dense, monkeypatch):
    masks = np.random.default_rng(2).random((20, 70)) < 0.4
    whole = Sweep(dense, mesh=make_mesh(2)).masks(masks, 2.0)
    monkeypatch.setattr(activations, "_BATCH", 130 * 70 * 4)
    monkeypatch.setattr(activations, "_RESIDENT", 0)
    dense._placed.clear()
    parts = Sweep(dense, mesh=make_mesh(2)).masks(masks, 2.0)
    assert not dense._placed
    for name in ("hits", "nll", "near_ties", "predictions"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


@pytest.mark.slow
def test_hits_alone_and_one_compilation(dense, monkeypatch):
    monkeypatch.setattr(sweep, "_CHUNK", 16)
    sweep.program_of.cache_clear()
    masks = np.random.default_rng(3).random((37, 70)) < 0.4
    done = []
    hits = Sweep(dense).masks(masks, 2.0, full=False, progress=lambda *x: done.append(x))
    Sweep(dense).masks(masks, 3.0, full=False)
    assert done == [(16, 37), (32, 37), (37, 37)]
    assert (hits.nll, hits.predictions, len(hits)) == (None, None, 37)
    np.testing.assert_array_equal(hits.hits, Sweep(dense).masks(masks, 2.0).hits)
    tile = 4 * sweep.default_tile()
    fixed = ("weights", kernels.count_hits)
    program = sweep.program_of(kernels.by_masks, fixed, make_mesh(), tile)
    assert program._cache_size() == 1


@pytest.mark.slow
def test_a_stopped_sweep_resumes(dense, monkeypatch, tmp_path):
    monkeypatch.setattr(sweep, "_CHUNK", 16)
    masks = np.random.default_rng(3).random((37, 70)) < 0.4
    want = Sweep(dense).masks(masks, 2.0)

    def stop(done, total):
        if done == 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Sweep(dense, cache=tmp_path).masks(masks, 2.0, progress=stop)
    assert len(list(tmp_path.iterdir())) == 2
    counted = []
    plain = Sweep._count
    monkeypatch.setattr(Sweep, "_count", lambda *args: counted.append(1) or plain(*args))
    for times in (1, 1):  # the third chunk, then nothing
        got = Sweep(dense, cache=tmp_path).masks(masks, 2.0)
        assert len(counted) == times
        for name in ("hits", "nll", "near_ties", "predictions"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    Sweep(dense, cache=tmp_path).masks(masks, 2.5)
    assert len(counted) == 4  # another factor is another key
    next(tmp_path.rglob("hits.npy")).write_bytes(b"damaged")
    for factor in (2.0, 2.5):
        Sweep(dense, cache=tmp_path).masks(masks, factor)
    assert len(counted) == 5
    thresholds = [
        Sweep(dense, cache=tmp_path).thresholds(scores_of(70), [2.0, 3.0]) for _ in range(2)
    ]
    assert len(counted) == 7
    np.testing.assert_array_equal(thresholds[0][1].outcomes.nll, thresholds[1][1].outcomes.nll)


@pytest.mark.slow
def test_activations_are_cached_and_pooled(tiny_vgg, few, read, tmp_path, monkeypatch):
    first = pre_bias_activations(tiny_vgg, few, "lin1", tile=4, cache=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [f"inputs-{first.key}"]
    two = read("lin2")
    monkeypatch.setattr(activations, "map_images", None)
    again = pre_bias_activations(tiny_vgg, few, "lin1", tile=4, cache=tmp_path)
    np.testing.assert_array_equal(first.values, again.values)
    np.testing.assert_allclose(
        first.weight_sums,
        np.abs(vgg.to_torch_state_dict(tiny_vgg)["lin1.weight"]).sum(1),
        rtol=1e-5,
    )
    gains = np.random.default_rng(0).uniform(0.5, 2, (2, 20))
    one, two = Sweep(two).gains(gains), Sweep(pool_activations(two, two)).gains(gains)
    np.testing.assert_array_equal(two.hits, 2 * one.hits)
    np.testing.assert_array_equal(two.predictions, np.tile(one.predictions, 2))


def test_refusals(tiny_vgg, blobs, read):
    layer = read("lin2")
    for call, message in (
        (
            lambda: Sweep(layer).gains(np.ones((2, 21))),
            "layer lin2 has 20 units, the gains have shape",
        ),
        (lambda: Sweep(layer).gains(np.full((1, 20), np.nan)), "not all finite"),
        (lambda: Sweep(layer).masks(np.ones(20, bool), 2.0), "layer lin2 has 20 units, the masks"),
        (
            lambda: Sweep(layer).masks(np.ones((1, 20), bool), 0.0),
            "a factor is a positive number, not 0.0",
        ),
        (lambda: Sweep(layer).thresholds(np.ones(3), [2.0]), "the scores have shape"),
        (
            lambda: Sweep(layer).thresholds(np.full(20, np.nan), [2.0]),
            "the scores for layer lin2 are not all finite",
        ),
        (lambda: pre_bias_activations(tiny_vgg, blobs, "lin4"), "no layer 'lin4'; did you mean"),
        (
            lambda: pre_bias_activations(
                tiny_vgg, ImageSet.from_arrays(blobs.images[0:20]), "lin2"
            ),
            "has no labels",
        ),
    ):
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.long
def test_ten_crops_are_averaged(tiny_vgg, blobs):
    few, gains = blobs.first(12), np.full(20, 1.5, np.float32)
    want = evaluate.evaluate(edit.edit(tiny_vgg, "lin2", gains), few, protocol="tencrop", tile=4)
    for layer in ("conv2b", "lin2"):
        views = pre_bias_activations(tiny_vgg, few, layer, protocol="tencrop", tile=4)
        assert views.values.shape[:2] == (12, 10)
        plain = Sweep(views).evaluate(np.ones(views.units))
        unedited = evaluate.evaluate(tiny_vgg, few, protocol="tencrop", tile=4)
        np.testing.assert_allclose(plain.logits, unedited.logits, rtol=1e-4, atol=1e-5)
    edited = Sweep(views).evaluate_each(np.stack([np.ones_like(gains), gains]))[1]
    np.testing.assert_allclose(edited.logits, want.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(Sweep(views).gains(gains[None]).predictions[0], want.predictions)


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["conv4b", "lin2"])
def test_a_second_sweep_traces_nothing(tiny_vgg, few, layer, monkeypatch):
    traced = []
    for name in ("count_all", "count_hits", "predicted"):
        kernel = getattr(kernels, name)
        counted = functools.partial(lambda kernel, *args: traced.append(1) or kernel(*args), kernel)
        monkeypatch.setattr(kernels, name, counted)
    before = []
    for factor in (2.0, 3.0):
        found = pre_bias_activations(tiny_vgg, few, layer, tile=4)
        masks = np.random.default_rng(int(factor)).random((5, found.units)) < 0.5
        tried = Sweep(found, scope="weights_and_bias")
        tried.masks(masks, factor)
        tried.masks(masks, factor, full=False)
        tried.thresholds(scores_of(found.units), [factor])
        tried.gains(masks + factor)
        before.append(len(traced))
    assert before[0] > 0
    assert before[1] == before[0]


@pytest.mark.exhaustive
@pytest.mark.slow
def test_lin2_of_the_published_network(blobs):
    """4,096 units: thresholds and masks against the forward pass of edited parameters."""
    model = nnx.jit(lambda: vgg.VggNet(vgg.VggConfig.paper(), rngs=nnx.Rngs(0)))()
    rng = np.random.default_rng(0)
    model.lin2.bias = nnx.Param(jax.numpy.asarray(rng.normal(0, 0.3, 4096), jax.numpy.float32))
    model.eval()
    x = model.preprocess(jax.numpy.asarray(blobs.images[0:300]))
    run = jax.jit(lambda graphdef, state, x: nnx.merge(graphdef, state)(x)[0], static_argnums=0)
    found = pre_bias_activations(model, blobs, "lin2")
    scores, masks = rng.standard_normal(4096), rng.random((3, 4096)) < 0.5
    thresholds = Sweep(found).thresholds(scores, [1.5])[0]
    by_mask = Sweep(found).masks(masks, 1.5)
    for outcomes, at, mask in (
        (thresholds.outcomes, thresholds.cut(0.3), scores > 0.3),
        (by_mask, 1, masks[1]),
    ):
        edited = edit.edit(model, "lin2", ops.from_mask(mask, 1.5))
        logits = np.concatenate(
            [run(*nnx.split(edited), part) for part in np.split(np.asarray(x), 3)]
        )
        check_outcome(outcomes, at, np.float64(logits), blobs.labels)
