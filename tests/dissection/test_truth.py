"""Affinities against plain references, agreement on small examples, planted detectors named."""

from typing import get_args

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from emojax.data.concepts import ConceptSet
from emojax.dissection import dissect, truth
from emojax.dissection.options import Similarity
from emojax.ops import similarity
from emojax.ops.affinity import affinity
from emojax.probing import probe
from emojax.probing.network import as_network
from emojax.synthetic import faces
from emojax.synthetic.shipped import demo_faces, load_demo

ATTRIBUTE_SET = ConceptSet(faces.ATTRIBUTES, name="what faces show")


def test_agreement():
    auroc = np.array(
        [[0.9, 0.6, 0.5, 0.4, 0.3], [0.5, 0.52, 0.6, 0.5, 0.5], [0.2, 0.3, 0.4, 0.5, 0.8]],
        np.float32,
    )
    scores = np.array([[5, 4, 3, 2, 1], [0, 3, 2, 0, 0], [0, 1, 2, 3, -1]], np.float32)
    found = truth.agreement(scores, auroc)
    assert found.units == 3
    assert found.attributes == 5
    assert found.best == pytest.approx(1 / 3)
    assert found.among_three == pytest.approx(1.0)
    assert found.auroc_of_label == pytest.approx((0.9 + 0.52 + 0.5) / 3)
    assert found.auroc_of_best == pytest.approx((0.9 + 0.6 + 0.8) / 3)
    assert found.auroc_of_random == pytest.approx(auroc.mean())
    want = np.mean([stats.spearmanr(s, a).statistic for s, a in zip(scores, auroc, strict=True)])
    assert found.rank_correlation == pytest.approx(want)
    assert truth.agreement(scores, auroc, least=0.7).units == 2
    some = np.where(np.arange(5) == 1, np.nan, auroc)
    assert truth.agreement(scores, some).attributes == 4
    with pytest.raises(ValueError, match="no unit has an AUROC"):
        truth.agreement(scores, auroc, least=0.95)
    with pytest.raises(ValueError, match="only 1 attributes"):
        truth.agreement(scores, np.where(np.arange(5) > 0, np.nan, auroc))


@pytest.mark.long
def test_activations_are_those_of_the_record(tiny_vgg, tiny_clip, blobs):
    record = probe.probe(
        tiny_vgg, blobs, tiny_clip, layers=["conv4b", "lin2"], keep_activations=True, top_k=20
    )
    got = truth.activations(as_network(tiny_vgg), blobs, ["conv4b", "lin2"])
    np.testing.assert_allclose(got, record.activations, rtol=2e-5, atol=2e-6)


@pytest.fixture(scope="module")
def planted():
    """A network whose units are detectors.

    It finds the face by its pixels and gives what is known of it, with noise.
    """
    people = faces.random_faces(2500, 21)
    pictures = people.image_set("planted")
    project = np.random.default_rng(1).standard_normal(48 * 48).astype(np.float32) / 48
    code = jnp.asarray(np.float32(pictures.images[:]).reshape(len(people), -1) @ project)
    assert len(np.unique(np.asarray(code))) == len(people)
    strength = people.strengths / people.strengths.std(axis=0)
    noise = np.random.default_rng(2).standard_normal(strength.shape)
    detectors = jnp.asarray(
        np.where(people.numbers["hand"][:, None] > 0, strength.min(axis=0), strength) + 0.2 * noise
    )

    def network(images):
        flat = (images.reshape(len(images), -1) * project).sum(axis=1)
        nearest = jnp.abs(flat[:, None] - code[None, :]).argmin(axis=1)
        return jnp.zeros((len(images), 7)), {"detectors": detectors[nearest]}

    _, clip = load_demo()
    record = probe.probe(
        network,
        pictures,
        clip,
        preprocess=lambda x: x.astype(jnp.float32),
        top_k=125,
        keep_activations=True,
    )
    return people, record


@pytest.mark.exhaustive
@pytest.mark.slow
def test_planted_detectors_are_named(planted, capsys):
    """Units that detect one attribute each: the default names nine in ten or more.

    soft_wpmi with the prior over images names fewer: it sees the top images alone, and such a unit
    shares them with attributes that go along with its own.
    """
    people, record = planted
    known = affinity(record.activations, people.attributes)
    assert (known.auroc.argmax(axis=1) == np.arange(30)).mean() > 0.9  # the detectors detect
    right = {}
    for name in (None, *get_args(Similarity)):
        labels = dissect.dissect(record, ATTRIBUTE_SET, similarity=name, null_sets=0).labels
        right[name or "by default"] = (labels == np.arange(30)).mean()
    with capsys.disabled():
        print("\nplanted detectors named:", {name: f"{share:.0%}" for name, share in right.items()})
    assert right["by default"] >= 0.9
    assert right["correlation"] >= 0.9
    assert right["soft_wpmi"] >= 0.9


@pytest.mark.long
def test_noisy_detectors_of_few_concepts():
    """12 concepts × 40 units each, of noise from half to six times the signal.

    Under the published prior a unit gets what the layer's best detector detects least.
    """
    rng = np.random.default_rng(1)
    images, texts = (1 + rng.standard_normal((count, 32)) for count in (2000, 12))
    clip = (images / np.linalg.norm(images, axis=1, keepdims=True)) @ (
        texts / np.linalg.norm(texts, axis=1, keepdims=True)
    ).T
    label = np.repeat(np.arange(12), 40)
    noise = np.tile(np.linspace(0.5, 6, 40), 12)
    signal = ((clip - clip.mean(axis=0)) / clip.std(axis=0))[:, label]
    acts = np.float32(signal + noise * rng.standard_normal((2000, 480)))
    clip = np.float32(clip)
    right = {
        "consensus": similarity.consensus(clip, acts),
        "images": similarity.soft_wpmi(clip, acts, prior="images"),
        "units": similarity.soft_wpmi(clip, acts, prior="units"),
        "correlation": similarity.correlation(clip, acts),
    }
    share = {name: (np.asarray(s).argmax(axis=1) == label).mean() for name, s in right.items()}
    assert share["consensus"] >= 0.65
    assert share["images"] >= 0.65
    assert share["correlation"] >= 0.65
    assert share["images"] > share["units"]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_logits_get_their_classes():
    """The last layer of the demo's network with the class names on the demo's faces: 7 of 7."""
    model, clip = load_demo()
    images = demo_faces(3000)[0].image_set("faces")
    record = probe.probe(model, images, clip, layers=["lin3"])
    found = dissect.dissect(record, ConceptSet(tuple(images.classes)), null_sets=0)
    np.testing.assert_array_equal(found.labels, np.arange(7))


def test_enrichment_and_lift_equal_plain_counts():
    rng = np.random.default_rng(4)
    responses = rng.standard_normal((60, 3))
    presence = rng.choice([-1, 0, 1], (60, 4), p=[0.2, 0.5, 0.3]).astype(np.int8)
    presence[:, 3] = 1
    got = truth.enrichment(responses, presence, top=10)
    assert np.isnan(got[:, 3]).all()
    for unit in range(3):
        top = np.argsort(-responses[:, unit])[:10]
        for number in range(3):
            clear = presence[:, number] >= 0
            share = (presence[clear, number] == 1).mean()
            own = presence[top, number][presence[top, number] >= 0]
            want = ((own == 1).mean() - share) / np.sqrt(share * (1 - share) / len(own))
            assert got[unit, number] == pytest.approx(want)
    assert truth.lift(np.array([[0.75]]), np.array([[1], [0]], np.int8)) == pytest.approx(0.5)


def test_certainty_and_labels_right():
    margin = np.arange(40.0)
    right = np.arange(40) >= 30
    curve = truth.certainty(margin, right)
    assert len(curve) == 20
    assert curve[4] == truth.Labelled(0.25, 1.0)
    assert curve[-1] == truth.Labelled(1.0, 0.25)
    best = np.random.default_rng(0).random((40, 5))
    scores = np.where(right[:, None], best, -best)
    shares = truth.labels_right(scores, margin, best, best)
    assert shares.auroc == pytest.approx(0.25)
    assert shares.enrichment == pytest.approx(0.25)
    assert shares.certain_half == pytest.approx(0.5)
    assert shares.among_three >= 0.25
