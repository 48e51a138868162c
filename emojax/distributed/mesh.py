"""Devices, the mesh over them, and the two placements in use: sharded along the batch, or
replicated.

The devices may belong to several processes (`emojax.distributed.processes`). Then each process
gives its own rows of a batch, and results that the host reads are replicated to every process.
"""

import contextlib
import functools
import hashlib
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from emojax.errors import InputError

AXIS = "data"
_WORTH_KEEPING = 0.2  # seconds that a program took to compile


def use_all_cores() -> None:
    """Shows the cores of a CPU as up to four devices, before JAX's first use.

    For programs to call, not for libraries. XLA leaves part of a network's work on one thread; two
    devices at once fill the gaps. Each holds a copy of the parameters, hence the limit. Nothing
    changes where the number was set already, or on an accelerator.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    # JAX makes the attributes of its config as it runs, out of pyright's sight.
    devices = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
    if devices != -1 or "xla_force_host_platform_device_count" in flags:
        return
    # RuntimeError: JAX is in use already, and the number stays what it is.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", min(4, os.cpu_count() or 1))


def check_platforms() -> None:
    """Refuses a choice of devices (JAX_PLATFORMS) that this machine does not have.

    Raises:
      InputError: it has not.
    """
    platforms = os.environ.get("JAX_PLATFORMS")
    if not platforms:
        return
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts where a plug-in is not installed
        why = str(error).partition(" (set JAX_PLATFORMS")[0] or "no such device"
        raise InputError(
            f"JAX_PLATFORMS is {platforms!r}, and JAX cannot use that here ({why}); set it to what "
            "this machine has, for instance cpu"
        ) from None


def keep_programs(folder: Path) -> None:
    """Lets JAX keep compiled programs below a folder, for the next process to load.

    For programs to call, not for libraries, before JAX's first use. A program for a CPU holds for
    its instruction set, so each kind of machine has a folder of its own. Nothing changes where a
    folder was set already (JAX_COMPILATION_CACHE_DIR).
    """
    # Again an attribute that pyright does not see.
    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return
    jax.config.update("jax_compilation_cache_dir", str(folder / _machine()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)


def _machine() -> str:
    """A name for this kind of processor."""
    about = platform.machine() + platform.processor()
    with contextlib.suppress(OSError):  # where the system tells no more
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        about += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(about.encode()).hexdigest()[:16]


def make_mesh(devices: int | None = None) -> Mesh:
    """A one-axis mesh over the first `devices` devices, all when None.

    The devices of a process are neighbours.

    Raises:
      ValueError: there are fewer devices than asked for.
    """
    available = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if devices is not None and devices > len(available):
        raise ValueError(f"{devices} devices were asked for, {len(available)} are there")
    return Mesh(np.asarray(available[:devices]), (AXIS,), axis_types=(AxisType.Auto,))


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """The leading axis sharded over the mesh."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def host_readable(mesh: Mesh) -> NamedSharding:
    """How results that the host reads leave a jitted function.

    Sharded along the batch; replicated where processes share the mesh, since a process can read
    nothing but its own devices.
    """
    return replicated(mesh) if _is_shared(mesh) else batch_sharded(mesh)


def local_rows(mesh: Mesh, size: int) -> slice:
    """The rows that this process gives of a batch of `size`.

    Raises:
      ValueError: the processes have different numbers of devices.
    """
    owners = [device.process_index for device in mesh.devices.flat]
    own_devices = owners.count(jax.process_index())
    processes = len(set(owners))
    if own_devices * processes != mesh.size:
        raise ValueError(
            f"this process has {own_devices} of {mesh.size} devices, not one part in {processes}"
        )
    first = owners.index(jax.process_index())
    return slice(size * first // mesh.size, size * (first + own_devices) // mesh.size)


def put_batch(mesh: Mesh, *arrays: np.ndarray) -> tuple[jax.Array, ...]:
    """Host arrays with a batch axis → global arrays, sharded; each process gives its own rows."""
    sharding = batch_sharded(mesh)
    return tuple(jax.make_array_from_process_local_data(sharding, array) for array in arrays)


def put_sharded(mesh: Mesh, tree: Any) -> Any:
    """A pytree of host arrays that every process has whole, sharded along the leading axis."""
    return put(mesh, tree, jax.tree.map(lambda _: batch_sharded(mesh), tree))


def put_replicated(mesh: Mesh, tree: Any) -> Any:
    """A pytree of host arrays that every process has whole, whole on every device."""
    return put(mesh, tree, jax.tree.map(lambda _: replicated(mesh), tree))


def put(mesh: Mesh, tree: Any, shardings: Any) -> Any:
    """A pytree of arrays that every process has whole, placed by a pytree of shardings."""
    if not _is_shared(mesh):
        return jax.device_put(tree, shardings)

    # `device_put` onto other processes' devices would send every leaf to all of them, to compare.
    def place(leaf: Any, sharding: NamedSharding) -> jax.Array:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place, tree, shardings)


def placed_shapes(sharding: NamedSharding, tree: Any) -> Any:
    """A pytree of arrays, or of their shapes, as shapes with a sharding: what `jit` lowers for
    devices that need not be there.
    """
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def fetch_to_main(mesh: Mesh, tree: Any) -> Any:
    """A pytree of arrays over the mesh as host arrays in the main process; else None."""
    if not _is_shared(mesh):
        return jax.tree.map(np.asarray, tree)

    # A process reads its own devices alone, so they get the whole of a leaf first.
    def whole(leaf: jax.Array) -> np.ndarray | None:
        readable = leaf if leaf.is_fully_replicated else _replicate(mesh)(leaf)
        return np.asarray(readable) if jax.process_index() == 0 else None

    host = jax.tree.map(whole, tree)
    return host if jax.process_index() == 0 else None


@functools.lru_cache(maxsize=2)
def _replicate(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """An array of any shape and sharding, whole on every device of the mesh."""
    return jax.jit(lambda leaf: leaf, out_shardings=replicated(mesh))


def _is_shared(mesh: Mesh) -> bool:
    """Whether devices of other processes are in the mesh."""
    return not batch_sharded(mesh).is_fully_addressable


def parameter_shardings(mesh: Mesh, tree: Any) -> Any:
    """Shardings of a pytree of parameters by one rule.

    An array is sharded along the longest of its axes that the devices divide evenly, the first of
    equals; an array without such an axis is replicated.
    """

    def place(leaf: Any) -> NamedSharding:
        divisible = [axis for axis, side in enumerate(leaf.shape) if side and side % mesh.size == 0]
        if not divisible:
            return replicated(mesh)
        axis = max(divisible, key=lambda axis: leaf.shape[axis])  # max takes the first of equals
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))

    return jax.tree.map(place, tree)
