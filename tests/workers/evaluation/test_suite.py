"""The suite against a small real server that plays an OpenAI-compatible endpoint."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from workers.contract import EvaluateSpec, EvaluationRow, SplitSpec, ThinkContract
from workers.evaluation.errors import EvaluationCancelled, EvaluationError
from workers.evaluation.prompts import read_prompts
from workers.evaluation.suite import SuiteProgress, evaluate, room_for

THINK = ThinkContract(family="plain", history_keeps=True)
Reply = tuple[int, dict[str, str], object]


@dataclass
class StandIn:
    """Somebody else's endpoint: `answer` decides status, headers and body from the request."""

    answer: Callable[[dict[str, object]], Reply]
    url: str = ""
    requests: list[dict[str, object]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)


def message(content: str, **fields: object) -> dict[str, object]:
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": content, **fields},
    }
    return {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}


@pytest.fixture
def endpoint() -> Iterator[StandIn]:
    stand_in = StandIn(lambda request: (200, {}, message("")))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            stand_in.requests.append({"path": self.path, **request})
            stand_in.keys.add(self.headers.get("authorization", ""))
            status, headers, body = stand_in.answer(request)
            payload = json.dumps(body).encode()
            self.send_response(status)
            own = {"content-type": "application/json", "content-length": str(len(payload))}
            for name, value in {**own, **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    stand_in.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield stand_in
    server.shutdown()
    server.server_close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Clause {number}"},
                {
                    "role": "assistant",
                    "content": f'<think>It is {number}.</think>\n{{"n": {number}, "kind": "x"}}',
                },
            ]
        }
        for number in range(6)
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def spec(endpoint: StandIn, **changes: object) -> EvaluateSpec:
    fields: dict[str, object] = {
        "base_model": "base",
        "adapter_model": "clauses@0123456789ab",
        "endpoint": endpoint.url,
        "api_key": "sg-grant",
        "think": THINK,
        "wait_seconds": 0,
    }
    return EvaluateSpec.model_validate(fields | changes)


def clever(request: dict[str, object]) -> Reply:
    """The adapter knows the numbers, the base does not; each shows its reasoning in its own way."""
    messages = request["messages"]
    assert isinstance(messages, list)
    number = messages[-1]["content"].split()[-1]
    if request["model"] == "base":
        return 200, {"x-stillhouse-version": "base"}, message('{"n": -1, "kind": "x"}', reasoning=None)
    return 200, {}, message(f'<think>{number}!</think>\n{{"kind": "x", "n": {number}}}')


def test_base_and_adapter_are_graded_side_by_side(endpoint: StandIn, data: Path, tmp_path: Path) -> None:
    endpoint.answer = clever
    seen: list[SuiteProgress] = []
    prompts = read_prompts(data, split=None, max_rows=4, think=THINK)
    summary = evaluate(spec(endpoint), prompts, out=tmp_path, on_progress=seen.append)

    assert summary.rows == 4
    assert (summary.base.exact, summary.adapter.exact) == (0, 4)
    assert (summary.base.json_fields, summary.adapter.json_fields) == (0.5, 1.0)
    assert (summary.base.think, summary.adapter.think) == ({"missing": 4}, {"valid": 4})
    assert summary.adapter.completion_tokens == 28
    assert (seen[-1].done, seen[-1].total) == (8, 8)
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [EvaluationRow.model_validate_json(line) for line in lines]
    assert [row.index for row in rows] == [0, 1, 2, 3]
    assert rows[2].expected == '{"n": 2, "kind": "x"}'
    assert rows[2].messages == [{"role": "user", "content": "Clause 2"}]
    assert (rows[2].adapter.reasoning, rows[2].adapter.output) == ("2!", '{"kind": "x", "n": 2}')
    assert endpoint.keys == {"Bearer sg-grant"}
    asked = endpoint.requests[-1]
    assert (asked["path"], asked["temperature"], asked["max_tokens"]) == ("/v1/chat/completions", 0, 64)


def test_a_reply_gets_room_for_the_longest_expected_one_and_a_reasoning_base_gets_all(
    endpoint: StandIn, tmp_path: Path
) -> None:
    row = {"prompt": "Say it.", "completion": f"<think>{'a' * 80}</think>\n{'b' * 20}"}
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(row) + "\n", encoding="utf-8")
    prompts = read_prompts(data, split=None, max_rows=1, think=THINK)
    length = len(f"<think>{'a' * 80}</think>\n{'b' * 20}")
    assert [prompt.length for prompt in prompts] == [length]
    assert room_for(prompts, spec(endpoint)) == length
    assert room_for(prompts, spec(endpoint, max_tokens=90)) == 90
    assert room_for(prompts, spec(endpoint, think=ThinkContract(family="qwen3"))) == 512


def test_a_held_out_split_is_the_same_every_time(data: Path) -> None:
    split = SplitSpec(share=0.5, seed=3)
    first = read_prompts(data, split=split, max_rows=200, think=THINK)
    assert first == read_prompts(data, split=split, max_rows=200, think=THINK)
    assert 0 < len(first) < 6


def test_it_waits_for_the_adapter_as_long_as_the_endpoint_says(
    endpoint: StandIn, data: Path, tmp_path: Path
) -> None:
    waits = iter([(503, {"retry-after": "0"}, {"error": {"message": "loading"}})] * 2)
    endpoint.answer = lambda request: (
        clever(request) if request["model"] == "base" else next(waits, None) or clever(request)
    )
    prompts = read_prompts(data, split=None, max_rows=2, think=THINK)
    assert evaluate(spec(endpoint, wait_seconds=30), prompts, out=tmp_path).adapter.exact == 2


def test_an_adapter_that_never_gets_ready_fails_in_words(
    endpoint: StandIn, data: Path, tmp_path: Path
) -> None:
    endpoint.answer = lambda request: clever(request) if request["model"] == "base" else (503, {}, {})
    prompts = read_prompts(data, split=None, max_rows=1, think=THINK)
    with pytest.raises(
        EvaluationError, match=r"clauses@0123456789ab was not ready to serve within 1 s"
    ) as caught:
        evaluate(spec(endpoint, wait_seconds=1), prompts, out=tmp_path)
    assert (caught.value.code, caught.value.fault) == ("model_not_ready", "platform")
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize(
    ("status", "code"), [(401, "endpoint_refused"), (403, "endpoint_refused"), (404, "model_not_found")]
)
def test_what_no_retry_can_cure_fails_at_once(
    endpoint: StandIn, data: Path, tmp_path: Path, status: int, code: str
) -> None:
    endpoint.answer = lambda request: (status, {}, {"error": {"message": "no"}})
    with pytest.raises(EvaluationError) as caught:
        evaluate(spec(endpoint), read_prompts(data, split=None, max_rows=3, think=THINK), out=tmp_path)
    assert caught.value.code == code
    assert len(endpoint.requests) == 1


def test_one_prompt_the_engine_refuses_is_a_wrong_answer(
    endpoint: StandIn, data: Path, tmp_path: Path
) -> None:
    def answer(request: dict[str, object]) -> Reply:
        return (
            (400, {}, {"error": {"message": "too long"}}) if "Clause 1" in str(request) else clever(request)
        )

    endpoint.answer = answer
    summary = evaluate(spec(endpoint), read_prompts(data, split=None, max_rows=3, think=THINK), out=tmp_path)
    assert summary.adapter.exact == 2
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[1]["adapter"]["finish_reason"] == "refused"


@pytest.mark.parametrize("status", [200, 400, 404])
def test_a_proxy_s_page_is_no_answer(endpoint: StandIn, data: Path, tmp_path: Path, status: int) -> None:
    """It is shown while what is behind it starts: the row is asked again, and no wrong answer."""
    pages = iter([(status, {"content-type": "text/html", "retry-after": "0"}, "Back in a few minutes.")])

    def answer(request: dict[str, object]) -> Reply:
        is_shown = request["model"] != "base" and "Clause 1" in str(request)
        return (next(pages, None) if is_shown else None) or clever(request)

    endpoint.answer = answer
    prompts = read_prompts(data, split=None, max_rows=3, think=THINK)
    summary = evaluate(spec(endpoint), prompts, out=tmp_path)
    assert summary.adapter.exact == 3
    assert next(pages, None) is None, "the page was shown"


def test_a_truncated_think_block_is_never_graded(endpoint: StandIn, data: Path, tmp_path: Path) -> None:
    endpoint.answer = lambda request: (200, {}, message('<think>{"n": 0, "kind": "x"}'))
    summary = evaluate(spec(endpoint), read_prompts(data, split=None, max_rows=1, think=THINK), out=tmp_path)
    assert (summary.adapter.exact, summary.adapter.think) == (0, {"truncated": 1})


def test_it_stops_soon_when_nobody_wants_it_any_more(endpoint: StandIn, data: Path, tmp_path: Path) -> None:
    endpoint.answer = lambda request: (503, {"retry-after": "10"}, {})
    with pytest.raises(EvaluationCancelled):
        evaluate(
            spec(endpoint, wait_seconds=600),
            read_prompts(data, split=None, max_rows=1, think=THINK),
            out=tmp_path,
            should_stop=lambda: True,
        )


def test_nothing_to_evaluate_is_said(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n", encoding="utf-8")
    with pytest.raises(EvaluationError, match="no row") as caught:
        read_prompts(empty, split=None, max_rows=5, think=THINK)
    assert caught.value.fault == "user"


def test_margins_are_kept_and_not_where_the_endpoint_has_none(
    endpoint: StandIn, data: Path, tmp_path: Path
) -> None:
    def answer(request: dict[str, object]) -> Reply:
        if request["model"] == "base":
            if "logprobs" in request:
                return 400, {}, {"error": {"message": "logprobs are not supported"}}
            return clever(request)
        status, headers, body = clever(request)
        assert isinstance(body, dict)
        body["choices"][0]["logprobs"] = {
            "content": [
                _token("<think>", 0.99, 0.001),
                _token("0!", 0.5, 0.4),
                _token("</think>", 0.99, 0.001),
                _token("{...}", 0.8, 0.1),
            ]
        }
        return status, headers, body

    endpoint.answer = answer
    prompts = read_prompts(data, split=None, max_rows=2, think=THINK)
    evaluate(spec(endpoint, base_model="other"), prompts, out=tmp_path)
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(EvaluationRow.model_validate_json, lines):
        assert row.adapter.margin == pytest.approx(0.7, abs=0.001) and row.adapter.reasoning_tokens == 3
        assert row.adapter.reasoning_margin == pytest.approx(0.1, abs=0.001)
    summary = evaluate(spec(endpoint), prompts, out=tmp_path)
    assert (summary.base.exact, summary.adapter.exact) == (0, 2)
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(EvaluationRow.model_validate_json, lines):
        assert row.base.margin is None and row.base.output == '{"n": -1, "kind": "x"}'


def _token(text: str, chosen: float, other: float) -> dict[str, object]:
    top = [{"token": text, "logprob": math.log(chosen)}, {"token": "?", "logprob": math.log(other)}]
    return {"token": text, "logprob": math.log(chosen), "top_logprobs": top}


def test_tools_are_shown_and_no_call_is_asked_for(endpoint: StandIn, tmp_path: Path) -> None:
    """What came before is sent as apps send it; a row that ends in a call has no text to compare."""
    call = {"id": "c1", "type": "function", "function": {"name": "price", "arguments": '{"of": "cat"}'}}
    asked = {"role": "user", "content": "What is a cat? 12"}
    calling = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "c1", "content": "12"}
    tools = [{"type": "function", "function": {"name": "price"}}]
    chats = [[asked, calling], [asked, calling, result, {"role": "assistant", "content": "Twelve."}]]
    file = tmp_path / "tools.jsonl"
    file.write_text("".join(json.dumps({"messages": chat, "tools": tools}) + "\n" for chat in chats))
    prompts = read_prompts(file, split=None, max_rows=5, think=THINK)
    assert [prompt.expected for prompt in prompts] == ["Twelve."]
    endpoint.answer = lambda request: (200, {}, message("Twelve."))
    assert evaluate(spec(endpoint), prompts, out=tmp_path).adapter.exact == 1
    sent = endpoint.requests[-1]
    assert (sent["tools"], sent["tool_choice"]) == (tools, "none")
    assert sent["messages"] == [asked, {**calling, "content": ""}, result]
    (line,) = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert EvaluationRow.model_validate_json(line).messages[1]["content"] == '\nprice({"of": "cat"})'
