"""`scripts/shard_weights.py`: weights in shards, and back."""

import runpy
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from emojax.data.provenance import Use, read_provenance
from emojax.data.weights import load_vgg, save_vgg


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_shards_of_weights(tiny_vgg, tmp_path):
    """bfloat16 shards of at most the size asked for, and back: what they say of seen images stays
    with them.
    """
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "shard_weights.py"))
    save_vgg(
        tiny_vgg,
        tmp_path / "model.safetensors",
        uses=[Use("FER2013 training", "key", "trained")],
    )
    script["shard"](tmp_path / "model.safetensors", tmp_path / "shards", megabytes=0.068)
    sizes = [file.stat().st_size for file in (tmp_path / "shards").glob("*.safetensors")]
    assert len(sizes) > 2
    assert max(sizes) <= 68_000
    script["join"](tmp_path / "shards", tmp_path / "back.safetensors")
    assert read_provenance(tmp_path / "back.safetensors") == read_provenance(
        tmp_path / "model.safetensors"
    )
    for a, b in zip(
        leaves(nnx.state(load_vgg(tmp_path / "back.safetensors"))),
        leaves(nnx.state(tiny_vgg)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=2**-8)
