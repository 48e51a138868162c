"""The devices that a job works on, in words, and accelerators of the machine that are left idle."""

import collections
import os
from pathlib import Path

import jax

_PCI = Path("/sys/bus/pci/devices")
_NVIDIA = "0x10de"
_GOOGLE = "0x1ae0"
# TPUs v2 and v3, v4, v5e, v5p, v6e, 7x: Google makes other cards, too.
_TPUS = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}


def describe_devices() -> str:
    """`2 × cpu`, `8 × NVIDIA H100 80GB HBM3`: all devices that JAX uses, by kind."""
    kinds = collections.Counter(device.device_kind for device in jax.devices())
    return ", ".join(f"{count} × {kind}" for kind, count in kinds.items())


def unused_accelerators(pci: Path = _PCI) -> str | None:
    """What to do about a GPU or TPU of this machine that JAX does not use; None if there is none.

    None too where JAX_PLATFORMS names what to use: then it was somebody's choice.
    """
    if jax.default_backend() != "cpu" or os.environ.get("JAX_PLATFORMS"):
        return None
    for device in sorted(pci.glob("*")):
        try:
            vendor, kind, number = (
                (device / name).read_text("ascii").strip() for name in ("vendor", "class", "device")
            )
        except OSError:  # a device that went away, or one that may not be looked at
            continue
        if vendor == _NVIDIA and kind.startswith("0x03"):  # a display controller, as PCI has it
            return "this machine has an NVIDIA GPU that JAX does not use; pip install 'jax[cuda12]'"
        if vendor == _GOOGLE and number in _TPUS:
            return "this machine has a TPU that JAX does not use; pip install 'jax[tpu]'"
    return None
