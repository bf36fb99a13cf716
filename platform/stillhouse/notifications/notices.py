"""What people are told of, found in what the database says: runs that ended, versions to be decided on.

A look that comes late, or twice, finds the same: a notice is made once, by its key.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta

from django.db import transaction
from django.urls import reverse
from django.utils import timezone

from stillhouse.accounts.models import Membership, Role, User
from stillhouse.approvals.models import ApprovalRequest
from stillhouse.jobs.models import CANCELLED, ENDED, FAILED, SUCCEEDED
from stillhouse.notifications.models import Delivery, EmailChoice, Notice, Webhook
from stillhouse.training.models import TrainingRun

LOOK_BACK = timedelta(days=1)
"""What ended longer ago is no news: a keeper that was away for days does not flood mailboxes."""
_ENDS = {SUCCEEDED: "has succeeded", FAILED: "has failed", CANCELLED: "was cancelled"}
_LEADS = (Role.LEAD, Role.ADMIN)
Found = tuple[Notice, User, bool]
"""A notice that may be there already; who caused it; whether it asks a lead to decide."""


def collect_notices() -> int:
    """Make the notices that are missing, with their deliveries; returns how many. The keeper does this."""
    since = timezone.now() - LOOK_BACK
    found = [*_runs(since), *_requests(since)]
    known = set(
        Notice.objects.filter(key__in=[notice.key for notice, *_ in found]).values_list("workspace", "key")
    )
    fresh = [one for one in found if (one[0].workspace_id, one[0].key) not in known]
    for notice, actor, decision in fresh:
        tell(notice, actor, decision=decision)
    return len(fresh)


@transaction.atomic
def tell(notice: Notice, actor: User, *, decision: bool) -> None:
    """Keep the notice and its deliveries together; nothing happens where another keeper was faster."""
    kept, made = Notice.objects.get_or_create(
        workspace=notice.workspace,
        key=notice.key,
        defaults={
            "event": notice.event,
            "subject": notice.subject,
            "title": notice.title,
            "body": notice.body,
            "path": notice.path,
        },
    )
    if not made:
        return
    now = timezone.now()
    Delivery.objects.bulk_create(
        Delivery(notice=kept, channel=channel, to=to, due_at=now)
        for channel, to in _receivers(kept, actor, decision=decision)
    )


def _receivers(notice: Notice, actor: User, *, decision: bool) -> Iterator[tuple[str, str]]:
    members = Membership.objects.filter(workspace=notice.workspace, user__is_active=True)
    for member in members.select_related("user", "email_choice"):
        choice = member.email_choice.choice if hasattr(member, "email_choice") else EmailChoice.MINE
        own = member.user_id == actor.pk
        concerned = (member.role in _LEADS and not own) if decision else own
        if choice == EmailChoice.ALL or (choice == EmailChoice.MINE and concerned):
            yield Delivery.EMAIL, member.user.email
    webhook = Webhook.objects.filter(workspace=notice.workspace).first()
    if webhook is not None:
        yield Delivery.WEBHOOK, webhook.url


def _runs(since: datetime) -> Iterator[Found]:
    ended = TrainingRun.objects.filter(job__state__in=ENDED, job__finished_at__gt=since)
    for run in ended.select_related("job", "workspace", "started_by"):
        job = run.job
        failure = (job.failure or {}) if job.state == FAILED else {}
        body = {"run": run.pk, "adapter": run.adapter_name, "state": job.state, "attempt": job.attempt}
        if failure.get("code"):
            body["code"] = str(failure["code"])
        yield (
            Notice(
                workspace=run.workspace,
                key=f"run.ended:{run.pk}:{job.attempt}:{job.state}",
                event="run.ended",
                subject=run.pk,
                title=f"The run for {run.adapter_name} {_ENDS[job.state]}",
                body=body,
                path=reverse("run", args=[run.workspace.slug, run.pk]),
            ),
            run.started_by,
            False,
        )


def _requests(since: datetime) -> Iterator[Found]:
    waiting = ApprovalRequest.objects.filter(created_at__gt=since, version__decision=None)
    for request in waiting.select_related("version__adapter__workspace", "asked_by"):
        version = request.version
        workspace = version.adapter.workspace
        yield (
            Notice(
                workspace=workspace,
                key=f"approval.asked:{request.pk}",
                event="approval.asked",
                subject=version.pk,
                title=f"{request.asked_by} asks for a decision on {version}",
                body={"version": version.pk, "adapter": version.adapter.name},
                path=reverse("version", args=[workspace.slug, version.pk]),
            ),
            request.asked_by,
            True,
        )
