"""Placement of parameters on a mesh."""

import numpy as np

from emojax.distributed.mesh import make_mesh, parameter_shardings


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
