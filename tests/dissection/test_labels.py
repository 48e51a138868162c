"""Which units stand for a concept, by every rule."""

import numpy as np
import pytest
from conftest import some_record

from emojax.data.concepts import ConceptSet
from emojax.dissection.labels import Confidence, Dissection
from emojax.dissection.trust import HeldOut
from emojax.errors import InputError

NAMES = ("Smile", "Glasses", "Frown")


@pytest.fixture(scope="module")
def found():
    """20 units of two layers; unit 3 has no varying activation's trust, the halves differ at 4."""
    record = some_record("clip")
    record.layers = {"lin1": 8, "lin2": 12}
    scores = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    labels = scores.argmax(axis=1)
    halves = np.stack([labels, labels])
    halves[1, 4] = (halves[1, 4] + 1) % 3
    low = np.full(20, 0.2)
    low[3] = -0.1
    confidence = Confidence(halves, HeldOut(low, low, low + 0.1))
    return Dissection(record, ConceptSet(NAMES), "correlation", scores, confidence)


def together(by_layer):
    assert [len(mask) for mask in by_layer.values()] == [8, 12]
    return np.concatenate(list(by_layer.values()))


def test_labelled_trusted_sure_and_similar_units(found):
    best = found.scores.argmax(axis=1)
    np.testing.assert_array_equal(together(found.units("Glasses")), best == 1)
    several = together(found.units("Glasses", "Frown"))
    np.testing.assert_array_equal(several, best > 0)
    stands = np.ones(20, bool)
    stands[[3, 4]] = False
    np.testing.assert_array_equal(
        together(found.units("Smile", "Glasses", "Frown", rule="trusted")), stands
    )
    ordered = np.sort(found.scores, axis=1)
    sure = ordered[:, 2] - ordered[:, 1] >= 0.5
    np.testing.assert_array_equal(
        together(found.units("Smile", rule="margin", least=0.5)), (best == 0) & sure
    )
    np.testing.assert_array_equal(
        together(found.units("Smile", "Frown", rule="score", least=0.3)),
        (found.scores[:, [0, 2]] >= 0.3).any(axis=1),
    )


def test_refusals(found):
    with pytest.raises(InputError, match="no concept 'Glases'; near ones: 'Glasses'"):
        found.units("Glases")
    with pytest.raises(InputError, match="it has: Smile, Glasses, Frown"):
        found.units("Zebra")
    plain = Dissection(found.record, found.concepts, "correlation", found.scores)
    with pytest.raises(InputError, match="by the rule 'trusted' here"):
        plain.units("Smile", rule="trusted")
    with pytest.raises(InputError, match="by the rule 'share' here"):
        found.units("Smile", rule="share")
