"""Client of one vLLM: what it is, what it holds, loading and unloading, and token log-probabilities."""

import math
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

LOOK_TIMEOUT = httpx.Timeout(5.0)
LOAD_TIMEOUT = httpx.Timeout(120.0, connect=5.0)
ANSWER_TIMEOUT = httpx.Timeout(120.0, connect=5.0)
START_TIME = re.compile(r"^process_start_time_seconds\s+(\S+)$", re.MULTILINE)
REQUESTS = re.compile(r"^vllm:num_requests_(?:running|waiting)(?:\{[^}]*\})?\s+(\S+)$", re.MULTILINE)
BUSY_ADAPTERS = re.compile(r"^vllm:lora_requests_info\{(.*)\}\s+(\S+)$", re.MULTILINE)
ADAPTER_LABEL = re.compile(r'(?:running|waiting)_lora_adapters="([^"]*)"')


class EngineError(Exception):
    """The engine did not do what it was asked. The text is a sentence for the pool page."""


@dataclass(frozen=True)
class EngineView:
    """One look at the engine."""

    healthy: bool
    incarnation: str = ""
    """Changes when the engine restarts."""
    version: str = ""
    base: str = ""
    """Name the base is served under."""
    max_length: int = 0
    """Tokens of prompt and answer together."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Registered adapters: name -> folder they were loaded from."""
    requests: int | None = None
    """Running and waiting ones; None when the engine does not tell."""
    busy: frozenset[str] = frozenset()
    """Adapters that those requests use, registered or not any more."""

    def may_read(self, suffix: str) -> bool:
        """Whether a request may still make the engine read the files of the adapter whose name ends so."""
        return self.requests is None or any(name.endswith(suffix) for name in self.busy)


class _Card(BaseModel):
    model_config = ConfigDict(extra="ignore")
    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class _Models(BaseModel):
    model_config = ConfigDict(extra="ignore")
    data: list[_Card]


class _Version(BaseModel):
    model_config = ConfigDict(extra="ignore")
    version: str = ""


class _Logprob(BaseModel):
    model_config = ConfigDict(extra="ignore")
    logprob: float


class _Choice(BaseModel):
    model_config = ConfigDict(extra="ignore")
    index: int
    prompt_logprobs: list[dict[int, _Logprob] | None] | None = None


class _Tokens(BaseModel):
    model_config = ConfigDict(extra="ignore")
    tokens: list[int]


class _Completion(BaseModel):
    model_config = ConfigDict(extra="ignore")
    choices: list[_Choice]


class Engine:
    """One engine by its base URL, without /v1."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, follow_redirects=False)
        self._seen = ""
        self._was_away = True
        self._version = ("", "")
        """An incarnation, and its version."""

    def close(self) -> None:
        self._client.close()

    def answers(self) -> bool:
        """Whether it is healthy, and nothing more."""
        try:
            return self._client.get("/health", timeout=LOOK_TIMEOUT).is_success
        except httpx.HTTPError:
            return False

    def look(self) -> EngineView:
        """What the engine is and holds now; an engine that does not answer is unhealthy, not an error."""
        try:
            if not self.answers():
                return self._away()
            models = _Models.model_validate_json(self._get("/v1/models"))
            metrics = self._get("/metrics").decode("utf-8", "replace")
            incarnation = self._incarnation(metrics)
            version = self._version_of(incarnation)
        except (httpx.HTTPError, EngineError, ValidationError):
            return self._away()
        base = next((card for card in models.data if card.parent is None), None)
        if base is None:
            return self._away()
        return EngineView(
            healthy=True,
            incarnation=incarnation,
            version=version,
            base=base.id,
            max_length=base.max_model_len or 0,
            adapters={card.id: card.root or "" for card in models.data if card.parent is not None},
            requests=_requests(metrics),
            busy=_busy(metrics),
        )

    def load(self, name: str, folder: str) -> None:
        """Register the adapter in `folder` (absolute) under `name`, for the first and only time.

        The engine reads a relative or missing path from a public hub, so the caller has checked it.
        """
        self._admin("/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})

    def unload(self, name: str) -> None:
        """Unregister `name`; new requests under it are refused from now on. Unknown names are fine."""
        self._admin("/v1/unload_lora_adapter", {"lora_name": name}, fine=(httpx.codes.NOT_FOUND,))

    def target_logprobs(
        self, model: str, samples: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[list[float]]:
        """Log-probability in nats of every target token, for (prompt ids, target ids) samples, in one
        request.

        Prompt and target go in as the prompt, so the engine scores the target without sampling it; asking for
        prompt log-probabilities makes it compute them anew instead of reading its prefix cache. It warms the
        model up as well: the first person's request finds everything in memory.
        """
        prompts = [[*prompt, *target] for prompt, target in samples]
        completion = self._complete(
            {"model": model, "prompt": prompts, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
        )
        choices = sorted(completion.choices, key=lambda choice: choice.index)
        if len(choices) != len(samples):
            raise EngineError(f"The engine scored {len(choices)} of {len(samples)} golden samples.")
        return [_of_target(choice, target) for choice, (_, target) in zip(choices, samples, strict=True)]

    def tokens(self, model: str, text: str) -> list[int]:
        """Token ids of a text, with nothing added to it."""
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        answer = self._post("/tokenize", body, "a text to be split into tokens")
        try:
            return _Tokens.model_validate_json(answer).tokens
        except ValidationError:
            raise EngineError("The engine's answer to /tokenize has no tokens.") from None

    def _away(self) -> EngineView:
        self._was_away = True
        return EngineView(healthy=False, incarnation=self._seen)

    def _incarnation(self, metrics: str) -> str:
        """The start time of the engine's server; where it is not told, a new id whenever it comes back."""
        found = START_TIME.search(metrics)
        if found:
            self._seen = f"started-{float(found.group(1)):.2f}"
        elif self._was_away:
            self._seen = f"seen-{uuid.uuid4().hex[:16]}"
        self._was_away = False
        return self._seen

    def _version_of(self, incarnation: str) -> str:
        """Asked once: it does not change while the engine runs."""
        if self._version[0] != incarnation:
            version = _Version.model_validate_json(self._get("/version")).version
            self._version = (incarnation, f"vllm {version}")
        return self._version[1]

    def _get(self, path: str) -> bytes:
        response = self._client.get(path, timeout=LOOK_TIMEOUT)
        if not response.is_success:
            raise EngineError(f"The engine answered {response.status_code} to {path}.")
        return response.content

    def _admin(self, path: str, body: dict[str, str], fine: tuple[int, ...] = ()) -> None:
        try:
            response = self._client.post(path, json=body, timeout=LOAD_TIMEOUT)
        except httpx.HTTPError as error:
            raise EngineError(f"The engine did not answer to {path} ({type(error).__name__}).") from error
        if not response.is_success and response.status_code not in fine:
            raise EngineError(f"The engine answered {response.status_code} to {path}: {_said(response)}")

    def _complete(self, body: dict[str, object]) -> _Completion:
        answer = self._post("/v1/completions", body, "a completion")
        try:
            return _Completion.model_validate_json(answer)
        except ValidationError:
            raise EngineError("The engine's answer is not a completion with log-probabilities.") from None

    def _post(self, path: str, body: dict[str, object], what: str) -> bytes:
        try:
            response = self._client.post(path, json=body, timeout=ANSWER_TIMEOUT)
        except httpx.HTTPError as error:
            raise EngineError(f"The engine did not answer {what} ({type(error).__name__}).") from error
        if not response.is_success:
            raise EngineError(f"The engine answered {response.status_code} to {what}: {_said(response)}")
        return response.content


def _requests(metrics: str) -> int | None:
    counts = [float(count) for count in REQUESTS.findall(metrics)]
    return round(sum(counts)) if counts else None


def _busy(metrics: str) -> frozenset[str]:
    """Of the newest line: the engine keeps one for every set of adapters it ever ran, its time as value."""
    lines = [(float(at), labels) for labels, at in BUSY_ADAPTERS.findall(metrics)]
    if not lines or not _requests(metrics):
        return frozenset()
    names = ",".join(ADAPTER_LABEL.findall(max(lines)[1]))
    return frozenset(name for name in names.split(",") if name)


def _of_target(choice: _Choice, target: Sequence[int]) -> list[float]:
    scored = choice.prompt_logprobs or []
    if len(scored) < len(target):
        raise EngineError("The engine gave no log-probabilities for a golden sample.")
    values = []
    for token, entry in zip(target, scored[len(scored) - len(target) :], strict=True):
        if entry is None or token not in entry or not math.isfinite(entry[token].logprob):
            raise EngineError("The engine's log-probabilities do not cover a golden sample.")
        values.append(entry[token].logprob)
    return values


def _said(response: httpx.Response) -> str:
    """The engine's own words about an adapter it refused, cut short.

    They name files and settings, never prompts.
    """
    try:
        body = response.json()
        message = body["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return "no reason given."
    return str(message)[:300]
