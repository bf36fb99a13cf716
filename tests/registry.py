"""From a checked dataset version to a published adapter version, by the actions the platform itself uses.

What workers make (reports, manifests, evaluation rows, what an engine holds) is written here as they would
send it.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

from django.db import connection
from django.utils import timezone

from stillhouse.accounts.actions import add_member
from stillhouse.accounts.models import Membership, Role
from stillhouse.adapters.actions import MANIFEST, register_version
from stillhouse.adapters.models import AdapterVersion
from stillhouse.approvals.actions import ask_approval, decide
from stillhouse.catalog.actions import sync_catalog
from stillhouse.catalog.models import BaseModel
from stillhouse.datasets.actions import record_report
from stillhouse.datasets.models import Dataset, DatasetVersion
from stillhouse.evaluations.actions import queue_evaluation, record_result
from stillhouse.evaluations.models import EvaluationResult
from stillhouse.jobs.actions import queue_job
from stillhouse.jobs.models import Kind
from stillhouse.serving.actions import add_pool, place_version, sync_pool
from stillhouse.training.actions import start_run
from stillhouse.training.models import TrainingRun
from workers.contract import (
    AdapterManifest,
    BaseReference,
    EvaluationRow,
    EvaluationSummary,
    GoldenSample,
    Grade,
    HeldVersion,
    ManifestFile,
    OutputFile,
    PoolReport,
    PoolWanted,
    SideSummary,
    TrainResult,
    ValidateSpec,
    ValidationReport,
)
from workers.contract.estimate import BaseShape

DEMO_BASE = "smollm2-135m-instruct"
SHAPE = BaseShape(
    layers=30,
    hidden=576,
    intermediate=1536,
    heads=9,
    kv_heads=3,
    head_dim=64,
    vocabulary=49152,
    tied=True,
    parameters=134_515_008,
)
POOL = "demo"


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def available_base(base_id: str = DEMO_BASE) -> BaseModel:
    """A base of the catalog as if its weights had been added."""
    if not BaseModel.objects.filter(pk=base_id).exists():
        sync_catalog()
    BaseModel.objects.filter(pk=base_id).update(
        shape_body=SHAPE.model_dump(mode="json"),
        path=f"/bases/{base_id}",
        digest=sha(f"weights of {base_id}"),
        template_sha256=sha(f"template of {base_id}"),
        added_at=timezone.now(),
    )
    return BaseModel.objects.get(pk=base_id)


def another_lead(by: Membership, name: str = "Lotte") -> Membership:
    """One more lead of the same workspace."""
    return add_member(
        workspace=by.workspace,
        email=f"{name.lower()}@{by.workspace.slug}.example",
        password="correct horse battery",
        name=name,
        role=Role.LEAD,
    )


def data_version(
    by: Membership,
    name: str = "Clauses",
    *,
    valid: int = 180,
    with_reasoning: int = 180,
    checked: bool = True,
) -> DatasetVersion:
    """A dataset's next version and, unless told otherwise, its report."""
    dataset, _ = Dataset.objects.get_or_create(
        workspace=by.workspace, name=name, defaults={"created_by": by.user}
    )
    version = DatasetVersion(
        dataset=dataset,
        number=dataset.versions.count() + 1,
        filename="rows.jsonl",
        size=1000,
        created_by=by.user,
    )
    version.sha256 = sha(version.id)
    version.job = queue_job(
        workspace=by.workspace,
        kind=Kind.VALIDATE,
        queue="cpu",
        subject=version.id,
        spec=ValidateSpec().model_dump(mode="json"),
        by=by.user,
    )
    version.save(force_insert=True)
    if checked:
        record_report(version=version, report=validation_report(valid=valid, with_reasoning=with_reasoning))
    return version


def validation_report(*, valid: int, with_reasoning: int) -> ValidationReport:
    return ValidationReport(
        rows=max(valid, 1),
        valid=valid,
        errors=[],
        warnings=[],
        error_count=0 if valid else 1,
        warning_count=0,
        with_reasoning=with_reasoning,
        turns=valid,
        characters=300 * valid,
        seconds=0.1,
        peak_rss_bytes=1,
    )


def started_run(by: Membership, *, adapter_name: str = "contract-clauses", **settings: Any) -> TrainingRun:
    """A run on the demonstration base, on new data unless `data` is given."""
    available_base()
    data = settings.pop("data", None) or data_version(by)
    return start_run(by=by, adapter_name=adapter_name, base=DEMO_BASE, data=data, **settings)


def manifest_of(run: TrainingRun, /, **changes: Any) -> AdapterManifest:
    """The manifest a worker would write for the run."""
    weights = ManifestFile(name="adapter_model.safetensors", size=5000, sha256=sha(f"weights of {run.id}"))
    config = ManifestFile(name="adapter_config.json", size=500, sha256=sha(f"config of {run.id}"))
    spec = run.spec
    fields: dict[str, Any] = {
        "run": run.id,
        "files": [weights, config],
        "base": BaseReference(name=spec.base, revision=spec.base_revision, digest=spec.base_digest or ""),
        "template_sha256": spec.template_sha256,
        "think": spec.think,
        "spec": spec,
        "data_sha256": spec.data_sha256,
        "result": TrainResult(
            steps=30,
            trained_tokens=9000,
            tokens_per_second=200,
            train_loss=0.2,
            heldout_loss=0.3,
            peak_memory_bytes=1,
            adapter="adapter",
        ),
        "golden": [GoldenSample(prompt_ids=[1], target_ids=[2], logprobs=[-0.1], base_logprobs=[-3.0])],
        "versions": {"peft": "0"},
    }
    return AdapterManifest(**{**fields, **changes})


def files_of(manifest: AdapterManifest, digest: str) -> list[OutputFile]:
    """What was uploaded: the manifest's files and the manifest."""
    files = [OutputFile(name=file.name, size=file.size, sha256=file.sha256) for file in manifest.files]
    return [*files, OutputFile(name=MANIFEST, size=len(manifest.model_dump_json()), sha256=digest)]


def register(run: TrainingRun) -> AdapterVersion:
    """The run ended well: its version, a candidate."""
    manifest = manifest_of(run)
    digest = sha(manifest.model_dump_json())
    return register_version(run=run, manifest=manifest, digest=digest, files=files_of(manifest, digest))


def candidate(by: Membership, *, adapter_name: str = "contract-clauses", **settings: Any) -> AdapterVersion:
    """A run of `by`, ended, and its version."""
    return register(started_run(by, adapter_name=adapter_name, **settings))


def evaluation_rows(base: Sequence[bool], adapter: Sequence[bool]) -> list[EvaluationRow]:
    """Rows by whether each side answered exactly."""
    return [
        EvaluationRow(
            index=index,
            messages=[{"role": "user", "content": f"Clause {index}?"}],
            expected="{}",
            base=_grade(base_exact),
            adapter=_grade(adapter_exact),
        )
        for index, (base_exact, adapter_exact) in enumerate(zip(base, adapter, strict=True))
    ]


def _grade(exact: bool) -> Grade:
    return Grade(output="{}" if exact else "no", scores={"exact_match": float(exact)}, finish_reason="stop")


def summary_of(rows: Sequence[EvaluationRow]) -> EvaluationSummary:
    def side(grades: list[Grade]) -> SideSummary:
        exact = sum(grade.scores["exact_match"] >= 1 for grade in grades)
        return SideSummary(
            exact=exact, json_fields=None, think={"missing": len(grades)}, completion_tokens=9, seconds=1
        )

    return EvaluationSummary(
        rows=len(rows), base=side([row.base for row in rows]), adapter=side([row.adapter for row in rows])
    )


def evaluate(version: AdapterVersion) -> EvaluationResult:
    """An evaluation of four rows, one of each kind."""
    rows = evaluation_rows([False, False, True, True], [False, True, False, True])
    evaluation = queue_evaluation(version=version)
    return record_result(
        evaluation=evaluation, summary=summary_of(rows), rows=rows, rows_sha256=sha(evaluation.id)
    )


def approved(
    expert: Membership, lead: Membership, *, adapter_name: str = "contract-clauses", **settings: Any
) -> AdapterVersion:
    """Made and asked for by `expert`, approved by `lead`."""
    version = candidate(expert, adapter_name=adapter_name, **settings)
    evaluate(version)
    ask_approval(by=expert, version=version)
    decide(by=lead, version=version, verdict="approved", reason="Better than the base on every clause type.")
    return version


def pool_report(*held: HeldVersion, **changes: Any) -> PoolReport:
    """What the agent of a healthy engine with the demonstration base would report."""
    fields: dict[str, Any] = {
        "replica": "replica-1",
        "url": "http://127.0.0.1:8001",
        "incarnation": "first",
        "healthy": True,
        "engine": "vllm 0",
        "base": DEMO_BASE,
        "base_digest": sha(f"weights of {DEMO_BASE}"),
        "held": list(held),
    }
    return PoolReport(**{**fields, **changes})


def held(version: AdapterVersion, state: str = "ready", **changes: Any) -> HeldVersion:
    return HeldVersion(**{"name": version.serving_name, "digest": version.digest, "state": state, **changes})


def make_ready(*versions: AdapterVersion) -> PoolWanted:
    """Place the versions on the demonstration pool, and let its one replica report exactly them as ready."""
    add_pool(name=POOL, base=available_base())
    for version in versions:
        place_version(version=version)
    return sync_pool(pool_name=POOL, report=pool_report(*[held(version) for version in versions]))


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Run the calls in threads of their own at the same time; returns what each returned or raised, in
    order."""
    start = Barrier(len(calls))

    def outcome(call: Callable[[], Any]) -> Any:
        connection.ensure_connection()
        start.wait(timeout=10)
        try:
            return call()
        except Exception as error:
            return error
        finally:
            connection.close()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(outcome, calls))
