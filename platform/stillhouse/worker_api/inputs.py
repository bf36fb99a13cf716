"""What each kind of job reads: its specification as the worker gets it, and its input files."""

from typing import Any

from django.conf import settings
from django.db.models import Q

from stillhouse.accounts.grants import make_grant
from stillhouse.core import blobs
from stillhouse.datasets.models import Comparison, DatasetVersion, Trial, VersionSource
from stillhouse.evaluations.models import Evaluation
from stillhouse.jobs.models import Job, Kind
from stillhouse.training.models import RowPreview, TokenCount
from workers.contract import EvaluateSpec, InputFile

# What an input is made of. As text: for Django to put it together anew is a third of the work of a claim.
_TRAINED_ON = " UNION ALL ".join(
    f"""
    SELECT version.id, version.sha256, version.rows_sha256, version.size, version.rows_size, '{role}' AS role
    FROM training_trainingrun AS run JOIN datasets_datasetversion AS version ON version.id = run.{column}
    WHERE run.id = %(run)s"""
    for role, column in (("data", "data_id"), ("eval", "eval_data_id"))
)
GRANT_SECONDS = int(blobs.URL_LIFE.total_seconds())


def spec_for(job: Job) -> dict[str, object]:
    """The frozen specification; an evaluation's gets the gateway's address and a grant for two models."""
    spec: dict[str, object] = job.spec
    if job.kind != Kind.EVALUATE:
        return spec
    evaluate = EvaluateSpec.model_validate(spec)
    grant = make_grant(
        workspace_id=job.workspace_id,
        caller=job.pk,
        models=[evaluate.base_model, evaluate.adapter_model],
        seconds=GRANT_SECONDS,
    )
    return evaluate.model_copy(
        update={"endpoint": f"{settings.STILLHOUSE_URL}/v1", "api_key": grant}
    ).model_dump(mode="json")


def inputs_for(job: Job) -> list[InputFile]:
    """The job's files behind presigned URLs; signing makes no call to the store."""
    if job.kind == Kind.VALIDATE:
        version = DatasetVersion.objects.select_related("upload").get(pk=job.subject)
        return [_original(version), *_others(job)]
    if job.kind == Kind.DERIVE and job.spec.get("dry_run"):
        trial = Trial.objects.select_related("version__upload").get(pk=job.subject)
        return [_original(trial.version, "source-0") if trial.original else _rows("source-0", trial.version)]
    return [_rows(name, version) for name, version in _versions(job).items()] + _others(job)


def _original(version: DatasetVersion, name: str = "data") -> InputFile:
    """The file as it was uploaded; a large one comes from where it landed, and its digest is asked for."""
    if version.sha256 or version.upload is None:
        url = blobs.get_url(version.sha256)
    else:
        url = blobs.object_url(version.upload.staging_key)
    return InputFile(name=name, url=url, size=version.size, sha256=version.sha256 or None)


def _others(job: Job) -> list[InputFile]:
    """The held-out rows that a report compares with, in the order of its specification."""
    wanted = [other["sha256"] for other in job.spec.get("others", [])]
    if not wanted:  # a claim waits while Django puts together a question that it then need not ask
        return []
    known = {
        version.trained_sha256: version
        for version in DatasetVersion.objects.filter(
            Q(rows_sha256__in=wanted) | Q(sha256__in=wanted), dataset__workspace=job.workspace_id
        )
    }
    return [_rows(f"other-{index}", known[digest]) for index, digest in enumerate(wanted)]


def _rows(name: str, version: DatasetVersion) -> InputFile:
    """What runs and evaluations read: the good rows, normalised."""
    digest = version.trained_sha256
    return InputFile(name=name, url=blobs.get_url(digest), size=version.trained_size, sha256=digest)


def _versions(job: Job) -> dict[str, DatasetVersion]:
    match job.kind:
        case Kind.DERIVE:
            sources = VersionSource.objects.filter(version_id=job.subject).select_related("parent")
            return {f"source-{source.position}": source.parent for source in sources}
        case Kind.COMPARE:
            found = Comparison.objects.select_related("before", "after").get(pk=job.subject)
            return {"before": found.before, "after": found.after}
        case Kind.PREVIEW:
            return {"data": RowPreview.objects.select_related("version").get(pk=job.subject).version}
        case Kind.COUNT:
            return {"data": TokenCount.objects.select_related("version").get(pk=job.subject).version}
        case Kind.TRAIN:
            read: Any = DatasetVersion.objects.raw(_TRAINED_ON, {"run": job.subject})
            versions = {version.role: version for version in read}
            return {"data": versions.pop("data"), **versions}
        case _:
            return {"data": Evaluation.objects.select_related("data").get(pk=job.subject).data}
