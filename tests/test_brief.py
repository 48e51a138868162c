"""Short representations of results."""

import numpy as np
from conftest import some_record

import emojax
from emojax.data.image_set import ImageSet


def test_a_record_is_told_in_a_line():
    record = some_record("<clip>")
    text = repr(record)
    assert text.startswith("ProbeRecord(layers={'lin2': 20}, top=TopK(values=float32[2, 20, 20], ")
    assert "embeddings=float32[40, 24]" in text
    assert "activations=None" in text
    assert len(text) < 1000
    table = record._repr_html_()
    assert "<td>float32[40, 24]</td>" in table
    assert "&lt;clip&gt;" in table


def test_what_is_long_is_cut():
    images = ImageSet.from_arrays(np.zeros((3, 4, 4, 1), np.uint8), None, (), name="x" * 5000)
    assert len(repr(images)) < 500
    concepts = emojax.ConceptSet(tuple(f"concept {number}" for number in range(5000)))
    assert "concepts=tuple of 5000" in repr(concepts)
