"""The one place where a function becomes a jitted program over the mesh, and where rows become
tiles.

Probe, scoring, evaluation and sweeps all run through `data_parallel`: it alone says how arguments
lie on the devices, in tiles of which size rows are computed, and how results come back to the host.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from emojax.distributed.mesh import AXIS, host_readable


def data_parallel(
    function: Callable[..., Any],
    mesh: Mesh,
    *,
    replicated: int = 0,
    sharded: int = 0,
    in_specs: Sequence[Any] | None = None,
    out_specs: Any = None,
    tile: int | None = None,
    out_shardings: Any = None,
    donate: Sequence[int] = (),
    products: str = "highest",
) -> Callable[..., Any]:
    """Jits a function of one device's share over all devices of the mesh.

    Keep what this returns for as long as the program may be called again: it is a new jitted
    function at every call.

    Args:
      function: takes `replicated` arguments that are whole on every device, then `sharded`
        arguments of which it gets the device's own rows. What it returns has rows along the first
        axis, unless `out_specs` says otherwise.
      mesh: the devices.
      replicated: number of leading arguments (pytrees) that every device has whole.
      sharded: number of arguments behind them (pytrees), sharded along their leading axis.
      in_specs: how arguments lie, in place of these two numbers, where leaves of one differ.
      out_specs: how results do, in rows when None; what is replicated must be the same everywhere.
      tile: apply the function to this many rows at a time (`in_tiles`), all of them leaves of one
        sharded argument; None, to all rows at once.
      out_shardings: of the results; None makes them readable by the host, in every process.
      donate: numbers of the arguments whose memory the results may reuse.
      products: JAX's name for how float32 matrix products are made. In full precision by default:
        TF32 or bfloat16 passes change rankings and labels.

    Raises:
      ValueError: tiles of several sharded arguments; put them into one pytree.
    """
    if tile is not None and sharded != 1:
        raise ValueError(f"tiles are of one sharded argument, not of {sharded}; give one pytree")

    def local(*arguments: Any) -> Any:
        with jax.default_matmul_precision(products):
            if tile is None:
                return function(*arguments)
            *whole, rows = arguments
            results = jax.lax.map(functools.partial(function, *whole), _to_tiles(tile, rows))
            return _from_tiles(results)

    if in_specs is None:
        in_specs = (PartitionSpec(),) * replicated + (PartitionSpec(AXIS),) * sharded
    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=tuple(in_specs),
        out_specs=PartitionSpec(AXIS) if out_specs is None else out_specs,
        # lax.map would need types of carries that vary over the mesh; flax modules do not tell
        # them.
        check_vma=False,
    )
    shardings = host_readable(mesh) if out_shardings is None else out_shardings
    return jax.jit(mapped, out_shardings=shardings, donate_argnums=tuple(donate))


def in_tiles(function: Callable[[Any], Any], tile: int, rows: Any) -> Any:
    """Applies a function to `tile` rows of a pytree at a time, and joins what it returns.

    A matrix product rounds differently for different numbers of rows. Work done in tiles of one
    size gives the same bits for an image whatever batch it comes in, on however many devices, so
    rankings and labels do not depend on them. The first axis of the arrays, or pytrees of arrays,
    must divide by the tile.
    """
    return _from_tiles(jax.lax.map(function, _to_tiles(tile, rows)))


def _to_tiles(tile: int, rows: Any) -> Any:
    return jax.tree.map(lambda array: array.reshape(-1, tile, *array.shape[1:]), rows)


def _from_tiles(results: Any) -> Any:
    return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), results)


def default_tile(mesh: Mesh | None = None) -> int:
    """Rows that keep a device busy: few for a CPU's caches, many for a matrix unit.

    The device is one of the mesh, JAX's first when None.
    """
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return 16 if platform == "cpu" else 256
