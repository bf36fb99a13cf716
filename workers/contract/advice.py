"""The smallest change that makes a run fit: tried from what changes nothing but the pace to what changes the
result."""

from collections.abc import Callable, Iterator

from workers.contract.base import Message
from workers.contract.estimate import PLANS, BaseShape, Estimate
from workers.contract.forecast import Correction, memory_of
from workers.contract.machines import GIB, Machine
from workers.contract.training import TrainSpec
from workers.contract.workload import Workload

LoadOf = Callable[[TrainSpec], Workload]
"""What goes through the model with other settings."""
STEP = 256
"""Token settings are advised in multiples of this."""


class Change(Message):
    """One setting to change, and what that does to the run."""

    setting: str
    value: str
    consequence: str

    def __str__(self) -> str:
        return f"Set {self.setting} to {self.value}: {self.consequence}."


def advise(
    shape: BaseShape, spec: TrainSpec, load_of: LoadOf, machine: Machine, correction: Correction
) -> str:
    """One sentence: the first change that fits on the machine, or what memory the run would need instead."""

    def fits(changed: TrainSpec) -> bool:
        load = load_of(changed)
        if load.excluded > spec.max_excluded_share * (load.samples + load.excluded) or not load.samples:
            return False  # it would be refused for that
        return memory_of(shape, changed, PLANS[-1], load, machine, correction) <= machine.memory_bytes

    for change, changed in _changes(spec, load_of(spec), load_of, fits):
        if fits(changed):
            return str(change)
    needed = memory_of(shape, spec, PLANS[-1], load_of(spec), machine, correction)
    return (
        f"No single setting makes it fit: it needs {needed / GIB:.1f} GiB of free memory, or a smaller base."
    )


def with_advice(
    estimate: Estimate,
    shape: BaseShape,
    spec: TrainSpec,
    load_of: LoadOf,
    machine: Machine,
    correction: Correction,
) -> Estimate:
    """The estimate, with advice where it does not fit."""
    if estimate.fits:
        return estimate
    return estimate.model_copy(update={"advice": advise(shape, spec, load_of, machine, correction)})


def _changes(
    spec: TrainSpec, load: Workload, load_of: LoadOf, fits: Callable[[TrainSpec], bool]
) -> Iterator[tuple[Change, TrainSpec]]:
    """Single changes, the smallest first. Token settings come as the largest value that fits, if any does."""
    if spec.quantization == "none":
        yield (
            Change(setting="quantization", value="nf4", consequence="the frozen base is held in 4 bits"),
            spec.model_copy(update={"quantization": "nf4"}),
        )
    packs = range(-(-load.longest // STEP) * STEP, min(spec.micro_batch_tokens, load.largest_pack), STEP)
    if found := _largest(packs, lambda tokens: spec.model_copy(update={"micro_batch_tokens": tokens}), fits):
        yield (
            Change(
                setting="micro_batch_tokens",
                value=str(found.micro_batch_tokens),
                consequence="the same result, in more and smaller passes",
            ),
            found,
        )
    if spec.optimizer == "adamw":
        yield (
            Change(setting="optimizer", value="paged_adamw_8bit", consequence="its states take a quarter"),
            spec.model_copy(update={"optimizer": "paged_adamw_8bit"}),
        )
    if found := _largest(range(STEP, load.longest, STEP), lambda tokens: _shorter(spec, tokens), fits):
        left_out = load_of(found).excluded - load.excluded
        yield (
            Change(
                setting="max_length and micro_batch_tokens",
                value=str(found.max_length),
                consequence=f"{left_out:,} longer samples are left out",
            ),
            found,
        )
    if found := _largest(range(1, spec.rank), lambda rank: spec.model_copy(update={"rank": rank}), fits):
        yield (
            Change(setting="rank", value=str(found.rank), consequence="a narrower adapter"),
            found,
        )


def _shorter(spec: TrainSpec, tokens: int) -> TrainSpec:
    return spec.model_copy(update={"max_length": tokens, "micro_batch_tokens": tokens})


def _largest(
    values: range, change: Callable[[int], TrainSpec], fits: Callable[[TrainSpec], bool]
) -> TrainSpec | None:
    """The spec with the largest of the values that fits, by bisection: less of it fits, too."""
    low, high = 0, len(values)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(change(values[middle - 1])) else (low, middle - 1)
    return change(values[low - 1]) if low else None
