"""The machines that runs may land on, from what their workers last said about themselves."""

import re
from collections.abc import Iterator

from stillhouse.jobs.models import Worker
from workers.contract import WorkerFacts
from workers.contract.machines import CPU, Machine, class_of, usable_bytes

QUEUE = "gpu"
"""Where runs wait for a worker."""
_MEMORY = re.compile(r"(?P<number>\d+(?:[.,]\d+)?)\s*(?P<unit>[MGT])i?B\W*$", re.IGNORECASE)
_UNITS = {"M": 2, "G": 3, "T": 4}


def machines(queue: str) -> list[Machine]:
    """Of every worker that listens to the queue and was not sent away, up at the moment or not."""
    workers = Worker.objects.filter(queue=queue, revoked_at=None).exclude(seen_at=None)
    return [
        machine for worker in workers for machine in machines_of(WorkerFacts.model_validate(worker.facts))
    ]


def machines_of(facts: WorkerFacts) -> Iterator[Machine]:
    """Its GPUs; the host itself when it has none and said how much memory there is."""
    for device in facts.devices:
        yield _gpu(device)
    if not facts.devices and facts.memory_bytes:
        yield Machine(device="cpu", name=CPU, memory_bytes=facts.memory_bytes, cores=max(1, facts.cores))


def _gpu(device: str) -> Machine:
    """A GPU from its name and, where it is said, its memory; what a driver keeps is taken off."""
    found = class_of(device)
    size = usable_bytes(found) if found is not None else 0
    if said := _MEMORY.search(device):
        size = int(float(said["number"].replace(",", ".")) * 1024 ** _UNITS[said["unit"].upper()] * 0.95)
    return Machine(device="cuda", name=_MEMORY.sub("", device).strip(" ,·(") or device, memory_bytes=size)
