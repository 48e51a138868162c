"""The order of units, and correlations as letters."""

import numpy as np

from emojax.report import explorer
from emojax.report.explanations import ALPHABET, LEVELS


def test_the_most_trusted_units_come_first():
    table = {
        "layer": np.array(["a"] * 4, object),
        "unit": np.arange(4.0),
        "similarity": np.array([1.0, 3.0, 2.0, np.nan]),
    }
    assert explorer.trust_order(table).tolist() == [1, 2, 0, 3]  # by similarity, for want of more
    table["q_value"] = np.array([0.01, 0.02, 0.01, 0.5])
    assert explorer.trust_order(table).tolist() == [2, 0, 1, 3]
    table["held_out_low"] = np.array([0.9, 0.1, 0.2, np.nan])
    assert explorer.trust_order(table).tolist() == [0, 2, 1, 3]
    table["labelled"] = np.array(["no", "yes", "yes", "no"], object)
    assert explorer.trust_order(table).tolist() == [2, 1, 0, 3]  # what stands, before all else


def test_correlations_as_letters():
    """Two letters each, within half a step of 4,096 from −1 to 1."""
    values = np.linspace(-1, 1, 1001).reshape(7, -1)
    text = explorer._coded(values)
    numbers = np.array([ALPHABET.index(letter) for letter in text]).reshape(-1, 2)
    got = (numbers @ [LEVELS, 1]) / (LEVELS**2 - 1) * 2 - 1
    np.testing.assert_allclose(got, values.ravel(), atol=1 / (LEVELS**2 - 1) + 1e-12)
