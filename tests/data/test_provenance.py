"""Weights files say what they have seen."""

import pytest

from emojax.data.image_set import ImageSet
from emojax.data.provenance import overlap_warnings, read_provenance, use_of
from emojax.data.weights import load_vgg, save_vgg
from emojax.synthetic import faces


@pytest.mark.slow
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
