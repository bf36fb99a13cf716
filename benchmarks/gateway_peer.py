"""LiteLLM's proxy before the same fake engine, for `gateway.py`: one worker, a master key, no database.

It runs in an environment of its own (`benchmarks/requirements/litellm.txt`) and is never a dependency.
"""

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

KEY = "sk-benchmark"
MODEL = "base"
_START_SECONDS = 120


def version(python: Path) -> str:
    code = "import importlib.metadata as m; print(m.version('litellm'))"
    return subprocess.run(
        [str(python), "-c", code], check=True, capture_output=True, text=True, timeout=60
    ).stdout.strip()


def start(python: Path, *, engine_port: int, port: int, folder: Path) -> "subprocess.Popen[bytes]":
    """The proxy, answering on `port`. JSON is YAML, so its configuration is written as JSON."""
    engine = {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{engine_port}/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": MODEL, "litellm_params": engine}],
        "general_settings": {"master_key": KEY},
        "litellm_settings": {"telemetry": False, "num_retries": 0},
    }
    path = folder / "litellm.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "LITELLM_LOG": "ERROR"}
    command = [str(python.with_name("litellm")), "--config", str(path), "--host", "127.0.0.1"]
    with (folder / "litellm.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--num_workers", "1"],
            env={"PATH": os.environ["PATH"], "HOME": str(folder), **quiet},
            stdout=log,
            stderr=log,
        )
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=2):
                return process
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    process.kill()
    raise SystemExit(f"LiteLLM did not start; see {folder / 'litellm.log'}")
