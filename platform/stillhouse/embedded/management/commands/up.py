"""`manage.py up`: the embedded platform, in the foreground, until Ctrl-C."""

import asyncio
import os
import sys

from django.core.management.base import BaseCommand, CommandError

from stillhouse.embedded.home import EmbeddedError, Home
from stillhouse.embedded.supervisor import supervise


class Command(BaseCommand):
    help = (
        "Start Postgres, Valkey, an S3 server, the platform, its workers and vLLM on this machine, with "
        "everything under STILLHOUSE_HOME (default var/) and the pages on PORT (default 8000). "
        "ONCE=1 stops when all of it answers."
    )
    requires_system_checks = ()
    """Nothing that a check would look at runs yet."""

    def handle(self, *args: object, **options: object) -> None:
        try:
            code = asyncio.run(supervise(Home.from_environment(), once=os.environ.get("ONCE") == "1"))
        except EmbeddedError as error:
            raise CommandError(str(error)) from None
        sys.exit(code)
