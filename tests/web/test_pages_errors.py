"""Errors as people and programs see them: code, sentence, place, next step; never a traceback."""

import pytest
from django.test import Client, RequestFactory, override_settings

from stillhouse.core.errors import PlatformError, UserError
from stillhouse.web.middleware import UserErrorMiddleware
from tests.world import World

pytestmark = pytest.mark.django_db


def test_a_mistake_is_a_calm_page(world: World) -> None:
    response = world.client(world.expert).post("/w/acme/datasets/new/", {"name": "../etc"})
    page = response.content.decode()
    assert response.status_code == 400 and "text/html" in response["Content-Type"]
    assert "bad_name" in page and "looks like a path" in page and "Traceback" not in page


def test_a_program_gets_json(world: World) -> None:
    client = world.client(world.expert)
    response = client.post("/w/acme/datasets/new/", {"name": ""}, headers={"accept": "application/json"})
    error = response.json()["error"]
    assert response.status_code == 400 and error["code"] == "bad_name"
    assert set(error) == {"code", "message", "place", "next_step"} and error["next_step"]


def test_htmx_gets_a_fragment_where_messages_go(world: World) -> None:
    response = world.client(world.lead).post("/w/acme/keys/", {"name": ""}, headers={"hx-request": "true"})
    assert response.status_code == 400 and response["HX-Retarget"] == "#messages"
    assert b"<html" not in response.content and b"bad_name" in response.content


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"not json", b'{"filename": "x"}', b'{"size": "9"}', b'{"size": true}']
)
def test_an_upload_that_cannot_be_understood(body: bytes, world: World) -> None:
    version = world.dataset()
    response = world.client(world.expert).post(
        f"/w/acme/datasets/{version.dataset_id}/uploads/", body, content_type="application/json"
    )
    assert response.status_code == 400 and response.json()["error"]["code"] in ("bad_json", "bad_size")


def test_an_unknown_address(client: Client) -> None:
    response = client.get("/nothing/here")
    assert response.status_code == 404 and b"There is nothing at this address." in response.content


@pytest.mark.parametrize("error", [PlatformError("the store is gone"), RuntimeError("secret prompt text")])
@override_settings(DEBUG=False)
def test_our_own_fault_says_so_and_no_more(error: Exception, rf: RequestFactory) -> None:
    request = rf.get("/w/acme/", headers={"accept": "application/json"})
    response = UserErrorMiddleware(lambda _: pytest.fail("not called")).process_exception(request, error)
    assert response is not None and response.status_code == 500
    text = response.content.decode()
    assert "platform_error" in text and "err_" in text and str(error) not in text


def test_a_user_error_keeps_its_status(rf: RequestFactory) -> None:
    request = rf.get("/", headers={"accept": "application/json"})
    error = UserError("file_too_large", "Too large.", "file", "Split it.", status=413)
    response = UserErrorMiddleware(lambda _: pytest.fail("not called")).process_exception(request, error)
    assert response is not None and response.status_code == 413


def test_a_person_without_a_workspace_is_told(world: World) -> None:
    world.outsider.delete()
    response = world.client(world.outsider).get("/")
    assert response.status_code == 403 and b"not a member of any workspace" in response.content


def test_health_answers_without_a_sign_in(client: Client) -> None:
    response = client.get("/health")
    assert response.status_code == 200 and response.json() == {"status": "ok"}
