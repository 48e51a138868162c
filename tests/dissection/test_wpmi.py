"""Scores on any number of devices, and how far labels can be trusted."""

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from conftest import half_moments
from scipy import stats as scipy_stats

from emojax.data.concepts import ConceptSet
from emojax.dissection import dissect
from emojax.distributed.mesh import make_mesh
from emojax.ops import stats
from emojax.ops.topk import TopK
from emojax.probing import probe, record

CONCEPTS = ConceptSet(("Smile", "Frown", "Raised Brows", "Closed Eyes", "Jaw"))


EXHAUSTIVE = pytest.mark.exhaustive
OPTIONS = {"layers": ("lin1", "lin2"), "batch": 32, "tile": 8, "keep_activations": True}


@pytest.fixture(scope="module")
def whole(tiny_vgg, blobs, tiny_clip):
    return probe.probe(tiny_vgg, blobs, tiny_clip, mesh=make_mesh(2), **OPTIONS)


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
    halves = [
        score([row[row % 2 == half][:top_k] for row in order])[0].argmax(1) for half in (0, 1)
    ]
    return np.array(p), np.array(halves)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8, pytest.param(2, marks=EXHAUSTIVE)])
def test_confidence_equals_a_plain_computation(whole, tiny_clip, devices):
    found = dissect.dissect(
        whole, CONCEPTS, similarity="soft_wpmi", null_sets=200, mesh=make_mesh(devices)
    )
    p, halves = plain_confidence(whole, tiny_clip.embed_texts(CONCEPTS.concepts), 100, 200)
    np.testing.assert_allclose(found.confidence.p_value, p, atol=1e-6)
    np.testing.assert_array_equal(found.confidence.half_labels, halves)
    np.testing.assert_allclose(
        found.confidence.q_value, scipy_stats.false_discovery_control(p), atol=1e-6
    )
    np.testing.assert_array_equal(
        found.confidence.holds(found.labels), (halves == found.labels).all(0)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "concepts", "devices", "prior"),
    [
        pytest.param("soft_wpmi", 203, 8, "images", marks=pytest.mark.long),
        ("soft_wpmi", 3, 8, "units"),  # fewer concepts than devices
        ("wpmi", 3, 2, "none"),
        ("consensus", 203, 8, "images"),
        pytest.param("soft_wpmi", 203, 2, "units", marks=EXHAUSTIVE),
        pytest.param("wpmi", 203, 8, "units", marks=EXHAUSTIVE),
    ],
)
def test_scores_do_not_depend_on_devices(whole, name, concepts, devices, prior):
    text = np.random.default_rng(0).standard_normal((concepts, 24)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    names = [f"c{i}" for i in range(concepts)]
    results = [
        dissect.dissect(
            whole,
            names,
            similarity=name,
            prior=prior,
            text_embeddings=text,
            null_sets=50,
            mesh=make_mesh(n),
        )
        for n in (1, devices)
    ]
    np.testing.assert_array_equal(results[0].labels, results[1].labels)
    np.testing.assert_array_equal(
        results[0].confidence.half_labels, results[1].confidence.half_labels
    )
    extra = {"segments": whole.segment_ids, "prior": prior}
    want = getattr(reference, name)(
        np.float64(whole.embeddings) @ np.float64(text).T, whole.activations, **extra
    )
    for result in results:
        assert np.abs(result.scores - want).max() <= 5e-6 * np.abs(want).max()


@pytest.mark.slow
def test_random_units_are_not_significant_and_planted_ones_are():
    """Units that fire on random images against one that fires on the images of one concept.

    `a` is small so that random lists score well below log U, which no unit's score can exceed
    when lambda is 1.
    """
    rng = np.random.default_rng(0)
    images = rng.standard_normal((1000, 32)).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    text = rng.standard_normal((6, 32)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    acts = rng.standard_normal((1000, 200)).astype(np.float32)
    acts[:, 7] = images @ text[4]
    planted = record_of(acts, images)
    names = [f"c{i}" for i in range(6)]
    found = dissect.dissect(planted, names, similarity="soft_wpmi", text_embeddings=text, a=0.5)
    assert found.labels[7] == 4
    assert (
        found.confidence.q_value[7] <= 0.2 + 1e-6
    )  # the smallest that 1,000 random lists can give 1 of 200 units
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
    top = TopK(*(np.stack(x) for x in zip(*halves, strict=True)))
    sums = half_moments(acts, embeddings)
    ids = [str(i) for i in range(len(acts))]
    return record.ProbeRecord(
        {"layer": acts.shape[1]}, top, sums, embeddings, None, (), ids, None, "", acts
    )


@pytest.mark.long
def test_few_images_leave_the_halves_out(tiny_vgg, blobs, tiny_clip):
    few = probe.probe(
        tiny_vgg, blobs.first(120), tiny_clip, layers=["lin2"], tile=8, mesh=make_mesh(1)
    )
    found = dissect.dissect(few, CONCEPTS, null_sets=20)
    assert found.confidence.half_labels is None
    assert found.confidence.holds(found.labels) is None
    assert found.trusted is None
    assert dissect.dissect(few, CONCEPTS, null_sets=0).confidence is None
    by_cosine = dissect.dissect(few, CONCEPTS, similarity="cos_similarity").confidence
    assert by_cosine.p_value is None
    assert by_cosine.half_labels.shape == (2, 20)


def test_statistics_equal_scipy():
    rng = np.random.default_rng(0)
    p = np.round(rng.uniform(0, 1, 300) ** 3, 3)
    got = stats.benjamini_hochberg(jnp.asarray(p))
    np.testing.assert_allclose(got, scipy_stats.false_discovery_control(p), rtol=1e-5)
    observed, null = rng.integers(0, 9, 40).astype(float), rng.integers(0, 9, 99).astype(float)
    want = [(1 + (null >= x).sum()) / 100 for x in observed]
    np.testing.assert_allclose(
        stats.permutation_p_values(jnp.asarray(observed), jnp.asarray(null)), want, rtol=1e-6
    )
