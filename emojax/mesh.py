"""Devices, the mesh over them, and the two placements in use: split along the batch, or a copy on every device."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"


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
