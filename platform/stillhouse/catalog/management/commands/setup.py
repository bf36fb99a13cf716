"""manage.py setup: make what the platform needs besides its tables. Safe to run again."""

from typing import Any

from django.conf import settings

from stillhouse.catalog.actions import sync_catalog
from stillhouse.core.blobs import ensure_bucket
from stillhouse.core.command import JsonCommand


class Command(JsonCommand):
    help = "Make the bucket and bring the catalog of bases up to date."

    def run(self, **options: Any) -> object:
        ensure_bucket()
        return {"bucket": settings.S3_BUCKET, "bases": sync_catalog()}
