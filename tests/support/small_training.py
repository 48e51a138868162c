"""Small trainings that several test files share, and how far two of them are apart."""

import jax
import numpy as np

from emojax.distributed.mesh import make_mesh
from emojax.training import classifiers
from emojax.training import fit as loop
from emojax.training.recipe import Recipe

# What rounding may change of how far a training moved its variables: one operation rounds by 2⁻²⁴,
# another program changes all of it (1), and this is about halfway between, in powers of ten.
ROUNDING = 1e-3


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same(one, other):
    for a, b in zip(leaves(one), leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def vector(tree):
    """All numbers of a pytree."""
    return np.concatenate([np.ravel(leaf) for leaf in leaves(tree)]).astype(np.float64)


def distance(one, other, start):
    """How far two trainings ended from one another, as a share of how far the first moved.

    Each is (parameters, other variables); the larger of the two shares.
    """
    shares = []
    for a, b, before in zip(one, other, start, strict=True):
        moved = np.linalg.norm(vector(a) - vector(before))
        shares.append(np.linalg.norm(vector(a) - vector(b)) / moved)
    return max(shares)


def recipe(**changed):
    options = {"epochs": 2, "optimizer": "sgd", "learning_rate": 1e-3, "average": 0.9}
    return Recipe(**(options | changed))


def task_of(model, images, **changed):
    options = {"batch": 32, "label_smoothing": 0.1} | changed
    return classifiers.classification_task(model, images, **options)


def fit(model, images, recipes=None, *, devices=1, task=None, **options):
    """Where nothing else is asked for, the same program in every test: it is compiled once."""
    made = task_of(model, images, **(task or {}))
    return loop.fit(made, recipes or recipe(), mesh=make_mesh(devices), **options)
