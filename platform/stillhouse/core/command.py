"""Management commands for scripts: one JSON value on stdout, or one JSON error on stderr and exit status
1."""

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand

from stillhouse.core.errors import UserError


class JsonCommand(BaseCommand):
    """Subclasses implement `run`; what it returns is printed."""

    requires_system_checks = ()  # scripts call these often, and the checks are the server's concern

    def run(self, **options: Any) -> object:
        raise NotImplementedError

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            answer = self.run(**options)
        except UserError as error:
            self.stderr.write(json.dumps({"error": as_json(error)}, ensure_ascii=False))
            sys.exit(1)
        self.stdout.write(json.dumps(answer, ensure_ascii=False, indent=2, default=str))


def as_json(error: UserError) -> dict[str, str]:
    """The error's fields for a script: code, message, place and next step."""
    return {"code": error.code, "message": error.message, "place": error.place, "next_step": error.next_step}
