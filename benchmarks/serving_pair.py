"""Two real engines: one JSON line.

    python benchmarks/serving_pair.py --base var/bases/smollm2-135m-instruct --adapter FOLDER

`replicas`: two replicas of one pool under load, one of them killed by SIGKILL and started again. `canary`: a
canary from 10 to 50 to 100 per cent of the users and back, under the same load. `remote`: the second engine
plays a service elsewhere, which an alias escalates to; the gateway is killed in the middle of one escalation,
and the ledger is held against what that engine says it used.
"""

import argparse
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

from benchmarks.report import Line  # noqa: E402
from benchmarks.serving_bench import ALIAS, PROMPT, Bench, ask  # noqa: E402
from benchmarks.serving_stage import Running, Stage, set_up  # noqa: E402

CLIENTS = 4
USERS = 40
NUMBERS = {"type": "array", "items": {"type": "integer"}, "minItems": 200}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "n",
        "schema": {"type": "object", "required": ["n"], "properties": {"n": NUMBERS}},
    },
}
"""More than the tokens that are asked for can say: what is made here fails it, and is asked elsewhere."""


class Pair:
    """The stage with a second engine and its agent."""

    def __init__(self, stage: Stage, stack: ExitStack) -> None:
        from stillhouse.embedded.home import BASE_ID, reserve_port  # noqa: PLC0415

        self.stage, self.bench, self.base = stage, Bench(stage), BASE_ID
        port = reserve_port()
        self.url = f"http://127.0.0.1:{port}"
        program, folder = stage.engine.program, stage.engine.log.parent
        first = stage.engine_url.rpartition(":")[2]
        argv = [str(port) if part == first else part for part in program.argv]
        self.engine = Running(replace(program, argv=argv, ready=self._answers), folder / "vllm-2.log")
        where = stage.agent.program.environment["ADAPTERS_DIR"] + "-2"
        changed = {"ENGINE_URL": self.url, "REPLICA": "embedded-1", "ADAPTERS_DIR": where}
        environment = {**stage.agent.program.environment, **changed}
        self.agent = Running(replace(stage.agent.program, environment=environment), folder / "agent-2.log")
        self.engine.start()
        stack.callback(self.engine.kill)
        self.engine.wait()
        self.figures: dict[str, Any] = {}

    async def _answers(self) -> bool:
        from stillhouse.embedded.services import http_ok  # noqa: PLC0415

        return await http_ok(f"{self.url}/health")

    def ready_on(self, version: Any, replicas: int) -> bool:
        from stillhouse.serving.queries import replicas_ready  # noqa: PLC0415

        return replicas_ready(version).count() == replicas

    def crowd(self, during: Callable[[], None]) -> Counter[str]:
        """Statuses of the answers that apps get while `during` runs."""
        ended, said = threading.Event(), Counter[str]()

        def app() -> None:
            with httpx.Client(base_url=self.stage.url, timeout=60) as client:
                while not ended.is_set():
                    said[str(ask(client, ALIAS, self.stage.key).status)] += 1

        apps = [threading.Thread(target=app) for _ in range(CLIENTS)]
        for one in apps:
            one.start()
        during()
        ended.set()
        for one in apps:
            one.join()
        return said

    # ---- the parts

    def replicas(self, version: Any) -> None:
        def kill_one() -> None:
            time.sleep(10)
            self.engine.kill()
            time.sleep(15)
            self.engine.start()
            self.engine.wait()
            healthy = time.perf_counter()
            self.bench.until(lambda: self.ready_on(version, 2), "the second replica", 120)
            self.figures["replica_back_s"] = round(time.perf_counter() - healthy, 2)
            time.sleep(5)

        self.figures["replica_killed_answers"] = dict(self.crowd(kill_one))

    def canary(self, old: Any, new: Any) -> None:
        """Up to 100 per cent, where the new version is published; and down again, where the old one takes a
        growing part of its requests."""
        from stillhouse.publishing.actions import start_canary  # noqa: PLC0415
        from stillhouse.publishing.models import Alias  # noqa: PLC0415

        shares: dict[str, float] = {}

        def there_and_back() -> None:
            alias = Alias.objects.get(name=ALIAS)
            for version, percent in [(new, 10), (new, 50), (new, 100), (old, 50), (old, 90), (old, 100)]:
                start_canary(by=self.stage.lead, alias=alias, version=version, percent=percent)
                time.sleep(1)
                way = f"up to {percent}" if version is new else f"down to {100 - percent}"
                shares[way] = self.share_of(new)

        self.figures["canary_answers"] = dict(self.crowd(there_and_back))
        self.figures["canary_shares"] = shares

    def share_of(self, version: Any) -> float:
        """Share of the users that it answers, told by its tokens."""
        hits = 0
        for number in range(USERS):
            body = {"model": ALIAS, "messages": PROMPT, "max_tokens": 1, "temperature": 0, "logprobs": True}
            answer = self.post({**body, "user": f"user-{number}"}).json()
            value = answer["choices"][0]["logprobs"]["content"][0]["logprob"]
            if self.bench.prints.whose(value) != answer["model"]:
                raise SystemExit("another version answered than the one named")
            hits += answer["model"] == version.serving_name
        return round(hits / USERS, 2)

    def post(self, body: dict[str, Any]) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.stage.key}"}
        answer = httpx.post(f"{self.stage.url}/v1/chat/completions", json=body, headers=headers, timeout=120)
        answer.raise_for_status()
        return answer

    def remote(self) -> None:
        """Prices are 1 and 2 per million tokens: a cost says what was counted."""
        from django.conf import settings  # noqa: PLC0415

        from stillhouse.publishing.escalation import EscalationTerms, start_escalation  # noqa: PLC0415
        from stillhouse.publishing.models import Alias  # noqa: PLC0415
        from stillhouse.usage.models import EscalationHold, UsageRecord  # noqa: PLC0415

        settings.ESCALATION_DESTINATIONS = [self.url]
        web = self.stage.web
        web.kill()
        changed = {**web.program.environment, "ESCALATION_DESTINATIONS": self.url}
        web.program = replace(web.program, environment=changed)
        web.start()
        web.wait()
        terms = EscalationTerms(
            url=f"{self.url}/v1",
            model=self.base,
            credential="none",
            prompt_price=Decimal(1),
            completion_price=Decimal(2),
            monthly_budget=Decimal(1),
            reasons=("format",),
            consent="A measurement on this machine.",
        )
        start_escalation(by=self.stage.lead, alias=Alias.objects.get(name=ALIAS), terms=terms)
        time.sleep(2)
        body = {"model": ALIAS, "messages": PROMPT, "response_format": SCHEMA, "max_tokens": 2}
        said = [self.post(body) for _ in range(6)]
        used = [answer.json()["usage"] for answer in said]
        rows = UsageRecord.objects.filter(escalation="format")
        self.bench.until(lambda: rows.count() == len(said), "the rows")
        cost = sum(1000 * one["prompt_tokens"] + 2000 * one["completion_tokens"] for one in used)
        self.figures["remote_answers"] = sum(
            answer.headers["x-stillhouse-version"] == f"remote:{self.base}" for answer in said
        )
        self.figures["remote_cost_exact"] = sum(rows.values_list("cost", flat=True)) == cost
        self.kill_in_the_middle({**body, "max_tokens": 80, "stream": True})
        self.bench.until(lambda: rows.count() == len(said) + 1, "the row of the killed one")
        killed = rows.get(status=0)
        self.figures["remote_killed_row"] = {
            "completion_tokens": killed.completion_tokens,
            "cost_is_its_tokens": killed.cost
            == 1000 * killed.prompt_tokens + 2000 * killed.completion_tokens,
        }
        self.figures["remote_holds_left"] = EscalationHold.objects.count()

    def kill_in_the_middle(self, body: dict[str, Any]) -> None:
        headers = {"authorization": f"Bearer {self.stage.key}"}
        where = f"{self.stage.url}/v1/chat/completions"
        try:
            with httpx.stream("POST", where, json=body, headers=headers, timeout=120) as answer:
                if "x-stillhouse-escalation" not in answer.headers:
                    raise SystemExit("the stream was not escalated")
                for number, _ in enumerate(answer.iter_lines()):
                    if number == 12:
                        self.stage.web.kill()
        except httpx.TransportError:
            pass
        self.stage.web.start()
        self.stage.web.wait()


def run(stack: ExitStack, options: argparse.Namespace) -> dict[str, Any]:
    stage = set_up(stack, options.base, options.adapter, options.engine_threads)
    pair = Pair(stage, stack)
    pair.agent.start()
    stack.callback(pair.agent.kill)
    old, new = (stage.version(factor) for factor in (1.0, 1.3))
    pair.bench.until(lambda: all(pair.ready_on(one, 2) for one in (old, new)), "the proofs", 300)
    pair.bench.take_fingerprints([old.serving_name, new.serving_name])
    from stillhouse.publishing.actions import publish  # noqa: PLC0415

    publish(by=stage.lead, alias_name=ALIAS, version=old)
    time.sleep(1)
    parts = {
        "replicas": lambda: pair.replicas(old),
        "canary": lambda: pair.canary(old, new),
        "remote": pair.remote,
    }
    for name in options.only or parts:
        parts[name]()
        print(json.dumps(pair.figures), file=sys.stderr, flush=True)
    return pair.figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="folder of the demonstration base")
    parser.add_argument("--adapter", type=Path, required=True, help="a trained adapter of it")
    parser.add_argument("--engine-threads", type=int, help="of each engine; by default as many as cores")
    parser.add_argument("--only", nargs="*", help="replicas canary remote")
    options = parser.parse_args()
    line = Line("serving_pair")
    with ExitStack() as stack:
        figures = run(stack, options)
    line.end(figures)


if __name__ == "__main__":
    main()
