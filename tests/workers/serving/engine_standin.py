"""A small real server with the part of vLLM's surface that the agent uses.

The real engine has its own, slow test.
"""

import json
import threading
import time
from collections.abc import Container
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

from workers.contract import AdapterManifest
from workers.serving.reading import TEXT

TOKENIZER = Tokenizer(
    models.BPE(
        {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []
    )
)
TOKENIZER.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
"""Of the base: a token for every byte."""
NOISE = 0.05
"""What quantisation and other kernels cost, in nats a token."""


@dataclass
class EngineStandIn:
    base: str = "tiny"
    adapters: dict[str, str] = field(default_factory=dict)
    started: float = 1_000.0
    healthy: bool = True
    applies_adapters: bool = True
    tells_start: bool = True
    loads: list[str] = field(default_factory=list)
    unloads: list[str] = field(default_factory=list)
    completions: int = 0
    asked: list[tuple[str, int]] = field(default_factory=list)
    """Of every completion: the model, and how many prompts."""
    pause: float = 0.0
    """Seconds that a completion takes."""
    at_once: int = 0
    most_at_once: int = 0
    """Completions at a time."""
    lies_about: Container[int] = ()
    """Gives the base's numbers for the golden samples of these indices, whoever is asked."""
    running: dict[str, int] = field(default_factory=dict)
    """Requests of each adapter that are still running, registered or not."""
    tokens: list[int] = field(default_factory=lambda: TOKENIZER.encode(TEXT).ids)
    """Of every text that is to be split."""
    url: str = ""

    def start(self) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        return server

    def restart(self) -> None:
        """As a real one: everything loaded is forgotten."""
        self.adapters, self.started = {}, self.started + 60

    def metrics(self) -> str:
        start = f"process_start_time_seconds {self.started}\n" if self.tells_start else ""
        names = ",".join(self.running)
        return (
            f"python_info 1.0\n{start}"
            f'vllm:num_requests_running{{engine="0",model_name="tiny"}} {sum(self.running.values())}.0\n'
            'vllm:num_requests_waiting{engine="0",model_name="tiny"} 0.0\n'
            'vllm:lora_requests_info{max_lora="4",running_lora_adapters="old@0",'
            'waiting_lora_adapters=""} 1.0\n'
            f'vllm:lora_requests_info{{max_lora="4",running_lora_adapters="{names}",'
            'waiting_lora_adapters=""} 1.7e+09\n'
        )

    def logprobs(self, model: str, prompt: list[int]) -> list[float]:
        """Of every token of the prompt, a golden sample of whatever adapter was ever loaded, or its end."""
        applied = model in self.adapters and self.applies_adapters
        for folder in dict.fromkeys(self.loads):
            manifest = AdapterManifest.model_validate_json((Path(folder) / "manifest.json").read_bytes())
            for index, sample in enumerate(manifest.golden):
                if [*sample.prompt_ids, *sample.target_ids][-len(prompt) :] == prompt:
                    honest = applied and index not in self.lies_about
                    target = sample.logprobs if honest else sample.base_logprobs
                    whole = [-9.0] * len(sample.prompt_ids) + [value + NOISE for value in target]
                    return whole[-len(prompt) :]
        return [-9.0] * len(prompt)


def _handler(engine: EngineStandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not engine.healthy:
                self._send(503, b"")
            elif self.path == "/v1/models":
                cards: list[dict[str, Any]] = [
                    {"id": engine.base, "parent": None, "max_model_len": 64, "root": "x"}
                ]
                cards += [
                    {"id": name, "parent": engine.base, "root": root}
                    for name, root in engine.adapters.items()
                ]
                self._json(200, {"data": cards})
            elif self.path == "/version":
                self._json(200, {"version": "0.0.1"})
            elif self.path == "/metrics":
                self._send(200, engine.metrics().encode())
            else:
                self._send(200, b"")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if not engine.healthy:
                self._send(503, b"")
            elif self.path == "/v1/load_lora_adapter":
                self._load(body["lora_name"], body["lora_path"])
            elif self.path == "/v1/unload_lora_adapter":
                engine.unloads.append(body["lora_name"])
                self._json(200 if engine.adapters.pop(body["lora_name"], None) else 404, {})
            elif self.path == "/tokenize":
                self._json(200, {"tokens": engine.tokens, "count": len(engine.tokens)})
            else:
                engine.completions += 1
                engine.at_once += 1
                engine.most_at_once = max(engine.most_at_once, engine.at_once)
                time.sleep(engine.pause)
                self._complete(body)
                engine.at_once -= 1

        def _load(self, name: str, path: str) -> None:
            problem = (
                ""
                if Path(path).is_absolute() and (Path(path) / "adapter_config.json").is_file()
                else "no adapter"
            )
            problem = f"{name} has already been loaded" if name in engine.adapters else problem
            if problem:
                self._json(400, {"error": {"message": problem}})
                return
            engine.adapters[name] = path
            engine.loads.append(path)
            self._send(200, b"Success")

        def _complete(self, body: dict[str, Any]) -> None:
            if body["model"] not in {engine.base, *engine.adapters}:
                self._json(404, {"error": {"message": "The model does not exist."}})
                return
            prompts = body["prompt"]
            engine.asked.append((body["model"], len(prompts)))
            choices = []
            for index, prompt in enumerate(prompts):
                scored = zip(prompt, engine.logprobs(body["model"], prompt), strict=True)
                entries = [{str(token): {"logprob": value, "rank": 1}} for token, value in scored]
                choices.append({"index": index, "text": "", "prompt_logprobs": [None, *entries[1:]]})
            self._json(200, {"choices": choices})

        def _json(self, status: int, body: object) -> None:
            self._send(status, json.dumps(body).encode())

        def _send(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
