import importlib.util

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from emojax import planning
from emojax.dissection.options import Consensus
from emojax.distributed import topology
from emojax.distributed.mesh import make_mesh
from emojax.distributed.plan import OTHER, part_of, plan_step, products
from emojax.errors import InputError
from emojax.models.clip import Clip, ClipConfig
from emojax.models.compact import CompactConfig, CompactNet
from emojax.models.preprocess import Preprocess
from emojax.models.transformer import TowerConfig
from emojax.models.vision_tower import VisionNetwork, VisionTowerConfig
from emojax.models.vit import Vit, VitConfig
from emojax.training.recipe import Recipe

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU's compiler is not installed: pip install libtpu (the extra plan)",
)


def work_of(function, *shapes, loops=None, devices=1):
    arguments = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in shapes]
    return products(jax.make_jaxpr(function)(*arguments).jaxpr, loops or {}, devices)


def test_products_of_a_program_are_counted_in_operations_and_passes():
    exact = work_of(
        lambda a, b: jnp.matmul(a, b, precision="highest"),
        ((3, 5, 7), jnp.float32),
        ((7, 11), jnp.float32),
    )
    assert exact == (2 * 3 * 5 * 7 * 11, 6 * 2 * 3 * 5 * 7 * 11)
    half = work_of(lambda a, b: a @ b, ((5, 7), jnp.bfloat16), ((7, 11), jnp.bfloat16))
    assert half == (2 * 5 * 7 * 11,) * 2
    whole = work_of(lambda a, b: a @ b, ((5, 7), jnp.int32), ((7, 11), jnp.int32))
    assert whole == (0, 0)


@pytest.mark.parametrize(
    ("precision", "kinds", "passes"),
    [
        ("highest", (jnp.float32, jnp.bool_), 3),
        ("highest", (jnp.int8, jnp.float32), 3),
        ("highest", (jnp.bfloat16, jnp.bool_), 1),
        ("highest", (jnp.float32, jnp.int32), 6),  # not whole in bfloat16
        ("high", (jnp.bool_, jnp.float32), 2),
        ("default", (jnp.bool_, jnp.float32), 1),
    ],
)
def test_a_factor_that_is_whole_in_bfloat16_saves_passes(precision, kinds, passes):
    def product(a, b):
        left = a.astype(jnp.float32).reshape(7, 5).T
        return jnp.matmul(left, b.astype(jnp.float32), precision=precision)

    work = work_of(product, ((35,), kinds[0]), ((7, 11), kinds[1]))
    assert work == (2 * 5 * 7 * 11, passes * 2 * 5 * 7 * 11)


def test_a_mask_that_is_multiplied_first_is_not_whole():
    work = work_of(
        lambda mask, a: jnp.matmul(mask * a, a, precision="highest"),
        ((7, 7), jnp.bool_),
        ((7, 7), jnp.float32),
    )
    assert work.passes == 6 * work.operations


def test_convolutions_and_loops_are_counted():
    def run(images, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        tiles = images.reshape(4, 2, 6, 6, 3)
        return jax.lax.map(
            lambda tile: jax.lax.conv_general_dilated(
                tile, kernel, (1, 1), "SAME", dimension_numbers=layout, precision="high"
            ),
            tiles,
        )

    work = work_of(run, ((8, 6, 6, 3), jnp.float32), ((3, 3, 3, 5), jnp.float32))
    operations = 2 * 8 * 6 * 6 * 5 * 27
    assert work == (operations, 3 * operations)


def test_a_loop_of_run_time_count_runs_as_often_as_the_caller_knows():
    def run(count, a):
        with jax.named_scope("sums"):
            return jax.lax.fori_loop(0, count, lambda _, x: x @ a, a)

    shapes = ((), jnp.int32), ((4, 4), jnp.bfloat16)
    assert work_of(run, *shapes).operations == 128
    assert work_of(run, *shapes, loops={"sums": 9}).operations == 9 * 128


def test_what_every_device_does_counts_for_each():
    rows = PartitionSpec("data")
    mapped = jax.shard_map(
        lambda a: a @ a.T, mesh=make_mesh(4), in_specs=rows, out_specs=rows, check_vma=False
    )
    shape = ((8, 16), jnp.bfloat16)
    assert work_of(mapped, shape, devices=4).operations == 4 * 2 * 2 * 2 * 16


def test_the_first_part_that_is_in_a_scope_counts():
    parts = {"transpose": "backward", "jvp": "forward"}
    assert part_of("jit(step)/transpose(jvp(loss))/dot_general", parts) == "backward"
    assert part_of("jit(step)/jvp(loss)/dot_general", parts) == "forward"
    assert part_of("jit(step)/add", parts) == OTHER


def test_an_unknown_chip_is_refused():
    with pytest.raises(InputError, match="no data sheet for 'cpu'"):
        topology.chip_of(make_mesh(1))


@needs_libtpu
def test_an_unknown_topology_is_refused_with_examples():
    with pytest.raises(InputError, match=r"no topology 'v5e:3x5' \(.*\); some that there are: v5e"):
        topology.topology_mesh("v5e:3x5")


TOWER = TowerConfig(width=64, mlp=128, depth=1, heads=2)
SIZES = ClipConfig(
    vision=TOWER,
    text=TOWER,
    image_size=16,
    patch_size=8,
    vocabulary=100,
    context=16,
    embedding=64,
    end_token=99,
)


def planned(name, mesh):
    """A step, tiny; those of transformers compile in a fifth of the time of others."""
    encoder = planning.Encoder.of(lambda: Clip(SIZES, rngs=nnx.Rngs(0)))
    model = planning.as_shapes(lambda: CompactNet(CompactConfig.small(), rngs=nnx.Rngs(0)))
    images = planning.ImageShape(4096, 16, 16, 1)
    if name == "score":
        return planning.score_step(
            model, encoder, 4096, 200, mesh, Consensus(top_k=16), null_sets=10
        )
    if name == "probe":
        sizes = VisionTowerConfig(
            kind="clip",
            vision=TOWER,
            image_size=16,
            patch_size=8,
            projection=None,
            preprocess=Preprocess(None, None, (0.0,) * 3, (1.0,) * 3),
        )
        tower = planning.as_shapes(lambda: VisionNetwork(sizes, rngs=nnx.Rngs(0)))
        options = {"layers": ["pooled"], "top_k": 8, "batch": 64, "tile": 8}
        return planning.probe_step(tower, encoder, images, mesh, **options).planned
    unchanged = Preprocess(None, None, (0.0,) * 3, (1.0,) * 3)
    sizes = VitConfig(
        kind="vit", tower=TOWER, image_size=16, patch_size=8, classes=7, preprocess=unchanged
    )
    vit = planning.as_shapes(lambda: Vit(sizes, rngs=nnx.Rngs(0)))
    return planning.train_step(lambda _: vit, images, mesh, Recipe(), batch=16)


@needs_libtpu
@pytest.mark.slow
# The sweep is compiled by the command's test.
@pytest.mark.parametrize("name", ["probe", "score", "train"])
def test_the_steps_compile_for_the_smallest_topology(name):
    mesh = topology.topology_mesh("v5e:2x2")
    step = planned(name, mesh)
    plan = plan_step(step, mesh)
    assert plan.unknown_loops == []
    assert plan.fits
    assert 0 < plan.peak_share < 1
    per_chip = step.images / mesh.size / plan.seconds
    assert plan.images_per_second_per_chip == pytest.approx(per_chip)
    assert plan.seconds == pytest.approx(sum(plan.parts.values()))
    exchanges = {
        "probe": {"all-to-all", "all-gather"},
        "score": {"all-gather"},
        "train": {"all-reduce"},
    }
    assert set(plan.bytes_exchanged) == exchanges.get(name, set())
    if name == "score":  # what the lists gather has no estimate, which is said
        assert any(kind.startswith("gather") for kind in plan.without_estimate)
        assert {"lists", "correlation", "consensus"} <= set(plan.parts)
