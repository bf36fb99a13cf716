"""The whole way, cold and warm: seconds, memory, publish-to-first-token. Ends with one JSON line.

    python benchmarks/demo.py [--port 8765]

Cold: `ONCE=1 make demo` in a fresh clone of HEAD, its virtual environment included (packages come from the
installer's cache where it has them; the line says how long that part took). Warm: the same command again.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KEPT = ("base_exact", "adapter_exact", "rows", "seconds", "publish_to_first_token_ms", "peak_memory_mb")


def run(clone: Path, *command: str, port: int) -> float:
    """Seconds of one command in the clone; its output goes to this process's stderr."""
    environment = {**os.environ, "ONCE": "1", "PORT": str(port), "STILLHOUSE_HOME": str(clone / "var")}
    environment.pop("DATABASE_URL", None)
    began = time.monotonic()
    subprocess.run(command, cwd=clone, env=environment, stdin=subprocess.DEVNULL, stdout=2, check=True)
    return round(time.monotonic() - began, 1)


def demonstrate(clone: Path, port: int) -> dict[str, Any]:
    """One demonstration: its seconds, and what its demo.json says."""
    seconds = run(clone, "make", "demo", port=port)
    measured = json.loads((clone / "var" / "demo.json").read_text(encoding="utf-8"))
    return {"total_seconds": seconds, **{name: measured[name] for name in KEPT}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8765)
    port = parser.parse_args().port
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="stillhouse-demo-") as folder:
        clone = Path(folder) / "stillhouse"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        install = run(clone, "make", "venv", port=port)
        cold = demonstrate(clone, port)
        cold["total_seconds"] = round(cold["total_seconds"] + install, 1)
        warm = demonstrate(clone, port)
    line = {
        "benchmark": "demo",
        "install_seconds": install,
        "cold": cold,
        "warm": warm,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {"cores": os.cpu_count(), "system": platform.platform()},
        "load_before": load_before,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
