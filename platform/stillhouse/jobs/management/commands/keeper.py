"""manage.py keeper: the keeper process."""

import signal
import threading
from typing import Any

from django.core.management.base import BaseCommand

from stillhouse.jobs.keeper import keep_going


class Command(BaseCommand):
    help = "Relay the outbox, take back lost jobs, tidy up. Runs until SIGTERM; a second one stands by."
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        keep_going(stop)
