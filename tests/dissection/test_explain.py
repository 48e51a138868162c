import numpy as np
import pytest
import reference
from conftest import some_record

from emojax.dissection.calibration import PUBLISHED, Calibration
from emojax.dissection.explain import explain
from emojax.errors import InputError
from emojax.ops.linear_explanation import NONE
from emojax.ops.moments import Moments
from emojax.probing.record import ProbeRecord

UNITS, CONCEPTS = 50, 30


def record_of(embeddings, activations, keep=True) -> ProbeRecord:
    """A record with the exact sums of these embeddings and activations."""
    halves = [(np.float64(embeddings[h::2]), np.float64(activations[h::2])) for h in (0, 1)]
    sums = Moments(
        total=np.stack([a.sum(0) for _, a in halves]),
        square=np.stack([(a**2).sum(0) for _, a in halves]),
        cross=np.stack([a.T @ e for e, a in halves]),
        gram=np.stack([e.T @ e for e, _ in halves]),
        embedding=np.stack([e.sum(0) for e, _ in halves]),
    )
    record = some_record("clip")
    record.layers = {"conv1a": 10, "lin2": activations.shape[1] - 10}
    record.half_moments = sums
    record.embeddings = embeddings
    record.activations = activations if keep else None
    return record


@pytest.fixture(scope="module")
def world():
    """500 images; units that are noisy mixtures of concepts, one constant."""
    rng = np.random.default_rng(4)
    embeddings = np.float32(rng.normal(size=(500, 24)) + 2 * rng.normal(size=24))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    texts = np.float32(rng.normal(size=(CONCEPTS, 24)))
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    cosines = np.float64(embeddings) @ np.float64(texts).T
    mixing = rng.normal(size=(CONCEPTS, UNITS)) * (rng.random((CONCEPTS, UNITS)) < 0.1)
    mixing[0, 0] = 1.0
    noise = 0.1 * rng.normal(size=(500, UNITS))
    activations = np.float32(3 + cosines @ mixing + noise)
    activations[:, 7] = 0.25
    return embeddings, activations, texts, cosines


NAMES = [f"concept {i}" for i in range(CONCEPTS)]


@pytest.mark.slow
@pytest.mark.parametrize("calibration", [Calibration(), Calibration(a=6.0, b=-0.1)])
def test_equals_least_squares_greedy(world, calibration):
    """All units, chosen, fitted and tested, against a plain least-squares greedy on the images."""
    embeddings, activations, texts, cosines = world
    explanations = explain(
        record_of(embeddings, activations), NAMES, text_embeddings=texts, calibration=calibration
    )
    values = calibration(cosines)
    for unit in range(UNITS):
        acts = np.float64(activations[:, unit])
        want, weights, bias, reached = reference.linear_explanation(acts[::2], values[::2])
        length = explanations.lengths[unit]
        assert list(explanations.chosen[unit, :length]) == want
        np.testing.assert_allclose(explanations.weights[unit, :length], weights, rtol=1e-6)
        np.testing.assert_allclose(explanations.bias[unit], bias, rtol=1e-6)
        if not want:
            assert unit == 7
            assert explanations.correlation[unit] == explanations.fitted[unit] == 0
            continue
        simulated = values[1::2][:, want] @ weights + bias
        held_out = np.corrcoef(simulated, acts[1::2])[0, 1]
        assert explanations.correlation[unit] == pytest.approx(held_out, abs=1e-6)
        assert explanations.fitted[unit] == pytest.approx(reached, abs=1e-6)
        single = np.corrcoef(values[::2].T, acts[::2])[-1, :-1].argmax()
        assert explanations.labels[unit] == single
        alone = np.corrcoef(values[1::2, single], acts[1::2])[0, 1]
        assert explanations.label_correlation[unit] == pytest.approx(alone, abs=1e-6)


@pytest.mark.slow
def test_rows_have_the_published_columns(world):
    embeddings, activations, texts, _ = world
    record = record_of(embeddings, activations, keep=False)
    explanations = explain(record, NAMES, text_embeddings=texts, most=3)
    header, rows = explanations.header(), explanations.rows()
    assert header[:4] == ["layer", "unit", "weight0", "concept0"]
    assert header[6:] == [
        "weight2",
        "concept2",
        "bias",
        "correlation",
        "label",
        "label_correlation",
    ]
    assert [row[:2] for row in rows[9:12]] == [["conv1a", 9], ["lin2", 0], ["lin2", 1]]
    assert rows[7][2:8] == [0] * 6  # nothing explains a constant
    assert {len(row) for row in rows} == {len(header)}
    table = explanations.columns()
    assert list(table) == header
    for name, cells in zip(header, zip(*rows, strict=True), strict=True):
        unknown = [x is None or (isinstance(x, float) and np.isnan(x)) for x in table[name]]
        plain = [0 if gone else x for gone, x in zip(unknown, table[name], strict=True)]
        assert plain == list(cells)  # None and NaN stand for what is 0 in the published columns
    assert (explanations.lengths <= 3).all()
    assert (explanations.weights[explanations.chosen == NONE] == 0).all()


def test_refusals(world):
    embeddings, activations, texts, _ = world
    record = record_of(embeddings, activations, keep=False)
    with pytest.raises(InputError, match=r"need the activations; probe with --probe\.keep-act"):
        explain(record, NAMES, text_embeddings=texts, calibration=Calibration(a=1.0, b=0.0))
    with pytest.raises(InputError, match="called '0'"):
        explain(record, ["0", *NAMES[1:]], text_embeddings=texts)
    with pytest.raises(InputError, match="pass the clip that made it"):
        explain(record, NAMES)
    few = record_of(embeddings[:5], activations[:5])
    with pytest.raises(InputError, match="need 6 images"):
        explain(few, NAMES, text_embeddings=texts)


def test_published_pairs():
    assert Calibration(encoder="ViT-L-14-336").pair == (58.0, -0.25)
    assert {PUBLISHED[f"{name}-384"] for name in ("ViT-SO400M-14-SigLIP", "ViT-L-16-SigLIP")} == {
        (58.0, -0.13),
        (60.0, -0.09),
    }
    assert Calibration(a=2.0, b=0.5)(np.zeros(1))[0] == pytest.approx(1 / (1 + np.exp(-1)))
    for wrong in ({"a": 1.0}, {"a": 1.0, "b": 0.0, "encoder": "ViT-L-14-336"}):
        with pytest.raises(ValueError, match=r"together|either"):
            Calibration(**wrong)


@pytest.mark.slow
def test_units_whose_weight_is_mostly_on_a_concept(world):
    embeddings, activations, texts, _ = world
    found = explain(record_of(embeddings, activations), NAMES, text_embeddings=texts)
    masks = found.units("concept 0", "concept 3", least=0.4)
    assert [len(mask) for mask in masks.values()] == [10, 40]
    expected = []
    for chosen, weights in zip(found.chosen, found.weights, strict=True):
        own = sum(max(w, 0.0) for c, w in zip(chosen, weights, strict=True) if c in (0, 3))
        expected.append(own > 0 and own >= 0.4 * np.abs(weights).sum())
    assert np.any(expected)
    np.testing.assert_array_equal(np.concatenate(list(masks.values())), expected)
