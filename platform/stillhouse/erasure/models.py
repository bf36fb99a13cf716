"""Erasures: what was looked for, where it was found, and what became of it."""

from typing import Any, ClassVar

from django.db import models

from stillhouse.accounts.models import User, Workspace
from stillhouse.adapters.models import AdapterVersion
from stillhouse.core.ids import IdField
from stillhouse.datasets.models import Dataset, DatasetVersion, Trial


class Erasure(models.Model):
    """A search for rows and, once a lead has confirmed it, their removal."""

    id = IdField("er")
    workspace = models.ForeignKey(Workspace, models.PROTECT, related_name="erasures")
    dataset = models.ForeignKey(Dataset, models.PROTECT, null=True, related_name="+")
    """Where it looks, versions made from it included; None: in every dataset of the workspace."""
    sealed = models.TextField(blank=True)
    """The text looked for (`core.sealing`); empty when only a file is, and once the erasure has ended."""
    digest = models.CharField(max_length=64, blank=True)
    """HMAC of the text: what stays of it."""
    file = models.CharField(max_length=400, blank=True)
    """The file inside an archive, or the sheet, whose rows go."""
    why = models.CharField(max_length=300)
    asked_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    asked_at = models.DateTimeField(auto_now_add=True)
    confirmed_by = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    confirmed_at = models.DateTimeField(null=True)
    bytes_due_at = models.DateTimeField(null=True)
    """End of the grace period: until then it may be withdrawn."""
    withdrawn_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    """Bytes removed, or withdrawn: the text is forgotten."""

    class Meta:
        ordering: ClassVar = ["-asked_at"]
        indexes: ClassVar = [
            models.Index(fields=["id"], condition=models.Q(ended_at__isnull=True), name="erasure_open")
        ]

    @property
    def state(self) -> str:
        """searching, confirmed, withdrawn or erased."""
        if self.withdrawn_at:
            return "withdrawn"
        if self.ended_at:
            return "erased"
        return "confirmed" if self.confirmed_at else "searching"


class Finding(models.Model):
    """What a search found in one version."""

    erasure = models.ForeignKey(Erasure, models.CASCADE, related_name="findings")
    version = models.ForeignKey(DatasetVersion, models.PROTECT, related_name="+")
    trial = models.OneToOneField(Trial, models.PROTECT, related_name="+")
    erased = models.BooleanField(default=False)
    """The version is among those whose bytes go."""
    made = models.ForeignKey(DatasetVersion, models.PROTECT, null=True, related_name="+")
    """The version without those rows, where one was asked for."""

    class Meta:
        ordering: ClassVar = ["version__dataset__name", "-version__number"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["erasure", "version"], name="one_finding_per_version")
        ]

    @property
    def rows(self) -> int | None:
        """Usable rows found; None where the version could not be read, or is not read yet."""
        done = self._done
        return int(done["rows_in"] - done["rows_out"]) if done else None

    @property
    def in_error(self) -> int:
        """Rows found that have errors: they stand in the file as it was uploaded."""
        found: dict[str, int] = (self._done or {}).get("found", {})
        return found.get("in_error", 0)

    @property
    def examples(self) -> list[dict[str, Any]]:
        shown: list[dict[str, Any]] = (self._done or {}).get("examples", [])
        return shown

    @property
    def holds(self) -> bool:
        """Something was found in it."""
        return bool(self.rows or self.in_error)

    @property
    def unread(self) -> bool:
        """The search has ended without reading the version."""
        return self.trial.body is None and self.trial.job.ended

    @property
    def _done(self) -> dict[str, Any] | None:
        """OperationResult of the one operation of a search."""
        body = self.trial.body
        return body["operations"][0] if body else None


class Quarantine(models.Model):
    """An adapter version that was trained on erased rows, and what a lead decided about it."""

    KEEP, RETIRE = "keep", "retire"

    erasure = models.ForeignKey(Erasure, models.PROTECT, related_name="quarantines")
    version = models.ForeignKey(AdapterVersion, models.PROTECT, related_name="quarantines")
    before = models.CharField(max_length=12)
    """Its state before, which it has again when it is kept."""
    decision = models.CharField(max_length=6, blank=True)
    reason = models.CharField(max_length=2000, blank=True)
    decided_by = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    decided_at = models.DateTimeField(null=True)
    files_removed_at = models.DateTimeField(null=True)
    """Retired, its files went from the store."""

    class Meta:
        ordering: ClassVar = ["version__adapter__name", "-version__number"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["erasure", "version"], name="quarantined_once_per_erasure"),
            models.CheckConstraint(
                condition=models.Q(decision__in=["", "keep", "retire"]), name="quarantine_decision_known"
            ),
        ]
