"""Beside training: placement of parameters, provenance of weights, duplicates, curves, shards."""

import importlib.util
import os

import jax
import numpy as np
import pytest
from flax import nnx

from emojax.data.image_set import ImageSet, duplicates
from emojax.data.provenance import Use, overlap_warnings, read_provenance, use_of
from emojax.data.weights import load_vgg, save_vgg
from emojax.distributed.mesh import make_mesh, parameter_shardings
from emojax.report.figures import plot_training
from emojax.synthetic import faces


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def images():
    return faces.random_faces(64, 3).image_set("faces")


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


def test_weights_say_what_they_have_seen(tiny_vgg, images, tmp_path):
    path, other = tmp_path / "model.safetensors", faces.random_faces(20, 5).image_set("other")
    save_vgg(tiny_vgg, path)
    assert read_provenance(path) is None
    assert overlap_warnings(None, "model", [images, other]) == [
        "model does not say what it was trained on, so it counts as having seen faces, other"
    ]
    save_vgg(
        tiny_vgg,
        path,
        uses=[use_of(images, "trained"), use_of(other, "chosen")],
    )
    known = read_provenance(path)
    assert [(each.name, each.role) for each in known] == [("faces", "trained"), ("other", "chosen")]
    renamed = ImageSet.from_arrays(images.images, images.labels, images.classes, name="renamed")
    found = overlap_warnings(
        known, "model", [renamed, other, faces.random_faces(20, 6).image_set("new")]
    )
    assert found == [
        "model was trained on renamed: accuracy there says nothing",
        "model was chosen on other: accuracy is flattered",
    ]
    assert load_vgg(path).config == tiny_vgg.config


def test_copies(images):
    pixels = images.images
    mixed = np.concatenate([pixels[5:7], 255 - pixels[:3], pixels[:1]])
    np.testing.assert_array_equal(
        duplicates(mixed, pixels, chunk=4), [True, True, False, False, False, True]
    )


def test_curves():
    rows = [
        {
            "epoch": e,
            "loss": 1 / e,
            "accuracy": 0.1 * e,
            "validation_accuracy": 0.09 * e,
            "validation_nll": 1.5,
            "seconds": 1,
        }
        for e in (1, 2, 3)
    ]
    panels = plot_training([rows, rows], [2, 3]).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["loss", "accuracy", "validation nll"]
    np.testing.assert_array_equal(
        panels[1].lines[1].get_ydata(), [row["validation_accuracy"] for row in rows]
    )


def test_shards_of_weights(tiny_vgg, tmp_path):
    """bfloat16 shards of at most the size asked for, and back: what they say of seen images stays
    with them.
    """
    path = os.path.join(os.path.dirname(__file__), "..", "scripts", "shard_weights.py")
    spec = importlib.util.spec_from_file_location("shard_weights", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    save_vgg(
        tiny_vgg,
        tmp_path / "model.safetensors",
        uses=[Use("FER2013 training", "key", "trained")],
    )
    script.shard(tmp_path / "model.safetensors", tmp_path / "shards", megabytes=0.068)
    sizes = [file.stat().st_size for file in (tmp_path / "shards").glob("*.safetensors")]
    assert len(sizes) > 2
    assert max(sizes) <= 68_000
    script.join(tmp_path / "shards", tmp_path / "back.safetensors")
    assert read_provenance(tmp_path / "back.safetensors") == read_provenance(
        tmp_path / "model.safetensors"
    )
    for a, b in zip(
        leaves(nnx.state(load_vgg(tmp_path / "back.safetensors"))),
        leaves(nnx.state(tiny_vgg)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=2**-8)
