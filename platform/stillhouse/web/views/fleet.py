"""The workers of the site: what they are and do, and, for whoever runs the fleet, draining and revoking."""

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.utils import timezone

from stillhouse.accounts.models import Membership
from stillhouse.core.errors import UserError
from stillhouse.jobs.models import RUNNING, Job, Worker
from stillhouse.jobs.shares import LIVE_FOR
from stillhouse.jobs.workers import ask_drain, ask_revoke, may_run_fleet
from stillhouse.web.access import in_workspace, wants_json
from workers.contract import CONTRACT_VERSION

SAID = {
    "drain": "The worker gets no new work. What it does now, it ends.",
    "undrain": "The worker gets work again.",
    "revoke": "The worker is shut out. The job it had goes to another one.",
}


@in_workspace("GET")
def fleet(request: HttpRequest, by: Membership) -> HttpResponse:
    """Other workspaces' jobs are not named here: only that a worker is busy."""
    busy = set(Job.objects.filter(state=RUNNING).values_list("worker", flat=True))
    rows: list[dict[str, Any]] = [
        {"worker": worker, "state": _state(worker), "busy": worker.name in busy}
        for worker in Worker.objects.all()
    ]
    if wants_json(request):
        return JsonResponse(
            {
                "workers": [
                    {
                        "name": row["worker"].name,
                        "queue": row["worker"].queue,
                        "state": row["state"],
                        "trouble": row["worker"].facts.get("trouble", ""),
                    }
                    for row in rows
                ]
            }
        )
    context = {"rows": rows, "contract": CONTRACT_VERSION, "may_change": may_run_fleet(by)}
    return render(request, "fleet/page.html", context)


def _state(worker: Worker) -> str:
    if worker.revoked_at:
        return "revoked"
    if worker.contract != CONTRACT_VERSION and worker.contract:
        return "too old" if worker.contract < CONTRACT_VERSION else "too new"
    if worker.seen_at is None or worker.seen_at < timezone.now() - LIVE_FOR:
        return "away"
    if worker.facts.get("trouble"):
        return "in trouble"
    return "draining" if worker.draining_since else "ready"


@in_workspace("POST")
def fleet_change(request: HttpRequest, by: Membership) -> HttpResponse:
    """`name` of a worker, and `do`: drain, undrain or revoke."""
    name, do = request.POST.get("name", ""), request.POST.get("do", "")
    if do == "revoke":
        ask_revoke(by=by, name=name)
    elif do in SAID:
        ask_drain(by=by, name=name, drain=do == "drain")
    else:
        raise UserError("unknown_change", f"{do[:20]!r} cannot be done to a worker.", "do")
    messages.info(request, SAID[do])
    return redirect("fleet", by.workspace.slug)
