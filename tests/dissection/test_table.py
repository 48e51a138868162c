"""Table 1 against a plain count."""

import numpy as np
import pytest

from emojax.data.concepts import ConceptSet
from emojax.dissection import dissect, table

CONCEPTS = ConceptSet(
    ("Smile", "Frown", "Raised Brows", "Closed Eyes", "Jaw"),
    (("happy",), ("sad", "angry"), ("surprise",), ("sad",), ("fear",)),
)


@pytest.mark.slow
def test_table_1_equals_a_plain_count(found, blobs):
    result = dissect.dissect(found, CONCEPTS)
    rows = table.interpretability(result, tau=0.5)
    assert [row.layer for row in rows] == list(found.layers)
    order = np.argsort(-found.activations, axis=0, kind="stable")[:10]
    for number, row in enumerate(rows):
        accuracy, chance = {True: [], False: []}, []
        for u in np.flatnonzero(found.segment_ids == number):
            emotions = CONCEPTS.emotions[result.scores[u].argmax()]
            mine = [blobs.classes[blobs.labels[i]] in emotions for i in order[:, u]]
            accuracy[bool(result.scores[u].max() > 0.5)].append(np.mean(mine))
            chance.append(np.mean([blobs.classes[y] in emotions for y in blobs.labels]))
        both = accuracy[True] + accuracy[False]
        assert (row.interpretable, row.not_interpretable) == (
            len(accuracy[True]),
            len(accuracy[False]),
        )
        assert row.share == pytest.approx(len(accuracy[True]) / len(both))
        assert row.overall_acc == pytest.approx(np.mean(both))
        for value, part in ((row.interp_acc, accuracy[True]), (row.uninterp_acc, accuracy[False])):
            assert value == (pytest.approx(np.mean(part)) if part else None)
        assert row.chance_overall == pytest.approx(np.mean(chance))
        assert row.adjusted_overall == pytest.approx(
            (np.mean(both) - np.mean(chance)) / (1 - np.mean(chance))
        )
    assert (
        table.most_interpretable_layer(rows)
        == max(rows, key=lambda r: (r.interpretable, rows.index(r))).layer
    )


@pytest.mark.slow
def test_a_label_that_speaks_for_no_class_has_no_accuracy(found):
    """It is left out of the means, and blank in the csv."""
    result = dissect.dissect(found, CONCEPTS)
    most = int(np.bincount(result.labels).argmax())
    silent = [() if number == most else own for number, own in enumerate(CONCEPTS.emotions)]
    other = dissect.dissect(found, ConceptSet(CONCEPTS.concepts, tuple(silent)))
    unknown = np.isnan(other.description.accuracy)
    np.testing.assert_array_equal(unknown, result.labels == most)
    np.testing.assert_array_equal(np.isnan(other.description.chance), unknown)
    for number, row in enumerate(table.interpretability(other)):
        known = result.description.accuracy[(found.segment_ids == number) & ~unknown]
        assert row.overall_acc == (pytest.approx(known.mean()) if known.size else None)
