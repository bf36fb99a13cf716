"""What a run would take on this site, and what that is made from."""

from dataclasses import dataclass
from typing import Literal

from stillhouse.catalog.models import BaseModel
from stillhouse.core.errors import UserError
from stillhouse.datasets.models import DatasetVersion
from stillhouse.training.fleet import QUEUE, machines
from stillhouse.training.measuring import count_key
from stillhouse.training.models import RunMeasure, TokenCount
from workers.contract import ThinkPolicy, TokenCounts, TrainSpec, Workload
from workers.contract.advice import with_advice
from workers.contract.estimate import BaseShape, Estimate
from workers.contract.forecast import PAST_RUNS, Correction, PastRun, correction_of, forecast
from workers.contract.machines import GIB, Machine, class_name
from workers.contract.workload import rough_counts, workload_of

UNKNOWN = Machine(device="cuda", name="GPU")
"""Where no worker has said what it is."""

Counting = Literal["counted", "counting", "failed", "not_asked"]


@dataclass(frozen=True)
class RunEstimate:
    """An estimate, and everything one has to know to trust it as far as it goes."""

    estimate: Estimate
    machine: Machine
    """The one it is for: the fastest that the run fits on, else the one with the most memory."""
    machine_known: bool
    counting: Counting
    rows: int
    """That the tokens were counted from, or guessed from."""


def estimate_run(
    *, base: BaseModel, data: DatasetVersion, eval_data: DatasetVersion | None, spec: TrainSpec
) -> RunEstimate | None:
    """The estimate for a run with this spec; None where the base's shape is not known."""
    shape = base.shape
    if shape is None:
        return None
    sides = [_counts(version, base, spec.think_policy) for version in (data, eval_data) if version]
    counts, counting = sides[0]
    heldout = sides[1][0] if eval_data else None
    rough = any(state != "counted" for _, state in sides)

    def load_of(changed: TrainSpec) -> Workload:
        return workload_of(counts, changed, heldout=heldout)

    known = machines(QUEUE)
    estimates = [
        _on(machine, shape, base, spec, load_of(spec), rough=rough) for machine in known or [UNKNOWN]
    ]
    fitting = [each for each in estimates if each[1].fits]
    machine, estimate, correction = (
        min(fitting, key=lambda each: each[1].seconds)
        if fitting
        else max(estimates, key=lambda each: each[0].memory_bytes)
    )
    return RunEstimate(
        estimate=with_advice(estimate, shape, spec, load_of, machine, correction),
        machine=machine,
        machine_known=bool(known),
        counting=next((state for _, state in sides if state != "counted"), counting),
        rows=data.report.valid,
    )


def refuse_what_cannot_fit(found: RunEstimate | None) -> None:
    """Raise UserError `does_not_fit` where no known machine has the memory; a guess refuses nothing."""
    if found is None or found.estimate.fits or found.estimate.rough or not found.machine_known:
        return
    raise UserError(
        "does_not_fit",
        f"This run needs about {found.estimate.memory_bytes / GIB:.1f} GiB of memory in its smallest form. "
        f"The largest worker has {found.machine.memory_bytes / GIB:.1f} GiB.",
        "base",
        found.estimate.advice,
    )


def past_runs(base: BaseModel, machine: Machine) -> list[PastRun]:
    """The newest runs on the base and this class of machine.

    Hardware is the site's, so those of every workspace: nothing but two ratios is used of them.
    """
    measures = RunMeasure.objects.filter(base_digest=base.digest, device_class=class_name(machine.name))
    return [
        PastRun(
            predicted_seconds=measure.predicted_seconds,
            seconds=measure.seconds,
            predicted_memory_bytes=measure.predicted_memory_bytes,
            memory_bytes=measure.memory_bytes,
        )
        for measure in measures.order_by("-created_at")[:PAST_RUNS]
    ]


def _on(
    machine: Machine, shape: BaseShape, base: BaseModel, spec: TrainSpec, load: Workload, *, rough: bool
) -> tuple[Machine, Estimate, Correction]:
    correction = correction_of(past_runs(base, machine))
    return machine, forecast(shape, spec, load, machine, correction=correction, rough=rough), correction


def _counts(version: DatasetVersion, base: BaseModel, policy: ThinkPolicy) -> tuple[TokenCounts, Counting]:
    """The count of a version, or a guess from its report and how it stands with the counting."""
    found = TokenCount.objects.filter(**count_key(version, base, policy)).select_related("job").first()
    if found is not None and found.counts is not None:
        return found.counts, "counted"
    report = version.report
    guess = rough_counts(
        turns=int(report.body.get("turns") or report.valid),
        rows=report.valid,
        characters=int(report.body.get("characters", 0)),
    )
    if found is None:
        return guess, "not_asked"
    return guess, "failed" if found.job.ended else "counting"
