"""The processes of the platform itself, with the same commands as docker-compose.yml."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from celery.utils.nodenames import gethostname

from stillhouse.embedded.home import BASE_ID, POOL, Home
from stillhouse.embedded.process import Program
from stillhouse.embedded.services import http_ok

ENGINE_BOOT_TIMEOUT = 420.0
"""Seconds. vLLM needs 48 on two idle cores, and shares them with everything else that starts."""
MAX_RANK = "32"
"""Largest adapter rank of the engine. Measured on two cores: rank-16 adapters answer twice as fast when the
engine allows for 16 as when it allows for 64. The catalog refuses larger ones at submit."""
CAPACITY = "16"
"""Adapters the engine keeps in memory."""


def web(home: Home) -> Program:
    """Pages, control API, worker API and gateway."""

    async def ready() -> bool:
        return await http_ok(f"{home.url}/health")

    return Program(
        name="web",
        argv=[
            *[sys.executable, "-m", "uvicorn", "stillhouse.asgi:application", "--app-dir", "platform"],
            *["--host", "127.0.0.1", "--port", str(home.ports()["web"])],
            *[
                "--loop",
                "uvloop",
                "--http",
                "stillhouse.gateway.protocol:LimitedHttp",
                "--no-access-log",
                "--timeout-graceful-shutdown",
                "5",
            ],
        ],
        environment=home.settings(),
        ready=ready,
    )


def keeper(home: Home) -> Program:
    """The loop that relays the outbox, reaps lost leases and rolls usage up."""
    return Program(name="keeper", argv=[sys.executable, "manage.py", "keeper"], environment=home.settings())


def worker(home: Home, queue: str) -> Program:
    """A Celery worker of one queue, `cpu` or `gpu`. It gets no database and no object-store credentials."""
    name = f"worker-{queue}"

    return Program(
        name=name,
        argv=[
            *[sys.executable, "-m", "celery", "-A", "workers.runtime.app", "worker", "--queues", queue],
            *["--pool", "solo", "--without-gossip", "--without-mingle", "--without-heartbeat"],
            *["--loglevel", "INFO", "--hostname", f"{name}@%h"],
        ],
        environment=_only(
            home,
            "STILLHOUSE_URL",
            "WORKER_TOKEN",
            "BROKER_URL",
            "BASES_DIR",
            WORK_DIR=f"{home.path}/work",
            WORKER_NAME=name,
        ),
        ready_line=f"{name}@{gethostname()} ready.",
        stop_timeout=20.0,  # it hands a running job back, with a checkpoint
    )


def _engine_dtype() -> str:
    """The base's own bf16, or fp32 where the processor has no units for it and products take far longer."""
    features = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return "bfloat16" if re.search(r"\b(avx512bw|bf16)\b", features) else "float32"


def vllm(home: Home) -> Program:
    """The engine, with the demonstration base, on loopback; only the agent and the gateway speak to it."""
    port = home.ports()["vllm"]

    async def ready() -> bool:
        return await http_ok(f"http://127.0.0.1:{port}/health")

    return Program(
        name="vllm",
        argv=[
            *[sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(home.base)],
            *["--served-model-name", BASE_ID, "--host", "127.0.0.1", "--port", str(port)],
            *["--dtype", _engine_dtype(), "--max-model-len", "2048", "--max-num-seqs", "8"],
            "--enforce-eager",  # compiling takes longer than it saves on a base this small
            *["--enable-lora", "--max-lora-rank", MAX_RANK, "--max-loras", "4"],
            *["--max-cpu-loras", CAPACITY],
            # Never lm_head: prompt log-probabilities (the golden proof) would then end the engine.
            *[
                "--lora-target-modules",
                "q_proj",
                "k_proj",
                "v_proj",
                "o_proj",
                "gate_proj",
                "up_proj",
                "down_proj",
            ],
        ],
        environment={
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # vLLM would still compile, at the first log-probabilities of each new shape, what counts ranks:
            # the first proofs after a start, which every version waits for.
            "TORCH_COMPILE_DISABLE": "1",
            # A thread that is done sleeps until the others are: the cores are the whole platform's, and one
            # that spins keeps them from the very thread it waits for.
            "OMP_WAIT_POLICY": "passive",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_CACHE_ROOT": f"{home.path}/vllm",
        },
        ready=ready,
        start_timeout=ENGINE_BOOT_TIMEOUT,
        orphan_signal="TERM",
    )


def agent(home: Home) -> Program:
    """Beside the engine: makes what is loaded equal what is wanted."""
    return Program(
        name="agent",
        argv=[sys.executable, "-m", "workers", "agent"],
        environment=_only(
            home,
            "STILLHOUSE_URL",
            "AGENT_TOKEN",
            "BASES_DIR",
            ENGINE_URL=f"http://127.0.0.1:{home.ports()['vllm']}",
            POOL=POOL,
            REPLICA="embedded-0",
            ADAPTERS_DIR=f"{home.path}/adapters",
            MAX_LORA_RANK=MAX_RANK,
            MAX_CPU_LORAS=CAPACITY,
        ),
    )


def _only(home: Home, *names: str, **more: str) -> Mapping[str, str]:
    """Of the platform's settings just `names`, and `more`."""
    settings = home.settings()
    return {**{name: settings[name] for name in names}, **more}
