"""How much memory a run really took."""

import torch

from workers.data.validation import peak_rss_bytes


def peak_memory_bytes(device: torch.device) -> int:
    """Peak allocated on the device, or peak resident of this process when it runs on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_rss_bytes()
