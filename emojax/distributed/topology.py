"""Accelerators by name, whether or not there are any: `v5e:2x4` as a mesh to compile for.

The TPU's compiler (libtpu, the extra `plan`) runs on any machine. Programs compiled for such a mesh
cannot run here; `plan` reads what they would cost. `CHIPS` has the data sheets.
"""

import importlib.util
import os
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from emojax.distributed.mesh import AXIS
from emojax.errors import InputError


class Chip(NamedTuple):
    """A data sheet.

    Attributes:
      name: as it is spoken of.
      operations: of the matrix units in bfloat16, a second.
      memory: bytes.
      clock: cycles a second.
    """

    name: str
    operations: float
    memory: float
    clock: float


# By JAX's `device_kind`. A cycle of v5e's four matrix units is 4 · 128² · 2 operations.
CHIPS = {
    "TPU v4": Chip("v4", 275e12, 32e9, 1.05e9),
    "TPU v5 lite": Chip("v5e", 197e12, 16e9, 1.5e9),
    "TPU v5": Chip("v5p", 459e12, 95e9, 1.75e9),
    "TPU v6 lite": Chip("v6e", 918e12, 32e9, 1.75e9),
}
_EXAMPLES = "v5e:2x4, v5e:16x16, v4:4x4x4, v5p:4x4x4, v6e:16x16"


def topology_mesh(name: str) -> Mesh:
    """The one-axis mesh over all chips of a topology, those of a host side by side.

    For programs to call, not for libraries: sets what the compiler reads from the environment.

    Raises:
      InputError: the compiler is not installed, or knows no such topology.
    """
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            "plan needs the TPU's compiler, libtpu, which runs on any Linux machine: "
            "pip install 'emojax[plan]'"
        )
    # It would look for a TPU's machine, and warn that there is none.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # One process at a time may drive a TPU; any number may compile.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(
            f"no topology {name!r} ({reason}); some that there are: {_EXAMPLES}"
        ) from None
    devices = sorted(described.devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def chip_of(mesh: Mesh) -> Chip:
    """The data sheet of a mesh's devices; where each core is one (v4), of its part of the chip.

    Raises:
      InputError: there is none for this kind.
    """
    kind = mesh.devices.flat[0].device_kind
    if kind not in CHIPS:
        raise InputError(f"no data sheet for {kind!r}; known: {', '.join(CHIPS)}")
    chip = CHIPS[kind]
    cores = 1 + max(getattr(device, "core_on_chip", 0) for device in mesh.devices.flat)
    if cores == 1:
        return chip
    return Chip(f"{chip.name} core", chip.operations / cores, chip.memory / cores, chip.clock)


def hosts_of(mesh: Mesh) -> int:
    """Processes that a job on a mesh has, one for each host."""
    return len({device.process_index for device in mesh.devices.flat})
