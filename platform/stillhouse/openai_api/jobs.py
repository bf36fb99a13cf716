"""/v1/fine_tuning/jobs: a job is a training run. What it makes is a candidate, about which people decide."""

import json
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.text import slugify

from stillhouse.accounts.models import Membership
from stillhouse.catalog.queries import get_base
from stillhouse.core.errors import NotFound, UserError
from stillhouse.datasets.models import DatasetVersion
from stillhouse.datasets.queries import version_by_id
from stillhouse.jobs.checkpoints import metrics_at, usable
from stillhouse.openai_api.access import Handler, NotYet, by_method
from stillhouse.openai_api.events import events_of
from stillhouse.openai_api.pages import limit_of, listed, page_of
from stillhouse.openai_api.requests import job_request, metadata_wanted
from stillhouse.openai_api.shapes import checkpoint_object, job_object
from stillhouse.training.actions import cancel_run, start_run
from stillhouse.training.control import pause_run, resume_run, retry_run
from stillhouse.training.models import TrainingRun
from stillhouse.training.queries import get_run, runs

LONGEST_NAME = 60
CHECK_SECONDS = 10
"""A client's next try is so far away; a file of some thousand rows is checked by then."""


def jobs(request: HttpRequest, by: Membership) -> HttpResponse:
    found = runs(by).select_related("workspace", "version")
    wanted = metadata_wanted(request.GET)
    found = found.filter(metadata={}) if wanted is None else found.filter(metadata__contains=wanted)
    return page_of(request, found, job_object, "fine-tuning job")


def job_create(request: HttpRequest, by: Membership) -> HttpResponse:
    wanted = job_request(request)
    base = get_base(wanted.model)
    data = _checked(by, wanted.training_file, "training_file")
    held_out = wanted.validation_file
    run = start_run(
        by=by,
        adapter_name=slugify(wanted.suffix or data.dataset.name)[:LONGEST_NAME].strip("-"),
        base=base,
        data=data,
        eval_data=_checked(by, held_out, "validation_file") if held_out else None,
        preset=wanted.stillhouse.preset,
        overrides=wanted.overrides(base),
        metadata=wanted.metadata,
    )
    return _shown(by, run)


def job(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    return _shown(by, get_run(by, id))


def _after(act: Callable[..., None]) -> Handler[[str]]:
    """The job as it is once `act` has been done to its run."""

    def handler(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
        run = get_run(by, id)
        act(by=by, run=run)
        return _shown(by, run)

    return handler


def job_retry(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    """A new attempt, from the last checkpoint, or with `{"from_start": true}` from the beginning."""
    run = get_run(by, id)
    retry_run(by=by, run=run, from_start=_from_start(request))
    return _shown(by, run)


def job_events(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    """What happened, the newest first."""
    limit = limit_of(request)
    found = events_of(get_run(by, id), after=request.GET.get("after"), most=limit + 1)
    return listed(found[:limit], has_more=len(found) > limit)


def job_checkpoints(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    """The states that an attempt may go on from, the newest first: few, so they are one page."""
    run = get_run(by, id)
    points = list(usable(run.job).order_by("-step", "-attempt"))
    metrics = metrics_at(run.job, [point.step for point in points])
    found = [checkpoint_object(run, point, metrics.get(point.step, {})) for point in points]
    limit, after = limit_of(request), request.GET.get("after")
    places = [place for place, each in enumerate(found) if each["id"] == after]
    if after and not places:
        raise NotFound("checkpoint")
    found = found[places[0] + 1 :] if places else found
    return listed(found[:limit], has_more=len(found) > limit)


def _checked(by: Membership, version_id: str, place: str) -> DatasetVersion:
    """A version whose check has ended; an app that has just uploaded it comes back in a moment."""
    version = version_by_id(by, version_id)
    if not version.job.ended:
        raise NotYet("file_not_processed", f"{version} is still being checked.", place, seconds=CHECK_SECONDS)
    return version


def _from_start(request: HttpRequest) -> bool:
    try:
        return bool(request.body) and json.loads(request.body).get("from_start") is True
    except (ValueError, AttributeError, RecursionError):
        raise UserError("invalid_json", "The body is no JSON object.", "", "Leave it away.") from None


def _shown(by: Membership, run: TrainingRun) -> JsonResponse:
    """As it is now, whatever an action changed."""
    return JsonResponse(job_object(get_run(by, run.pk)))


jobs_view = by_method(GET=jobs, POST=job_create)
job_view = by_method(GET=job)
cancel_view = by_method(POST=_after(cancel_run))
pause_view = by_method(POST=_after(pause_run))
resume_view = by_method(POST=_after(resume_run))
retry_view = by_method(POST=job_retry)
events_view = by_method(GET=job_events)
checkpoints_view = by_method(GET=job_checkpoints)
