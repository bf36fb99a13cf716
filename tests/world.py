"""The people of the tests: expert, lead and administrator of one workspace, and an outsider in another."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import urllib3
from django.conf import settings
from django.contrib.auth.hashers import make_password
from django.db.models import Model
from django.test import Client
from django.test.client import ClientHandler

from stillhouse.accounts.actions import add_member, create_workspace
from stillhouse.accounts.models import Membership, Role, User, Workspace
from stillhouse.audit.models import AuditEvent
from stillhouse.datasets.actions import create_dataset
from stillhouse.datasets.models import Dataset, DatasetVersion, Upload
from stillhouse.datasets.uploading import finish_upload, part_url, start_upload
from stillhouse.jobs.models import Job

PASSWORD = "correct horse battery"

_http = urllib3.PoolManager(timeout=urllib3.Timeout(connect=5, read=30))


@dataclass
class World:
    """Memberships are what actions take as `by`; `client` signs one of them in."""

    expert: Membership
    lead: Membership
    admin: Membership
    outsider: Membership
    _clients: dict[str, Client] = field(default_factory=dict)

    def client(self, member: Membership) -> Client:
        """A browser in which the member is signed in; the same one each time."""
        if member.user_id not in self._clients:
            client = anybody()
            client.force_login(member.user, backend=settings.AUTHENTICATION_BACKENDS[0])
            self._clients[member.user_id] = client
        return self._clients[member.user_id]

    def dataset(
        self,
        *,
        rows: Sequence[Mapping[str, Any]] | None = None,
        name: str = "Clauses",
        by: Membership | None = None,
    ) -> DatasetVersion:
        """A dataset version of these rows, in the store; its check is queued."""
        body = jsonl(
            rows if rows is not None else [chat_row(f"Question {n}", f"Answer {n}") for n in range(10)]
        )
        by = by or self.expert
        dataset = Dataset.objects.filter(workspace=by.workspace, name=name).first()
        return self.upload(body, dataset=dataset or create_dataset(by=by, name=name), by=by)

    def upload(
        self, body: bytes, *, dataset: Dataset, filename: str = "rows.jsonl", by: Membership | None = None
    ) -> DatasetVersion:
        """What a browser does with a file: start, send every part, finish."""
        by = by or self.expert
        upload = start_upload(by=by, dataset=dataset, filename=filename, size=len(body))
        self.send_parts(upload, body, by=by)
        return finish_upload(by=by, upload=upload)

    def send_parts(self, upload: Upload, body: bytes, *, by: Membership | None = None) -> None:
        """PUT every part to its presigned address."""
        for number in range(1, upload.part_count + 1):
            part = body[(number - 1) * upload.part_size : number * upload.part_size]
            put(part_url(by=by or self.expert, upload=upload, number=number), part)

    def worker(self, job: Job | str, *, name: str = "worker-1") -> "Worker":
        """A worker that speaks to the worker API about one job, as the real one does."""
        return Worker(job.pk if isinstance(job, Job) else job, name)


@dataclass
class Worker:
    """One attempt at a job, over HTTP. `token` is set by a claim."""

    job_id: str
    name: str = "worker-1"
    token: str = ""
    attempt: int = 0
    claim_answer: dict[str, Any] = field(default_factory=dict)

    def post(self, call: str, body: Any = None, *, bearer: str | None = None) -> Any:
        """POST to /worker/v1/jobs/<id>/<call> with the attempt's token. Returns Django's response."""
        sent = {"token": self.token, **(body or {})} if call != "claim" else body
        return anybody().post(
            f"/worker/v1/jobs/{self.job_id}/{call}",
            data=json.dumps(sent),
            content_type="application/json",
            headers={"authorization": f"Bearer {settings.WORKER_TOKEN if bearer is None else bearer}"},
        )

    def claim(self) -> Any:
        """Take the job; returns the ClaimAnswer as JSON."""
        response = self.post("claim", {"worker": self.name})
        assert response.status_code == 200, response.content
        answer = response.json()
        self.token, self.attempt, self.claim_answer = answer["token"], answer["attempt"], answer
        return answer

    def send_files(self, files: Mapping[str, bytes]) -> list[dict[str, Any]]:
        """Upload files by presigned PUT; returns them as OutputFile JSON."""
        listed = [{"name": name, "size": len(body), "sha256": sha256(body)} for name, body in files.items()]
        response = self.post("uploads", {"files": listed})
        assert response.status_code == 200, response.content
        for grant in response.json()["uploads"]:
            put(grant["url"], files[grant["name"]])
        return listed


def anybody() -> Client:
    """A browser in which nobody is signed in."""
    client = Client()
    client.handler = _handler()
    return client


def put(url: str, body: bytes) -> None:
    response = _http.request("PUT", url, body=body)
    assert response.status == 200, response.data


def fetch(url: str) -> bytes:
    response = _http.request("GET", url)
    assert response.status == 200, response.data
    return response.data


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def chat_row(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


_made: list[tuple[World, list[list[Model]]]] = []
"""The first world of this process, and all its rows."""


def make_world() -> World:
    """The four people, new, in the test's own transaction or emptied database.

    The first time by the actions of the platform, then as the same rows, which takes four statements and not
    fifty.
    """
    if not _made:
        world = _people()
        both = Workspace.objects.filter(pk__in=[world.expert.workspace_id, world.outsider.workspace_id])
        rows: list[list[Model]] = [
            list(both),
            list(User.objects.filter(memberships__workspace__in=both)),
            list(Membership.objects.filter(workspace__in=both)),
            list(AuditEvent.objects.filter(workspace__in=both)),
        ]
        _made.append(deepcopy((world, rows)))
        return world
    world, rows = deepcopy(_made[0])
    for same in rows:
        type(same[0])._default_manager.bulk_create(same)
    return world


def _people() -> World:
    acme = create_workspace(name="Acme", slug="acme")
    globex = create_workspace(name="Globex", slug="globex")
    return World(
        expert=_member(acme, "Erin", Role.EXPERT),
        lead=_member(acme, "Lee", Role.LEAD),
        admin=_member(acme, "Ada", Role.ADMIN),
        outsider=_member(globex, "Olga", Role.ADMIN),
    )


def _member(workspace: Workspace, name: str, role: Role) -> Membership:
    """Somebody whose account exists already: hashing a password is slow on purpose, so it is done once."""
    user = User.objects.create(
        email=f"{name.lower()}@{workspace.slug}.example", name=name, password=_hashed()
    )
    return add_member(workspace=workspace, email=user.email, password=None, name=name, role=role)


@cache
def _handler() -> ClientHandler:
    """One for all clients: each would load the middleware anew, and look through the static files for it."""
    return ClientHandler(enforce_csrf_checks=False)


@cache
def _hashed() -> str:
    return make_password(PASSWORD)
