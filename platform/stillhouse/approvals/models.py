"""Requests for approval and the decisions on them."""

from typing import ClassVar

from django.db import models
from django.db.models import F, Q

from stillhouse.accounts.models import User
from stillhouse.adapters.models import AdapterVersion
from stillhouse.core.ids import IdField
from stillhouse.evaluations.models import Evaluation


class ApprovalRequest(models.Model):
    """Somebody asks that a version be allowed to serve, on the strength of one evaluation."""

    id = IdField("ask")
    version = models.OneToOneField(AdapterVersion, models.PROTECT, related_name="approval_request")
    evaluation = models.ForeignKey(Evaluation, models.PROTECT, related_name="+")
    note = models.TextField(blank=True, max_length=2000)
    asked_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)


class Decision(models.Model):
    """Append-only, one for each version. A lead may decide without having been asked.

    A trigger fills `run_started_by` and `asked_by` from the truth, and the constraint refuses a decision by
    either of them: no setting turns that off.
    """

    APPROVED, REJECTED = "approved", "rejected"

    id = IdField("dec")
    version = models.OneToOneField(AdapterVersion, models.PROTECT, related_name="decision")
    request = models.OneToOneField(ApprovalRequest, models.PROTECT, null=True, related_name="decision")
    verdict = models.CharField(max_length=10)
    reason = models.TextField(max_length=2000)
    decided_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    asked_by = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    run_started_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    adapter_sha256 = models.CharField(max_length=64)
    data_sha256 = models.CharField(max_length=64)
    template_sha256 = models.CharField(max_length=64)
    evaluation_sha256 = models.CharField(max_length=64)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=~Q(decided_by=F("asked_by")) & ~Q(decided_by=F("run_started_by")),
                name="decision_by_another_person",
            ),
            models.CheckConstraint(
                condition=Q(verdict__in=["approved", "rejected"]), name="decision_verdict_known"
            ),
        ]
