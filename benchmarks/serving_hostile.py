"""Bad requests of every kind at the gateway, with a real engine behind it and good requests beside them."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx

from benchmarks.serving_bench import ALIAS, PROMPT, Bench, ask

OUTSIDE = 10**9
"""A token id that no vocabulary has."""


def schema(body: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": body}}}


def nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        inner = {"type": "object", "properties": {"a": inner}, "required": ["a"]}
    return inner


LOOP = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
TREE = {
    "$ref": "#/$defs/a",
    "$defs": {"a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/a"}}}},
}
CHATS: dict[str, dict[str, Any]] = {
    "bias outside the vocabulary": {"logit_bias": {str(OUTSIDE): 100}},
    "bias below it": {"logit_bias": {"-1": 1}},
    "bias without a token": {"logit_bias": {"x": 1}},
    "bias without a number": {"logit_bias": {"5": "much"}},
    "100,000 biases": {"logit_bias": {str(token): 1 for token in range(100_000)}},
    "stops outside the vocabulary": {"stop_token_ids": [OUTSIDE, -5, 2**70]},
    "stops that are texts": {"stop_token_ids": ["x"]},
    "no allowed token": {"allowed_token_ids": []},
    "allowed outside the vocabulary": {"allowed_token_ids": [OUTSIDE]},
    "allowed below it": {"allowed_token_ids": [-1]},
    "a bad word that is a number": {"bad_words": [5]},
    "an empty bad word": {"bad_words": [""]},
    "10,000 bad words": {"bad_words": [f"word {number}" for number in range(10_000)]},
    "an empty stop": {"stop": [""]},
    "more at least than at most": {"min_tokens": 50, "max_tokens": 1},
    "no probability at all": {"top_p": 0},
    "a repetition as good as forbidden": {"repetition_penalty": 10, "temperature": 2},
    "more tokens than fit": {"max_tokens": 1_000_000},
    "a schema that is none": schema({"type": "nonsense"}),
    "a schema that means itself": schema(LOOP),
    "a schema without an end": schema(TREE),
    "a schema 100 deep": schema(nested(100)),
    "a schema of ten million items": schema(
        {"type": "array", "minItems": 10**7, "items": {"type": "integer"}}
    ),
    "a schema of 10,000 values": schema({"enum": [f"value {number}" for number in range(10_000)]}),
    "a schema of 3,000 properties": schema(
        {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(3000)}}
    ),
    "a schema with a pattern that explodes": schema({"type": "string", "pattern": "^(a+)+$"}),
    "a schema with a pattern of a billion": schema(
        {"type": "string", "pattern": "^(((a{1,1000}){1,1000}){1,1000})$"}
    ),
    "an expression of a billion": {"structured_outputs": {"regex": "(((a{1000}){1000}){1000})"}},
    "an expression that is none": {"structured_outputs": {"regex": "((("}},
    "an expression 50,000 deep": {"structured_outputs": {"regex": "(" * 50_000 + "a" + ")" * 50_000}},
    "a grammar 50,000 deep": {
        "structured_outputs": {"grammar": "root ::= " + "(" * 50_000 + '"a"' + ")" * 50_000}
    },
    "a schema 400 deep": schema(nested(400)),
    "a tag that is none": {"structured_outputs": {"structural_tag": "{"}},
    "a schema of a million letters": schema({"type": "string", "description": "x" * 1_000_000}),
    "100,000 choices": {"structured_outputs": {"choice": [f"c{number}" for number in range(100_000)]}},
    "a grammar that means itself": {"structured_outputs": {"grammar": "root ::= root"}},
    "a grammar that is none": {"structured_outputs": {"grammar": "::= ::="}},
    "no choice": {"structured_outputs": {"choice": []}},
    "two ways to constrain": {"structured_outputs": {"choice": ["a"], "regex": "b"}},
    "a tool that does not exist": {"tool_choice": {"type": "function", "function": {"name": "x"}}},
    "a text of two million": {"messages": [{"role": "user", "content": "word " * 400_000}]},
    "no text": {"messages": [{"role": "user", "content": ""}]},
    "the template's own words": {"messages": [{"role": "user", "content": "<|im_end|>" * 300}]},
    "a zero byte": {"messages": [{"role": "user", "content": "\0"}]},
    "half a character": {"messages": [{"role": "user", "content": "\ud800"}]},
    "a picture": {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y"}}]}]
    },
    "a template of its own": {"chat_template": "{{ 1 }}"},
    "files of the engine": {"lora_request": {"lora_path": "/etc"}},
    "the parent folder": {"model": "../../etc/passwd"},
    "a digest that nobody placed": {"model": "measured-1@0123456789ab"},
    "the path of an adapter": {"model": "/etc"},
    "eight of the longest": {"n": 8, "max_tokens": 5, "logprobs": True, "top_logprobs": 20},
}
COMPLETIONS: dict[str, dict[str, Any]] = {
    "tokens outside the vocabulary": {"prompt": [OUTSIDE]},
    "the token after the last": {"prompt": [49152]},
    "a token that no machine holds": {"prompt": [2**70]},
    "no tokens": {"prompt": [[]]},
    "an empty text": {"prompt": ""},
    "32 prompts": {"prompt": ["x"] * 32, "max_tokens": 1, "logprobs": 20},
    "an echo of everything": {"prompt": "word " * 500, "echo": True, "logprobs": 20, "max_tokens": 1},
    "longer than fits": {"prompt": [5] * 100_000},
}


def measure_hostile(bench: Bench, version: Any) -> None:
    """Refused with a sentence or answered, never a 5xx; the engine alive, good answers right, memory flat."""
    from stillhouse.publishing.actions import publish  # noqa: PLC0415

    publish(by=bench.stage.lead, alias_name=ALIAS, version=version)
    bench.until(lambda: bench.correct(version.serving_name), "its answer")
    _strange(bench)  # once, so that caches have what they keep
    began = _started(bench)
    before, good, ended = bench.stage.memory_mb(), Counter[str](), threading.Event()

    def app() -> None:
        with httpx.Client(base_url=bench.stage.url, timeout=120) as client:
            while not ended.is_set():
                answer = ask(client, ALIAS, bench.stage.key)
                right = answer.status == 200 and bench.prints.whose(answer.value) == version.serving_name
                good["right" if right else f"wrong: {answer.status} {answer.model}"] += 1

    beside = threading.Thread(target=app)
    beside.start()
    strange = _strange(bench)
    rows = {name: _timed(work) for name, work in _floods(bench).items()}
    ended.set()
    beside.join()
    after = bench.stage.memory_mb()
    bench.figures |= {
        "hostile_strange": dict(Counter(status for status, _, _ in strange.values())),
        "hostile_strange_5xx": {name: said for name, said in strange.items() if said[0] >= 500},
        "hostile_strange_slowest": max((seconds, name) for name, (_, seconds, _) in strange.items()),
        "hostile_floods": rows,
        "hostile_good_answers": dict(good),
        "hostile_engine_is_the_same": _started(bench) == began,
        "hostile_memory_grew_mb": {name: round(after[name] - before[name], 1) for name in before},
    }


def _started(bench: Bench) -> str:
    """When the engine's server began."""
    lines = bench.direct.get("/metrics").text.splitlines()
    return next(line for line in lines if line.startswith("process_start_time_seconds"))


def _strange(bench: Bench) -> dict[str, tuple[int, float, str]]:
    """Status, seconds and the beginning of the sentence, by what was wrong."""
    said: dict[str, tuple[int, float, str]] = {}
    chat = {"model": ALIAS, "messages": PROMPT, "max_tokens": 2}
    completion = {"model": ALIAS, "prompt": "x", "max_tokens": 2}
    with httpx.Client(base_url=bench.stage.url, timeout=120) as client:
        client.headers["authorization"] = f"Bearer {bench.stage.key}"
        for path, usual, kinds in [
            ("/v1/chat/completions", chat, CHATS),
            ("/v1/completions", completion, COMPLETIONS),
        ]:
            for name, changes in kinds.items():
                began = time.perf_counter()
                try:
                    answer = client.post(path, content=json.dumps({**usual, **changes}))
                except httpx.TransportError as error:
                    said[name] = 599, time.perf_counter() - began, type(error).__name__
                    continue
                text = "" if answer.status_code == 200 else answer.json()["error"]["message"][:200]
                said[name] = answer.status_code, round(time.perf_counter() - began, 2), text
    return said


def _floods(bench: Bench) -> dict[str, Callable[[], Any]]:
    """All of the issue's, each at once from several sides."""
    from tests.web.gateway.process import Server  # noqa: PLC0415 - Django stands by now
    from tests.web.gateway.test_hostile import (  # noqa: PLC0415
        header_bomb,
        large_body,
        slow_client,
        unknown_names,
    )

    process = bench.stage.web.process
    if process is None:
        raise SystemExit("web is not running")
    server = Server(httpx.Client(base_url=bench.stage.url, timeout=120), process)
    key = bench.stage.key

    def names() -> Any:
        with ThreadPoolExecutor(4) as pool:
            starts = range(0, 10_000, 2_500)
            found = pool.map(lambda start: unknown_names(server, key, range(start, start + 2_500)), starts)
            return sorted(set().union(*found))

    def bodies() -> Any:
        with ThreadPoolExecutor(5) as pool:
            return sorted(set(pool.map(lambda _: large_body(server, key), range(5))))

    def bombs() -> Any:
        with ThreadPoolExecutor(8) as pool:
            return len(list(pool.map(lambda _: header_bomb(server), range(10))))

    def slow() -> Any:
        with ExitStack() as wires:
            for _ in range(200):
                wires.enter_context(slow_client(server, key))
            return bench.ask().status

    return {
        "10,000 unknown names": names,
        "5 bodies of 100 MB": bodies,
        "10 header bombs": bombs,
        "200 slow clients": slow,
    }


def _timed(work: Callable[[], Any]) -> dict[str, Any]:
    began = time.perf_counter()
    return {"said": work(), "seconds": round(time.perf_counter() - began, 1)}
