"""How much memory a run really took."""

import resource

import torch


def peak_memory_bytes(device: torch.device) -> int:
    """Peak allocated on the device, or peak resident of this process when it runs on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
