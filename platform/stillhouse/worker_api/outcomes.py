"""What the success of a job means, by kind.

`prepare` does everything that talks to the object store and returns the rest as a function, which
`finish_job` calls in the transaction that makes the job succeed: either all of it is written, or none.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from stillhouse.adapters.actions import register_version
from stillhouse.core import blobs
from stillhouse.core.errors import UserError
from stillhouse.core.pending import Holder
from stillhouse.datasets.actions import record_report
from stillhouse.datasets.comparing import record_comparison
from stillhouse.datasets.deriving import record_derived
from stillhouse.datasets.models import DatasetVersion
from stillhouse.datasets.trials import record_trial
from stillhouse.datasets.uploading import place_original
from stillhouse.erasure.unnamed import is_named
from stillhouse.evaluations.actions import queue_evaluation, record_result
from stillhouse.evaluations.models import Evaluation
from stillhouse.jobs.models import Job, Kind
from stillhouse.serving.actions import place_version
from stillhouse.training.measuring import record_counts, record_measure
from stillhouse.training.models import TrainingRun
from stillhouse.training.previews import record_preview
from stillhouse.worker_api.messages import check, parse
from workers.contract import (
    AdapterManifest,
    CompareResult,
    DeriveResult,
    EvaluationRow,
    EvaluationSummary,
    FinishRequest,
    OutputFile,
    PreviewResult,
    TokenCounts,
    ValidationReport,
)

MIB = 1024**2
MANIFEST, ROWS, GOOD_ROWS = "manifest.json", "rows.jsonl", "rows.parquet"
OPTIONAL = frozenset({GOOD_ROWS})
OUTPUTS: Mapping[str, Mapping[str, int]] = {
    Kind.VALIDATE: {GOOD_ROWS: 5 * 1024 * MIB},
    Kind.TRAIN: {
        "adapter_model.safetensors": 16 * 1024 * MIB,
        "adapter_config.json": MIB,
        MANIFEST: 16 * MIB,
    },
    Kind.EVALUATE: {ROWS: 256 * MIB},
    Kind.COUNT: {},
    Kind.DERIVE: {GOOD_ROWS: 5 * 1024 * MIB},
    Kind.COMPARE: {},
    Kind.PREVIEW: {},
}
"""The files each kind may upload, all of them needed but the OPTIONAL ones, and the most bytes of each."""

Apply = Callable[[Job], None]
Kept = Mapping[str, OutputFile]
"""The files of a success at their content addresses, by name."""


def staging_key(job: Job, name: str) -> str:
    """Where the current attempt uploads a file: attempts never write over each other's."""
    return f"staging/jobs/{job.pk}/{job.attempt}/{name}"


def check_outputs(job: Job, files: Iterable[OutputFile]) -> None:
    """Raises UserError for a file that this kind of job does not make, or that is too large."""
    limits = OUTPUTS[job.kind]
    for file in files:
        if file.name not in limits:
            raise UserError(
                "unexpected_file", f"A {job.kind} job does not upload {file.name}.", place=file.name
            )
        if file.size > limits[file.name]:
            raise UserError(
                "file_too_large",
                f"{file.name} has {file.size:,} bytes; {limits[file.name]:,} is the most.",
                place=file.name,
            )


def prepare(job: Job, request: FinishRequest) -> Apply:
    """Keep the files of a success and check them; returns what is to be written. UserError or Refused."""
    check_outputs(job, request.files)
    if missing := OUTPUTS[job.kind].keys() - OPTIONAL - {file.name for file in request.files}:
        raise UserError("file_missing", f"{', '.join(sorted(missing))} was not uploaded.", place="files")
    kept = {file.name: _keep(job, file) for file in request.files}
    outcome = OUTCOMES[job.kind](job, request, kept)

    def apply(done: Job) -> None:
        outcome(done)
        _holder(job).brought(is_named)

    return apply


def _validated(job: Job, request: FinishRequest, kept: Kept) -> Apply:
    report = check(ValidationReport, request.result)
    version = DatasetVersion.objects.select_related("upload").get(pk=job.subject)
    if not version.sha256:
        if report.sha256 is None:
            raise UserError(
                "digest_missing", "The check did not tell the digest of the file.", place="sha256"
            )
        place_original(version, report.sha256, _holder(job))

    def apply(_: Job) -> None:
        record_report(version=version, report=report, rows=kept.get(GOOD_ROWS))

    return apply


def _trained(job: Job, request: FinishRequest, kept: Kept) -> Apply:
    digest = kept[MANIFEST].sha256
    if (request.result or {}).get("manifest_sha256") != digest:
        raise UserError(
            "manifest_mismatch", "The result names another manifest than the one uploaded.", place=MANIFEST
        )
    manifest = parse(AdapterManifest, b"".join(blobs.read(digest)))
    run = TrainingRun.objects.select_related("workspace", "data", "eval_data", "base").get(pk=job.subject)

    def apply(_: Job) -> None:
        version = register_version(run=run, manifest=manifest, digest=digest, files=list(kept.values()))
        record_measure(run=run, result=manifest.result)
        place_version(version=version)
        queue_evaluation(version=version)

    return apply


def _counted(job: Job, request: FinishRequest, _: Kept) -> Apply:
    counts = check(TokenCounts, request.result)

    def apply(_: Job) -> None:
        record_counts(count_id=job.subject, counts=counts)

    return apply


def _derived(job: Job, request: FinishRequest, kept: Kept) -> Apply:
    result, rows = check(DeriveResult, request.result), kept.get(GOOD_ROWS)
    if job.spec.get("dry_run"):
        return lambda _: record_trial(trial_id=job.subject, result=result)
    if rows is None:
        raise UserError("file_missing", f"{GOOD_ROWS} was not uploaded.", place="files")
    version = DatasetVersion.objects.get(pk=job.subject)

    def apply(_: Job) -> None:
        record_derived(version=version, result=result, rows=rows)

    return apply


def _compared(job: Job, request: FinishRequest, _: Kept) -> Apply:
    result = check(CompareResult, request.result)
    return lambda _: record_comparison(comparison_id=job.subject, result=result)


def _rendered(job: Job, request: FinishRequest, _: Kept) -> Apply:
    result = check(PreviewResult, request.result)
    return lambda _: record_preview(preview_id=job.subject, result=result)


def _evaluated(job: Job, request: FinishRequest, kept: Kept) -> Apply:
    rows_file = kept[ROWS]
    summary = check(EvaluationSummary, request.result)
    rows = [parse(EvaluationRow, line) for line in _lines(rows_file.sha256)]
    if [row.index for row in rows] != list(range(len(rows))):
        raise UserError("result_mismatch", "The rows are not numbered 0, 1, 2, … in order.", place=ROWS)
    evaluation = Evaluation.objects.select_related("version__adapter__workspace").get(pk=job.subject)

    def apply(_: Job) -> None:
        record_result(evaluation=evaluation, summary=summary, rows=rows, rows_sha256=rows_file.sha256)

    return apply


OUTCOMES: Mapping[str, Callable[[Job, FinishRequest, Kept], Apply]] = {
    Kind.VALIDATE: _validated,
    Kind.DERIVE: _derived,
    Kind.COMPARE: _compared,
    Kind.PREVIEW: _rendered,
    Kind.COUNT: _counted,
    Kind.TRAIN: _trained,
    Kind.EVALUATE: _evaluated,
}


def _holder(job: Job) -> Holder:
    """Of the attempt: what one before it left behind is not named when this one succeeds."""
    return Holder(f"{job.pk}/{job.attempt}", job.workspace_id)


def _keep(job: Job, file: OutputFile) -> OutputFile:
    """Move one file to its content address; its real size and digest must be the announced ones."""
    key = staging_key(job, file.name)
    staged = blobs.staged_size(key)
    if staged is not None and staged != file.size:
        raise UserError(
            "size_mismatch",
            f"{file.name} has {staged:,} bytes in the store, not {file.size:,}.",
            place=file.name,
        )
    blob = blobs.keep(key, holder=_holder(job), expected_sha256=file.sha256)
    return OutputFile(name=file.name, size=blob.size, sha256=blob.sha256)


def _lines(sha256: str) -> Iterator[bytes]:
    """The non-blank lines of a blob."""
    rest = b""
    for chunk in blobs.read(sha256):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line for line in lines if line.strip())
    if rest.strip():
        yield rest
