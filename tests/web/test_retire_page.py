"""The button that retires a version: for leads, with a reason, and not while an alias answers with it."""

import pytest

from stillhouse.adapters.models import APPROVED, RETIRED, AdapterVersion
from stillhouse.audit.models import AuditEvent
from stillhouse.publishing.actions import publish
from tests.registry import approved, make_ready
from tests.world import World

pytestmark = pytest.mark.django_db


@pytest.fixture
def version(world: World) -> AdapterVersion:
    return approved(world.expert, world.lead)


def page(world: World, version: AdapterVersion) -> str:
    return world.client(world.lead).get(f"/w/acme/versions/{version.pk}/").content.decode()


def test_a_lead_retires_a_version_with_a_reason(world: World, version: AdapterVersion) -> None:
    client, address = world.client(world.lead), f"/w/acme/versions/{version.pk}/retire/"
    assert "Retire this version" in page(world, version)
    assert client.post(address, {"reason": " "}).status_code == 400
    assert client.post(address, {"reason": "Trained on last year's forms."}).status_code == 302
    version.refresh_from_db()
    assert version.state == RETIRED and "Retire this version" not in page(world, version)
    event = AuditEvent.objects.get(action="version.retired")
    assert event.details["reason"] == "Trained on last year's forms."


def test_not_while_it_is_published_and_not_by_an_expert(world: World, version: AdapterVersion) -> None:
    make_ready(version)
    address, form = f"/w/acme/versions/{version.pk}/retire/", {"reason": "Because."}
    assert world.client(world.expert).post(address, form).status_code == 403
    publish(by=world.lead, alias_name="clauses", version=version)
    shown = page(world, version)
    assert "Retire this version" not in shown and "publish another version there first" in shown
    assert world.client(world.lead).post(address, form).status_code == 409
    version.refresh_from_db()
    assert version.state == APPROVED
