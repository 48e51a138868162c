from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from emojax.distributed.mesh import make_mesh
from emojax.errors import InputError
from emojax.models.clip import PUBLISHED
from emojax.probing.precision import in_bfloat16
from emojax.probing.probe import probe, probe_tile, whole_tiles
from emojax.probing.step import sum_tile


@pytest.mark.slow
def test_a_dense_layer_rounds_its_operands_and_nothing_else(tiny_vgg):
    half = in_bfloat16(tiny_vgg)
    x = np.random.default_rng(0).normal(size=(5, tiny_vgg.lin2.kernel.shape[0])).astype(np.float32)
    found = half.lin2(jnp.asarray(x))
    assert found.dtype == jnp.float32
    rounded = [
        np.asarray(jnp.asarray(a, jnp.bfloat16), np.float64) for a in (x, tiny_vgg.lin2.kernel[...])
    ]
    expected = rounded[0] @ rounded[1]
    # Products of bfloat16 are exact in float32; each of the sums rounds once.
    bound = len(rounded[1]) * np.finfo(np.float32).eps * (abs(rounded[0]) @ abs(rounded[1]))
    assert (abs(np.asarray(found, np.float64) - expected) <= bound).all()


@pytest.mark.slow
def test_the_exact_module_is_left_alone_and_statistics_stay(tiny_vgg):
    half = in_bfloat16(tiny_vgg)
    assert half.lin1.kernel[...].dtype == jnp.bfloat16
    assert tiny_vgg.lin1.kernel[...].dtype == jnp.float32
    assert half.bn1a.var[...].dtype == jnp.float32
    assert half.bn1a.dtype == jnp.bfloat16
    assert tiny_vgg.bn1a.dtype is None


@pytest.mark.slow
def test_shapes_are_rounded_as_arrays_are(tiny_clip):
    graphdef, state = nnx.split(tiny_clip.model)
    shapes = nnx.merge(
        graphdef, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    )
    of_shapes = nnx.split(in_bfloat16(shapes))
    of_arrays = nnx.split(in_bfloat16(tiny_clip.model))
    assert of_shapes[0] == of_arrays[0]
    assert jax.tree.map(lambda a: (a.shape, a.dtype), of_shapes[1]) == jax.tree.map(
        lambda a: (a.shape, a.dtype), of_arrays[1]
    )


@pytest.mark.long
def test_a_probe_in_bfloat16_keeps_lists_and_sums_in_float32(tiny_vgg, tiny_clip, blobs):
    images = blobs.first(64)
    options = {"layers": ["lin1", "conv1b"], "top_k": 8, "keep_activations": True}
    exact = probe(tiny_vgg, images, tiny_clip, **options)
    half = probe(tiny_vgg, images, tiny_clip, **options, precision="bfloat16")
    assert half.key != exact.key
    assert half.activations.dtype == half.top.values.dtype == np.float32
    # Nothing after the network is rounded: the lists hold the largest activations as they are.
    assert (half.top_k(8).values == -np.sort(-half.activations, axis=0)[:8].T).all()
    np.testing.assert_allclose(
        half.moments.total, half.activations.sum(0, dtype=np.float64), rtol=1e-5, atol=1e-4
    )
    rounded = abs(half.activations - exact.activations)
    assert 0 < rounded.max() < 0.1 * abs(exact.activations).max()
    # A batch and a number of devices change no bit of it either.
    other = probe(
        tiny_vgg, images, tiny_clip, **options, precision="bfloat16", batch=16, mesh=make_mesh(1)
    )
    assert (other.activations == half.activations).all()
    assert (other.embeddings == half.embeddings).all()


def test_a_function_has_no_tier(tiny_clip, blobs):
    def function(images):
        features = images.mean(axis=(1, 2))
        return features, {"mean": features}

    with pytest.raises(InputError, match=r"precision bfloat16 .* is for flax modules"):
        probe(function, blobs.first(8), tiny_clip, top_k=2, precision="bfloat16")


def tpu(devices: int) -> Mesh:
    mesh = Mock(spec=Mesh, size=devices)
    mesh.devices = np.asarray([Mock(platform="tpu")] * devices)
    return mesh


def test_the_tile_is_chosen_by_device_and_tower():
    tiles = {name: probe_tile(tpu(4), config) for name, config in PUBLISHED.items()}
    assert tiles == {"ViT-B/32": 128, "ViT-B/16": 16, "ViT-L/14": 8}
    assert probe_tile(make_mesh(1), PUBLISHED["ViT-B/16"]) == 16


def test_an_accelerator_sums_several_tiles_at_once_a_cpu_one():
    assert [sum_tile(tile, tpu(1)) for tile in (8, 16, 15, 96, 256, 300)] == [
        256,
        256,
        240,
        192,
        256,
        300,
    ]
    assert [sum_tile(tile, make_mesh(1)) for tile in (1, 15, 16)] == [2, 30, 16]
    assert whole_tiles(100, 16, tpu(2)) == 512
    assert whole_tiles(100, 16, make_mesh(2)) == 128
