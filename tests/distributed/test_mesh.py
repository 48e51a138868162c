"""Placement of parameters on a mesh."""

import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from emojax.distributed.mesh import keep_programs, make_mesh, parameter_shardings


def test_one_rule_places_parameters():
    mesh = make_mesh(8)
    tree = {
        "kernel": np.zeros((3, 3, 16, 24)),
        "bias": np.zeros(16),
        "odd": np.zeros((3, 5)),
        "step": np.zeros(()),
    }
    found = {name: tuple(place.spec) for name, place in parameter_shardings(mesh, tree).items()}
    assert found == {"kernel": (None, None, None, "data"), "bias": ("data",), "odd": (), "step": ()}


@pytest.mark.slow
def test_programs_are_kept_for_the_next_process(tmp_path):
    """A folder that was set already stays; this test's own process has one (conftest)."""
    before = jax.config.jax_compilation_cache_dir
    keep_programs(tmp_path)
    assert jax.config.jax_compilation_cache_dir == before is not None

    code = """
        import sys
        from pathlib import Path
        import jax
        from emojax.distributed import mesh
        mesh._WORTH_KEEPING = 0
        mesh.keep_programs(Path(sys.argv[1]))
        print(float(jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((3, 3)))))
    """
    kept = []
    for _ in range(2):
        command = [sys.executable, "-c", textwrap.dedent(code), tmp_path / "programs"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("27.0\n", "")
        kept.append(set(tmp_path.rglob("*-cache")))
    assert kept[0]
    assert kept[0] == kept[1]
