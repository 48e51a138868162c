"""Records on disk: reuse by content, resume after a stop, and how far labels can be trusted."""

import dataclasses
import json
import random
import subprocess
import sys
import textwrap
import time

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from scipy import stats as scipy_stats

from emojax import cli
from emojax.data.concepts import ConceptSet
from emojax.data.image_set import ImageSet
from emojax.data.weights import save_vgg
from emojax.dissection import dissect
from emojax.distributed.mesh import make_mesh
from emojax.editing import edit
from emojax.errors import InputError
from emojax.ops import stats
from emojax.probing import probe, record

CONCEPTS = ConceptSet(("Smile", "Frown", "Raised Brows", "Closed Eyes", "Jaw"))
OPTIONS = {"layers": ("lin1", "lin2"), "batch": 32, "tile": 8, "keep_activations": True}


def same(a, b, exact_moments=True):
    for got, want in zip(a.top, b.top, strict=True):
        np.testing.assert_array_equal(got, want)
    for got, want in zip(a.moments, b.moments, strict=True):
        if exact_moments:
            np.testing.assert_array_equal(got, want)
        else:
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(a.embeddings, b.embeddings)
    np.testing.assert_array_equal(a.activations, b.activations)
    assert (a.layers, a.key, list(a.ids)) == (b.layers, b.key, list(b.ids))
    np.testing.assert_array_equal(a.labels, b.labels)


@pytest.fixture(scope="module")
def whole(tiny_vgg, blobs, tiny_clip):
    return probe.probe(tiny_vgg, blobs, tiny_clip, mesh=make_mesh(2), **OPTIONS)


class Stopped(Exception):
    pass


def stop_after(batches):
    def progress(done, total):
        nonlocal batches
        batches -= 1
        if batches == 0:
            raise Stopped

    return progress


@pytest.mark.parametrize(("batches", "devices"), [(1, 2), (3, 2), (4, 1), (4, 8)])
def test_resumed_probe_is_identical(whole, tiny_vgg, blobs, tiny_clip, tmp_path, batches, devices):
    """Stopped on two devices, resumed on as many or others: the same bits; only sums over other devices may round apart."""
    args = (tiny_vgg, blobs, tiny_clip)
    with pytest.raises(Stopped):
        probe.probe(*args, mesh=make_mesh(2), cache=tmp_path, save_every=0, progress=stop_after(batches + 1), **OPTIONS)
    assert [p.suffix for p in tmp_path.iterdir()] == [".partial"]
    resumed = probe.probe(*args, mesh=make_mesh(devices), cache=tmp_path, save_every=0, **OPTIONS)
    assert 0 < resumed.done_before < len(blobs)
    same(resumed, whole, exact_moments=devices == 2)
    assert [p.name for p in tmp_path.iterdir()] == [whole.key]
    assert {p.name for p in (tmp_path / whole.key).iterdir()} == {
        "record.json", "ids.jsonl", "statistics.safetensors", "embeddings.npy", "activations.npy", "checksums.json",
    }  # fmt: skip
    again = probe.probe(*args, mesh=make_mesh(2), cache=tmp_path, progress=stop_after(1), **OPTIONS)  # nothing is computed
    assert again.done_before == len(blobs)
    same(again, resumed)


def test_any_change_of_content_is_a_fresh_computation(whole, tiny_vgg, blobs, tiny_clip, tmp_path):
    def key(model=tiny_vgg, images=blobs, clip=tiny_clip, **changed):
        return probe.probe(model, images, clip, mesh=make_mesh(2), cache=tmp_path, **(OPTIONS | changed)).key

    pixels = blobs.images[0:300].copy()
    pixels[200, 40, 3] ^= 1
    fine_tuned = dataclasses.replace(tiny_clip, preprocess=dataclasses.replace(tiny_clip.preprocess, mean=(0.5, 0.5, 0.5)))
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


def test_unknown_preprocessing_is_never_cached(tiny_vgg, blobs, tiny_clip, tmp_path):
    """A function has no content key: a record made with it must not answer for another one."""
    few, shown = blobs.first(40), []
    for flip in (False, True):
        own = lambda x, flip=flip: tiny_vgg.preprocess(x[:, ::-1] if flip else x)
        got = probe.probe(
            tiny_vgg, few, tiny_clip, layers=["lin1"], tile=8, preprocess=own, cache=tmp_path, keep_activations=True
        )
        assert got.key is None
        shown.append(got.activations)
    assert (shown[0] != shown[1]).any()
    assert list(tmp_path.iterdir()) == []


def test_record_of_another_clip_is_refused(whole, tiny_clip):
    other = dataclasses.replace(tiny_clip, preprocess=dataclasses.replace(tiny_clip.preprocess, mean=(0.5, 0.5, 0.5)))
    with pytest.raises(InputError, match="made with another CLIP"):
        dissect.dissect(whole, CONCEPTS, clip=other)


def test_edited_concepts_are_embedded_anew(tiny_clip, tmp_path):
    first = dissect.embed_concepts(tiny_clip, CONCEPTS, tmp_path)
    np.testing.assert_array_equal(dissect.embed_concepts(tiny_clip, CONCEPTS, tmp_path), first)
    assert len(list((tmp_path / "texts").iterdir())) == 1
    edited = ConceptSet(("Grin", *CONCEPTS.concepts[1:]))
    np.testing.assert_array_equal(
        dissect.embed_concepts(tiny_clip, edited, tmp_path), tiny_clip.embed_texts(edited.concepts)
    )
    assert len(list((tmp_path / "texts").iterdir())) == 2


PROGRAM = """
    import os, sys
    os.environ["HF_HUB_OFFLINE"] = "1"
    import jax
    jax.config.update("jax_compilation_cache_dir", sys.argv[4])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    from pathlib import Path
    import numpy as np
    from emojax.data.image_set import ImageSet
    from emojax.data.clip_folder import load_clip
    from emojax.data.weights import load_vgg
    from emojax.probing.probe import probe
    import time
    images = ImageSet.from_arrays(np.load(sys.argv[5]), name="noise")
    def tick(done, total):
        print(done, flush=True)
        time.sleep(0.05)  # or the whole probe would be over before it is killed
    probe(load_vgg(sys.argv[1]), images, load_clip(sys.argv[2]), layers=["lin*"], batch=32, tile=8, top_k=60,
          cache=Path(sys.argv[3]), save_every=0, progress=tick)
"""


def killed_and_resumed(tmp_path, tiny_vgg, clip_folder, images, kills):
    """Kills a probing process at random moments, lets it finish, and returns the record and how often it was resumed."""
    save_vgg(tiny_vgg, tmp_path / "vgg.safetensors")
    np.save(tmp_path / "images.npy", images)
    files = [tmp_path / name for name in ("vgg.safetensors", clip_folder, "cache", "compiled", "images.npy")]
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), *map(str, files)]
    chance, starts = random.Random(0), []
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        starts.append(int(process.stdout.readline()))
        time.sleep(chance.uniform(0.2, 0.2 + 2.0 / kills))
        process.kill()
        process.wait()
        process.stdout.close()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (folder,) = (tmp_path / "cache").iterdir()
    return record.load(folder), starts


@pytest.mark.parametrize("kills", [2])
def test_killed_probe_is_identical(tiny_vgg, tiny_clip, clip_folder, tmp_path, kills):
    pictures = np.random.default_rng(2).integers(0, 256, (2000, 48, 48, 1), np.uint8)
    got, starts = killed_and_resumed(tmp_path, tiny_vgg, clip_folder, pictures, kills)
    assert starts == sorted(starts)  # a kill before the next snapshot starts at the same image again
    assert starts[-1] > starts[0]
    images = ImageSet.from_arrays(pictures, name="noise")
    want = probe.probe(tiny_vgg, images, tiny_clip, layers=["lin*"], batch=32, tile=8, top_k=60, mesh=make_mesh(1))
    assert got.key == want.key
    for a, b in zip((*got.top, *got.moments), (*want.top, *want.moments), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(got.embeddings, want.embeddings)


# Confidence of labels


def plain_confidence(found, text, top_k, sets):
    """p-values, and labels of the halves, one list at a time in float64."""
    clip = np.float64(found.embeddings) @ np.float64(text).T
    wide = 10 * clip
    probs = np.exp(wide - wide.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    weights = (0.998 - np.arange(top_k) / top_k * 0.028)[:, None]

    def loglik(images):
        return np.log(1 + weights * (probs[images] - 1) + 1e-7).sum(0)

    def score(lists):
        rows = np.stack([loglik(images) for images in lists])
        priors = {}
        for layer in np.unique(found.segment_ids):
            mine = rows[found.segment_ids == layer]
            priors[layer] = mine.max(0) + np.log(np.exp(mine - mine.max(0)).mean(0))
        return rows - np.stack([priors[layer] for layer in found.segment_ids]), priors

    order = np.argsort(-found.activations, axis=0, kind="stable").T
    scores, priors = score(order[:, :top_k])
    rng = np.random.default_rng(0)
    null = np.stack([loglik(rng.choice(found.images, top_k, replace=False)) for _ in range(sets)])
    p = [
        (1 + ((null - priors[layer]).max(1) >= best).sum()) / (1 + sets)
        for layer, best in zip(found.segment_ids, scores.max(1), strict=True)
    ]
    halves = [score([row[row % 2 == half][:top_k] for row in order])[0].argmax(1) for half in (0, 1)]
    return np.array(p), np.array(halves)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_confidence_equals_a_plain_computation(whole, tiny_clip, devices):
    found = dissect.dissect(whole, CONCEPTS, null_sets=200, mesh=make_mesh(devices))
    p, halves = plain_confidence(whole, tiny_clip.embed_texts(CONCEPTS.concepts), 100, 200)
    np.testing.assert_allclose(found.confidence.p_value, p, atol=1e-6)
    np.testing.assert_array_equal(found.confidence.half_labels, halves)
    np.testing.assert_allclose(found.confidence.q_value, scipy_stats.false_discovery_control(p), atol=1e-6)
    np.testing.assert_array_equal(found.confidence.holds(found.labels), (halves == found.labels).all(0))


@pytest.mark.parametrize(("name", "concepts", "devices"), [("soft_wpmi", 203, 2), ("wpmi", 203, 8), ("soft_wpmi", 3, 8)])
def test_scores_do_not_depend_on_devices(whole, name, concepts, devices):
    text = np.random.default_rng(0).standard_normal((concepts, 24)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    names = [f"c{i}" for i in range(concepts)]
    results = [
        dissect.dissect(whole, names, similarity=name, text_embeddings=text, null_sets=50, mesh=make_mesh(n))
        for n in (1, devices)
    ]
    np.testing.assert_array_equal(results[0].labels, results[1].labels)
    np.testing.assert_array_equal(results[0].confidence.half_labels, results[1].confidence.half_labels)
    extra = {"segments": whole.segment_ids}
    want = getattr(reference, name)(np.float64(whole.embeddings) @ np.float64(text).T, whole.activations, **extra)
    for result in results:
        assert np.abs(result.scores - want).max() <= 5e-6 * np.abs(want).max()


def test_random_units_are_not_significant_and_planted_ones_are():
    """Units that fire on random images against one that fires on the images of one concept.

    `a` is small so that random lists score well below log U, which no unit's score can exceed when lambda is 1.
    """
    rng = np.random.default_rng(0)
    images = rng.standard_normal((1000, 32)).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    text = rng.standard_normal((6, 32)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    acts = rng.standard_normal((1000, 200)).astype(np.float32)
    acts[:, 7] = images @ text[4]
    planted = record_of(acts, images)
    found = dissect.dissect(planted, [f"c{i}" for i in range(6)], text_embeddings=text, a=0.5)
    assert found.labels[7] == 4
    assert found.confidence.q_value[7] <= 0.2 + 1e-6  # the smallest that 1,000 random lists can give 1 of 200 units
    assert found.confidence.p_value[7] == pytest.approx(1 / 1001)
    assert found.confidence.holds(found.labels)[7]
    others = np.delete(found.confidence.p_value, 7)
    assert scipy_stats.kstest(others, "uniform").pvalue > 0.001
    assert (np.delete(found.confidence.q_value, 7) > 0.05).all()


def record_of(acts, embeddings):
    """A record made of given activations."""
    halves = []
    for half in (0, 1):
        order = np.argsort(-acts[half::2], axis=0, kind="stable")[:100].T * 2 + half
        halves.append((np.take_along_axis(acts.T, order, 1), np.int32(order)))
    top = probe.TopK(*(np.stack(x) for x in zip(*halves, strict=True)))
    a, e = np.float64(acts), np.float64(embeddings)
    sums = record.Moments(a.sum(0), (a**2).sum(0), a.T @ e, e.T @ e)
    ids = [str(i) for i in range(len(acts))]
    return record.ProbeRecord({"layer": acts.shape[1]}, top, sums, embeddings, None, (), ids, None, "", acts)


def test_few_images_leave_the_halves_out(tiny_vgg, blobs, tiny_clip):
    few = probe.probe(tiny_vgg, blobs.first(120), tiny_clip, layers=["lin2"], tile=8)
    found = dissect.dissect(few, CONCEPTS, null_sets=20)
    assert found.confidence.half_labels is None
    assert found.confidence.holds(found.labels) is None
    assert dissect.dissect(few, CONCEPTS, null_sets=0).confidence is None
    assert dissect.dissect(few, CONCEPTS, similarity="cos_similarity").confidence is None


def test_statistics_equal_scipy():
    rng = np.random.default_rng(0)
    p = np.round(rng.uniform(0, 1, 300) ** 3, 3)
    got = stats.benjamini_hochberg(jnp.asarray(p))
    np.testing.assert_allclose(got, scipy_stats.false_discovery_control(p), rtol=1e-5)
    observed, null = rng.integers(0, 9, 40).astype(float), rng.integers(0, 9, 99).astype(float)
    want = [(1 + (null >= x).sum()) / 100 for x in observed]
    np.testing.assert_allclose(stats.permutation_p_values(jnp.asarray(observed), jnp.asarray(null)), want, rtol=1e-6)


# The concepts verb


def concepts_verb(capsys, *args):
    code = cli.main(["concepts", *map(str, args)])
    return code, *capsys.readouterr()


def test_concept_review(capsys, tmp_path, clip_folder):
    path = tmp_path / "c.txt"
    path.write_text(f"Smile\n\nFrown\nsmile\nSmile\n{'long ' * 40}\n\n")
    code, out, _ = concepts_verb(capsys, path, "--out", tmp_path / "a")
    assert code == 0
    assert "4 concepts, none with emotions, 2 problems" in out
    assert "line 2: blank" in out
    assert "line 5: duplicate 'Smile' (first on line 1)" in out
    assert "were not looked at" in out
    code, out, _ = concepts_verb(capsys, path, "--clip.path", clip_folder, "--out", tmp_path / "b", "--synonym", "0.9999")
    assert code == 0
    assert "near synonym 'smile' (cosine 1.000 with 'Smile' on line 1)" in out
    assert "line 6: too long" in out
    assert "tokens, 40 fit" in out
    problems = (tmp_path / "b" / "problems.csv").read_text().splitlines()
    assert [line.split(",")[2] for line in problems] == ["problem", "blank", "near_synonym", "duplicate", "too_long"]
    agreement = (tmp_path / "b" / "agreement.csv").read_text().splitlines()
    assert agreement[0] == "concept,angry,disgust,fear,happy,sad,surprise,neutral,closest"
    assert len(agreement) == 4
    assert "concepts" in json.loads((tmp_path / "b" / "manifest.json").read_text())["settings"]


def test_prompt_and_answer(capsys, tmp_path):
    code, out, _ = concepts_verb(capsys, "--prompt")
    assert code == 0
    assert "angry, disgust, fear, happy, sad, surprise, neutral" in out
    answer = tmp_path / "answer.txt"
    answer.write_text("1. **Raised Brows**: Surprise\n\n- Jaw Drop: surprise, fear.\n* Lips: pressed: angry\n")
    code, out, _ = concepts_verb(capsys, "--answer", answer, "--out", tmp_path / "a")
    assert code == 0
    assert (tmp_path / "a" / "concepts.csv").read_text() == (
        "concept,emotions\nRaised Brows,surprise\nJaw Drop,surprise;fear\nLips: pressed,angry\n"
    )
    code, out, _ = concepts_verb(capsys, tmp_path / "a" / "concepts.csv", "--out", tmp_path / "b")
    assert "3 concepts, 3 with emotions, 0 problems" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Raised Brows\n", "line 1: 'Raised Brows' is not of the form"),
        ("Brows: suprise\n", "line 1: no emotion 'suprise' was asked for; did you mean 'surprise'?"),
        ("Brows: fear\nBrows: sad\n", "line 2: 'Brows' comes twice"),
        ("\n", "no concept in it"),
    ],
)
def test_answer_refusals(capsys, tmp_path, text, message):
    (tmp_path / "answer.txt").write_text(text)
    code, _, err = concepts_verb(capsys, "--answer", tmp_path / "answer.txt", "--out", tmp_path / "out")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
