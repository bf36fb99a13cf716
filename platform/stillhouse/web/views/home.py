"""Home: what to do next, by role."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET

from stillhouse.accounts.access import may, memberships_of
from stillhouse.accounts.models import ApiKey, Membership
from stillhouse.adapters.models import APPROVED, CANDIDATE
from stillhouse.adapters.queries import versions
from stillhouse.approvals.queries import own_work, review_queue
from stillhouse.core.errors import UserError
from stillhouse.datasets.models import DatasetReport
from stillhouse.evaluations.models import EvaluationResult
from stillhouse.jobs.models import QUEUED, RUNNING
from stillhouse.publishing.queries import aliases
from stillhouse.training.queries import runs
from stillhouse.web.access import in_workspace


@dataclass(frozen=True)
class Step:
    """One step of the way from data to an app. `url` is where to do it, or to look at what was done."""

    title: str
    text: str
    done: bool
    url: str
    label: str


@require_GET
def start(request: HttpRequest) -> HttpResponseRedirect | HttpResponse:
    """The bare address: on to the sign-in, or to the person's first workspace."""
    if not request.user.is_authenticated:
        return redirect("account_login")
    membership = memberships_of(request.user).first()
    if membership is None:
        raise UserError(
            "no_workspace",
            "You are not a member of any workspace yet.",
            next_step="Ask an administrator to add you, with the e-mail address you signed in with.",
            status=403,
        )
    return redirect("home", membership.workspace.slug)


@in_workspace("GET")
def home(request: HttpRequest, by: Membership) -> HttpResponse:
    steps = list(_steps(by))
    following = next((step for step in steps if not step.done), None)
    queue = list(review_queue(by)[:5])
    context = {
        "steps": steps,
        "review": next(
            (item for item in queue if may(by, "version.decide") and not own_work(by, item.version, item)),
            None,
        ),
        "following": following,
        "active_runs": runs(by).filter(job__state__in=[QUEUED, RUNNING])[:5],
        "recent_versions": versions(by)[:4],
        "queue": queue,
    }
    return render(request, "home/page.html", context)


def _steps(by: Membership) -> Iterator[Step]:
    """The six steps, each with the place that the workspace's newest things make the right one."""
    ws = by.workspace.slug
    checked = DatasetReport.objects.filter(version__dataset__workspace=by.workspace, valid__gt=0).exists()
    newest_run = runs(by).first()
    newest = next(iter(islice(versions(by), 1)), None)
    version_url = reverse("version", args=[ws, newest.pk]) if newest else reverse("adapters", args=[ws])
    evaluated = EvaluationResult.objects.filter(evaluation__version__adapter__workspace=by.workspace).exists()
    asked = newest is not None and (newest.state != CANDIDATE or hasattr(newest, "approval_request"))
    approved = versions(by).filter(state=APPROVED).exists()
    published = aliases(by).exists()
    connected = ApiKey.objects.filter(workspace=by.workspace, revoked_at=None).exists()
    run_url = (
        reverse("run", args=[ws, newest_run.pk])
        if newest_run and not newest
        else reverse("run_new", args=[ws])
    )

    yield Step(
        "Upload your data",
        "Examples of questions with the answers you would want. Each row is checked as it arrives.",
        checked,
        reverse("datasets" if checked else "dataset_new", args=[ws]),
        "Datasets" if checked else "Upload data",
    )
    yield Step(
        "Train an adapter",
        "Pick a base and one of three presets. You can watch it learn and close the page meanwhile.",
        newest is not None,
        run_url,
        "Watch the run" if newest_run and not newest else "Start a run",
    )
    yield Step(
        "Look at the evaluation",
        "The same held-out questions go to the base and to your adapter. Read the answers side by side.",
        evaluated,
        version_url,
        "Open the evaluation",
    )
    yield Step(
        "Have it approved",
        "You ask; somebody else reads the evaluation and decides. Nobody approves their own work.",
        approved,
        reverse("reviews", args=[ws]) if asked else version_url,
        "Reviews" if asked else "Ask for approval",
    )
    yield Step(
        "Publish it",
        "Give the approved version a stable name, an alias. Going back to an earlier version is one click.",
        published,
        reverse("aliases", args=[ws]) if published else version_url,
        "Aliases" if published else "Publish",
    )
    yield Step(
        "Connect an app",
        "Any program that speaks the OpenAI API: change the address, the key and the model name.",
        published and connected,
        reverse("keys", args=[ws]),
        "Create a key",
    )
