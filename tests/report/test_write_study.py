"""The tables of a sweep."""

import pytest
from hostile_run import columns


def test_sweep_has_tests_of_cells_and_bands(hostile):
    rows = columns(hostile[0] / "sweep.csv")
    base = next(int(row["correct"]) for row in rows if row["factor"] == "1")
    for row in rows:
        assert int(row["gained"]) - int(row["lost"]) == int(row["correct"]) - base
        assert float(row["p_adjusted"]) >= float(row["p_value"]) * 0.999
    bands = columns(hostile[0] / "bands.csv")
    assert [int(row["units_above"]) for row in bands][:: len(bands) - 1] == [0, 20]
    assert all(float(row["low"]) <= float(row["mean"]) <= float(row["high"]) for row in bands)
    ends = {row["units_above"]: row for row in columns(hostile[0] / "thresholds.csv")}
    for row in (bands[0], bands[-1]):  # no choice there: the threshold with as many units above
        assert (
            float(row["low"])
            == float(row["high"])
            == pytest.approx(float(ends[row["units_above"]]["accuracy"]), abs=1e-6)
        )
