"""How fast the machines are that runs train on: a catalog of GPU classes, and what a core of a CPU does."""

import re
from dataclasses import dataclass

from pydantic import Field

from workers.contract.base import Message
from workers.contract.estimate import Device

GIB = 1024**3


class Machine(Message):
    """What a run is estimated for."""

    device: Device
    name: str
    """As the driver calls it, such as `NVIDIA H100 80GB HBM3`; `cpu` for a CPU."""
    memory_bytes: int = Field(default=0, ge=0)
    """What a run may take, of the device or, when it trains on the CPU, of the host. 0: unknown."""
    cores: int = Field(default=1, ge=1)
    """Cores that a run on the CPU may use."""
    flops: float = Field(default=0.0, ge=0)
    """Operations a second measured on a bare product of the base's size; 0: not measured, its class tells."""


@dataclass(frozen=True)
class DeviceClass:
    """A kind of GPU. `tflops` is NVIDIA's published dense bf16 peak."""

    name: str
    tflops: float
    memory_gib: int


GPU_CLASSES = (
    DeviceClass("A10G", 70, 24),
    DeviceClass("A10", 125, 24),
    DeviceClass("L4", 121, 24),
    DeviceClass("RTX 3090", 71, 24),
    DeviceClass("RTX 4090", 165, 24),
    DeviceClass("RTX 5090", 210, 32),
    DeviceClass("A40", 150, 48),
    DeviceClass("RTX A6000", 155, 48),
    DeviceClass("RTX 6000 Ada", 364, 48),
    DeviceClass("L40", 181, 48),
    DeviceClass("L40S", 362, 48),
    DeviceClass("A100", 312, 80),
    DeviceClass("H100 PCIe", 756, 80),
    DeviceClass("H100", 989, 80),
    DeviceClass("H200", 989, 141),
    DeviceClass("B200", 2250, 180),
)
CPU = "cpu"
UNKNOWN_GPU = DeviceClass("GPU", 120, 24)
"""For a card that the catalog does not know: the slowest data-centre card in it. Past runs correct it."""
GPU_UTILISATION = 0.35
"""Share of the peak that training reaches: ASSUMED, no GPU was at hand. Runs on a class correct it."""
CPU_CORE_FLOPS = 55e9
"""bf16 floating-point operations a second and core."""
SHARE_OF_PRODUCT = 0.5
"""Of the speed of a bare product, what training reaches."""


def class_of(name: str) -> DeviceClass | None:
    """The class of a GPU by its driver's name; None for a CPU. Of two that fit the longer name counts."""
    if name == CPU:
        return None
    fitting = [each for each in GPU_CLASSES if re.search(rf"\b{each.name}\b", name, re.IGNORECASE)]
    return max(fitting, key=lambda each: len(each.name), default=UNKNOWN_GPU)


def class_name(name: str) -> str:
    """What runs are compared by: the class of a known card, the driver's name of another, or `cpu`."""
    found = class_of(name)
    return CPU if found is None else name if found is UNKNOWN_GPU else found.name


def usable_bytes(found: DeviceClass) -> int:
    """Memory that a run may take on a card of the class: what is printed on the box, less a twentieth."""
    return found.memory_gib * GIB * 19 // 20


def flops_per_second(machine: Machine) -> float:
    """Operations a second that training is expected to reach on it."""
    if machine.flops:
        return machine.flops * SHARE_OF_PRODUCT
    found = class_of(machine.name)
    if machine.device == "cpu" or found is None:
        return CPU_CORE_FLOPS * machine.cores
    return found.tflops * 1e12 * GPU_UTILISATION
