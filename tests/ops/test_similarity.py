import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import scipy.special
from jax.sharding import PartitionSpec

from emojax.distributed.mesh import AXIS, make_mesh
from emojax.ops import similarity

OFFICIAL = ("cos_similarity", "cos_similarity_cubed", "wpmi", "soft_wpmi", "rank_reorder")
NAMES = ("correlation", *OFFICIAL, "consensus")
EXHAUSTIVE = pytest.mark.exhaustive
FURTHER = [pytest.param(top_k, marks=EXHAUSTIVE) for top_k in (97, 100)]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["small", "wide"])
@pytest.mark.parametrize("name", OFFICIAL)
def test_golden(golden, case, name):
    """Same labels as the official float32 code, scores within 1e-4 of the largest one.

    The official soft-WPMI itself is off from float64 by 1.4e-4 on `wide`; `test_float64` is the
    sharper test.
    """
    data = np.load(golden / "clip_dissect_similarity.npz")
    clip, acts = jnp.asarray(data[f"{case}/clip_feats"]), jnp.asarray(data[f"{case}/target_feats"])
    extra = (
        {"permutations": jnp.asarray(data[f"{case}/rank_reorder_permutations"])}
        if name == "rank_reorder"
        else {}
    )
    scores = np.asarray(jax.jit(getattr(similarity, name))(clip, acts, **extra))
    expected = data[f"{case}/{name}"]
    assert np.abs(scores - expected).max() <= 1e-4 * np.abs(expected).max()
    assert (scores.argmax(1) == expected.argmax(1)).all()


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(1)
    clip = (0.2 + 0.03 * rng.standard_normal((400, 37))).astype(np.float32)
    return clip, np.maximum(rng.standard_normal((400, 29)), 0).astype(np.float32)  # zeros tie


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_float64(features, name):
    clip, acts = features
    orders = np.stack(
        [[np.random.default_rng(u * 9 + r).permutation(20) for r in range(5)] for u in range(29)]
    )
    extra = {"permutations": orders} if name == "rank_reorder" else {}
    expected = getattr(reference, name)(clip, acts, **extra)
    scores = np.asarray(
        getattr(similarity, name)(
            jnp.asarray(clip), jnp.asarray(acts), **jax.tree.map(jnp.asarray, extra)
        )
    )
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "prior", "spread"),
    [
        ("wpmi", "images", 0.03),
        ("soft_wpmi", "images", 0.4),
        ("wpmi", "none", 0.4),
        ("soft_wpmi", "none", 0.03),
        pytest.param("wpmi", "images", 0.4, marks=EXHAUSTIVE),
        pytest.param("soft_wpmi", "images", 0.03, marks=EXHAUSTIVE),
        pytest.param("wpmi", "none", 0.03, marks=EXHAUSTIVE),
        pytest.param("soft_wpmi", "none", 0.4, marks=EXHAUSTIVE),
    ],
)
def test_other_priors_equal_float64(features, name, prior, spread):
    """Brute force: a logarithm for every image, concept and rank."""
    clip, acts = features
    wide = np.float32(0.2 + (clip - 0.2) * spread / 0.03)
    # 100 ranks take several groups of products, one rank none.
    for top_k in (1, 100):
        options = {"top_k": top_k, "lam": 0.7, "prior": prior}
        expected = getattr(reference, name)(wide, acts, **options)
        scores = np.asarray(getattr(similarity, name)(wide, acts, **options))
        assert np.abs(scores - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.slow
def test_prior_over_images_is_the_mean_over_random_lists(features):
    """10,000 lists: the mean lies within five standard errors, for every concept."""
    clip, _ = features
    probs = scipy.special.softmax(10 * np.float64(clip), axis=1)
    weights = similarity.soft_weights(20)
    rng = np.random.default_rng(5)
    lists = rng.permuted(np.tile(np.arange(400), (10_000, 1)), axis=1)[:, :20]
    terms = np.log(1 + weights[:, None] * (probs[lists] - 1) + 1e-7).sum(axis=1)
    probs = np.float32(probs)

    constants = []

    @jax.jit
    def image_prior(probs, rows):
        constants.append(similarity.weighted_loglik(probs, rows, weights, 1e-7, 37)[1])
        return similarity.image_prior(probs, weights, 1e-7, 37)

    prior = image_prior(probs, np.zeros((1, 20), np.int32))
    expected = np.asarray(prior) + constants[0]
    error = terms.std(axis=0) / 100
    assert (np.abs(terms.mean(axis=0) - expected) <= 5 * error).all()


@pytest.mark.parametrize("ranks", [2, 9, 100])
@pytest.mark.parametrize(("p_start", "p_end"), [(0.998, 0.97), (1.0, 0.5), (0.9, 0.9)])
def test_quadrature_stands_for_the_sum_over_ranks(ranks, p_start, p_end):
    weights = similarity.soft_weights(ranks, p_start, p_end)
    odds = (1 - weights + 1e-7) / weights
    nodes, node_weights = similarity._quadrature(odds)
    assert len(nodes) <= ranks
    for probability in (0.0, 1e-6, 1e-3, 0.05, 1.0):
        logs = np.log(probability + odds)
        got = node_weights @ np.log(probability + nodes)
        assert abs(got - logs.sum()) <= 2e-6 * ranks * max(1, np.abs(logs).max())


@pytest.mark.slow
def test_correlation_of_columns_that_do_not_vary():
    rng = np.random.default_rng(6)
    clip = rng.standard_normal((10_000, 3)).astype(np.float32)
    acts = (0.7 + 1e-3 * rng.standard_normal((10_000, 4))).astype(np.float32)
    acts[:, 2], clip[:, 1] = np.float32(0.1), 0.3
    scores = np.asarray(similarity.correlation(clip, acts))
    vary = np.ix_([0, 1, 3], [0, 2])
    np.testing.assert_allclose(
        scores[vary], reference.correlation(clip[:, [0, 2]], acts[:, [0, 1, 3]]), atol=1e-5
    )
    assert (scores[2] == 0).all()
    assert (scores[:, 1] == 0).all()
    with pytest.raises(ValueError, match="at least two images"):
        similarity.correlation(clip[:1], acts[:1])


@pytest.mark.long
@pytest.mark.parametrize("name", ["wpmi", "soft_wpmi"])
def test_layers_together_equal_each_alone(features, name):
    clip, acts = features
    together = getattr(similarity, name)(
        clip, acts, segment_ids=np.repeat(np.arange(3), [9, 1, 19])
    )
    alone = [getattr(similarity, name)(clip, acts[:, a:b]) for a, b in ((0, 9), (9, 10), (10, 29))]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_permuting_units_and_concepts_permutes_scores(features, name):
    clip, acts = features
    units, concepts = (np.random.default_rng(n).permutation(n) for n in (29, 37))
    extra, moved = {}, {}
    if name == "rank_reorder":
        orders = similarity.random_permutations(jax.random.key(3), 29, 20)
        extra, moved = {"permutations": orders}, {"permutations": np.asarray(orders)[units]}
    scores = np.asarray(getattr(similarity, name)(clip, acts, **extra))
    got = getattr(similarity, name)(clip[:, concepts], acts[:, units], **moved)
    assert np.abs(got - scores[units][:, concepts]).max() <= 2e-6 * np.abs(scores).max()


@pytest.mark.parametrize("ids", [[0, 0, 1], [1] * 29, [0] * 28 + [2], [1, 0] + [1] * 27])
def test_segment_ids_are_checked(features, ids):
    with pytest.raises(ValueError, match="segment_ids must be 29 layer numbers"):
        similarity.soft_wpmi(*map(jnp.asarray, features), segment_ids=jnp.asarray(ids))


def test_cosine_from_moments(features):
    _, acts = features
    rng = np.random.default_rng(2)
    images = rng.standard_normal((400, 16)).astype(np.float32)
    text = rng.standard_normal((11, 16)).astype(np.float32)
    scores = similarity.cos_similarity_from_moments(
        jnp.asarray(acts.T @ images),
        jnp.asarray((acts**2).sum(0)),
        jnp.asarray(images.T @ images),
        jnp.asarray(text),
    )
    np.testing.assert_allclose(scores, reference.cos_similarity(images @ text.T, acts), atol=2e-6)


@pytest.mark.slow
def test_soft_wpmi_keeps_small_probabilities():
    """With thousands of concepts S is near 1e-4; the form 1 + w(S − 1) would lose it in float32."""
    rng = np.random.default_rng(3)
    clip = (0.2 + 0.03 * rng.standard_normal((150, 5000))).astype(np.float32)
    acts = rng.standard_normal((150, 6)).astype(np.float32)
    scores = similarity.soft_wpmi(jnp.asarray(clip), jnp.asarray(acts))
    np.testing.assert_allclose(scores, reference.soft_wpmi(clip, acts), atol=3e-6)


@pytest.mark.slow
@pytest.mark.parametrize("top_k", [1, *FURTHER, 150])
@pytest.mark.parametrize(
    "concepts",
    [pytest.param(2, marks=pytest.mark.long), pytest.param(25, marks=EXHAUSTIVE), 20_000],
)
@pytest.mark.parametrize("soft", [True, False])
def test_products_stay_in_range(concepts, top_k, soft):
    """Probabilities at either end, on every rank or on some: the extremes of the products."""
    rng = np.random.default_rng(6)
    columns = [np.zeros(top_k), np.ones(top_k), np.full(top_k, 1 / concepts)]
    columns += [
        np.arange(top_k) < top_k / 2,
        np.arange(top_k) >= top_k / 2,
        *(rng.random((20, top_k)) < 0.5),
    ]
    probs = np.float32(np.stack(columns, axis=1))
    weights = similarity.soft_weights(top_k) if soft else np.ones(top_k)
    indices = np.arange(top_k, dtype=np.int32)[None]
    constants = []  # float64, as they are where this is traced

    @jax.jit
    def loglik(probs, indices):
        got, constant = similarity.weighted_loglik(probs, indices, weights, 1e-7, concepts)
        constants.append(constant)
        return got

    got = loglik(probs, indices)
    exact = np.log((1 - weights + 1e-7)[:, None] + weights[:, None] * np.float64(probs)).sum(0)
    np.testing.assert_allclose(got[0], exact - constants[0], rtol=1e-6, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("concepts", [1, 63, 64, 65, 1001])
@pytest.mark.parametrize(
    "last", [0.0, 1000.0]
)  # above the first logits by more than an exponential can hold
def test_log_normaliser(concepts, last):
    logits = np.random.default_rng(7).normal(scale=20, size=(130, concepts)).astype(np.float32)
    logits[:, -1] += last
    got = jax.jit(lambda x: similarity.log_normaliser(x, lambda rows: rows))(logits)
    np.testing.assert_allclose(
        got, scipy.special.logsumexp(np.float64(logits), axis=1), rtol=1e-6, atol=1e-6
    )


@pytest.mark.slow
def test_log_normaliser_without_any_concept_is_minus_infinity():
    assert (
        similarity.log_normaliser(jnp.full((3, 70), -jnp.inf), lambda rows: rows) == -jnp.inf
    ).all()


@pytest.mark.parametrize("images", [8, 31, 32, 33, 500])
@pytest.mark.parametrize("k", [1, 2, 8])
def test_top_k_images_give_ties_to_the_lower_index(images, k):
    acts = np.random.default_rng(8).integers(-3, 3, size=(images, 40)).astype(np.float32)
    acts[:, 0], acts[:, 1] = -np.inf, np.arange(images)
    expected = np.argsort(-acts, axis=0, kind="stable")[:k].T
    np.testing.assert_array_equal(jax.jit(lambda x: similarity.top_k_images(x, k))(acts), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "prior"), [pytest.param(2, "units", marks=pytest.mark.long), (8, "images")]
)
@pytest.mark.parametrize("name", ["wpmi", "soft_wpmi"])
def test_concepts_split_over_devices(features, name, devices, prior):
    mesh = make_mesh(devices)
    clip, acts = features[0][:, :32], features[1]
    local = functools.partial(getattr(similarity, name), axis_name=AXIS, prior=prior)
    by_concept = PartitionSpec(None, AXIS)
    specs = {"in_specs": (by_concept, PartitionSpec()), "out_specs": by_concept, "check_vma": False}
    scores = jax.jit(jax.shard_map(local, mesh=mesh, **specs))(clip, acts)
    expected = getattr(reference, name)(clip, acts, prior=prior)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_rank_reorder_without_permutations_is_reproducible(features):
    clip, acts = map(jnp.asarray, features)
    first, second = (similarity.rank_reorder(clip, acts) for _ in range(2))
    other = similarity.rank_reorder(clip, acts, key=jax.random.key(8))
    assert (first == second).all()
    assert (first != other).any()


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 200])
def test_descending_order_is_a_stable_argsort(n):
    rng = np.random.default_rng(4)
    values = np.round(rng.standard_normal((50, n)), 1).astype(
        np.float32
    )  # ties, negative values, zeros of either sign
    np.testing.assert_array_equal(
        similarity.descending_order(jnp.asarray(values)), np.argsort(-values, axis=1, kind="stable")
    )


@pytest.fixture
def traces():
    """The functions that JAX traces while a test runs."""
    names = []

    def listen(event, _, **details):
        if event == "/jax/core/compile/jaxpr_trace_duration":
            names.append(details.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_second_call_traces_nothing(features, traces, name):
    clip, acts = (jnp.asarray(x[:391]) for x in features)  # a shape that no other test traced
    call = getattr(similarity, name)
    first = call(clip, acts)
    assert traces
    traces.clear()
    np.testing.assert_array_equal(call(clip, acts), first)
    assert not traces
