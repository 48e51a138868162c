"""Probe, dissect, Table 1, evaluate and edit: against plain references, and the same on every batch and device."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx

import emojax
from emojax.data import map_images
from emojax.data.concepts import ConceptSet
from emojax.data.image_set import ImageSet
from emojax.dissection import dissect
from emojax.distributed.mesh import make_mesh
from emojax.editing import edit
from emojax.errors import InputError
from emojax.models import vgg
from emojax.probing import network, probe, record
from emojax.training import evaluate

CONCEPTS = ConceptSet(
    ("Smile", "Frown", "Raised Brows", "Closed Eyes", "Jaw"),
    (("happy",), ("sad", "angry"), ("surprise",), ("sad",), ("fear",)),
)
LAYERS = ("conv*", "lin1", "lin2")


@pytest.fixture(scope="module")
def found(tiny_vgg, blobs, tiny_clip):
    """A record with activations, its own tile of 8."""
    return probe.probe(tiny_vgg, blobs, tiny_clip, layers=LAYERS, batch=64, tile=8, keep_activations=True, mesh=make_mesh(1))


def plain_statistics(model, images, clip):
    """Activations [I, U] and embeddings [I, D], all images in one call."""
    x = jnp.asarray(images.images[0 : len(images)])
    taps = model(model.preprocess(x))[1]
    acts = [
        np.asarray(taps[name]).mean((1, 2)) if taps[name].ndim == 4 else np.asarray(taps[name]) for name in vgg.LAYERS[:-1]
    ]
    embeddings = np.asarray(clip.model.image_features(clip.preprocess(x)))
    return np.concatenate(acts, 1), embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def test_record_equals_plain_statistics(found, tiny_vgg, blobs, tiny_clip):
    acts, embeddings = plain_statistics(tiny_vgg, blobs, tiny_clip)
    np.testing.assert_allclose(found.activations, acts, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(found.embeddings, embeddings, atol=2e-6)
    kept, e = np.float64(found.activations), np.float64(found.embeddings)
    for got, want in zip(found.moments, (kept.sum(0), (kept**2).sum(0), kept.T @ e, e.T @ e), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    order = np.argsort(-found.activations, axis=0, kind="stable").T
    np.testing.assert_array_equal(found.merged.indices, order[:, :100])
    for half in (0, 1):
        mine = np.stack([row[row % 2 == half][:100] for row in order])
        np.testing.assert_array_equal(found.top.indices[half], mine)


@pytest.mark.parametrize(("batch", "devices"), [(7, 1), (512, 1), (64, 2), (512, 2), (7, 8), (64, 8)])
def test_same_record_for_every_batch_and_device_count(found, tiny_vgg, blobs, tiny_clip, batch, devices):
    other = probe.probe(
        tiny_vgg, blobs, tiny_clip, layers=LAYERS, batch=batch, tile=8, keep_activations=True, mesh=make_mesh(devices)
    )
    np.testing.assert_array_equal(other.activations, found.activations)
    np.testing.assert_array_equal(other.embeddings, found.embeddings)
    for got, want in zip(other.top, found.top, strict=True):
        np.testing.assert_array_equal(got, want)
    a, b = dissect.dissect(found, CONCEPTS), dissect.dissect(other, CONCEPTS)
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)


def test_layer_by_layer_equals_all_at_once(found, tiny_vgg, blobs, tiny_clip):
    whole = dissect.dissect(found, CONCEPTS)
    for number, layer in enumerate(("conv1a", "conv3b", "lin2")):
        alone = probe.probe(tiny_vgg, blobs, tiny_clip, layers=[layer], batch=64, tile=8)
        mine = found.segment_ids == list(found.layers).index(layer)
        np.testing.assert_array_equal(alone.merged.indices, found.merged.indices[mine])
        np.testing.assert_allclose(
            dissect.dissect(alone, CONCEPTS).scores, whole.scores[mine], atol=1e-5, err_msg=str(number)
        )


def test_max_pooling_and_relu_taps(tiny_vgg, blobs, tiny_clip):
    few = blobs.first(120)
    taps = tiny_vgg(tiny_vgg.preprocess(jnp.asarray(few.images[0:120])), taps="relu")[1]
    got = probe.probe(tiny_vgg, few, tiny_clip, layers=["conv2a"], pool="max", taps="relu", keep_activations=True)
    np.testing.assert_allclose(got.activations, taps["conv2a"].max((1, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["soft_wpmi", "wpmi", "cos_similarity", "cos_similarity_cubed"])
def test_late_scores_equal_float64(found, tiny_clip, name):
    text = tiny_clip.embed_texts(CONCEPTS.concepts)
    clip = np.float64(found.embeddings) @ np.float64(text).T
    extra = {"segments": found.segment_ids} if "wpmi" in name else {}
    want = getattr(reference, name)(clip, found.activations, **extra)
    got = dissect.dissect(found, CONCEPTS, similarity=name)
    assert np.abs(got.scores - want).max() <= 5e-6 * np.abs(want).max()
    np.testing.assert_array_equal(got.labels, want.argmax(1))


def test_late_rank_reorder_equals_float64(found):
    rng = np.random.default_rng(0)
    text = np.abs(rng.standard_normal((5, 24))).astype(np.float32)
    positive = dataclasses.replace(found, embeddings=np.abs(found.embeddings))
    orders = np.stack([[rng.permutation(15) for _ in range(5)] for _ in found.segment_ids])
    got = dissect.dissect(
        positive, CONCEPTS, similarity="rank_reorder", text_embeddings=text, permutations=jnp.asarray(orders)
    )
    want = reference.rank_reorder(np.float64(positive.embeddings) @ np.float64(text).T, found.activations, orders)
    np.testing.assert_allclose(got.scores, want, rtol=2e-4)


def test_many_concepts_cross_tiles(found):
    rng = np.random.default_rng(0)
    text = rng.standard_normal((203, 24)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    names = [f"c{i}" for i in range(203)]
    got = dissect.dissect(found, names, text_embeddings=text)
    want = reference.soft_wpmi(
        np.float64(found.embeddings) @ np.float64(text).T, found.activations, segments=found.segment_ids
    )
    assert np.abs(got.scores - want).max() <= 5e-6 * np.abs(want).max()


def test_record_survives_the_disk(found, tmp_path, tiny_clip):
    record.save(found, tmp_path / "r")
    again = record.load(tmp_path / "r")
    assert (again.layers, again.key, list(again.ids)) == (found.layers, found.key, list(found.ids))
    for got, want in zip((*again.top, *again.moments), (*found.top, *found.moments), strict=True):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(again.embeddings, found.embeddings)
    np.testing.assert_array_equal(again.activations, found.activations)
    assert (again.done_before, again.clip_key) == (300, tiny_clip.key)
    with pytest.raises(InputError, match="pass the clip"):
        dissect.dissect(again, CONCEPTS)
    np.testing.assert_array_equal(
        dissect.dissect(again, CONCEPTS, clip=tiny_clip).scores, dissect.dissect(found, CONCEPTS).scores
    )
    (tmp_path / "r" / "statistics.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="not a readable probe record"):
        record.load(tmp_path / "r")


def test_key_follows_content(tiny_vgg, blobs, tiny_clip):
    def key(model=tiny_vgg, images=blobs, top_k=100):
        net = network.as_network(model)
        return record.record_key(net, images, tiny_clip, ["lin1"], "avg", top_k, 8, False)

    pixels = blobs.images[0:300].copy()
    same = ImageSet.from_arrays(pixels, blobs.labels, blobs.classes)
    pixels[7, 3, 3] ^= 1
    changed = ImageSet.from_arrays(pixels, blobs.labels, blobs.classes)
    edited = edit.edit(tiny_vgg, "lin2", np.r_[2.0, np.ones(19)])
    assert key(images=same) == key()
    assert len({key(), key(images=changed), key(model=edited), key(top_k=50)}) == 4


def test_any_function_can_be_dissected(blobs, tiny_clip):
    def model(x):
        tokens = x.reshape(x.shape[0], 48, 48)
        return x.mean((1, 2)), {"tokens": tokens, "flat": x.reshape(x.shape[0], -1)[:, :9]}

    got = emojax.probe(model, blobs.images[0:150], tiny_clip, tile=8)
    assert list(got.layers.items()) == [("tokens", 48), ("flat", 9)]
    assert got.key is None
    labelled = emojax.dissect(got, ["Smile", "Frown"])
    assert labelled.scores.shape == (57, 2)
    assert labelled.description is None
    first = blobs.images[0:150][:, 0, :, 0].astype(np.float32) / 255
    np.testing.assert_array_equal(got.merged.indices[:48], np.argsort(-first, axis=0, kind="stable")[:100].T)


def test_probe_refusals(tiny_vgg, blobs, tiny_clip):
    with pytest.raises(InputError, match="no layer 'conv9'; did you mean 'conv"):
        probe.probe(tiny_vgg, blobs, tiny_clip, layers=["conv9"])
    broken = vgg.with_gains(tiny_vgg, {"lin1": vgg.Gain(jnp.full(24, 3e38), jnp.ones(24))})
    with pytest.raises(InputError, match="first in layer lin1, have activations that are not finite"):
        probe.probe(broken, blobs.first(20), tiny_clip, layers=["lin*"])


def test_dissect_refusals(tiny_vgg, blobs, tiny_clip):
    few = probe.probe(tiny_vgg, blobs.first(60), tiny_clip, layers=["lin2"], tile=8)
    with pytest.raises(InputError, match="the top 100 images of each unit are needed, the record holds 60; use a probe set"):
        dissect.dissect(few, CONCEPTS)
    short = probe.probe(tiny_vgg, blobs.first(60), tiny_clip, layers=["lin2"], top_k=10, tile=8)
    with pytest.raises(InputError, match=r"use --probe.top-k 28"):
        dissect.dissect(short, CONCEPTS, similarity="wpmi")
    with pytest.raises(InputError, match=r"probe with --probe.keep-activations"):
        dissect.dissect(few, CONCEPTS, similarity="cos_similarity_cubed")
    with pytest.raises(InputError, match="no similarity function 'cosine'"):
        dissect.dissect(few, CONCEPTS, similarity="cosine")
    with pytest.raises(InputError, match="rank_reorder is undefined"):
        dissect.dissect(few, CONCEPTS, similarity="rank_reorder", text_embeddings=-few.embeddings[:5])


def test_table_1_equals_a_plain_count(found, blobs):
    result = dissect.dissect(found, CONCEPTS)
    rows = dissect.interpretability(result, tau=0.5)
    assert [row.layer for row in rows] == list(found.layers)
    order = np.argsort(-found.activations, axis=0, kind="stable")[:10]
    for number, row in enumerate(rows):
        accuracy, chance = {True: [], False: []}, []
        for u in np.flatnonzero(found.segment_ids == number):
            emotions = CONCEPTS.emotions[result.scores[u].argmax()]
            mine = [blobs.classes[blobs.labels[i]] in emotions for i in order[:, u]]
            accuracy[bool(result.scores[u].max() > 0.5)].append(np.mean(mine))
            chance.append(np.mean([blobs.classes[y] in emotions for y in blobs.labels]))
        both = accuracy[True] + accuracy[False]
        assert (row.interpretable, row.not_interpretable) == (len(accuracy[True]), len(accuracy[False]))
        assert row.share == pytest.approx(len(accuracy[True]) / len(both))
        assert row.overall_acc == pytest.approx(np.mean(both))
        for value, part in ((row.interp_acc, accuracy[True]), (row.uninterp_acc, accuracy[False])):
            assert value == (pytest.approx(np.mean(part)) if part else None)
        assert row.chance_overall == pytest.approx(np.mean(chance))
        assert row.adjusted_overall == pytest.approx((np.mean(both) - np.mean(chance)) / (1 - np.mean(chance)))
    assert dissect.most_interpretable_layer(rows) == max(rows, key=lambda r: (r.interpretable, rows.index(r))).layer


def test_evaluation_numbers():
    logits = np.array([[3.0, 1, 0], [0, 2, 1], [1, 1, 0], [0, 5, 1]], np.float32)
    result = evaluate.Evaluation(logits, np.array([0, 2, 1, 1]), ("a", "b", "c"))
    assert result.predictions.tolist() == [0, 1, 0, 1]  # a tie goes to the lower class
    assert (result.top(1), result.top(2)) == (0.5, 1.0)
    assert result.confusion().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]
    e = np.exp(np.float64(logits))
    assert result.nll() == pytest.approx(-np.log((e / e.sum(1, keepdims=True))[np.arange(4), [0, 2, 1, 1]]).mean())
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
    results = [evaluate.evaluate(tiny_vgg, few, protocol=protocol, batch=batch, tile=4) for batch in (7, 64)]
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
        want = evaluate.evaluate(edit.edit(tiny_vgg, layer, gains[setting], scope=scope), few, tile=4)
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
    np.testing.assert_array_equal(cells[0].evaluation.logits, cells[2].evaluation.logits)  # factor 1: nothing changes
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


def test_one_compilation_per_probe(tiny_vgg, blobs, tiny_clip):
    """Padding keeps shapes fixed: however many batches, the network is traced once."""
    traced = []

    def counting(params, images):
        traced.append(images.shape)
        return inner.apply(params, images)

    inner = network.as_network(tiny_vgg)
    counted = dataclasses.replace(inner, apply=counting)
    probe.probe(counted, blobs, tiny_clip, layers=LAYERS, batch=32, tile=8, mesh=make_mesh(1))
    shapes = {shape for shape in traced if shape[0] == 8}
    assert shapes == {(8, 40, 40, 1)}
    assert len([s for s in traced if s[0] == 8]) <= 2  # lax.map traces its body once or twice, never per batch


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
