"""`scripts/benchmarks`: results are compared measurement by measurement."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "scripts" / "benchmarks"


@pytest.mark.exhaustive
@pytest.mark.slow
def test_compare(tmp_path):
    """A ratio that fell by more than the tolerance, and memory that rose, are worse; others not."""
    old = {"score": 4.0, "peak memory of a probe": 1.0}

    def compared(**changed: float) -> tuple[int, str]:
        for name, ratios in (("old", old), ("new", old | changed)):
            rows = [{"what": what, "units": 8, "ratio": ratio} for what, ratio in ratios.items()]
            (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        command = [sys.executable, BENCHMARKS, "compare", tmp_path / "old", tmp_path / "new"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        return done.returncode, done.stdout

    assert compared(score=3.5)[0] == 0
    assert compared(**{"peak memory of a probe": 0.5})[0] == 0
    code, out = compared(score=2.0)
    assert (code, out.count("worse")) == (1, 1)
    assert compared(**{"peak memory of a probe": 2.0})[0] == 1
