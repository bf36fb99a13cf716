"""Jobs: claim, report, upload, finish. Bearer `WORKER_TOKEN`, plus the fencing token of the attempt."""

from typing import Literal

from pydantic import Field

from workers.contract.base import CONTRACT_VERSION, Answer, FileName, Message, Sha256

JobKind = Literal["validate", "train", "evaluate", "count", "derive", "compare", "preview"]
CHECKPOINT_DAMAGED = "checkpoint_damaged"
"""Code of a JobFailure: the store has not the noted checkpoint. The platform gives the one before."""


class ClaimRequest(Message):
    """POST /worker/v1/jobs/<id>/claim"""

    worker: str = Field(min_length=1, max_length=120)
    """Name of the worker, shown to people."""
    key: str = Field(default="", max_length=64)
    """Made up anew for every claim. Asked again with it, because the answer was lost on the way, the platform
    gives the same attempt again; without one it cannot tell, and the attempt is lost with its answer."""
    contract: int = CONTRACT_VERSION


class InputFile(Message):
    """A file the job reads, by presigned URL."""

    name: FileName
    """`data`, `eval`, or the name of an adapter file."""
    url: str
    size: int
    sha256: Sha256 | None
    """None for a large dataset file that was not hashed yet: the worker takes its digest and reports it."""


class StoredCheckpoint(Message):
    """What an attempt goes on from, when its own disk has nothing newer."""

    step: int = Field(ge=0)
    files: list[InputFile]


class ClaimAnswer(Answer):
    """200: the job is this worker's, until the lease ends."""

    job: str
    kind: JobKind
    attempt: int
    token: str
    """Fencing token: goes with every later call; a newer attempt makes it stale."""
    lease_seconds: int
    """A report renews the lease; without one for this long, the job goes to somebody else."""
    report_seconds: float
    """How often to report."""
    spec: dict[str, object]
    """The spec of the kind as JSON, such as ValidateSpec or TrainSpec."""
    inputs: list[InputFile] = []
    subject: str = ""
    """Id of what the job is for: dataset version, training run or evaluation."""
    beginning: int = 1
    """The attempt that the work counts from: what earlier ones left on this host is not gone on from."""
    checkpoint: StoredCheckpoint | None = None
    checkpoint_seconds: float = 300.0
    """Longest time between two checkpoints."""
    hang_seconds: float = 900.0
    """A child that says nothing for this long is stopped."""


class WorkerFacts(Message):
    """What a worker says about itself and its machine. For people, and for the platform's count of slots."""

    queue: str = Field(default="", max_length=40)
    """The queue it listens to: a GPU class, or `cpu`."""
    slots: int = Field(default=1, ge=0, le=64)
    """Jobs it can work on at the same time."""
    host: str = Field(default="", max_length=120)
    devices: list[str] = Field(default=[], max_length=64)
    """Each accelerator by name and memory; empty: none."""
    memory_bytes: int = Field(default=0, ge=0)
    cores: int = Field(default=0, ge=0)
    """Cores that it may use; 0: not said."""
    disk_free_bytes: int = Field(default=0, ge=0)
    """Free where job folders live."""
    trouble: str = Field(default="", max_length=400)
    """Why it takes no job although it lives, and what to do, for a person. Empty: it takes jobs."""
    versions: dict[str, str] = {}
    """Python, and the libraries that decide a training run."""


class HelloRequest(Message):
    """POST /worker/v1/hello: I live. At the start and every half minute."""

    worker: str = Field(min_length=1, max_length=120)
    facts: WorkerFacts = WorkerFacts()
    contract: int = CONTRACT_VERSION


class HelloAnswer(Answer):
    draining: bool = False
    """No more work comes; what runs may end."""
    unheard: bool = False
    """A doorbell that this worker should have taken, idle as it is, has been at the broker for a while."""


class EnrolRequest(Message):
    """POST /worker/v1/enrol, with the one-time token as bearer: a secret of this worker's own."""

    worker: str = Field(min_length=1, max_length=120)
    contract: int = CONTRACT_VERSION


class EnrolAnswer(Answer):
    secret: str
    """Bearer token from now on, in place of the shared one; shown here and never again."""


class Refusal(Message):
    """409, 401, 404 or 426: why a call was refused. The worker stops that job; it does not retry."""

    code: Literal[
        "not_claimable", "stale_token", "unknown_job", "bad_worker_token", "contract_too_old", "bad_request"
    ]
    message: str


class MetricPoint(Message):
    step: int = Field(ge=0)
    values: dict[str, float]
    """`loss`, `learning_rate`, `grad_norm`, `tokens_per_second`."""


class ReportRequest(Message):
    """POST /worker/v1/jobs/<id>/report: progress, heartbeat and the question "shall I go on?" in one."""

    token: str
    phase: str = Field(default="", max_length=40)
    message: str = Field(default="", max_length=500)
    step: int = Field(default=0, ge=0)
    total_steps: int = Field(default=0, ge=0)
    eta_seconds: float | None = None
    metrics: list[MetricPoint] = Field(default=[], max_length=1000)
    log_tail: str = Field(default="", max_length=20_000)
    """The last lines of the child's log; never contains data."""


class ReportAnswer(Answer):
    action: Literal["continue", "checkpoint", "cancel"]


class OutputFile(Message):
    name: FileName
    size: int = Field(ge=0)
    sha256: Sha256


class UploadsRequest(Message):
    """POST /worker/v1/jobs/<id>/uploads: where to put these files."""

    token: str
    files: list[OutputFile] = Field(min_length=1, max_length=64)
    checkpoint: int | None = Field(default=None, ge=0)
    """The step of the checkpoint that the files belong to; None: they are the job's result."""


class CheckpointRequest(Message):
    """POST /worker/v1/jobs/<id>/checkpoints: every file of the checkpoint is in the store."""

    token: str
    step: int = Field(ge=0)
    files: list[OutputFile] = Field(min_length=1, max_length=64)
    """The checkpoint's own manifest is the last."""


class UploadGrant(Message):
    name: FileName
    url: str
    """Presigned PUT."""


class UploadsAnswer(Answer):
    uploads: list[UploadGrant]


class JobFailure(Message):
    """Why an attempt ended without a result."""

    fault: Literal["user", "platform"]
    """`user`: data or settings, not retried. `platform`: ours, retried up to the job's limit."""
    code: str = Field(max_length=60)
    message: str = Field(max_length=2000)
    """What happened, where, and what to do next; for a person."""


class FinishRequest(Message):
    """POST /worker/v1/jobs/<id>/finish: exactly one of result, failure or cancelled."""

    token: str
    result: dict[str, object] | None = None
    """ValidationReport for `validate`; `{"manifest_sha256": ...}` for `train`;
    EvaluationSummary for `evaluate`.
    Files first: everything listed in `files` was uploaded before this call."""
    files: list[OutputFile] = []
    """What was uploaded: for `train` the adapter files and `manifest.json`; for `evaluate` `rows.jsonl`, an
    EvaluationRow a line; nothing for `validate`."""
    failure: JobFailure | None = None
    cancelled: bool = False
