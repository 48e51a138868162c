"""Records on disk, and their content key."""

import numpy as np
import pytest

from emojax.data.concepts import ConceptSet
from emojax.data.image_set import ImageSet
from emojax.dissection import dissect
from emojax.editing import edit
from emojax.errors import InputError
from emojax.probing import network, probe, record

CONCEPTS = ConceptSet(
    ("Smile", "Frown", "Raised Brows", "Closed Eyes", "Jaw"),
    (("happy",), ("sad", "angry"), ("surprise",), ("sad",), ("fear",)),
)


@pytest.fixture(scope="module")
def found(tiny_vgg, blobs, tiny_clip):
    """A record of two layers, with activations."""
    layers = ("lin1", "lin2")
    return probe.probe(tiny_vgg, blobs, tiny_clip, layers=layers, tile=8, keep_activations=True)


@pytest.mark.slow
def test_record_survives_the_disk(found, tmp_path, tiny_clip):
    record.save(found, tmp_path / "r")
    again = record.load(tmp_path / "r")
    assert (again.layers, again.key, list(again.ids)) == (found.layers, found.key, list(found.ids))
    for got, want in zip(
        (*again.top, *again.half_moments), (*found.top, *found.half_moments), strict=True
    ):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(again.embeddings, found.embeddings)
    np.testing.assert_array_equal(again.activations, found.activations)
    assert (again.done_before, again.clip_key) == (300, tiny_clip.key)
    assert again.antialias is found.antialias is False
    with pytest.raises(InputError, match="pass the clip"):
        dissect.dissect(again, CONCEPTS)
    np.testing.assert_array_equal(
        dissect.dissect(again, CONCEPTS, clip=tiny_clip).scores,
        dissect.dissect(found, CONCEPTS).scores,
    )
    (tmp_path / "r" / "statistics.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="not a readable probe record"):
        record.load(tmp_path / "r")


def test_key_follows_content(tiny_vgg, blobs, tiny_clip):
    def key(model=tiny_vgg, images=blobs, top_k=100, antialias=False, **tokens):
        net = network.as_network(model, antialias=antialias)
        return record.record_key(net, images, tiny_clip, ["lin1"], "avg", top_k, 8, False, **tokens)

    pixels = blobs.images[0:300].copy()
    same = ImageSet.from_arrays(pixels, blobs.labels, blobs.classes)
    pixels[7, 3, 3] ^= 1
    changed = ImageSet.from_arrays(pixels, blobs.labels, blobs.classes)
    edited = edit.edit(tiny_vgg, "lin2", np.r_[2.0, np.ones(19)])
    assert key(images=same) == key(tokens="cls") == key()
    others = [key(images=changed), key(model=edited), key(top_k=50), key(antialias=True)]
    assert len({key(), *others, key(tokens="mean"), key(tokens="max")}) == 7
