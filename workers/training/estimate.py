"""What a run will take, from a base folder and a data file: real tokens, the real plan, closed forms for the
rest.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from workers.contract import AdapterManifest, TrainSpec
from workers.contract.advice import with_advice
from workers.contract.estimate import BaseShape, Estimate, MemoryPlan
from workers.contract.forecast import PastRun, correction_of, forecast, past_run_of, run_seconds
from workers.contract.machines import CPU, Machine, class_of, usable_bytes
from workers.contract.workload import Workload, count_tokens, workload_of
from workers.training.available import available_bytes
from workers.training.base import Base, open_base, shape_of
from workers.training.errors import TrainingError
from workers.training.plan import Plan, make_plan
from workers.training.prepare import Samples, check_data, read_samples
from workers.training.render import Renderer


def estimate_run(
    spec: TrainSpec,
    *,
    base: Path,
    data: Path,
    eval_data: Path | None,
    machine: Machine,
    past: Sequence[Path] = (),
) -> Estimate:
    """Render and plan as `train` would, compute nothing. `past` are output folders of earlier runs.

    Raises TrainingError for whatever `train` would refuse before its first step. A run that cannot fit is no
    error here: the estimate says so, with advice.
    """
    from workers.training.tokenizer import load_tokenizer  # noqa: PLC0415 - brings torch along

    opened = open_base(base)
    check_data(data, eval_data, spec)
    samples = read_samples(
        data, eval_data, spec, Renderer(load_tokenizer(base), spec.think, spec.think_policy)
    )
    shape = shape_of(opened)
    if machine.device == "cpu" and not past:
        machine = machine.model_copy(update={"flops": measured_flops(shape)})
    load = load_of(samples, make_plan([len(sample) for sample in samples.train], spec))
    correction = correction_of([run for folder in past if (run := past_run(folder, machine))])
    counts = count_tokens(
        ((len(sample), sample.trained_tokens) for sample in samples.train + samples.excluded),
        rows=len(samples.train),
        seconds=0.0,
    )

    def with_other_settings(changed: TrainSpec) -> Workload:
        return load if changed == spec else workload_of(counts, changed.model_copy(update=NOTHING_HELD_OUT))

    estimate = forecast(shape, spec, load, machine, correction=correction)
    return with_advice(estimate, shape, spec, with_other_settings, machine, correction)


PROBE_TOKENS, PROBE_BURSTS, BURST_ROUNDS, BURST_SECONDS, PROBE_PAUSE = 512, 5, 4, 0.1, 0.05
UNDISTURBED = 10
"""One product in so many is taken to have had the cores to itself."""
NOTHING_HELD_OUT = {"heldout_share": 0.0}
"""The samples have been split already."""


def load_of(samples: Samples, plan: Plan) -> Workload:
    """The exact load of a plan."""
    lengths = [len(sample) for sample in samples.train]
    packs = [pack for step in plan.steps for pack in step]
    order = [index for pack in packs for index in pack]
    return Workload(
        samples=len(lengths),
        excluded=len(samples.excluded),
        tokens=sum(lengths[index] for index in order),
        trained_tokens=sum(samples.train[index].trained_tokens for index in order),
        squared_tokens=sum(lengths[index] ** 2 for index in order),
        steps=len(plan.steps),
        packs=len(packs),
        largest_pack=max((sum(lengths[index] for index in pack) for pack in packs), default=0),
        longest=max((len(sample) for sample in samples.train + samples.heldout), default=0),
        heldout_tokens=sum(map(len, samples.heldout)),
        heldout_trained_tokens=sum(sample.trained_tokens for sample in samples.heldout),
    )


def predicted_seconds(spec: TrainSpec, base: Base, samples: Samples, plan: Plan, chosen: MemoryPlan) -> float:
    """What a run under the chosen memory plan should take on this machine, by the closed form alone."""
    return run_seconds(shape_of(base), spec, chosen, load_of(samples, plan), this_machine())


def past_run(folder: Path, machine: Machine) -> PastRun | None:
    """What the finished run in `folder` was expected to take, and took; None when that says nothing here.

    Raises TrainingError `no_past_run` when there is no finished run.
    """
    try:
        manifest = AdapterManifest.model_validate_json((folder / "adapter" / "manifest.json").read_bytes())
    except (OSError, ValueError):
        raise TrainingError(
            "no_past_run", f"{folder} does not hold a finished run. Give the --out folder of one."
        ) from None
    return past_run_of(manifest.result, on=machine)


def measured_flops(shape: BaseShape) -> float:
    """bf16 operations a second of this CPU in a product as training makes them, in short bursts that take
    less than a second together: cores differ by a factor of ten, by their instructions and their number."""
    import torch  # noqa: PLC0415 - not before it is needed

    from workers.training.model import prepare_torch  # noqa: PLC0415

    prepare_torch(0)
    rows = torch.ones(PROBE_TOKENS, shape.hidden, dtype=torch.bfloat16)
    weight = torch.ones(shape.intermediate, shape.hidden, dtype=torch.bfloat16)
    operations = 2 * PROBE_TOKENS * shape.hidden * shape.intermediate
    taken: list[float] = []
    for _ in range(PROBE_BURSTS):
        time.sleep(PROBE_PAUSE)
        burst: list[float] = []
        while len(burst) < BURST_ROUNDS or sum(burst) < BURST_SECONDS:
            begun = time.perf_counter()
            torch.nn.functional.linear(rows, weight)
            burst.append(time.perf_counter() - begun)
        taken += burst
    return operations / undisturbed(taken)


def undisturbed(taken: Sequence[float]) -> float:
    """What a product takes by itself, of the seconds that several took beside whatever else the machine did.

    Other work only makes them longer, by a factor of two or more; and a run outlasts it. Not the very
    shortest: a core runs faster for a moment than it keeps up.
    """
    return sorted(taken)[len(taken) // UNDISTURBED]


def this_machine() -> Machine:
    """The GPU that a run here would train on, else the CPU, with the memory that is free now."""
    import torch  # noqa: PLC0415 - not before it is needed

    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info(0)
        return Machine(device="cuda", name=torch.cuda.get_device_name(0), memory_bytes=free)
    return Machine(device="cpu", name=CPU, memory_bytes=available_bytes(), cores=len(os.sched_getaffinity(0)))


def machine_for(name: str, memory_bytes: int) -> Machine:
    """A machine given by hand: `cpu`, or a GPU by its name; an empty name stands for this one.

    Without `memory_bytes` a GPU of the catalog gets what its class has, less what its driver keeps.
    """
    if not name:
        machine = this_machine()
        return machine.model_copy(update={"memory_bytes": memory_bytes}) if memory_bytes else machine
    found = class_of(name)
    if found is None:
        here = Machine(device="cpu", name=CPU, cores=len(os.sched_getaffinity(0)))
        return here.model_copy(update={"memory_bytes": memory_bytes or available_bytes()})
    return Machine(device="cuda", name=name, memory_bytes=memory_bytes or usable_bytes(found))
