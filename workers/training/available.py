"""How much memory this process may hold, by the host and by the control groups it runs in. Loads no torch."""

from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """What this process holds already and what it could still get without anything being killed.

    Page cache counts as free: the kernel gives it back before it refuses.
    """
    free = min([_field(Path("/proc/meminfo"), "MemAvailable:"), *_free_in_groups()])
    return free + _field(Path("/proc/self/status"), "VmRSS:")


def _free_in_groups() -> Iterator[int]:
    """Of every control group (version 2) around this process that has a limit."""
    own = Path("/proc/self/cgroup").read_text(encoding="ascii").rpartition("::")[2].strip().lstrip("/")
    group = CGROUPS / own
    for folder in (group, *group.parents):
        limit, used = folder / "memory.max", folder / "memory.current"
        if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()) != "max":
            cache = _field(folder / "memory.stat", "inactive_file", unit=1)
            yield max(0, int(text) - int(used.read_text(encoding="ascii")) + cache)
        if folder == CGROUPS:
            return


def _field(file: Path, name: str, unit: int = 1024) -> int:
    """A number from a file of `name value` lines; `unit` bytes each."""
    for line in file.read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line[len(name) :].split()[0]) * unit
    return 0
