"""Devices, the mesh over them, and the two placements in use: split along the batch, or a copy on every device.

The devices may belong to several processes (`emojax.distributed.processes`). Then each gives its own
rows of a batch, and results that the host reads are copied to every process.
"""

import contextlib
import functools
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def use_all_cores() -> None:
    """Shows the cores of a CPU as up to four devices; for programs to call before JAX's first use, not for libraries.

    XLA leaves part of a network's work on one thread; two devices at once fill the gaps. Each holds a copy of the
    parameters, hence the limit. Nothing changes where the number was set already, or on an accelerator.
    """
    if jax.config.jax_num_cpu_devices == -1 and "xla_force_host_platform_device_count" not in os.environ.get(
        "XLA_FLAGS", ""
    ):
        with contextlib.suppress(RuntimeError):  # JAX is already in use, and the number stays what it is
            jax.config.update("jax_num_cpu_devices", min(4, os.cpu_count() or 1))


def make_mesh(devices: int | None = None) -> Mesh:
    """A one-axis mesh over the first `devices` devices, all when None; those of a process are neighbours.

    Raises:
      ValueError: there are fewer devices than asked for.
    """
    available = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if devices is not None and devices > len(available):
        raise ValueError(f"{devices} devices were asked for, {len(available)} are there")
    return Mesh(np.asarray(available[:devices]), (AXIS,), axis_types=(AxisType.Auto,))


def split(mesh: Mesh) -> NamedSharding:
    """Leading axis split over the mesh."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def copied(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def readable(mesh: Mesh) -> NamedSharding:
    """How results that the host reads should leave a jitted function: split, or copied where processes share the mesh."""
    return copied(mesh) if _is_shared(mesh) else split(mesh)


def my_rows(mesh: Mesh, size: int) -> slice:
    """The rows that this process gives of a batch of `size`.

    Raises:
      ValueError: the processes have different numbers of devices.
    """
    owners = [device.process_index for device in mesh.devices.flat]
    mine, processes = owners.count(jax.process_index()), len(set(owners))
    if mine * processes != mesh.size:
        raise ValueError(f"this process has {mine} of {mesh.size} devices, not one part in {processes}")
    first = owners.index(jax.process_index())
    return slice(size * first // mesh.size, size * (first + mine) // mesh.size)


def put_batch(mesh: Mesh, *arrays: np.ndarray) -> tuple[jax.Array, ...]:
    """Host arrays with a batch axis → global arrays, split over the mesh; each process gives its own rows."""
    return tuple(jax.make_array_from_process_local_data(split(mesh), array) for array in arrays)


def put_split(mesh: Mesh, tree: Any) -> Any:
    """A pytree of host arrays that every process has whole, split over the mesh."""
    return put(mesh, tree, jax.tree.map(lambda _: split(mesh), tree))


def put_copy(mesh: Mesh, tree: Any) -> Any:
    """A pytree with a copy on every device."""
    return put(mesh, tree, jax.tree.map(lambda _: copied(mesh), tree))


def put(mesh: Mesh, tree: Any, placement: Any) -> Any:
    """A pytree of arrays that every process has whole, placed by a pytree of shardings."""
    if not _is_shared(mesh):
        return jax.device_put(tree, placement)

    def one(leaf: Any, where: NamedSharding) -> jax.Array:  # device_put would send every leaf to every process, to compare
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, where, lambda at: host[at])

    return jax.tree.map(one, tree, placement)


def fetch_to_first(mesh: Mesh, tree: Any) -> Any:
    """A pytree of arrays split over the mesh, one row per device, as host arrays in the first process; else None."""
    if not _is_shared(mesh):
        return jax.tree.map(np.asarray, tree)

    def rows(leaf: jax.Array) -> np.ndarray | None:  # a row at a time, or every device would hold all of them
        found = []
        for at in range(mesh.size):
            value = np.asarray(_row(mesh)(leaf, at))
            found += [value] if jax.process_index() == 0 else []
        return np.stack(found) if found else None

    host = jax.tree.map(rows, tree)
    return host if jax.process_index() == 0 else None


@functools.lru_cache(maxsize=2)
def _row(mesh: Mesh) -> Any:
    return jax.jit(lambda leaf, at: jax.lax.dynamic_index_in_dim(leaf, at, keepdims=False), out_shardings=copied(mesh))


def _is_shared(mesh: Mesh) -> bool:
    return not split(mesh).is_fully_addressable


def sharded(mesh: Mesh, tree: Any) -> Any:
    """Shardings of a pytree by one rule: an array is split along its longest axis that the devices divide, else copied."""

    def place(leaf: Any) -> NamedSharding:
        sides = [(side, -axis) for axis, side in enumerate(leaf.shape) if side and side % mesh.size == 0]
        if not sides:
            return copied(mesh)
        axis = -max(sides)[1]
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))

    return jax.tree.map(place, tree)
