"""Reads of approvals: what waits for a decision, and what was decided."""

from django.db.models import QuerySet

from stillhouse.accounts.models import Membership
from stillhouse.adapters.models import AdapterVersion
from stillhouse.approvals.models import ApprovalRequest, Decision


def review_queue(by: Membership) -> QuerySet[ApprovalRequest]:
    """The workspace's requests without a decision, the oldest first."""
    return (
        ApprovalRequest.objects.filter(version__adapter__workspace=by.workspace, decision__isnull=True)
        .select_related(
            "version__adapter",
            "version__run__base",
            "version__run__started_by",
            "evaluation__result",
            "asked_by",
        )
        .order_by("created_at")
    )


def own_work(by: Membership, version: AdapterVersion, request: ApprovalRequest | None) -> bool:
    """Whether the member made the version or asked for it, and so may not decide; pages say so instead of
    offering a button."""
    return by.user_id == version.run.started_by_id or (
        request is not None and by.user_id == request.asked_by_id
    )


def request_of(version: AdapterVersion) -> ApprovalRequest | None:
    return (
        ApprovalRequest.objects.filter(version=version)
        .select_related("asked_by", "evaluation__result")
        .first()
    )


def decision_of(version: AdapterVersion) -> Decision | None:
    return (
        Decision.objects.filter(version=version).select_related("decided_by", "asked_by", "request").first()
    )
