import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import reference

from emojax.dissection import judge
from emojax.dissection.calibration import Calibration
from emojax.dissection.explanation_files import Explanation, ExplanationFile
from emojax.ops.stats import bootstrap_counts

ALPHA = 0.1
CONCEPTS = ("a", "b", "c", "d")


def single(unit, concept):
    return Explanation("lin2", unit, (concept,), (1.0,), 0.0, linear=False)


def a_file(*explanations, name="one.csv"):
    return ExplanationFile(name, Path(name), explanations)


@pytest.fixture(scope="module")
def world():
    """Images, concepts, and the activations of units that are a concept and noise."""
    rng = np.random.default_rng(6)
    images = np.float32(rng.normal(size=(300, 16)))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts = np.float32(rng.normal(size=(4, 16)))
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    cosines = np.float64(images) @ np.float64(texts).T
    activations = np.float32(5 + cosines + 0.1 * rng.normal(size=(300, 4)))
    return images, texts, cosines, activations


def simulate(world, explanations, calibration=None):
    images, texts, _, _ = world
    places = {name: i for i, name in enumerate(CONCEPTS)}
    options = calibration or Calibration()
    return judge.simulate(explanations, places, images, texts, options, ALPHA)


def test_simulation(world):
    cosines = world[2]
    mixed = Explanation("lin2", 1, ("c", "a"), (2.0, -1.0), 0.5, linear=True)
    nothing = Explanation("lin2", 2, (), (), 0.5, linear=True)
    values, present = simulate(world, [single(0, "b"), mixed, nothing])
    np.testing.assert_allclose(values[:, 0], cosines[:, 1], atol=1e-6)
    np.testing.assert_allclose(values[:, 1], 2 * cosines[:, 2] - cosines[:, 0] + 0.5, atol=1e-6)
    assert present.sum(axis=0).tolist() == [30, 30, 0]  # the top tenth; a constant predicts nothing
    calibration = Calibration(a=20.0, b=-0.1)
    values, present = simulate(world, [single(0, "b"), mixed], calibration)
    probabilities = 1 / (1 + np.exp(-20 * (cosines - 0.1)))
    np.testing.assert_allclose(values[:, 0], probabilities[:, 1], atol=1e-6)
    np.testing.assert_array_equal(present[:, 0], probabilities[:, 1] >= 0.5)
    assert present[:, 1].sum() == 30


def want_scores(acts, values, present):
    names = reference.explanation_metrics
    flags = present.astype(float)
    pairs = lambda name, x, *extra: names[name](acts[:, None], x[:, None], *extra)[0, 0]
    return [
        pairs("correlation", values),
        pairs("cosine", values),
        pairs("auprc", values, ALPHA),
        pairs("f1", flags, ALPHA),
        pairs("iou", flags, ALPHA),
    ]


@pytest.mark.slow
def test_scores_and_resamples(world, monkeypatch):
    """Against plain float64, on the images and on a resample written out as repeated images.

    The last block of units is filled up and cut again.
    """
    monkeypatch.setattr(judge, "_UNITS_AT_A_TIME", 3)
    explanations = [single(i, name) for i, name in enumerate(CONCEPTS)]
    simulated = simulate(world, explanations)
    activations = world[3]
    result = judge.judge(
        a_file(*explanations), activations, simulated, alpha=ALPHA, resamples=40, seed=3
    )
    counts = np.asarray(bootstrap_counts(jax.random.key(3), 300, 40)).astype(int)
    assert (counts.sum(axis=1) == 300).all()
    drawn = np.repeat(np.arange(300), counts[5])
    for unit in range(4):
        columns = activations[:, unit], simulated.values[:, unit], simulated.present[:, unit]
        np.testing.assert_allclose(result.scores[:, unit], want_scores(*columns), atol=2e-6)
        active = reference._active(columns[0], ALPHA)
        acts, values, present = (np.float64(x[drawn]) for x in columns)
        marked, present = active[drawn], present > 0
        want = [
            reference._pearson_sample(acts, values),
            acts @ values / np.linalg.norm(acts) / np.linalg.norm(values),
            reference._average_precision(values, marked),
            2 * (marked & present).sum() / (marked.sum() + present.sum()),
            (marked & present).sum() / (marked | present).sum(),
        ]
        np.testing.assert_allclose(result.resampled[5, :, unit], want, atol=1e-5)
    inside = (result.intervals[0] <= result.scores) & (result.scores <= result.intervals[1])
    assert inside.mean() > 0.8
    value, low, high = result.mean()["correlation"]
    assert low < value < high


@pytest.mark.long
def test_paired_differences(world):
    """The right concepts beat wrong ones, on the units that both files explain."""
    right = [single(i, name) for i, name in enumerate(CONCEPTS)]
    wrong = [single(i, CONCEPTS[(i + 1) % 4]) for i in (3, 1)]
    of_right = judge.judge(
        a_file(*right), world[3], simulate(world, right), alpha=ALPHA, resamples=50
    )
    of_wrong = judge.judge(
        a_file(*wrong, name="two.csv"),
        world[3][:, [3, 1]],
        simulate(world, wrong),
        alpha=ALPHA,
        resamples=50,
    )
    difference = judge.compare(of_wrong, of_right)
    assert difference is not None
    assert difference.units == 2
    want = of_right.scores[:, [3, 1]].mean(axis=1) - of_wrong.scores.mean(axis=1)
    for name, expected in zip(judge.MEASURES, want, strict=True):
        value, low, high = difference.measures[name]
        assert value == pytest.approx(expected, abs=1e-6)
        assert low <= value <= high
        assert low > 0 or name == "cosine"  # means of 5 drown the cosine
    itself = judge.compare(of_right, of_right)
    assert itself is not None
    assert set(itself.measures.values()) == {(0.0, 0.0, 0.0)}
    other = dataclasses.replace(of_wrong, file=a_file(Explanation("x", 0, (), (), 0.0, True)))
    assert judge.compare(of_right, other) is None


@pytest.mark.long
def test_sanity():
    """Units that are their concepts: the sound measures pass; recall cannot lose by labels that are
    added, nor precision by labels that go missing, beyond chance.
    """
    rng = np.random.default_rng(8)
    share = rng.uniform(0.02, 0.08, 30)
    present = rng.random((4000, 30)) < share
    activations = np.float32(2 * present + 0.5 * rng.random((4000, 30)))
    results = judge.sanity(activations, present, alpha=0.05)
    assert len(results) == 18
    passed = {name for name, result in results.items() if result.passes}
    assert set(judge.MEASURES) <= passed
    assert {name for name, result in results.items() if result.sound} == set(judge.MEASURES)
    assert results["recall"].extra == 0
    assert not passed & {"recall", "precision"}
