import numpy as np
import pytest
from conftest import some_record

from emojax.data.concepts import ConceptSet
from emojax.dissection.agreement import agreement
from emojax.dissection.labels import Confidence, Dissection


def labelled(labels, halves=None) -> Dissection:
    """A dissection of 20 units in three concepts with these labels."""
    scores = np.eye(3, dtype=np.float32)[labels]
    confidence = None if halves is None else Confidence(np.asarray(halves), None)
    return Dissection(
        some_record("clip"), ConceptSet(("a", "b", "c")), "correlation", scores, confidence
    )


def test_labels_are_compared_over_all_units_and_over_those_that_hold():
    labels = np.arange(20) % 3
    halves = np.stack([labels, labels])
    halves[1, :8] = (labels[:8] + 1) % 3  # eight units whose halves disagree
    other = labels.copy()
    other[[0, 1, 19]] = (labels[[0, 1, 19]] + 1) % 3  # two of those, and one that holds
    found = agreement(labelled(labels, halves), labelled(other))
    assert found == (40, 20, 17 / 20, 12, 11 / 12)


def test_without_halves_there_is_no_share_of_clear_labels():
    labels = np.arange(20) % 3
    found = agreement(labelled(labels), labelled(labels))
    assert found == (40, 20, 1.0, None, None)
    none_hold = np.stack([labels, (labels + 1) % 3])
    assert agreement(labelled(labels, none_hold), labelled(labels))[3:] == (0, None)


def test_other_concepts_are_refused():
    labels = np.arange(20) % 3
    other = labelled(labels)
    other.concepts = ConceptSet(("a", "b", "d"))
    with pytest.raises(ValueError, match="units and concepts are the same"):
        agreement(labelled(labels), other)
