"""Workers: enrolled by a one-time token, heard, drained, revoked; and what an older one is told."""

import json
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.management import call_command
from django.db.models.functions import Now
from pytest_django.fixtures import Settings

from stillhouse.audit.models import AuditEvent
from stillhouse.jobs.claiming import claim_job
from stillhouse.jobs.models import Enrolment, Outbox, Worker
from tests.registry import at_once, started_run
from tests.world import World, anybody
from workers.contract import CONTRACT_VERSION

pytestmark = pytest.mark.django_db
FACTS = {
    "queue": "gpu",
    "devices": ["NVIDIA H100, 81559 MiB"],
    "memory_bytes": 2**37,
    "disk_free_bytes": 2**40,
}


def command(*arguments: str) -> Any:
    out = StringIO()
    call_command("worker", *arguments, stdout=out)
    return json.loads(out.getvalue())


def post(path: str, bearer: str, **body: Any) -> Any:
    return anybody().post(
        f"/worker/v1/{path}",
        data=json.dumps(body),
        content_type="application/json",
        headers={"authorization": f"Bearer {bearer}"},
    )


def enrolled(name: str = "gpu-7") -> str:
    token = command("enrol", name)["token"]
    response = post("enrol", token, worker=name)
    assert response.status_code == 200, response.content
    return str(response.json()["secret"])


def test_a_token_enrols_one_worker_once(db: None) -> None:
    token = command("enrol", "gpu-7")["token"]
    assert post("enrol", token, worker="gpu-8").status_code == 401
    first = post("enrol", token, worker="gpu-7")
    assert first.status_code == 200 and post("enrol", token, worker="gpu-7").status_code == 401
    assert first.json()["secret"] not in str(Worker.objects.values()) and token not in str(
        Enrolment.objects.values()
    )


@pytest.mark.django_db(transaction=True)
def test_of_two_that_enrol_at_once_with_one_token_one_does(world: World) -> None:
    token = command("enrol", "gpu-7")["token"]
    answers = at_once(*[lambda: post("enrol", token, worker="gpu-7")] * 3)
    assert sorted(answer.status_code for answer in answers) == [200, 401, 401]
    [secret] = [answer.json()["secret"] for answer in answers if answer.status_code == 200]
    assert post("hello", secret, worker="gpu-7", facts=FACTS).status_code == 200


def test_a_worker_works_with_its_own_secret_under_its_own_name(world: World) -> None:
    secret = enrolled()
    run = started_run(world.expert)
    other = world.worker(run.job, name="gpu-1")
    assert other.post("claim", {"worker": "gpu-1"}, bearer=secret).status_code == 401
    shared = world.worker(run.job, name="gpu-7")
    assert shared.post("claim", {"worker": "gpu-7"}).status_code == 401, "the shared token is not for gpu-7"
    assert shared.post("claim", {"worker": "gpu-7"}, bearer=secret).status_code == 200
    assert post("hello", secret, worker="gpu-7", facts=FACTS).json() == {"draining": False, "unheard": False}
    assert Worker.objects.get(name="gpu-7").facts["devices"] == FACTS["devices"]


def test_an_agents_door_is_not_open_to_a_worker(db: None) -> None:
    assert post("pools/demo/sync", enrolled()).status_code == 401


def test_a_revoked_worker_is_shut_out_in_the_middle_of_its_job(world: World) -> None:
    secret = enrolled()
    run = started_run(world.expert)
    worker = world.worker(run.job, name="gpu-7")
    worker.token = worker.post("claim", {"worker": "gpu-7"}, bearer=secret).json()["token"]
    assert worker.post("report", {}, bearer=secret).status_code == 200
    command("revoke", "gpu-7")
    assert worker.post("report", {}, bearer=secret).status_code == 401
    assert post("hello", django_settings.WORKER_TOKEN, worker="gpu-7").status_code == 401
    assert post("hello", enrolled(), worker="gpu-7").status_code == 200, "enrolled again"


def test_a_drained_worker_gets_no_new_work(world: World) -> None:
    secret = enrolled()
    post("hello", secret, worker="gpu-7", facts=FACTS)
    command("drain", "gpu-7")
    assert post("hello", secret, worker="gpu-7", facts=FACTS).json() == {"draining": True, "unheard": False}
    worker = world.worker(started_run(world.expert).job, name="gpu-7")
    response = worker.post("claim", {"worker": "gpu-7"}, bearer=secret)
    assert response.status_code == 409 and "drained" in response.json()["message"]
    command("undrain", "gpu-7")
    assert worker.post("claim", {"worker": "gpu-7"}, bearer=secret).status_code == 200


def test_a_worker_of_an_older_contract_is_told_so_and_shown(world: World) -> None:
    old = CONTRACT_VERSION - 1
    worker = world.worker(started_run(world.expert).job)
    response = worker.post("claim", {"worker": "gpu-old", "contract": old})
    assert response.status_code == 426 and "Upgrade the worker" in response.json()["message"]
    page = world.client(world.expert).get("/w/acme/fleet/").content.decode()
    assert "gpu-old" in page and f"It speaks contract {old}" in page


def test_a_worker_cannot_call_another_one_old(world: World) -> None:
    """By naming it in a message of an older contract: such a worker would lose its slots."""
    assert post("hello", enrolled("gpu-7"), worker="gpu-7", facts=FACTS).status_code == 200
    for bearer in (enrolled("gpu-8"), django_settings.WORKER_TOKEN):
        assert post("hello", bearer, worker="gpu-7", contract=1).status_code == 401
    assert Worker.objects.get(name="gpu-7").slots == 1


def test_a_worker_whose_disk_is_broken_is_shown_with_the_next_step(world: World) -> None:
    """Where it is the only one: its jobs wait, and their pages say where to look."""
    run = started_run(world.expert)
    trouble = "It cannot write to its WORK_DIR (Read-only file system). Mend <that> disk."
    broken = {**FACTS, "slots": 0, "trouble": trouble}
    post("hello", django_settings.WORKER_TOKEN, worker="gpu-7", facts=broken)
    page = world.client(world.expert).get("/w/acme/fleet/").content.decode()
    assert "in trouble" in page and "Mend &lt;that&gt; disk." in page and "It gets no work." in page
    told = world.client(world.expert).get("/w/acme/fleet/", headers={"accept": "application/json"}).json()
    assert [(row["state"], row["trouble"]) for row in told["workers"]] == [("in trouble", trouble)]
    said = world.client(world.expert).get(f"/w/acme/runs/{run.pk}/").content.decode()
    assert "No gpu worker takes work now; the page Fleet says why" in said
    post("hello", django_settings.WORKER_TOKEN, worker="gpu-7", facts=FACTS)
    assert "in trouble" not in world.client(world.expert).get("/w/acme/fleet/").content.decode()


def test_the_fleet_is_changed_by_its_administrators_only(world: World, settings: Settings) -> None:
    post("hello", enrolled(), worker="gpu-7", facts=FACTS)
    settings.FLEET_WORKSPACE = "acme"

    def change(member: Any, workspace: str, do: str) -> int:
        path = f"/w/{workspace}/fleet/change/"
        return world.client(member).post(path, {"name": "gpu-7", "do": do}).status_code

    assert change(world.outsider, "globex", "drain") == 404, "an administrator, but not of the fleet"
    assert change(world.outsider, "acme", "drain") == 404
    assert change(world.lead, "acme", "drain") == 403
    assert not Worker.objects.get(name="gpu-7").draining_since
    assert change(world.admin, "acme", "drain") == 302
    page = world.client(world.admin).get("/w/acme/fleet/").content.decode()
    assert "NVIDIA H100" in page and "draining" in page and "Let it work" in page
    assert change(world.admin, "acme", "undrain") == 302 and change(world.admin, "acme", "revoke") == 302
    assert world.client(world.lead).get("/w/acme/fleet/").content.decode().count("Revoke") == 0
    trail = AuditEvent.objects.filter(action__startswith="worker.").order_by("sequence")
    assert [event.action for event in trail] == ["worker.drained", "worker.undrained", "worker.revoked"]


def test_a_worker_hears_that_a_doorbell_was_rung_for_it_in_vain(world: World) -> None:
    """Only one that does nothing and may take it; and not of what was rung for just now, or not at all."""
    bearer = django_settings.WORKER_TOKEN
    run = started_run(world.expert)

    def is_unheard() -> bool:
        return bool(post("hello", bearer, worker="gpu-7", facts=FACTS).json()["unheard"])

    assert not is_unheard()
    Outbox.objects.update(sent_at=Now() - timedelta(seconds=50))
    assert not is_unheard()
    Outbox.objects.update(sent_at=Now() - timedelta(seconds=70))
    assert is_unheard()
    command("drain", "gpu-7")
    assert not is_unheard()
    command("undrain", "gpu-7")
    assert is_unheard()
    claim_job(job_id=run.job_id, worker="gpu-7")
    assert not is_unheard()
