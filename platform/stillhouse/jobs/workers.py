"""The fleet: who may work for the platform, what each worker says about itself, draining and revoking.

Workers belong to the site and not to a workspace, so whoever changes the fleet is either the operator at the
command line or an administrator of the workspace that the site named for it (FLEET_WORKSPACE).
"""

import secrets
from datetime import timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now

from stillhouse.accounts.access import may, require
from stillhouse.accounts.models import Membership
from stillhouse.audit.actions import record
from stillhouse.core.errors import NotFound
from stillhouse.core.notify import OUTBOX, notify
from stillhouse.core.secrets import digest
from stillhouse.core.text import clean_name, storable, storable_json
from stillhouse.jobs.errors import Refused
from stillhouse.jobs.models import Enrolment, Worker
from workers.contract import HelloRequest

TOKEN_LIFE = timedelta(hours=24)
SECRET, TOKEN = "worker-secret", "worker-enrolment"


def make_enrolment(name: str) -> str:
    """A token with which one worker of this name may enrol, once, within a day. Shown only here."""
    token = f"enrol-{secrets.token_urlsafe(32)}"
    Enrolment.objects.create(
        digest=digest(TOKEN, token),
        name=clean_name(name, what="worker's name"),
        expires_at=Now() + TOKEN_LIFE,
    )
    return token


@transaction.atomic
def enrol(*, token: str, name: str) -> str:
    """Use up a token; returns the worker's secret. One of that name gets a new secret in place of its old.

    Raises Refused when the token is used, too old, or another worker's.
    """
    used = Enrolment.objects.filter(
        digest=digest(TOKEN, token), name=name, used_at=None, expires_at__gt=Now()
    ).update(used_at=Now())
    if not used:
        raise Refused(
            "bad_worker_token",
            f"The enrolment token is used, too old, or not for the worker {name[:60]}. Ask the operator for "
            "a new one (manage.py worker enrol).",
        )
    secret = f"worker-{secrets.token_urlsafe(32)}"
    fresh = {"secret_digest": digest(SECRET, secret), "revoked_at": None, "draining_since": None}
    Worker.objects.update_or_create(name=name, defaults=fresh)
    return secret


def worker_with(secret: str) -> Worker | None:
    """The enrolled worker that has this secret, unless it is revoked."""
    return Worker.objects.filter(secret_digest=digest(SECRET, secret), revoked_at=None).first()


def check_name(known: Worker | None, name: str) -> None:
    """Raises Refused when a caller gives another name than its own: `known` has the secret, None the shared
    token, which is not for workers that are enrolled or revoked."""
    if known is not None:
        wrong = known.name != name
    else:
        wrong = Worker.objects.filter(~Q(secret_digest="") | Q(revoked_at__isnull=False), name=name).exists()
    if wrong:
        raise Refused("bad_worker_token", f"This token is not for the worker {name[:60]}.")


def hear(hello: HelloRequest) -> Worker:
    """Note what a worker says about itself, and that it lives."""
    facts = storable_json(hello.facts.model_dump())
    row = {
        "queue": hello.facts.queue,
        "slots": hello.facts.slots,
        "contract": hello.contract,
        "facts": facts,
        "seen_at": Now(),
    }
    worker, made = Worker.objects.update_or_create(name=storable(hello.worker), defaults=row)
    if made:
        notify(OUTBOX)
    return worker


def note_contract(name: str, contract: int) -> None:
    """Remember, for the fleet page, a worker whose contract the platform does not speak: it has no slots."""
    Worker.objects.update_or_create(
        name=name[:120], defaults={"contract": contract, "slots": 0, "seen_at": Now()}
    )


def may_run_fleet(by: Membership) -> bool:
    return by.workspace.slug == settings.FLEET_WORKSPACE and may(by, "member.manage")


@transaction.atomic
def ask_drain(*, by: Membership, name: str, drain: bool = True) -> None:
    """`drain`, asked for on a page; NotFound for whoever does not run the fleet."""
    _require_fleet(by)
    change_drain(name=name, drain=drain)
    _record(by, name, "worker.drained" if drain else "worker.undrained")


@transaction.atomic
def ask_revoke(*, by: Membership, name: str) -> None:
    """`revoke`, asked for on a page; NotFound for whoever does not run the fleet."""
    _require_fleet(by)
    revoke(name=name)
    _record(by, name, "worker.revoked")


def change_drain(*, name: str, drain: bool) -> None:
    """Give a worker no new work (what runs there ends by itself), or let it work again."""
    if not Worker.objects.filter(name=name, revoked_at=None).update(draining_since=Now() if drain else None):
        raise NotFound("worker")
    notify(OUTBOX)


def revoke(*, name: str) -> None:
    """Make a worker's secret useless at once: its next report is refused, and it stops what it does."""
    if not Worker.objects.filter(name=name).update(revoked_at=Now(), secret_digest=""):
        raise NotFound("worker")


def _require_fleet(by: Membership) -> None:
    if by.workspace.slug != settings.FLEET_WORKSPACE:
        raise NotFound("worker")
    require(by, "member.manage")


def _record(by: Membership, name: str, action: str) -> None:
    record(workspace=by.workspace, by=by.user, action=action, object_id=name[:60], object_name=name)
