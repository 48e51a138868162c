"""Devices, the mesh over them, and the two placements in use: split along the batch, or a copy on every device."""

import contextlib
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
    """A one-axis mesh over the first `devices` devices, all when None.

    Raises:
      ValueError: there are fewer devices than asked for.
    """
    available = jax.devices()
    if devices is not None and devices > len(available):
        raise ValueError(f"{devices} devices were asked for, {len(available)} are there")
    return Mesh(np.asarray(available[:devices]), (AXIS,), axis_types=(AxisType.Auto,))


def split(mesh: Mesh) -> NamedSharding:
    """Leading axis split over the mesh."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def copied(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(mesh: Mesh, *arrays: np.ndarray) -> tuple[jax.Array, ...]:
    """Host arrays with a batch axis → global arrays, split over the mesh; each process gives its own part."""
    return tuple(jax.make_array_from_process_local_data(split(mesh), array) for array in arrays)


def put_copy(mesh: Mesh, tree: Any) -> Any:
    """A pytree with a copy on every device."""
    return jax.device_put(tree, copied(mesh))


def sharded(mesh: Mesh, tree: Any) -> Any:
    """Shardings of a pytree by one rule: an array is split along its longest axis that the devices divide, else copied."""

    def place(leaf: Any) -> NamedSharding:
        sides = [(side, -axis) for axis, side in enumerate(leaf.shape) if side and side % mesh.size == 0]
        if not sides:
            return copied(mesh)
        axis = -max(sides)[1]
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))

    return jax.tree.map(place, tree)
