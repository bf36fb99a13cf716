"""Aliases, and which version each one answers with."""

from typing import ClassVar

from django.db import models

from stillhouse.accounts.models import User, Workspace
from stillhouse.adapters.models import AdapterVersion
from stillhouse.core.ids import IdField


class Alias(models.Model):
    """The stable name an app sends as `model`."""

    id = IdField("al")
    workspace = models.ForeignKey(Workspace, models.PROTECT, related_name="aliases")
    name = models.SlugField(max_length=60)
    created_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["workspace", "name"], name="alias_name_unique_in_workspace")
        ]

    def __str__(self) -> str:
        return self.name


class Publication(models.Model):
    """Append-only; the newest row of an alias counts. A rollback is a new row that points back."""

    PUBLISH, ROLLBACK = "publish", "rollback"

    id = IdField("pub")
    alias = models.ForeignKey(Alias, models.PROTECT, related_name="publications")
    sequence = models.PositiveIntegerField()
    version = models.ForeignKey(AdapterVersion, models.PROTECT, related_name="publications")
    kind = models.CharField(max_length=10, default=PUBLISH)
    created_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["alias", "sequence"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["alias", "sequence"], name="publication_sequence_unique")
        ]
