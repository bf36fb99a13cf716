"""`manage.py run pause|resume|cancel|retry|priority|show RUN --as EMAIL`: the run's page, for scripts."""

from typing import Any

from django.core.management.base import CommandParser

from stillhouse.accounts.command import MemberCommand
from stillhouse.accounts.models import Membership
from stillhouse.jobs.timeline import timeline
from stillhouse.training.actions import cancel_run
from stillhouse.training.control import pause_run, prioritise_run, resume_run, retry_run
from stillhouse.training.queries import get_run


class Command(MemberCommand):
    help = "Pause, resume, cancel or retry a training run, or show where it is. Prints JSON."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("verb", choices=("show", "pause", "resume", "cancel", "retry", "priority"))
        parser.add_argument("run", metavar="RUN", help="its id")
        parser.add_argument("--from-start", action="store_true", help="retry: without its checkpoints")
        parser.add_argument("--priority", type=int, default=0, metavar="N", help="from -10 to 10")

    def run_as(self, by: Membership, **options: Any) -> object:
        run = get_run(by, options["run"])
        match options["verb"]:
            case "pause":
                pause_run(by=by, run=run)
            case "resume":
                resume_run(by=by, run=run)
            case "cancel":
                cancel_run(by=by, run=run)
            case "retry":
                retry_run(by=by, run=run, from_start=options["from_start"])
            case "priority":
                prioritise_run(by=by, run=run, priority=options["priority"])
        job = run.job
        job.refresh_from_db()
        return {
            "run": run.pk,
            "state": job.state,
            "step": job.step,
            "attempt": job.attempt,
            "failure": job.failure,
            "timeline": [entry.text for entry in timeline(job)],
        }
