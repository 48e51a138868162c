"""Labels that hold on images that did not choose them, against plain computations."""

import dataclasses

import numpy as np
import pytest
import reference
from conftest import half_moments
from scipy import stats

from emojax.dissection import dissect, trust
from emojax.errors import InputError
from emojax.ops.topk import TopK
from emojax.probing.record import ProbeRecord

NAMES = [f"c{number}" for number in range(6)]


@pytest.fixture(scope="module")
def planted():
    """201 images; units 0 to 5 follow a concept, 6 to 18 nothing, 19 does not vary."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((201, 8)).astype(np.float32) + 1
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts = rng.standard_normal((6, 8)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    acts = rng.standard_normal((201, 20)).astype(np.float32)
    acts[:, :6] = 10 * images @ texts.T + 0.5 * acts[:, :6]
    acts[:, 19] = 0.7
    lists = [np.argsort(-acts[half::2], axis=0, kind="stable").T[:, :100] for half in (0, 1)]
    indices = np.stack([2 * rows + half for half, rows in enumerate(lists)]).astype(np.int32)
    values = np.stack([np.take_along_axis(acts.T, rows, 1) for rows in indices])
    sums = half_moments(acts, images)
    ids = [str(number) for number in range(201)]
    top = TopK(values, indices)
    record = ProbeRecord({"layer": 20}, top, sums, images, None, (), ids, None, "", acts)
    return record, texts


@pytest.mark.parametrize("similarity", ["consensus", "correlation", "cos_similarity", "soft_wpmi"])
def test_held_out_correlation_is_of_the_half_that_did_not_choose(planted, similarity):
    record, texts = planted
    # Without a prior, the labels of a half depend on that half alone.
    of_wpmi = {"consensus": {"top_k": 50, "prior": "none"}, "soft_wpmi": {"top_k": 50}}
    extra = of_wpmi.get(similarity, {})
    found = dissect.dissect(
        record, NAMES, similarity=similarity, text_embeddings=texts, null_sets=0, **extra
    )
    cosines = np.float64(record.embeddings) @ np.float64(texts).T
    halves = [(cosines[half::2], record.activations[half::2, :19]) for half in (0, 1)]
    chosen = [getattr(reference, similarity)(*half, **extra).argmax(1) for half in halves]
    if similarity != "soft_wpmi":  # whose prior is over all units, of which the last was left out
        np.testing.assert_array_equal(found.confidence.half_labels[:, :19], chosen)
    labels = found.confidence.half_labels
    fisher = []
    for half in (0, 1):
        clip, acts = halves[1 - half]
        own = [stats.pearsonr(acts[:, u], clip[:, labels[half, u]]).statistic for u in range(19)]
        fisher.append(np.arctanh(own))
    # The even images are 101, the odd ones 100; the odd answer for the labels of the even.
    middle = (97 * fisher[0] + 98 * fisher[1]) / 195
    held_out = found.confidence.held_out
    np.testing.assert_allclose(held_out.correlation[:19], np.tanh(middle), atol=1e-6)
    radius = stats.norm.ppf(0.975) / np.sqrt(195)
    np.testing.assert_allclose(held_out.low[:19], np.tanh(middle - radius), atol=1e-6)
    np.testing.assert_allclose(held_out.high[:19], np.tanh(middle + radius), atol=1e-6)


def test_labels_that_stand(planted):
    record, texts = planted
    found = dissect.dissect(record, NAMES, similarity="correlation", text_embeddings=texts)
    np.testing.assert_array_equal(found.labels[:6], np.arange(6))
    assert found.trusted[:6].all()
    assert found.trusted[6:19].sum() <= 3
    assert not found.trusted[19]
    assert record.constant.tolist() == [False] * 19 + [True]
    np.testing.assert_array_equal(found.scores[19], 0)
    second = np.sort(found.scores, axis=1)[:, -2]
    np.testing.assert_array_equal(found.margin, found.best - second)
    assert dissect.dissect(record, ["one"], text_embeddings=texts[:1]).margin is None


def test_correlation_of_a_record_equals_float64(planted):
    record, texts = planted
    found = dissect.dissect(record, NAMES, similarity="correlation", text_embeddings=texts)
    cosines = np.float64(record.embeddings) @ np.float64(texts).T
    expected = reference.correlation(cosines, record.activations[:, :19])
    np.testing.assert_allclose(found.scores[:19], expected, atol=1e-5)


def test_one_image_has_no_correlation(planted):
    record, texts = planted
    single = dataclasses.replace(
        record, embeddings=record.embeddings[:1], labels=None, ids=record.ids[:1], activations=None
    )
    with pytest.raises(InputError, match="correlation needs at least two images"):
        dissect.dissect(single, NAMES, similarity="correlation", text_embeddings=texts)


def test_hubs():
    spread = trust.hubs(np.array([0, 1, 2, 3]))
    assert spread.effective == pytest.approx(4)
    assert not spread.crowded
    crowded = trust.hubs(np.array([2, 2, 2, 0]))
    assert (crowded.concept, crowded.share) == (2, 0.75)
    assert crowded.effective == pytest.approx(np.exp(stats.entropy([3, 1])))
    assert crowded.crowded
