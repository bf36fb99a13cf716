"""What every step will see, decided before the first one: so a run can stop anywhere and go on as if it had
not.
"""

import hashlib
import json
import math
import random
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from workers.contract import TrainSpec

STEPS_AHEAD = {"cpu": 0, "cuda": 1}
"""Steps that are launched before the figures of an earlier one are read. A GPU then never waits for the host
to report, and to lay out the next packs."""
Packing = list[list[int]]
"""Indexes of the samples, pack by pack: those of a pack go through the model together."""


@dataclass(frozen=True)
class Plan:
    steps: list[Packing]

    @property
    def digest(self) -> str:
        """sha256 of the plan, to tell whether a checkpoint belongs to it."""
        return hashlib.sha256(json.dumps(self.steps).encode()).hexdigest()


def make_plan(lengths: Sequence[int], spec: TrainSpec) -> Plan:
    """Shuffle with the seed, epoch after epoch, cut into steps, and fill each step's samples into packs.

    `lengths` are those of the samples, in tokens. A step holds `batch_size` samples, fewer at the very end.
    """
    rng = random.Random(spec.seed)
    wanted = max(1, round(len(lengths) * spec.epochs))
    order: list[int] = []
    while len(order) < wanted:
        epoch = list(range(len(lengths)))
        rng.shuffle(epoch)
        order.extend(epoch)
    steps = math.ceil(wanted / spec.batch_size)
    if spec.max_steps:
        steps = min(steps, spec.max_steps)
    cuts = (
        order[:wanted][start : start + spec.batch_size]
        for start in range(0, steps * spec.batch_size, spec.batch_size)
    )
    return Plan([pack_samples(cut, lengths, spec.micro_batch_tokens) for cut in cuts])


def pack_samples(samples: Sequence[int], lengths: Sequence[int], tokens: int) -> Packing:
    """Best fit, longest first: each sample goes where the least room is left. Packs hold at most `tokens`.

    A longer sample stands alone. Inside a pack samples are ordered from the longest to the shortest.
    """
    packs: Packing = []
    room: list[tuple[int, int]] = []
    """(tokens left, index of the pack), sorted."""
    for sample in sorted(samples, key=lambda each: (-lengths[each], each)):
        fitting = bisect_left(room, (lengths[sample], 0))
        if fitting < len(room):
            left, pack = room.pop(fitting)
            packs[pack].append(sample)
        else:
            left, pack = tokens, len(packs)
            packs.append([sample])
        insort(room, (left - lengths[sample], pack))
    return packs


def learning_rate_at(step: int, total: int, spec: TrainSpec) -> float:
    """Learning rate of step `step` (from 0) of `total`: linear warm-up, then the schedule down to 0."""
    warmup = math.ceil(total * spec.warmup_ratio) if spec.warmup_ratio else 0
    if step < warmup:
        return spec.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(1, total - warmup)
    if spec.schedule == "linear":
        return spec.learning_rate * (1 - share)
    if spec.schedule == "cosine":
        return spec.learning_rate * (1 + math.cos(math.pi * share)) / 2
    return spec.learning_rate
