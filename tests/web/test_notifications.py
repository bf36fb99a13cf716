"""Notices: made once, mailed to whom they concern, posted signed, and never into a network."""

import json
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from django.core import mail
from django.utils import timezone
from pytest_django.fixtures import Settings

from stillhouse.approvals.actions import ask_approval
from stillhouse.audit.models import AuditEvent
from stillhouse.core.errors import Conflict, UserError
from stillhouse.jobs.models import Job
from stillhouse.notifications.actions import choose_emails, remove_webhook, send_test, set_webhook
from stillhouse.notifications.addresses import destination
from stillhouse.notifications.delivering import (
    KEPT_FOR,
    PAUSES,
    deliver_due,
    deliver_in_background,
    forget_old_notices,
)
from stillhouse.notifications.models import Delivery, Notice, Webhook
from stillhouse.notifications.notices import LOOK_BACK, collect_notices
from stillhouse.notifications.sending import signature
from stillhouse.training.models import TrainingRun
from tests.registry import at_once, candidate, evaluate, started_run
from tests.world import World

pytestmark = pytest.mark.django_db


class Receiver(HTTPServer):
    """An app that takes webhooks and answers with `status`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Taking)
        self.status = 204
        self.taken: list[tuple[dict[str, str], bytes]] = []
        self.asked, self.hold = threading.Event(), threading.Lock()
        """It does not answer while `hold` is held."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?of=acme"


class _Taking(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()} | {"path": self.path}
        self.server.taken.append((headers, body))
        self.server.asked.set()
        with self.server.hold:
            self.send_response(self.server.status)
        self.send_header("Location", self.server.url)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def receiver(settings: Settings) -> Iterator[Receiver]:
    settings.WEBHOOK_PRIVATE_HOSTS = ["127.0.0.1"]
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join(5)
    server.server_close()


def ended_run(world: World, state: str = "succeeded", **changes: Any) -> TrainingRun:
    run = started_run(world.expert)
    end(run, state, **changes)
    return run


def end(run: TrainingRun, state: str, **changes: Any) -> None:
    now = {"state": state, "attempt": 1, "finished_at": timezone.now()} | changes
    Job.objects.filter(pk=run.job_id).update(**now)


def again(delivery: Delivery) -> Delivery:
    """Its next attempt, without the pause."""
    Delivery.objects.filter(pk=delivery.pk).update(due_at=timezone.now())
    deliver_due()
    delivery.refresh_from_db()
    return delivery


def error_of(call: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        call()
    assert caught.value.message and caught.value.next_step
    return caught.value


def test_who_started_a_run_is_told_by_mail_when_it_ends(world: World) -> None:
    run = ended_run(world, "failed", failure={"code": "not_a_number", "message": "secret of the data"})
    assert (collect_notices(), collect_notices()) == (1, 0)
    assert (deliver_due(), deliver_due()) == (1, 0)
    (sent,) = mail.outbox
    assert sent.to == [world.expert.user.email]
    assert sent.subject == "[Stillhouse] The run for contract-clauses has failed"
    assert f"/w/acme/runs/{run.pk}/" in sent.body and "secret of the data" not in sent.body
    assert Notice.objects.get().body["code"] == "not_a_number"


def test_a_run_that_is_tried_again_is_told_again(world: World) -> None:
    run = ended_run(world, "failed")
    collect_notices()
    end(run, "queued", finished_at=None)
    assert collect_notices() == 0
    end(run, "succeeded", attempt=2)
    assert collect_notices() == 1 and Notice.objects.count() == 2


def test_what_ended_long_ago_is_no_news(world: World) -> None:
    ended_run(world, finished_at=timezone.now() - LOOK_BACK - timedelta(minutes=1))
    assert collect_notices() == 0


def test_leads_are_told_of_a_version_that_waits_for_them(world: World) -> None:
    version = candidate(world.expert)
    evaluate(version)
    ask_approval(by=world.expert, version=version)
    collect_notices()
    asked = Notice.objects.get(event="approval.asked")
    told = {delivery.to for delivery in asked.deliveries.all()}
    assert told == {world.lead.user.email, world.admin.user.email}


@pytest.mark.parametrize(
    ("choice", "told"), [("all", ["expert", "lead"]), ("none", ["expert"]), ("mine", ["expert"])]
)
def test_a_member_chooses_what_comes_by_mail(world: World, choice: str, told: list[str]) -> None:
    choose_emails(by=world.lead, choice=choice)
    choose_emails(by=world.outsider, choice="all")
    ended_run(world)
    collect_notices()
    expected = {getattr(world, name).user.email for name in told}
    assert {delivery.to for delivery in Delivery.objects.all()} == expected
    assert error_of(lambda: choose_emails(by=world.lead, choice="some")).code == "bad_choice"


def test_a_webhook_gets_a_signed_message(world: World, receiver: Receiver) -> None:
    secret = set_webhook(by=world.lead, url=receiver.url)
    run = ended_run(world)
    collect_notices()
    assert deliver_due() == 2
    ((headers, body),) = receiver.taken
    notice = Notice.objects.get()
    assert headers["webhook-id"] == notice.pk and headers["path"] == "/hook?of=acme"
    stamp = int(headers["webhook-timestamp"])
    assert abs(stamp - timezone.now().timestamp()) < 60
    assert headers["webhook-signature"] == signature(secret, notice.pk, stamp, body)
    sent = json.loads(body)
    assert sent["type"] == "run.ended" and sent["data"]["run"] == run.pk
    assert sent["data"]["workspace"] == "acme" and sent["data"]["state"] == "succeeded"


def test_the_signature_is_that_of_the_specification() -> None:
    """Computed with the package `standardwebhooks` 1.1.0."""
    secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'
    made = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265331, body) != made


def test_what_is_not_taken_is_sent_again_with_the_same_id_and_then_given_up(
    world: World, receiver: Receiver
) -> None:
    set_webhook(by=world.lead, url=receiver.url)
    receiver.status = 500
    send_test(by=world.lead)
    delivery = Delivery.objects.get()
    pauses = []
    while again(delivery).state == Delivery.WAITING:
        assert delivery.error == "it answered 500"
        pauses.append(delivery.due_at - timezone.now())
    assert len(pauses) == len(PAUSES) == len(receiver.taken) - 1 and pauses == sorted(pauses)
    assert {headers["webhook-id"] for headers, _ in receiver.taken} == {delivery.notice_id}
    assert (delivery.state, delivery.attempts) == (Delivery.FAILED, len(PAUSES) + 1)


def test_after_a_failure_the_next_attempt_may_succeed(world: World, receiver: Receiver) -> None:
    set_webhook(by=world.lead, url=receiver.url)
    receiver.status = 503
    send_test(by=world.lead)
    delivery = again(Delivery.objects.get())
    assert delivery.state == Delivery.WAITING and deliver_due() == 0
    receiver.status = 200
    assert again(delivery).state == Delivery.SENT and delivery.error == ""


def test_redirects_are_not_followed(world: World, receiver: Receiver) -> None:
    set_webhook(by=world.lead, url=receiver.url)
    receiver.status = 307
    send_test(by=world.lead)
    assert again(Delivery.objects.get()).error == "it answered 307" and len(receiver.taken) == 1


@pytest.mark.parametrize("change", ["gone", "removed", "private"])
def test_some_failures_are_final(world: World, receiver: Receiver, settings: Settings, change: str) -> None:
    set_webhook(by=world.lead, url=receiver.url)
    send_test(by=world.lead)
    if change == "gone":
        receiver.status = 410
    elif change == "removed":
        remove_webhook(by=world.lead)
    else:
        settings.WEBHOOK_PRIVATE_HOSTS = []  # or the host's name leads inside since it was saved
        Webhook.objects.update(url=(url := receiver.url.replace("http:", "https:")))
        Delivery.objects.update(to=url)
    delivery = again(Delivery.objects.get())
    assert (delivery.state, delivery.attempts) == (Delivery.FAILED, 1) and delivery.error
    assert len(receiver.taken) == (1 if change == "gone" else 0)


def test_nobody_listens(world: World, receiver: Receiver) -> None:
    set_webhook(by=world.lead, url="http://127.0.0.1:9/")
    send_test(by=world.lead)
    delivery = again(Delivery.objects.get())
    assert delivery.state == Delivery.WAITING and delivery.error.startswith("it could not be reached")


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://127.0.0.1/", "private_address"),
        ("https://10.1.2.3/", "private_address"),
        ("https://192.168.0.1:8443/x", "private_address"),
        ("https://169.254.169.254/latest/meta-data", "private_address"),
        ("https://[::1]/", "private_address"),
        ("https://[fd00::1]/", "private_address"),
        ("https://[::ffff:10.0.0.1]/", "private_address"),
        ("https://0.0.0.0/", "private_address"),
        ("https://2130706433/", "private_address"),
        ("https://localhost/", "private_address"),
        ("https://no-such-host.invalid/", "host_unknown"),
        ("http://93.184.216.34/", "bad_webhook_url"),
        ("ftp://93.184.216.34/", "bad_webhook_url"),
        ("https://user:secret@93.184.216.34/", "bad_webhook_url"),
        ("https://93.184.216.34/ x", "bad_webhook_url"),
        ("https://93.184.216.34:99999/", "bad_webhook_url"),
        ("nonsense", "bad_webhook_url"),
    ],
)
def test_addresses_that_nothing_is_sent_to(world: World, url: str, code: str) -> None:
    assert error_of(lambda: set_webhook(by=world.lead, url=url)).code == code
    assert not Webhook.objects.exists()


def test_a_public_address_is_connected_to_as_it_was_checked() -> None:
    found = destination("https://93.184.216.34:8443/a?b=c", [])
    assert (found.address, found.port, found.path) == ("93.184.216.34", 8443, "/a?b=c")


def test_the_secret_is_sealed_and_shown_once(world: World, receiver: Receiver) -> None:
    client = world.client(world.lead)
    shown = client.post("/w/acme/notifications/", {"do": "webhook", "url": receiver.url})
    assert shown.status_code == 200 and shown["Cache-Control"] == "no-store"
    webhook = Webhook.objects.get()
    assert b"whsec_" in shown.content and "whsec_" not in webhook.secret
    page = client.get("/w/acme/notifications/").content.decode()
    assert "whsec_" not in page and "127.0.0.1" in page
    assert AuditEvent.objects.get(action="webhook.set").details == {"url": receiver.url}
    assert client.post("/w/acme/notifications/", {"do": "test"}).status_code == 302
    deliver_due()
    assert "delivered" in client.get("/w/acme/notifications/").content.decode()


def test_a_refused_address_stays_in_the_form(world: World) -> None:
    client = world.client(world.lead)
    page = client.post("/w/acme/notifications/", {"do": "webhook", "url": "https://10.0.0.1/hook"})
    text = page.content.decode()
    assert page.status_code == 400 and "private_address" in text and 'value="https://10.0.0.1/hook"' in text


def test_only_a_lead_sets_the_webhook_and_only_of_the_own_workspace(world: World, receiver: Receiver) -> None:
    assert error_of(lambda: set_webhook(by=world.expert, url=receiver.url)).code == "not_allowed"
    assert error_of(lambda: remove_webhook(by=world.expert)).code == "not_allowed"
    with pytest.raises(Conflict, match="no webhook"):
        send_test(by=world.lead)
    set_webhook(by=world.lead, url=receiver.url)
    remove_webhook(by=world.outsider)
    assert Webhook.objects.get().workspace == world.lead.workspace
    seen = world.client(world.outsider).get("/w/globex/notifications/").content.decode()
    assert receiver.url not in seen


@pytest.mark.django_db(transaction=True)
def test_two_keepers_tell_once(world: World) -> None:
    ended_run(world)
    at_once(collect_notices, collect_notices)
    assert Notice.objects.count() == Delivery.objects.count() == 1
    assert sum(at_once(deliver_due, deliver_due)) == 1


@pytest.mark.django_db(transaction=True)
def test_the_keeper_does_not_wait_for_a_receiver(world: World, receiver: Receiver) -> None:
    set_webhook(by=world.lead, url=receiver.url)
    send_test(by=world.lead)
    with receiver.hold:
        assert deliver_in_background() == 0
        assert receiver.asked.wait(20)
        assert Delivery.objects.get().state == Delivery.WAITING and deliver_due() == 0
    for _ in range(200):
        if (state := Delivery.objects.get().state) != Delivery.WAITING:
            break
        time.sleep(0.05)
    assert state == Delivery.SENT and len(receiver.taken) == 1


def test_old_notices_are_forgotten(world: World) -> None:
    ended_run(world)
    collect_notices()
    assert forget_old_notices() == 0
    Notice.objects.update(created_at=timezone.now() - KEPT_FOR - timedelta(hours=1))
    assert forget_old_notices() > 0 and not Delivery.objects.exists()
