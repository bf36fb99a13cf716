"""Whose turn it is: order and fairness within a queue, and the minutes that a workspace may use.

Workspaces take turns. First comes the one with the fewest jobs running for its weight; of those equal, the
one that used the least of the queue in the last day for its weight. Within a workspace the highest priority
goes first, then the oldest job.
"""

import heapq
from collections import defaultdict, deque
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, DurationField, ExpressionWrapper, F, Q, QuerySet, Sum
from django.db.models.functions import Coalesce, Greatest, Now, TruncMonth
from django.utils import timezone

from stillhouse.accounts.models import Workspace
from stillhouse.core.errors import UserError
from stillhouse.jobs.errors import Refused
from stillhouse.jobs.models import QUEUED, RUNNING, Attempt, Job, Share, Worker

WINDOW = timedelta(days=1)
LIVE_FOR = timedelta(seconds=90)
"""A worker that has not said anything for this long has no slots."""


@dataclass(frozen=True)
class Standing:
    """How a workspace stands in a queue."""

    running: int
    used_seconds: float
    """Worker time in the last day."""
    weight: int


def turns(queue: str) -> list[str]:
    """Ids of the jobs that wait in a queue and may begin, in the order in which they will."""
    standing = _standings(queue)
    blocked = _used_up(queue)
    waiting: dict[str, deque[str]] = defaultdict(deque)
    rows = Job.objects.filter(state=QUEUED, queue=queue).filter(Q(due_at=None) | Q(due_at__lte=Now()))
    for job, workspace in rows.order_by("-priority", "created_at", "pk").values_list("pk", "workspace_id"):
        if workspace not in blocked:
            waiting[workspace].append(job)
    heap = [_rank(standing.get(workspace), 0, workspace) for workspace in waiting]
    heapq.heapify(heap)
    order = []
    while heap:
        *_, taken, workspace = heapq.heappop(heap)
        order.append(waiting[workspace].popleft())
        if waiting[workspace]:
            heapq.heappush(heap, _rank(standing.get(workspace), taken + 1, workspace))
    return order


def _rank(standing: Standing | None, taken: int, workspace: str) -> tuple[float, float, int, str]:
    """What the heap orders by: running and just taken, then used time, each for its weight."""
    standing = standing or Standing(0, 0.0, 1)
    return (
        (standing.running + taken) / standing.weight,
        standing.used_seconds / standing.weight,
        taken,
        workspace,
    )


def _standings(queue: str) -> dict[str, Standing]:
    weights = dict(Share.objects.filter(queue=queue).values_list("workspace_id", "weight"))
    found = {
        workspace: Standing(running, seconds, weights.get(workspace, 1))
        for workspace, running, seconds in _time_since(Now() - WINDOW, queue)
    }
    return {**{key: Standing(0, 0.0, weight) for key, weight in weights.items()}, **found}


def _time_since(start: Any, queue: str) -> list[tuple[str, int, float]]:
    """(workspace, attempts that run now, worker seconds since `start`, a database expression)."""
    spent = ExpressionWrapper(
        Coalesce(F("ended_at"), Now()) - Greatest(F("started_at"), start), output_field=DurationField()
    )
    rows = (
        Attempt.objects.filter(queue=queue)
        .filter(Q(ended_at=None) | Q(ended_at__gt=start))
        .order_by()
        .values("workspace_id")
        .annotate(running=Count("pk", filter=Q(ended_at=None)), time=Sum(spent))
    )
    return [(row["workspace_id"], row["running"], row["time"].total_seconds()) for row in rows]


def live_slots(queue: str) -> int | None:
    """Jobs that the living workers of a queue can work on at once; None when there is no such worker."""
    live = Worker.objects.filter(
        queue=queue, seen_at__gt=Now() - LIVE_FOR, draining_since=None, revoked_at=None
    )
    slots: int | None = live.aggregate(slots=Sum("slots"))["slots"]
    return slots


def free_slots(queue: str, rung_after: timedelta) -> int | None:
    """How many more doorbells have somebody to hear them; None when no worker of the queue has said it lives.

    `rung_after`: a doorbell rung within this time, and not answered yet, has its slot.
    """
    live = live_slots(queue)
    if live is None:
        return None
    busy = Job.objects.filter(queue=queue, state=RUNNING).count()
    rung = (
        Job.objects.filter(queue=queue, state=QUEUED, outbox_entries__sent_at__gt=Now() - rung_after)
        .distinct()
        .count()
    )
    return max(0, live - busy - rung)


@dataclass(frozen=True)
class Quota:
    """The minutes of a workspace in a queue this month."""

    limit: int
    used: float

    @property
    def used_up(self) -> bool:
        return self.used >= self.limit


def limits() -> QuerySet[Share]:
    """The shares with a limit of minutes."""
    return Share.objects.filter(minutes_per_month__isnull=False)


def quota_of(workspace: Workspace, queue: str) -> Quota | None:
    """None: no limit."""
    share = limits().filter(workspace=workspace, queue=queue).first()
    if share is None or share.minutes_per_month is None:
        return None
    return Quota(share.minutes_per_month, _minutes(queue).get(workspace.pk, 0.0))


def check_quota(workspace: Workspace, queue: str) -> None:
    """Raises UserError `quota_used_up` when nothing of this workspace may start in the queue this month."""
    quota = quota_of(workspace, queue)
    if quota is not None and quota.used_up:
        raise UserError(
            "quota_used_up",
            f"{workspace.name} has used {quota.used:.0f} of its {quota.limit} minutes on {queue} workers "
            "this month.",
            place="workspace",
            next_step=f"Ask the operator for more, or wait until {_next_month():%-d %B}.",
            status=403,
        )


def check_quota_at_claim(job: Job) -> None:
    """Raises Refused for a job whose workspace has used up its minutes since it was queued."""
    quota = quota_of(job.workspace, job.queue)
    if quota is not None and quota.used_up:
        raise Refused("not_claimable", f"The workspace of job {job.pk} has used up its minutes.")


def _used_up(queue: str) -> set[str]:
    rows = limits().filter(queue=queue).values_list("workspace_id", "minutes_per_month")
    limited = {workspace: limit for workspace, limit in rows if limit is not None}
    if not limited:
        return set()
    used = _minutes(queue)
    return {workspace for workspace, limit in limited.items() if used.get(workspace, 0.0) >= limit}


def _minutes(queue: str) -> dict[str, float]:
    """Worker minutes of each workspace since the month began (UTC)."""
    return {workspace: seconds / 60 for workspace, _, seconds in _time_since(TruncMonth(Now()), queue)}


def _next_month() -> datetime:
    first = timezone.now().replace(day=1)
    return (first + timedelta(days=32)).replace(day=1)
