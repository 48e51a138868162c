"""Calling a public function twice with the same shapes traces nothing the second time.

JAX logs every trace of a jitted function; the second call must log none.
"""

import contextlib
import dataclasses
import logging

import jax
import numpy as np
import pytest
from flax import nnx

from emojax.dissection.dissect import dissect
from emojax.distributed.mesh import make_mesh
from emojax.editing import edit
from emojax.probing.network import as_network
from emojax.probing.probe import probe

SIMILARITIES = (
    "correlation",
    "soft_wpmi",
    "wpmi",
    "rank_reorder",
    "cos_similarity",
    "cos_similarity_cubed",
    "consensus",
)
OPTIONS = {"layers": ("conv4b", "lin2"), "batch": 64, "tile": 8, "keep_activations": True}


@contextlib.contextmanager
def traces():
    """The names of all functions that JAX traces inside the block."""
    names = []

    class Handler(logging.Handler):
        def emit(self, record):
            message = record.getMessage()
            if message.startswith("Finished tracing"):
                names.append(message.split(" for ")[0].rpartition(" ")[2])

    logger = logging.getLogger("jax._src.dispatch")
    handler = Handler()
    logger.addHandler(handler)
    propagate = logger.propagate
    logger.propagate = False
    try:
        with jax.log_compiles():
            yield names
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


@pytest.fixture(scope="module")
def positive(tiny_vgg, blobs, tiny_clip):
    """A record that every similarity function is defined for."""
    record = probe(tiny_vgg, blobs, tiny_clip, mesh=make_mesh(2), **OPTIONS)
    return dataclasses.replace(record, embeddings=np.abs(record.embeddings))


@pytest.mark.slow
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_dissect(positive, similarity):
    rng = np.random.default_rng(0)

    def run():
        record = dataclasses.replace(positive)  # another object: nothing is remembered in it
        texts = np.abs(rng.standard_normal((7, 24))).astype(np.float32)
        names = [f"c{number}" for number in range(7)]
        return dissect(record, names, similarity=similarity, text_embeddings=texts, null_sets=20)

    with traces() as first:
        run()
    with traces() as second:
        run()
    assert first, "the counter counts nothing"
    assert second == []


@pytest.mark.long
def test_probe_of_another_network_of_the_same_architecture(tiny_vgg, blobs, tiny_clip, tmp_path):
    other = edit.edit(tiny_vgg, "lin1", np.linspace(0.5, 2, 24))
    assert as_network(other).key != as_network(tiny_vgg).key
    # Warm: what is traced once in a process, such as the making of an empty state.
    options = OPTIONS | {"pool": "max", "top_k": 17, "mesh": make_mesh(2)}
    with traces() as first:
        record = probe(tiny_vgg, blobs, tiny_clip, **options)
        lists = record.merged
    with traces() as second:
        changed = probe(other, blobs, tiny_clip, cache=tmp_path, save_every=0, **options)
        assert (changed.merged.values != lists.values).any()
        again = probe(other, blobs, tiny_clip, **options)
    assert first, "the counter counts nothing"
    assert second == []
    np.testing.assert_array_equal(again.activations, changed.activations)


@pytest.mark.slow
def test_embed_texts(tiny_clip):
    """Nor with another CLIP of the same architecture."""
    graphdef, state = nnx.split(tiny_clip.model)
    louder = nnx.merge(graphdef, jax.tree.map(lambda leaf: 1.5 * leaf, state))
    other = dataclasses.replace(tiny_clip, model=louder)
    first = tiny_clip.embed_texts(["a smile", "a frown", "x"])
    with traces() as second:
        same = tiny_clip.embed_texts(["a smile", "a frown", "x"])
        changed = other.embed_texts(["a smile", "a frown", "x"])
    assert second == []
    np.testing.assert_array_equal(same, first)
    assert (changed != first).any()
