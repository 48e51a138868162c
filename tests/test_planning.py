"""Steps as shapes: they are those that the library runs, with nothing computed."""

import jax
import numpy as np
import pytest
from flax import nnx

from emojax import planning
from emojax.distributed.mesh import batch_sharded, make_mesh, put_batch, put_replicated
from emojax.errors import InputError
from emojax.models.clip import PUBLISHED, Clip
from emojax.models.deep_emotion import DeepEmotion, DeepEmotionConfig
from emojax.models.vgg import VggConfig, VggNet
from emojax.ops.topk import EMPTY
from emojax.probing import step as steps
from emojax.probing.probe import probe


def encoder_of(clip) -> planning.Encoder:
    return planning.Encoder.of(lambda: nnx.merge(*nnx.split(clip.model)), clip.preprocess)


def test_a_real_network_becomes_shapes_and_stays_as_it_is(tiny_vgg):
    shapes = planning.as_shapes(lambda: nnx.merge(*nnx.split(tiny_vgg)))
    leaves = jax.tree.leaves(nnx.state(shapes))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert nnx.split(shapes)[0] == nnx.split(tiny_vgg)[0]
    assert isinstance(tiny_vgg.lin1.kernel[...], jax.Array)


@pytest.mark.long
def test_the_planned_probe_is_the_probe(tiny_vgg, tiny_clip, blobs):
    """Its jitted step, given arrays of the planned shapes, makes the lists of `probe`."""
    images = blobs.first(32)
    mesh = make_mesh(2)
    shape = planning.ImageShape(32, *images.images.shape[1:])
    model = planning.as_shapes(lambda: nnx.merge(*nnx.split(tiny_vgg)))
    planned = planning.probe_step(
        model, encoder_of(tiny_clip), shape, mesh, layers=["lin1"], top_k=4, batch=32
    )
    params = put_replicated(mesh, (nnx.state(tiny_vgg), nnx.state(tiny_clip.model)))
    state = steps.place(None, steps.empty_state(24, 4, 24), mesh)
    rows = put_batch(mesh, np.asarray(images.images[:32]), np.arange(32, dtype=np.int32))
    given = params, state, *rows
    described = jax.tree.map(lambda a: (a.shape, a.dtype), given)
    assert described == jax.tree.map(lambda a: (a.shape, a.dtype), planned.planned.arguments)
    after, _ = planned.planned.step(*given)
    record = probe(tiny_vgg, images, tiny_clip, layers=["lin1"], top_k=4, mesh=mesh)
    top = steps.to_host(mesh, after, 24).top
    assert (top.values == record.top.values).all()
    assert (top.indices == record.top.indices).all()
    assert (top.indices != EMPTY).all()


@pytest.mark.long
def test_shapes_of_the_published_networks():
    mesh = make_mesh(8)
    encoder = planning.Encoder.of(lambda: Clip(PUBLISHED["ViT-B/32"], rngs=nnx.Rngs(0)))
    model = planning.as_shapes(lambda: VggNet(VggConfig.paper(), rngs=nnx.Rngs(0)))
    planned = planning.probe_step(model, encoder, planning.ImageShape(9, 48, 48, 1), mesh)
    assert (planned.tile, planned.batch) == (16, 256)
    _, state, images, indices = planned.planned.arguments
    # A device has whole blocks of 32 units.
    assert state.top.values.shape == (2, 10_240, 100)
    assert state.top.values.sharding.shard_shape((2, 10_240, 100)) == (2, 1280, 100)
    assert state.units.sums.cross.shape == (2, 10_240, 512)
    assert (images.shape, images.dtype, indices.shape) == ((256, 48, 48, 1), np.uint8, (256,))
    assert images.sharding == batch_sharded(mesh)
    assert planned.planned.loops == {"sums": 16}
    masks = planning.sweep_step(model, 7178, mesh)
    assert masks.arguments[1].rows.shape == (512, 4096)


def test_a_network_without_a_layer_before_logits_is_not_swept():
    sizes = DeepEmotionConfig(1, 7)
    model = planning.as_shapes(lambda: DeepEmotion(sizes, rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match=r"leave sweep out of --plan\.steps"):
        planning.sweep_step(model, 100, make_mesh(1))
