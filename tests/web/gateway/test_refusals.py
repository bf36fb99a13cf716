"""Whatever cannot be answered is refused with a sentence, and the next request is answered as ever."""

import contextlib
import http.client
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from stillhouse.adapters.models import AdapterVersion
from stillhouse.serving.actions import drain_replica
from stillhouse.serving.models import Replica
from stillhouse.usage.models import UsageRecord
from tests.registry import DEMO_BASE
from tests.waiting import wait_for
from tests.web.gateway.engine import Engine, Script
from tests.web.gateway.house import House, Serve, Serving, gateway_config

ASK: Any = [{"role": "user", "content": "Which clause is this?"}]
MEBIBYTE = 1024 * 1024


def ask(serving: Serving, secret: str, model: str = DEMO_BASE, **fields: Any) -> httpx.Response:
    return httpx.post(
        f"{serving.url}/v1/chat/completions",
        headers={"authorization": f"Bearer {secret}"},
        json={"model": model, "messages": ASK, **fields},
        timeout=20,
    )


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error, in OpenAI's shape."""
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and answer.headers["x-request-id"].startswith("req_")
    return error


def test_a_missing_or_wrong_key_is_refused(house: House, serving: Serving) -> None:
    url = f"{serving.url}/v1/chat/completions"
    wrong_end = house.secret[:-1] + ("a" if house.secret[-1] != "a" else "b")
    for sent in ("", "Basic abc", "Bearer", "Bearer x", f"Bearer {wrong_end}", "Bearer sg-x.y", "Bearer é"):
        headers = [(b"authorization", sent.encode("latin-1"))]
        answer = httpx.post(url, headers=headers, json={"model": DEMO_BASE})
        assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")
        assert answer.headers["x-should-retry"] == "false"
    assert httpx.get(f"{serving.url}/v1/models").status_code == 401
    with serving.client(wrong_end) as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    assert not UsageRecord.objects.exists()


def test_names_of_others_and_names_of_nobody_look_alike(house: House, alias: str, serving: Serving) -> None:
    theirs = house.held[0].serving_name
    names = ("nothing", "nothing@0123456789ab", alias, theirs)
    answers = [ask(serving, house.outsider_secret, name) for name in names]
    for name, answer in zip(names, answers, strict=True):
        error = error_of(answer)
        assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert error["message"].replace(name, "nothing") == error_of(answers[0])["message"]
    assert not house.engine.seen


def test_a_candidate_is_refused_by_name(house: House, serving: Serving) -> None:
    answer = ask(serving, house.secret, house.candidate().serving_name)
    assert (answer.status_code, error_of(answer)["code"]) == (403, "model_not_approved")
    assert "candidate" in error_of(answer)["message"]


def test_what_is_published_but_no_longer_approved_does_not_answer(
    house: House, alias: str, serving: Serving
) -> None:
    AdapterVersion.objects.update(state="retired")
    wait_for(lambda: ask(serving, house.secret, alias).status_code == 403)


def test_a_version_that_is_not_ready_asks_for_patience(house: House, alias: str, serve: Serve) -> None:
    serving = serve(gateway_config(cold_seconds=0.1))
    house.report(held=[])
    wait_for(lambda: ask(serving, house.secret, alias).status_code == 503)
    answer = ask(serving, house.secret, alias)
    assert error_of(answer)["code"] == "model_loading"
    assert int(answer.headers["retry-after"]) > 0 and "x-should-retry" not in answer.headers
    house.report(healthy=False)
    wait_for(lambda: ask(serving, house.secret).status_code == 503)
    house.report()
    wait_for(lambda: ask(serving, house.secret, alias).status_code == 200)


def test_an_engine_that_lost_the_version_asks_for_patience(
    house: House, alias: str, serving: Serving
) -> None:
    house.engine.models.clear()
    answer = ask(serving, house.secret, alias)
    assert (answer.status_code, error_of(answer)["code"]) == (503, "model_loading")
    assert "retry-after" in answer.headers


def test_another_replica_answers_when_one_is_away(house: House, alias: str, serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
    house.report(replica="a-dead-one", url=nobody)
    serving = serve(gateway_config())
    assert [ask(serving, house.secret, alias).status_code for _ in range(6)] == [200] * 6
    second = Engine(models={DEMO_BASE})  # up, but it has lost the version
    second.start()
    house.report(replica="a-dead-one", url=second.url)
    wait_for(lambda: bool(ask(serving, house.secret, alias) and second.seen))
    assert [ask(serving, house.secret, alias).status_code for _ in range(6)] == [200] * 6
    second.stop()


def test_a_drained_replica_gets_no_new_requests(house: House, alias: str, serving: Serving) -> None:
    second = Engine(models=set(house.engine.models))
    second.start()
    house.report(replica="second", url=second.url)
    wait_for(lambda: bool(ask(serving, house.secret, alias) and second.seen))
    drain_replica(by=house.admin, replica=Replica.objects.get(url=house.engine.url), draining=True)
    before = len(house.engine.seen)
    reads = serving.gateway.link.reads
    wait_for(lambda: serving.gateway.link.reads >= reads + 2)
    assert [ask(serving, house.secret, alias).status_code for _ in range(8)] == [200] * 8
    assert len(house.engine.seen) == before
    drain_replica(by=house.admin, replica=Replica.objects.get(url=house.engine.url), draining=False)
    wait_for(lambda: bool(ask(serving, house.secret, alias)) and len(house.engine.seen) > before)
    second.stop()


def test_no_replica_that_answers_is_an_error_worth_repeating(
    house: House, alias: str, serving: Serving
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        house.report(url=f"http://127.0.0.1:{closed.getsockname()[1]}")
    wait_for(lambda: ask(serving, house.secret).status_code == 503)
    answer = ask(serving, house.secret)
    assert error_of(answer)["code"] == "engine_unreachable" and "retry-after" in answer.headers


def test_an_engine_that_says_nothing_is_given_up(house: House, serve: Serve) -> None:
    house.engine.script = Script(pause=30)
    answer = ask(serve(gateway_config(silence_seconds=0.3)), house.secret)
    assert (answer.status_code, error_of(answer)["code"]) == (504, "engine_timeout")
    assert answer.headers["x-should-retry"] == "false"


ENGINE_ERRORS: list[tuple[int, dict[str, Any], tuple[int, str, str | None]]] = [
    (
        400,
        {"error": {"message": "This model's maximum context length is 2048 tokens.", "param": "messages"}},
        (400, "context_length_exceeded", "messages"),
    ),
    (422, {"message": "bad schema"}, (400, "engine_refused", None)),
    (500, {"error": {"message": "/opt/vllm/engine.py: secret traceback"}}, (502, "engine_error", None)),
    (401, {"error": {"message": "no"}}, (502, "engine_error", None)),
    (429, {}, (429, "engine_busy", None)),
    (503, {}, (503, "model_loading", None)),
]


@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_the_engine_are_told_without_its_insides(
    house: House, serving: Serving, stream: bool
) -> None:
    for status, body, expected in ENGINE_ERRORS:
        house.engine.script = Script(status=status, body=body)
        answer = ask(serving, house.secret, stream=stream)
        error = error_of(answer)
        assert (answer.status_code, error["code"], error["param"]) == expected
        assert "traceback" not in answer.text
    house.engine.script = Script(status=500, body={})
    answer = ask(serving, house.secret, stream=stream, response_format={"type": "json_object"})
    assert answer.status_code == 502 and "refers to nothing but itself" in error_of(answer)["message"]
    house.engine.script = Script(body={"nonsense": True})
    assert ask(serving, house.secret).status_code == 502


def test_bodies_that_are_wrong_get_a_sentence(house: House, serving: Serving) -> None:
    for body in (
        b"",
        b"{",
        b"\xff\xfe",
        b"[1]",
        b"{}",
        json.dumps({"model": "../../x", "messages": ASK}).encode(),
    ):
        answer = httpx.post(
            f"{serving.url}/v1/chat/completions",
            headers={"authorization": f"Bearer {house.secret}"},
            content=body,
        )
        assert answer.status_code == 400 and error_of(answer)["code"]
    assert ask(serving, house.secret).status_code == 200


@pytest.mark.parametrize("size", [9 * MEBIBYTE, 100 * MEBIBYTE])
def test_a_body_too_large_is_refused_in_words(house: House, serving: Serving, size: int) -> None:
    with serving.client(house.secret) as client, pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model=DEMO_BASE, messages=[{"role": "user", "content": "x" * size}])
    assert caught.value.status_code == 413
    assert caught.value.code == "request_too_large"
    assert ask(serving, house.secret).status_code == 200


def test_a_body_too_large_that_does_not_say_so_is_refused_on_the_way(house: House, serving: Serving) -> None:
    def pieces() -> Any:
        for _ in range(12):
            yield b"x" * MEBIBYTE

    headers = {"authorization": f"Bearer {house.secret}"}
    answer = httpx.post(f"{serving.url}/v1/chat/completions", headers=headers, content=pieces(), timeout=20)
    assert (answer.status_code, error_of(answer)["code"]) == (413, "request_too_large")


def test_a_body_that_never_comes_is_given_up(house: House, serve: Serve) -> None:
    serving = serve(gateway_config(body_seconds=0.3))
    client = http.client.HTTPConnection(urlsplit(serving.url).netloc, timeout=10)
    client.putrequest("POST", "/v1/chat/completions")
    client.putheader("authorization", f"Bearer {house.secret}")
    client.putheader("content-length", "100")
    client.endheaders(b'{"model"')
    answer = client.getresponse()
    assert answer.status == 408 and json.loads(answer.read())["error"]["code"] == "body_timeout"
    client.close()


def test_methods_paths_and_headers_are_checked(house: House, serving: Serving) -> None:
    key = {"authorization": f"Bearer {house.secret}"}
    answer = httpx.get(f"{serving.url}/v1/chat/completions", headers=key)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert httpx.post(f"{serving.url}/v1/models", headers=key).status_code == 405
    many = {**key, **{f"x-header-{number}": "x" * 400 for number in range(99)}}
    answer = httpx.get(f"{serving.url}/v1/models", headers=many)
    assert (answer.status_code, error_of(answer)["code"]) == (431, "headers_too_large")
    packed = {**key, "content-encoding": "gzip"}
    answer = httpx.post(f"{serving.url}/v1/chat/completions", headers=packed, content=b"\x1f\x8b")
    assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_encoding")
    for name in ("..%2F..%2Fetc", "a%2Fb", "%00", "x" * 5000):
        assert httpx.get(f"{serving.url}/v1/models/{name}", headers=key).status_code == 404
    assert ask(serving, house.secret).status_code == 200


def test_a_head_without_an_end_is_cut_off(house: House, serving: Serving) -> None:
    at = urlsplit(serving.url)
    with socket.create_connection((at.hostname, at.port), timeout=10) as wire:
        wire.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n")
        with contextlib.suppress(ConnectionError):
            for number in range(1000):
                wire.sendall(b"x-%d: " % number + b"x" * 1000 + b"\r\n")
        with contextlib.suppress(ConnectionError):
            answer = b"".join(iter(lambda: wire.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 431 ")
        with pytest.raises(ConnectionError):
            for _ in range(100):
                wire.sendall(b"x" * 65536)
    assert ask(serving, house.secret).status_code == 200


def test_a_long_body_after_a_short_head_is_no_long_head(house: House, serving: Serving) -> None:
    long = [{"role": "user", "content": "x" * 4 * MEBIBYTE}]
    with serving.client(house.secret) as client:
        for _ in range(3):  # on one connection
            assert client.chat.completions.create(model=DEMO_BASE, messages=long)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "path", ["/v1", "/v1/", "/v1/embeddings", "/v1/load_lora_adapter", "/v1/modelsx", "/v1/../x"]
)
def test_an_address_that_is_none_is_refused_in_the_apis_own_words(serving: Serving, path: str) -> None:
    at = urlsplit(serving.url)
    client = http.client.HTTPConnection(at.netloc, timeout=10)
    client.request("POST", path, b"{}")
    answer = client.getresponse()
    assert answer.status == 404
    error = json.loads(answer.read())["error"]
    assert (error["code"], error["type"]) == ("unknown_url", "invalid_request_error")
    client.close()
