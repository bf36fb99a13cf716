"""Jobs over datasets, in the child: check, derive, compare, preview. Loaded by kind, one at a time."""

from collections.abc import Callable
from pathlib import Path

from workers.contract import CompareSpec, DeriveSpec, Message, PreviewSpec, ValidateSpec
from workers.runtime.childjob import ChildJob
from workers.runtime.events import ChildEvent
from workers.runtime.outcome import JobFailed

Emit = Callable[[ChildEvent], None]
Check = Callable[[], None]


def run_validate(job: ChildJob, emit: Emit, check: Check) -> Message:
    from workers.data.limited import validate_in_child  # noqa: PLC0415 - each kind loads only what it needs

    emit(ChildEvent(phase="checking", message="Reading the file."))
    spec = ValidateSpec.model_validate(job.spec)
    others = [Path(job.inputs[f"other-{index}"]) for index in range(len(spec.others))]
    told = _teller("checking", "rows read", emit, check)
    rows_file = Path(job.out) / "rows.parquet"
    return validate_in_child(Path(job.inputs["data"]), spec, told, rows_file=rows_file, others=others)


def run_derive(job: ChildJob, emit: Emit, check: Check) -> Message:
    from workers.data.limited import ChildFailed, derive_in_child  # noqa: PLC0415

    emit(ChildEvent(phase="deriving", message="Reading the rows."))
    spec = DeriveSpec.model_validate(job.spec)
    sources = [Path(job.inputs[f"source-{index}"]) for index in range(len(spec.sources))]
    others = [Path(job.inputs[f"other-{index}"]) for index in range(len(spec.others))]
    told = _teller("deriving", "rows made", emit, check)
    try:
        return derive_in_child(spec, sources, Path(job.out), told, others)
    except ChildFailed as error:
        raise JobFailed(error.code, error.message, "user") from None


def run_compare(job: ChildJob, emit: Emit, check: Check) -> Message:
    from workers.data.limited import ChildFailed, compare_in_child  # noqa: PLC0415

    emit(ChildEvent(phase="comparing", message="Reading both versions."))
    spec = CompareSpec.model_validate(job.spec)
    before, after = Path(job.inputs["before"]), Path(job.inputs["after"])
    try:
        return compare_in_child(spec, before, after, _teller("comparing", "rows read", emit, check))
    except ChildFailed as error:
        raise JobFailed(error.code, error.message, "user") from None


def run_preview(job: ChildJob, emit: Emit, check: Check) -> Message:
    from workers.runtime.limits import limit_this_process  # noqa: PLC0415
    from workers.training.errors import TrainingError  # noqa: PLC0415
    from workers.training.preview import preview  # noqa: PLC0415

    emit(ChildEvent(phase="rendering", message="Rendering the rows."))
    spec = PreviewSpec.model_validate(job.spec)
    limit_this_process(memory_bytes=spec.memory_bytes, seconds=spec.seconds)
    told = _teller("rendering", "rows counted", emit, check)
    try:
        return preview(spec, base=Path(job.base), data=Path(job.inputs["data"]), on_progress=told)
    except TrainingError as error:
        raise JobFailed(error.code, error.message, error.fault) from None
    except MemoryError:
        message = "The rows need more memory than a preview may take."
        raise JobFailed("memory_limit", message, "user") from None


def _teller(phase: str, what: str, emit: Emit, check: Check) -> Callable[[int], None]:
    def told(rows: int) -> None:
        check()
        emit(ChildEvent(phase=phase, message=f"{rows:,} {what}.", step=rows))

    return told
