"""The stage of `benchmarks/serving.py`: a platform of its own in a temporary folder, with a real engine.

The same programs as `make up` (Postgres, S3 server, web with the gateway, vLLM, its agent), without the
workers: adapter versions are made here, from one trained adapter, by the actions a finished run ends in.
"""

import asyncio
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import torch
from safetensors.torch import load, save

from stillhouse.embedded.home import reserve_port
from stillhouse.embedded.process import Program, child_environment
from tests.stores import Stores

if TYPE_CHECKING:
    from stillhouse.accounts.models import Membership
    from stillhouse.adapters.models import AdapterVersion
    from stillhouse.embedded.home import Home

ROOT = Path(__file__).resolve().parents[1]
STEPS = ["max_steps=6", "learning_rate=1e-3", "batch_size=6", "rank=4"]
WEIGHTS, CONFIG, MANIFEST = "adapter_model.safetensors", "adapter_config.json", "manifest.json"


def train(base: Path, out: Path) -> Path:
    """A small adapter of the demonstration base, by our own engine (a minute or two on two cores)."""
    command = [sys.executable, "-m", "workers", "train", "--base", str(base), "--out", str(out)]
    command += ["--data", "examples/contracts/train.jsonl"]
    command += [part for setting in STEPS for part in ("--set", setting)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=2, timeout=900)
    return out / "adapter"


@dataclass
class Running:
    """A program of the platform."""

    program: Program
    log: Path
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.program.command(),
                cwd=ROOT,
                env=child_environment(self.program.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + max(300.0, self.program.start_timeout)
        while not asyncio.run(self._answers()):
            if self.process is not None and self.process.poll() is not None:
                raise SystemExit(f"{self.program.name} ended:\n{self.log.read_text()[-2000:]}")
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.program.name} did not start in time")
            time.sleep(0.02)

    async def _answers(self) -> bool:
        return self.program.ready is None or await self.program.ready()

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else 0

    def kill(self) -> None:
        """As the kernel does when memory runs out: all of it, no good-bye."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(60)

    def pause(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)

    def memory_mb(self) -> float:
        """Resident, of the program and everything in its session."""
        kibibytes = 0
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                session = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[3])
                if session == self.pid:
                    kibibytes += int((folder / "status").read_text().split("VmRSS:")[1].split()[0])
            except (OSError, IndexError):
                continue  # it has ended meanwhile, or is no user process
        return round(kibibytes / 1024, 1)


@dataclass
class Stage:
    """What stands. `expert` and `lead` are members of one workspace."""

    url: str
    engine_url: str
    key: str
    expert: "Membership"
    lead: "Membership"
    folder: Path
    """The trained adapter."""
    web: Running
    engine: Running
    agent: Running
    gateway: Running
    """One more, in a process of its own; not started."""
    gateway_url: str
    made: int = field(default=0)

    def memory_mb(self) -> dict[str, float]:
        """Resident, of what runs."""
        running = (self.gateway, self.web, self.agent, self.engine)
        return {one.program.name: one.memory_mb() for one in running if one.process is not None}

    def version(self, factor: float = 1.0) -> "AdapterVersion":
        """A new approved version with its files in the store, placed; its LoRA moves by `factor`."""
        from stillhouse.approvals.actions import ask_approval, decide  # noqa: PLC0415
        from stillhouse.serving.actions import place_version  # noqa: PLC0415
        from tests.registry import evaluate  # noqa: PLC0415

        version = self._registered(factor)
        evaluate(version)
        ask_approval(by=self.expert, version=version)
        decide(by=self.lead, version=version, verdict="approved", reason="A version for measuring.")
        place_version(version=version)
        version.refresh_from_db()
        return version

    def _registered(self, factor: float) -> "AdapterVersion":
        from stillhouse.adapters.actions import register_version  # noqa: PLC0415
        from stillhouse.core import blobs  # noqa: PLC0415
        from stillhouse.training.actions import start_run  # noqa: PLC0415
        from tests.registry import DEMO_BASE, data_version, manifest_of  # noqa: PLC0415
        from workers.contract import AdapterManifest, ManifestFile, OutputFile  # noqa: PLC0415

        self.made += 1
        data = data_version(self.expert, f"Data {self.made}")
        run = start_run(by=self.expert, adapter_name=f"measured-{self.made}", base=DEMO_BASE, data=data)
        trained = AdapterManifest.model_validate_json((self.folder / MANIFEST).read_bytes())
        bodies = {
            CONFIG: (self.folder / CONFIG).read_bytes(),
            WEIGHTS: _scaled((self.folder / WEIGHTS).read_bytes(), factor),
        }
        files = [
            ManifestFile(name=name, size=len(body), sha256=hashlib.sha256(body).hexdigest())
            for name, body in bodies.items()
        ]
        manifest = manifest_of(run, files=files, golden=trained.golden)
        bodies[MANIFEST] = manifest.model_dump_json().encode()
        stored = {name: blobs.put(body) for name, body in bodies.items()}
        outputs = [OutputFile(name=name, size=blob.size, sha256=blob.sha256) for name, blob in stored.items()]
        return register_version(run=run, manifest=manifest, digest=stored[MANIFEST].sha256, files=outputs)


def _scaled(weights: bytes, factor: float) -> bytes:
    if factor == 1.0:
        return weights
    (length,) = struct.unpack("<Q", weights[:8])
    metadata = json.loads(weights[8 : 8 + length]).get("__metadata__")
    tensors = load(weights)
    moved = {
        name: (tensor.to(torch.float32) * factor).to(tensor.dtype) if "lora_B" in name else tensor
        for name, tensor in tensors.items()
    }
    return bytes(save(moved, metadata))


def set_up(stack: ExitStack, base: Path, adapter: Path, engine_threads: int | None) -> Stage:
    """Start everything; `stack` stops it again. Django is set up by this, once a process."""
    stores = Stores()
    home = stores.home
    home.base.parent.mkdir(parents=True, exist_ok=True)
    home.base.symlink_to(base.resolve())
    os.environ.update(home.settings(), DJANGO_SETTINGS_MODULE="stillhouse.settings", LOG_LEVEL="WARNING")
    import django  # noqa: PLC0415

    django.setup()
    stack.callback(stores.stop)
    stores.start()
    from stillhouse.embedded import platform  # noqa: PLC0415

    program = platform.vllm(home)
    if engine_threads:
        threads = {"OMP_NUM_THREADS": str(engine_threads)}
        program = replace(program, environment={**program.environment, **threads})
    engine = Running(program, home.logs / "vllm.log")
    engine.start()
    stack.callback(engine.kill)
    key, expert, lead = _people_and_pool(base)
    web = Running(platform.web(home), home.logs / "web.log")
    agent = Running(platform.agent(home), home.logs / "agent.log")
    for one in (web, agent):
        one.start()
        stack.callback(one.kill)
    web.wait()
    engine.wait()
    engine_url = f"http://127.0.0.1:{home.ports()['vllm']}"
    gateway, gateway_url = _gateway(home, web)
    stack.callback(gateway.kill)
    return Stage(home.url, engine_url, key, expert, lead, adapter, web, engine, agent, gateway, gateway_url)


def _gateway(home: "Home", web: Running) -> tuple[Running, str]:
    """The command of `web`, with the gateway's own entry."""
    url = f"http://127.0.0.1:{reserve_port()}"
    swapped = {"stillhouse.asgi:application": "stillhouse.gateway.asgi:application"}
    swapped[str(home.ports()["web"])] = url.rpartition(":")[2]

    async def ready() -> bool:
        try:
            return httpx.get(f"{url}/v1/models").status_code == 401  # it runs, and knows no such caller
        except httpx.TransportError:
            return False

    program = replace(
        web.program,
        name="gateway",
        argv=[swapped.get(part, part) for part in web.program.argv],
        environment={**web.program.environment, "SPOOL_DIR": f"{home.path}/spool-gateway"},
        ready=ready,
    )
    return Running(program, home.logs / "gateway.log"), url


def _people_and_pool(base: Path) -> tuple[str, Any, Any]:
    from django.core.management import call_command  # noqa: PLC0415

    call_command("migrate", verbosity=0)
    from stillhouse.accounts.actions import add_member, create_key, create_workspace  # noqa: PLC0415
    from stillhouse.accounts.models import Role  # noqa: PLC0415
    from stillhouse.catalog.actions import add_base, sync_catalog  # noqa: PLC0415
    from stillhouse.core import blobs  # noqa: PLC0415
    from stillhouse.embedded.home import POOL  # noqa: PLC0415
    from stillhouse.serving.actions import add_pool  # noqa: PLC0415

    blobs.ensure_bucket()
    sync_catalog()
    workspace = create_workspace(name="Acme", slug="acme")

    def member(name: str, role: Role) -> Any:
        email, secret = f"{name.lower()}@example.com", hashlib.sha256(os.urandom(16)).hexdigest()
        return add_member(workspace=workspace, email=email, password=secret, name=name, role=role)

    expert, lead = member("Erin", Role.EXPERT), member("Lee", Role.LEAD)
    _, key = create_key(by=lead, name="benchmark")
    add_pool(name=POOL, base=add_base(base))
    return key, expert, lead
