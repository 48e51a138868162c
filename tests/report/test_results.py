"""What is read back from a run folder."""

import numpy as np
import pytest
from hostile_run import PLAIN

import emojax
from emojax.data.concepts import ConceptSet
from emojax.errors import InputError
from emojax.report import results
from emojax.report.results import Labels


def test_labels_of_a_dissection_are_those_of_its_table(hostile, tiny_vgg, tiny_clip):
    record = emojax.probe(tiny_vgg, hostile[1], tiny_clip, layers=["conv1a", "lin1", "lin2"])
    concepts = ConceptSet(PLAIN, tuple((name,) for name in hostile[1].classes[:4]))
    found = emojax.dissect(record, concepts, null_sets=0)
    labels = Labels.of(found)
    assert labels.layers == {"conv1a": 4, "lin1": 24, "lin2": 20}
    assert labels.concept.tolist() == [PLAIN[i] for i in found.labels]
    np.testing.assert_array_equal(labels.accuracy, found.description.accuracy)


def test_a_damaged_list_of_numbers_is_refused(tmp_path):
    (tmp_path / "summary.json").write_text('{"not_finite": {"/a": "nan"}}')
    with pytest.raises(InputError, match=r"summary\.json: not_finite does not fit"):
        results._json(tmp_path / "summary.json")
