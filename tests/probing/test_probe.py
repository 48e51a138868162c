"""The record of one pass: against plain statistics, the same on every batch and device, resumed."""

import dataclasses
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from conftest import half_moments
from flax import nnx
from interruptions import Stopped, stop_after
from signalled import environment

import emojax
from emojax.data.image_set import ImageSet
from emojax.data.weights import save_vgg
from emojax.dissection import dissect
from emojax.distributed.mesh import make_mesh
from emojax.editing import edit
from emojax.errors import InputError
from emojax.models import deep_emotion, vgg
from emojax.probing import network, probe, record
from emojax.probing import step as steps

CONCEPTS = ("Smile", "Frown", "Raised Brows", "Closed Eyes", "Jaw")
LAYERS = ("conv*", "lin1", "lin2")
EXHAUSTIVE = pytest.mark.exhaustive


@nnx.jit
def run(model, images):
    return model(images)


def plain_statistics(model, images, clip):
    """Activations [I, U] and embeddings [I, D], all images in one call."""
    x = jnp.asarray(images.images[0 : len(images)])
    taps = run(model, model.preprocess(x))[1]
    acts = [
        np.asarray(taps[name]).mean((1, 2)) if taps[name].ndim == 4 else np.asarray(taps[name])
        for name in vgg.LAYERS[:-1]
    ]
    features = nnx.jit(lambda model, x: model.image_features(x))
    embeddings = np.asarray(features(clip.model, jax.jit(clip.preprocess)(x)))
    return np.concatenate(acts, 1), embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


@pytest.mark.slow
def test_record_equals_plain_statistics(found, tiny_vgg, blobs, tiny_clip):
    acts, embeddings = plain_statistics(tiny_vgg, blobs, tiny_clip)
    np.testing.assert_allclose(found.activations, acts, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(found.embeddings, embeddings, atol=2e-6)
    kept, e = np.float64(found.activations), np.float64(found.embeddings)
    for got, want in zip(
        found.moments,
        (kept.sum(0), (kept**2).sum(0), kept.T @ e, e.T @ e, e.sum(0)),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    for got, want in zip(
        found.half_moments, half_moments(found.activations, found.embeddings), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    order = np.argsort(-found.activations, axis=0, kind="stable").T
    np.testing.assert_array_equal(found.merged.indices, order[:, :100])
    for half in (0, 1):
        mine = np.stack([row[row % 2 == half][:100] for row in order])
        np.testing.assert_array_equal(found.top.indices[half], mine)


@pytest.mark.long
def test_groups_of_layers_give_the_same_record(found, tiny_vgg, blobs, tiny_clip, tmp_path):
    """Each group in a pass of its own; the joined record is cached like any other."""
    one_pass = tmp_path / "one"
    options = {"layers": LAYERS, "batch": 64, "tile": 8, "keep_activations": True}
    options |= {"mesh": make_mesh(1)}
    memory = 60 * steps.bytes_per_unit(100, found.embeddings.shape[1])
    got = probe.probe(tiny_vgg, blobs, tiny_clip, memory=memory, cache=one_pass, **options)
    assert got.layers == found.layers
    assert len(list(one_pass.iterdir())) == 3  # the convolutions, the dense layers, and all
    np.testing.assert_array_equal(got.top.indices, found.top.indices)
    np.testing.assert_allclose(got.activations, found.activations, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got.embeddings, found.embeddings, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(got.half_moments, found.half_moments, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)
    again = probe.probe(tiny_vgg, blobs, tiny_clip, cache=one_pass, **options)
    assert (again.key, again.done_before) == (got.key, len(blobs))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "devices"),
    [
        (7, 1),
        (512, 2),
        (64, 8),
        *(pytest.param(*case, marks=EXHAUSTIVE) for case in ((512, 1), (64, 2), (7, 8))),
    ],
)
def test_same_record_for_every_batch_and_device_count(
    found, tiny_vgg, blobs, tiny_clip, batch, devices
):
    other = probe.probe(
        tiny_vgg,
        blobs,
        tiny_clip,
        layers=LAYERS,
        batch=batch,
        tile=8,
        keep_activations=True,
        mesh=make_mesh(devices),
    )
    np.testing.assert_array_equal(other.activations, found.activations)
    np.testing.assert_array_equal(other.embeddings, found.embeddings)
    for got, want in zip(other.top, found.top, strict=True):
        np.testing.assert_array_equal(got, want)
    for got, want in zip(other.half_moments, found.half_moments, strict=True):
        np.testing.assert_array_equal(got, want)
    a = dissect.dissect(found, CONCEPTS)
    b = dissect.dissect(other, CONCEPTS)
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)


@pytest.mark.slow
def test_max_pooling_and_relu_taps(tiny_vgg, blobs, tiny_clip):
    few = blobs.first(120)
    of_relu = nnx.jit(lambda model, images: model(model.preprocess(images), taps="relu")[1])
    taps = of_relu(tiny_vgg, few.images[0:120])
    got = probe.probe(
        tiny_vgg, few, tiny_clip, layers=["conv2a"], pool="max", taps="relu", keep_activations=True
    )
    largest = np.asarray(taps["conv2a"]).max((1, 2))
    np.testing.assert_allclose(got.activations, largest, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
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
    np.testing.assert_array_equal(
        got.merged.indices[:48], np.argsort(-first, axis=0, kind="stable")[:100].T
    )


@pytest.mark.slow
def test_probe_refusals(tiny_vgg, blobs, tiny_clip):
    with pytest.raises(InputError, match="no layer 'conv9'; did you mean 'conv"):
        probe.probe(tiny_vgg, blobs, tiny_clip, layers=["conv9"])
    broken = vgg.with_gains(tiny_vgg, {"lin1": vgg.Gain(jnp.full(24, 3e38), jnp.ones(24))})
    with pytest.raises(
        InputError, match="first in layer lin1, have activations that are not finite"
    ):
        probe.probe(broken, blobs.first(20), tiny_clip, layers=["lin*"])


@pytest.mark.slow
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
    assert (
        len([s for s in traced if s[0] == 8]) <= 2
    )  # lax.map traces its body once or twice, never per batch


OPTIONS = {"layers": ("lin1", "lin2"), "batch": 32, "tile": 8, "keep_activations": True}


def same(a, b):
    for got, want in zip(a.top, b.top, strict=True):
        np.testing.assert_array_equal(got, want)
    for got, want in zip(a.half_moments, b.half_moments, strict=True):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(a.embeddings, b.embeddings)
    np.testing.assert_array_equal(a.activations, b.activations)
    assert (a.layers, a.key, list(a.ids)) == (b.layers, b.key, list(b.ids))
    np.testing.assert_array_equal(a.labels, b.labels)


@pytest.fixture(scope="module")
def whole(tiny_vgg, blobs, tiny_clip):
    return probe.probe(tiny_vgg, blobs, tiny_clip, mesh=make_mesh(2), **OPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batches", "devices"), [(1, 2), (4, 1), pytest.param(3, 2, marks=EXHAUSTIVE), (4, 8)]
)
def test_resumed_probe_is_identical(whole, tiny_vgg, blobs, tiny_clip, tmp_path, batches, devices):
    """Stopped on two devices, resumed on as many or others: the same bits."""
    args = (tiny_vgg, blobs, tiny_clip)
    with pytest.raises(Stopped):
        probe.probe(
            *args,
            mesh=make_mesh(2),
            cache=tmp_path,
            save_every=0,
            progress=stop_after(batches + 1),
            **OPTIONS,
        )
    assert [p.suffix for p in tmp_path.iterdir()] == [".partial"]
    resumed = probe.probe(*args, mesh=make_mesh(devices), cache=tmp_path, save_every=0, **OPTIONS)
    assert 0 < resumed.done_before < len(blobs)
    same(resumed, whole)
    assert [p.name for p in tmp_path.iterdir()] == [whole.key]
    assert {p.name for p in (tmp_path / whole.key).iterdir()} == {
        "record.json",
        "ids.jsonl",
        "statistics.safetensors",
        "embeddings.npy",
        "activations.npy",
        "checksums.json",
    }
    again = probe.probe(
        *args, mesh=make_mesh(2), cache=tmp_path, progress=stop_after(1), **OPTIONS
    )  # nothing is computed
    assert again.done_before == len(blobs)
    same(again, resumed)


@pytest.mark.long
def test_any_change_of_content_is_a_fresh_computation(whole, tiny_vgg, blobs, tiny_clip, tmp_path):
    def key(model=tiny_vgg, images=blobs, clip=tiny_clip, **changed):
        return probe.probe(
            model, images, clip, mesh=make_mesh(2), cache=tmp_path, **(OPTIONS | changed)
        ).key

    pixels = blobs.images[0:300].copy()
    pixels[200, 40, 3] ^= 1
    fine_tuned = dataclasses.replace(
        tiny_clip, preprocess=dataclasses.replace(tiny_clip.preprocess, mean=(0.5, 0.5, 0.5))
    )
    keys = [
        key(),
        key(images=ImageSet.from_arrays(pixels, blobs.labels, blobs.classes)),
        key(model=edit.edit(tiny_vgg, "lin1", np.r_[1.5, np.ones(23)])),
        key(clip=fine_tuned),
        key(pool="max"),
        key(top_k=50),
    ]
    assert len(set(keys)) == len(keys) == len(list(tmp_path.iterdir()))
    assert key(batch=64) == keys[0]  # the batch size is not content
    assert len(list(tmp_path.iterdir())) == len(keys)


@pytest.mark.long
def test_unknown_preprocessing_is_never_cached(tiny_vgg, blobs, tiny_clip, tmp_path):
    """A function has no content key: a record made with it must not answer for another one."""
    few, shown = blobs.first(40), []
    for flip in (False, True):
        own = lambda x, flip=flip: tiny_vgg.preprocess(x[:, ::-1] if flip else x)
        got = probe.probe(
            tiny_vgg,
            few,
            tiny_clip,
            layers=["lin1"],
            tile=8,
            preprocess=own,
            cache=tmp_path,
            keep_activations=True,
        )
        assert got.key is None
        shown.append(got.activations)
    assert (shown[0] != shown[1]).any()
    assert list(tmp_path.iterdir()) == []


PROGRAM = """
    import sys, time
    import numpy as np
    from pathlib import Path
    from emojax.data.image_set import ImageSet
    from emojax.data.clip_folder import load_clip
    from emojax.data.weights import load_vgg
    from emojax.probing.probe import probe
    network, clip, pictures, *caches = sys.argv[1:]
    images = ImageSet.from_arrays(np.load(pictures), name="noise")
    def tick(done, total):
        print(done, flush=True)
        time.sleep(0.05)  # or the whole probe would be over before it is killed
    for cache in caches:
        print(cache, flush=True)
        probe(load_vgg(network), images, load_clip(clip), layers=["lin*"], batch=32, tile=8,
              top_k=60, cache=Path(cache), save_every=0, progress=tick)
"""


def killed_and_resumed(tmp_path, tiny_vgg, clip_folder, images, kills):
    """Kills a probing process at random moments and lets another finish.

    Returns its record, where it started each time, and the record of a probe left alone: also of
    another process than this one, as the last bits depend on how many devices XLA divides a CPU
    into.
    """
    save_vgg(tiny_vgg, tmp_path / "vgg.safetensors")
    np.save(tmp_path / "images.npy", images)
    cache, undisturbed = str(tmp_path / "cache"), str(tmp_path / "undisturbed")

    def probing(*caches):
        files = [tmp_path / "vgg.safetensors", clip_folder, tmp_path / "images.npy"]
        command = [sys.executable, "-c", textwrap.dedent(PROGRAM), *map(str, files), *caches]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())

    def recorded(cache):
        (folder,) = Path(cache).iterdir()
        return record.load(folder)

    chance, starts = random.Random(0), []
    for _ in range(kills):
        with probing(cache) as process:
            assert process.stdout.readline().strip() == cache
            starts.append(int(process.stdout.readline()))
            time.sleep(chance.uniform(0.2, 0.2 + 1.0 / kills))
            process.kill()
    with probing(cache, undisturbed) as process:
        assert process.stdout.readline().strip() == cache
        starts.append(int(process.stdout.readline()))
        process.communicate()
    assert process.returncode == 0
    return recorded(cache), starts, recorded(undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=EXHAUSTIVE)])
def test_killed_probe_is_identical(tiny_vgg, clip_folder, tmp_path, kills):
    pictures = np.random.default_rng(2).integers(0, 256, (1000, 48, 48, 1), np.uint8)
    got, starts, want = killed_and_resumed(tmp_path, tiny_vgg, clip_folder, pictures, kills)
    assert starts == sorted(
        starts
    )  # a kill before the next snapshot starts at the same image again
    assert starts[-1] > starts[0]
    assert got.key == want.key
    for a, b in zip((*got.top, *got.half_moments), (*want.top, *want.half_moments), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(got.embeddings, want.embeddings)


@pytest.mark.slow
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


def test_a_loop_that_waits_for_reading_says_what_share_of_its_time(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("emojax.probing.probe.time.perf_counter", lambda: clock[0])

    def reader():
        for _ in range(4):
            clock[0] += 3.0  # to read
            yield "batch"

    waits = probe.Waits()
    assert waits.share() is None
    for _ in waits.over(reader()):
        clock[0] += 1.0  # to compute
    # Three batches after the first, 3 s of 4 each.
    assert waits.share() == 0.75
    alone = probe.Waits()
    assert list(alone.over(iter(["one"]))) == ["one"]
    assert alone.share() is None
