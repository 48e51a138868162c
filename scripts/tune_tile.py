"""How many images a TPU should compute together: two blocks of an image tower, compiled for it with
tiles of several sizes.

    python scripts/tune_tile.py --clip ViT-B/16 --tiles 8 16 32 64
    python scripts/tune_tile.py --clip ViT-L/14 --tiles 4 8 16 --topology v6e:2x2

Needs the extra `plan`. By the TPU compiler's estimates; a tile takes it a quarter of a minute to
some minutes on two cores. `probe_tile` (emojax/probing/probe.py) and docs/scale.md quote what it
prints.
"""

import dataclasses
from typing import Any, Literal

import tyro

_BLOCKS = 2


@dataclasses.dataclass
class Options:
    """The tower, its precision, and the tiles."""

    clip: Literal["ViT-B/32", "ViT-B/16", "ViT-L/14"] = "ViT-B/16"
    tiles: tuple[int, ...] = (8, 16, 32, 64)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    topology: str = "v5e:2x2"


def blocks(options: Options, tile: int, mesh: Any) -> Any:
    """Two blocks over two tiles on every device, as a step to plan."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from emojax.distributed import mesh as meshes
    from emojax.distributed.data_parallel import data_parallel
    from emojax.distributed.plan import PlannedStep
    from emojax.models.clip import PUBLISHED
    from emojax.models.transformer import Encoder

    sizes, dtype = PUBLISHED[options.clip], jnp.dtype(options.dtype)
    config = dataclasses.replace(sizes.vision, depth=_BLOCKS)
    tokens = (sizes.image_size // sizes.patch_size) ** 2 + 1
    tower = nnx.eval_shape(lambda: Encoder(config, causal=False, dtype=dtype, rngs=nnx.Rngs(0)))
    graph, params = nnx.split(tower)
    step = data_parallel(
        lambda params, states: nnx.merge(graph, params)(states),
        mesh,
        replicated=1,
        sharded=1,
        tile=tile,
    )
    images = 2 * tile * mesh.size
    states = jax.ShapeDtypeStruct((images, tokens, config.width), dtype)
    arguments = (
        meshes.placed_shapes(meshes.replicated(mesh), params),
        meshes.placed_shapes(meshes.batch_sharded(mesh), states),
    )
    return PlannedStep(step, arguments, images, {})


def main(options: Options) -> None:
    """Prints a line for each tile."""
    from emojax.distributed.plan import plan_step
    from emojax.distributed.topology import topology_mesh

    mesh = topology_mesh(options.topology)
    print(f"{_BLOCKS} blocks of {options.clip} in {options.dtype}, {options.topology}", flush=True)
    for tile in options.tiles:
        plan = plan_step(blocks(options, tile, mesh), mesh)
        print(
            f"  tile {tile:>3}: {plan.peak_share:.1%} of the matrix units' time, "
            f"{plan.images_per_second_per_chip:,.0f} images/s a device",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
