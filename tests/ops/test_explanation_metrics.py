"""The measures of explanations, against the published functions' outputs and plain float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from emojax.ops import explanation_metrics as metrics

WITH_ALPHA = (
    "auprc",
    "f1",
    "iou",
    "recall",
    "precision",
    "accuracy",
    "balanced_accuracy",
    "inverse_balanced_accuracy",
    "auc",
    "wpmi",
)
WITHOUT = ("correlation", "cosine", "inverse_auc", "inverse_auprc", "mad", "spearman_correlation")
THEIR_NAMES = {"cosine": "cos_sim", "f1": "f1_score"}
CASES = [(name, (alpha,)) for name in WITH_ALPHA for alpha in (0.02, 0.1)]
CASES += [(name, ()) for name in WITHOUT]
RANDOM_TIES = ("auc", "inverse_auc", "spearman_correlation")  # in the published code


@pytest.fixture(scope="module")
def data():
    """Activations with ties, a dead unit; probabilities with ties, absent and constant concepts."""
    rng = np.random.default_rng(3)
    acts = rng.normal(size=(150, 7)).astype(np.float32)
    acts[:, 0] = np.maximum(acts[:, 0], 0)
    acts[:, 1] = rng.integers(0, 4, 150)
    acts[:, 2] = 0
    acts[:, 3] += 100  # a mean far from zero
    probs = rng.random((150, 6)).astype(np.float32)
    probs[:, 0] = np.round(probs[:, 0], 1)
    probs[:, 1] *= 0.49  # present nowhere
    probs[:, 2] = 1.0  # present everywhere
    return acts, probs


def run(name, acts, probs, extra):
    measure = jax.jit(lambda a, c: getattr(metrics, name)(a, c, *extra))
    return np.asarray(measure(acts, probs))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "extra"), CASES)
def test_float64(data, name, extra):
    """Sums of 150 float32 terms; a mean of 100 over a deviation of 1 costs two digits."""
    want = reference.explanation_metrics[name](*data, *extra)
    np.testing.assert_allclose(run(name, *data, extra), want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "extra"), [c for c in CASES if c[0] not in RANDOM_TIES])
def test_golden(golden, name, extra):
    outputs = np.load(golden / "explanation_metrics.npz")
    key = "/".join([THEIR_NAMES.get(name, name), *map(str, extra)])
    got = run(name, outputs["activations"], outputs["concept_probs"], extra)
    np.testing.assert_allclose(got, outputs[key], atol=1e-5, rtol=0)


def noisy_ties(x):
    """Groups of values so close that noise of 1e-7 added in float32 may reorder them.

    Sorted values whose neighbours lie closer than the noise and one rounding on either side.
    """
    ordered = np.sort(np.float64(x))
    reach = 1e-7 + 2 * np.spacing(np.float32(np.abs(ordered).max()))
    breaks = np.flatnonzero(np.diff(ordered) > reach) + 1
    return np.split(ordered, breaks)


@pytest.mark.parametrize(("name", "extra"), [c for c in CASES if c[0] in RANDOM_TIES[:2]])
def test_golden_areas(golden, name, extra):
    """Each pair of values that noise may reorder moves an area by at most half its share."""
    outputs = np.load(golden / "explanation_metrics.npz")
    acts, probs = outputs["activations"], outputs["concept_probs"]
    got = run(name, acts, probs, extra)
    want = outputs["/".join([name, *map(str, extra)])]
    for unit in range(acts.shape[1]):
        for concept in range(probs.shape[1]):
            a, c = acts[:, unit], probs[:, concept]
            wanted = c >= 0.5 if name == "inverse_auc" else reference._active(a, *extra)
            values = a if name == "inverse_auc" else c
            groups = noisy_ties(values)
            doubtful = sum(len(g) ** 2 / 4 for g in groups if len(g) > 1)  # at most, in one group
            bound = doubtful / 2 / (wanted.sum() * (~wanted).sum()) + 1e-5
            assert abs(got[unit, concept] - want[unit, concept]) <= bound


@pytest.mark.slow
def test_golden_spearman(golden):
    """Random ranks r' within ties differ from mean ranks r by e, and |r'|² = |r|² + |e|².

    So with the other side's unit vector s, |r'·s − r·s| ≤ |e|; both sides may tie.
    """
    outputs = np.load(golden / "explanation_metrics.npz")
    acts, probs = outputs["activations"], outputs["concept_probs"]
    got = run("spearman_correlation", acts, probs, ())

    def moved(x):
        sizes = np.array([len(g) for g in noisy_ties(x)])
        return np.sqrt((sizes * (sizes**2 - 1) / 12).sum() / (len(x) * (len(x) ** 2 - 1) / 12))

    bound = np.array([moved(a) for a in acts.T])[:, None] + [moved(c) for c in probs.T]
    assert (np.abs(got - outputs["spearman_correlation"]) <= 2 * bound + 1e-5).all()


@pytest.mark.slow
def test_parts_merge(data):
    acts, probs = data
    slices = slice(0, 31), slice(31, 150)

    @jax.jit
    def merged(acts, probs):
        together = metrics.merge(*(metrics.comoments(acts[s], probs[s]) for s in slices))
        active = acts >= metrics.cutoffs(acts, 0.1)[None]
        counts = [metrics.counts(active[s], probs[s] >= 0.5) for s in slices]
        whole = jax.tree.map(jnp.add, *counts)
        sums = metrics.correlation_of(together), metrics.cosine_of(together)
        return *sums, metrics.f1_of(whole), metrics.iou_of(whole)

    correlation, cosine, f1, iou = merged(acts, probs)
    want = reference.explanation_metrics
    np.testing.assert_allclose(correlation, want["correlation"](acts, probs), atol=1e-5)
    np.testing.assert_allclose(cosine, want["cosine"](acts, probs), atol=1e-5)
    np.testing.assert_array_equal(f1, run("f1", acts, probs, (0.1,)))
    np.testing.assert_array_equal(iou, run("iou", acts, probs, (0.1,)))


@pytest.mark.slow
def test_pairs_are_the_diagonal(data):
    acts, probs = data
    measures = {**metrics.sound(0.1), **metrics.compared(0.1, jax.random.key(0))}
    fixed = {name: m for name, m in measures.items() if "random" not in name}  # others draw by unit

    @jax.jit
    def both_ways(acts, probs):
        return {
            name: (m(acts, probs), metrics.of_pairs(m, acts, probs)) for name, m in fixed.items()
        }

    for name, (whole, pairs) in both_ways(acts[:, :6], probs).items():
        np.testing.assert_allclose(pairs, np.diagonal(whole), atol=2e-6, rtol=2e-6, err_msg=name)


@pytest.mark.slow
def test_top_and_random_draws_the_top(data):
    """A unit that is large on one image correlates with a concept of that image alone."""
    acts = np.zeros((2000, 1), np.float32)
    probs = np.zeros((2000, 2), np.float32)
    acts[7] = probs[7, 0] = 1
    acts[8:11] = 0.5
    probs[100:, 1] = np.random.default_rng(0).random(1900)
    measure = jax.jit(lambda a, c, key: metrics.correlation_top_and_random(a, c, key=key))
    got = np.asarray(measure(acts, probs, jax.random.key(1)))
    assert got[0, 0] > 0.6
    assert got[0, 0] > got[0, 1]


def test_weights_count_as_repeats(data):
    acts, probs = data
    weights = np.random.default_rng(5).integers(0, 3, len(acts))

    @jax.jit
    def average_precision(wanted, values, weights):
        order, last = metrics.descending(values)
        return metrics.weighted_average_precision(wanted[order], last, weights[order])

    for unit, concept in ((0, 0), (1, 3)):
        wanted, values = reference._active(acts[:, unit], 0.1), probs[:, concept]
        repeated = np.repeat(np.arange(len(acts)), weights)
        want = reference._average_precision(np.float64(values[repeated]), wanted[repeated])
        got = average_precision(wanted, values, np.float32(weights))
        assert got == pytest.approx(want, abs=1e-6)
