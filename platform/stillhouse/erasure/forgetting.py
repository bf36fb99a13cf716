"""Removing what an erasure is about, from the store and from the database, once its grace period is over.

The keeper does this. Every step may be done again: it may be killed at any moment.
"""

from collections.abc import Iterable

from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from stillhouse.adapters.models import RETIRED, AdapterVersion
from stillhouse.audit.actions import record
from stillhouse.core.models import PendingObject
from stillhouse.core.sealing import unseal
from stillhouse.datasets.models import Comment, Comparison, DatasetReport, DatasetVersion, Trial
from stillhouse.datasets.purging import remove_files
from stillhouse.erasure.models import Erasure, Quarantine
from stillhouse.erasure.quarantining import quarantine_trained_on
from stillhouse.erasure.searching import PURPOSE, scope_of
from stillhouse.erasure.unnamed import remove_object
from stillhouse.evaluations.models import EvaluatedRow, Evaluation, EvaluationResult
from stillhouse.jobs.checkpoints import drop_checkpoints
from stillhouse.jobs.models import ENDED, Job
from stillhouse.training.models import RowPreview

TYPED = {"text": "", "file": "", "contains": "", "equals": None}
"""Fields of operations that hold what a person typed, and what they are without it."""


def settle_erasures() -> int:
    """Go on with every confirmed erasure; returns how many came to their end."""
    ended = 0
    for erasure in (
        Erasure.objects.filter(ended_at=None).exclude(confirmed_at=None).select_related("workspace")
    ):
        quarantine_trained_on(erasure)
        due = erasure.bytes_due_at and erasure.bytes_due_at <= timezone.now()
        if due and _remade(erasure) and not _unnamed(erasure):
            _end(erasure)
            ended += 1
    for quarantine in Quarantine.objects.filter(
        decision=Quarantine.RETIRE, files_removed_at=None, version__state=RETIRED
    ).exclude(erasure__ended_at=None):
        _remove_adapter(quarantine)
    return ended


def _remade(erasure: Erasure) -> bool:
    """No job that makes a version without the rows goes on: nobody reads the old ones any more."""
    making = Job.objects.filter(pk__in=erasure.findings.exclude(made=None).values("made__job"))
    return not making.exclude(state__in=ENDED).exists()


def _unnamed(erasure: Erasure) -> bool:
    """Whether objects of the workspace are left from before that no row names: the keeper removes them."""
    pending = PendingObject.objects.filter(workspace=erasure.workspace_id)
    return pending.filter(since__lte=erasure.bytes_due_at).exists()


def _end(erasure: Erasure) -> None:
    gone = [
        finding.version for finding in erasure.findings.filter(erased=True).select_related("version__upload")
    ]
    DatasetVersion.objects.filter(pk__in=[each.pk for each in gone], purged_at=None).update(purged_at=Now())
    for version in gone:
        version.refresh_from_db(fields=["purged_at"])
        remove_files(version)
    _forget_evaluations(gone)
    with transaction.atomic():
        if not Erasure.objects.filter(pk=erasure.pk, ended_at=None).update(ended_at=Now()):
            return  # another keeper, that took over from this one meanwhile, was faster
        _forget_contents(gone)
        _redact_words(erasure)
        forget_search(erasure)
        record(
            workspace=erasure.workspace,
            by=None,
            action="erasure.ended",
            object_id=erasure.pk,
            object_name=erasure.why,
            details={"versions": [each.pk for each in gone]},
        )


def forget_search(erasure: Erasure) -> None:
    """Remove the text looked for, and the rows that were shown, from the erasure and its searches."""
    _forget_trials(Trial.objects.filter(pk__in=erasure.findings.values("trial")))
    made = DatasetVersion.objects.filter(pk__in=erasure.findings.exclude(made=None).values("made"))
    _redact_versions(made)
    Erasure.objects.filter(pk=erasure.pk).update(sealed="", file="")


def _forget_trials(trials: Iterable[Trial]) -> None:
    """The rows that dry runs have shown, and what somebody typed for them; the figures stay."""
    jobs = []
    for trial in trials:
        jobs.append(trial.job_id)
        if trial.body:
            for done in trial.body["operations"]:
                done["examples"] = []
            trial.save(update_fields=["body"])
    _redact_jobs(jobs)


def _redact_versions(versions: Iterable[DatasetVersion]) -> None:
    """What somebody typed for the operations that made them, in the versions and in their jobs."""
    jobs = []
    for version in versions:
        jobs.append(version.job_id)
        version.operations = [_redacted(operation) for operation in version.operations or []]
        version.save(update_fields=["operations"])
    _redact_jobs(jobs)


def _redact_jobs(jobs: Iterable[str]) -> None:
    for job in Job.objects.filter(pk__in=list(jobs)):
        operations = [_redacted(operation) for operation in job.spec.get("operations", [])]
        Job.objects.filter(pk=job.pk).update(spec={**job.spec, "operations": operations})


def _redacted(operation: dict[str, object]) -> dict[str, object]:
    """Without every text that somebody typed; what was done stays. As a specification it is refused, so that
    no job is tried again with it."""
    return {**operation, **{name: empty for name, empty in TYPED.items() if name in operation}}


def _forget_contents(gone: Iterable[DatasetVersion]) -> None:
    """Whatever the database shows of the rows of these versions."""
    ids = [each.pk for each in gone]
    for report in DatasetReport.objects.filter(version__in=ids):
        figures = {name: value for name, value in report.body.items() if isinstance(value, int | float)}
        report.body = {**figures, "errors": [], "warnings": [], "error_counts": {}, "warning_counts": {}}
        report.save(update_fields=["body"])
    RowPreview.objects.filter(version__in=ids).delete()
    Comment.objects.filter(version__in=ids).delete()
    _forget_trials(Trial.objects.filter(version__in=ids))
    Comparison.objects.filter(Q(before__in=ids) | Q(after__in=ids)).delete()


def _forget_evaluations(gone: Iterable[DatasetVersion]) -> None:
    """Questions and answers of evaluations on these versions; the figures stay."""
    for evaluation in Evaluation.objects.filter(data__in=[each.pk for each in gone]):
        EvaluatedRow.objects.filter(evaluation=evaluation).delete()
        for result in EvaluationResult.objects.filter(evaluation=evaluation):
            remove_object(result.rows_sha256)


def _redact_words(erasure: Erasure) -> None:
    """In versions that stay: operations that name the text, and examples of what operations left out."""
    text = unseal(PURPOSE, erasure.sealed) if erasure.sealed else ""
    for version in scope_of(erasure.workspace_id, erasure.dataset):
        report = DatasetReport.objects.filter(version=version).first()
        for done in ((report.body.get("derivation") or {}).get("operations", [])) if report else []:
            done["examples"] = []
        if report is not None and "derivation" in report.body:
            report.save(update_fields=["body"])
        if text:
            tried = version.trials.select_related("job")
            _forget_trials([each for each in tried if _any_says(each.job.spec.get("operations"), text)])
        if text and _any_says(version.operations, text):
            _redact_versions([version])


def _any_says(operations: list[dict[str, object]] | None, text: str) -> bool:
    return any(_says(operation, text) for operation in operations or [])


def _says(operation: dict[str, object], text: str) -> bool:
    """Whether what somebody typed for an operation holds the text, or is a part of it."""
    wanted = text.casefold()
    typed = [str(operation.get(name) or "").casefold() for name in TYPED]
    return any(word and (wanted in word or word in wanted) for word in typed)


def _remove_adapter(quarantine: Quarantine) -> None:
    """The files of a retired version: they hold a few of the rows it was trained on, as golden samples."""
    version = quarantine.version
    for digest in [*(file["sha256"] for file in version.manifest_body["files"]), version.digest]:
        remove_object(digest, of=version)
    drop_checkpoints(version.run.job)
    AdapterVersion.objects.filter(pk=version.pk).update(manifest_body={**version.manifest_body, "golden": []})
    Quarantine.objects.filter(pk=quarantine.pk).update(files_removed_at=Now())
