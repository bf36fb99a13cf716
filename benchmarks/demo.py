"""The whole way, cold and warm: seconds, memory, publish-to-first-token. Ends with one JSON line.

    python benchmarks/demo.py [--port 8765]

Cold: `ONCE=1 make demo` in a copy of this checkout that has nothing installed, its virtual environment
included (packages come from the installer's cache where it has them; the line says how long that part took).
Warm: the same command again.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report import Line  # noqa: E402

KEPT = ("base_exact", "adapter_exact", "rows", "seconds", "publish_to_first_token_ms", "peak_memory_mb")


def run(copy: Path, *command: str, port: int) -> float:
    """Seconds of one command in the copy; its output goes to this process's stderr."""
    environment = {**os.environ, "ONCE": "1", "PORT": str(port), "STILLHOUSE_HOME": str(copy / "var")}
    environment.pop("DATABASE_URL", None)
    began = time.monotonic()
    subprocess.run(command, cwd=copy, env=environment, stdin=subprocess.DEVNULL, stdout=2, check=True)
    return round(time.monotonic() - began, 1)


def copy_checkout(target: Path) -> None:
    """The files of this checkout that git does not ignore, committed or not."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def demonstrate(copy: Path, port: int) -> dict[str, Any]:
    """One demonstration: its seconds, and what its demo.json says."""
    seconds = run(copy, "make", "demo", port=port)
    measured = json.loads((copy / "var" / "demo.json").read_text(encoding="utf-8"))
    return {"total_seconds": seconds, **{name: measured[name] for name in KEPT}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8765)
    port = parser.parse_args().port
    line = Line("demo")
    with tempfile.TemporaryDirectory(prefix="stillhouse-demo-") as folder:
        copy = Path(folder) / "stillhouse"
        copy_checkout(copy)
        install = run(copy, "make", "venv", port=port)
        cold = demonstrate(copy, port)
        cold["total_seconds"] = round(cold["total_seconds"] + install, 1)
        warm = demonstrate(copy, port)
    line.end({"install_seconds": install, "cold": cold, "warm": warm})


if __name__ == "__main__":
    main()
