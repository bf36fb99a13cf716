"""What the benchmarks of serving have in common: a stage, an app beside it, and what was measured.

Which version answered is read from the answer itself: every version moves the model by another amount, so the
log-probability of its first token under one prompt tells them apart.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from benchmarks.serving_stage import Stage

ALIAS = "measured"
PROMPT = [{"role": "user", "content": "Which clause is this? The tenant pays on the first of each month."}]
SETTLE_SECONDS = 0.5
"""The goal for a publication: a request sent later than this after it has to have the new version."""


@dataclass
class Fingerprints:
    """Log-probability of the first token under `PROMPT`, by serving name."""

    known: dict[str, float] = field(default_factory=dict)

    @property
    def apart(self) -> float:
        """The smallest distance between two of them, in nats."""
        values = sorted(self.known.values())
        return min((b - a for a, b in pairwise(values)), default=1.0)

    def whose(self, value: float) -> str:
        """The version that answers so; empty when it is nearer to none than half their distance."""
        name = min(self.known, key=lambda one: abs(self.known[one] - value))
        return name if abs(self.known[name] - value) < self.apart / 2 else ""


@dataclass(frozen=True)
class Answer:
    status: int
    model: str = ""
    """As the answer says."""
    value: float = 0.0
    """Its fingerprint."""


def ask(client: httpx.Client, model: str, key: str = "") -> Answer:
    """One token; any failure of the connection counts as status 0."""
    body = {"model": model, "messages": PROMPT, "max_tokens": 1, "temperature": 0, "logprobs": True}
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = client.post("/v1/chat/completions", json=body, headers=headers)
    except httpx.TransportError:
        return Answer(0)
    if answer.status_code != 200:
        return Answer(answer.status_code)
    said = answer.json()
    return Answer(200, said["model"], said["choices"][0]["logprobs"]["content"][0]["logprob"])


class Bench:
    """The stage with its app, and what was measured."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.app = httpx.Client(base_url=stage.url, timeout=60)
        self.direct = httpx.Client(base_url=stage.engine_url, timeout=60)
        self.prints = Fingerprints()
        self.figures: dict[str, Any] = {}

    def ask(self, model: str = ALIAS) -> Answer:
        return ask(self.app, model, self.stage.key)

    def note(self, name: str, seconds: Sequence[float]) -> None:
        """Median and 95th percentile, in milliseconds."""
        at = sorted(seconds)
        self.figures[f"{name}_p50_ms"] = round(statistics.median(at) * 1000, 1)
        self.figures[f"{name}_p95_ms"] = round(at[min(len(at) - 1, int(0.95 * len(at)))] * 1000, 1)
        self.figures[f"{name}_times"] = len(at)

    def until(
        self, is_it: Callable[[], bool], what: str, seconds: float = 120, pause: float = 0.005
    ) -> float:
        """Seconds it took."""
        began = time.perf_counter()
        while not is_it():
            if time.perf_counter() - began > seconds:
                raise SystemExit(f"{what}: not within {seconds:.0f} s")
            time.sleep(pause)
        return time.perf_counter() - began

    def bare_token(self, name: str) -> float:
        """Seconds of one token of the engine alone: what the machine has to give."""
        began = time.perf_counter()
        if ask(self.direct, name).status != 200:
            raise SystemExit(f"the engine did not answer for {name}")
        return time.perf_counter() - began

    def note_bare_token(self, when: str) -> None:
        seconds = [self.bare_token(next(iter(self.prints.known))) for _ in range(5)]
        self.note(f"bare_token_{when}", seconds)

    def correct(self, name: str) -> bool:
        answer = self.ask()
        return answer.status == 200 and self.prints.whose(answer.value) == name

    def resolves_to(self, name: str) -> bool:
        """What the gateway would send the alias's next request to; costs the engine nothing."""
        headers = {"authorization": f"Bearer {self.stage.key}"}
        return bool(self.app.get(f"/v1/models/{ALIAS}", headers=headers).json().get("root") == name)

    def until_proven(self, versions: Sequence[Any], seconds: float = 300) -> None:
        """Until the replica has proven them by all samples, as it has what was placed for a while."""
        from stillhouse.serving.models import Holding  # noqa: PLC0415

        golden = versions[0].manifest.golden
        tokens = sum(len(sample.target_ids) for sample in golden)
        whole = Holding.objects.filter(version__in=list(versions), state=Holding.READY, proof__tokens=tokens)
        self.until(lambda: whole.count() == len(versions), "the proofs", seconds, pause=0.1)

    def take_fingerprints(self, names: Sequence[str]) -> None:
        spread = 0.0
        for name in names:
            values = [ask(self.direct, name).value for _ in range(5)]
            self.prints.known[name] = statistics.median(values)
            spread = max(spread, max(values) - min(values))
        self.figures["fingerprints_apart_nats"] = round(self.prints.apart, 4)
        self.figures["fingerprints_spread_nats"] = round(spread, 4)
        if self.prints.apart < 4 * spread or self.prints.apart < 1e-3:
            raise SystemExit(f"the versions cannot be told apart: {self.prints.known}")

    def load(self, name: str, folder: Path) -> None:
        """The bare engine's own call."""
        body = {"lora_name": name, "lora_path": str(folder)}
        self.direct.post("/v1/load_lora_adapter", json=body).raise_for_status()

    def unload(self, name: str) -> None:
        self.direct.post("/v1/unload_lora_adapter", json={"lora_name": name}).raise_for_status()
