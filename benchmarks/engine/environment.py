"""A peer's own virtual environment in var/bench, from its hash-locked list in benchmarks/requirements."""

import hashlib
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LISTS = ROOT / "benchmarks" / "requirements"
TORCH = ROOT / "requirements" / "torch.txt"


def home() -> Path:
    """Where benchmarks keep what they make; ignored by git."""
    return Path(os.environ.get("STILLHOUSE_HOME", ROOT / "var")).absolute() / "bench"


def python_of(name: str) -> Path:
    """The interpreter of the environment `name`, made now when it is not what its list says."""
    folder = home() / name
    locked = LISTS / f"{name}.txt"
    digest = hashlib.sha256(locked.read_bytes() + TORCH.read_bytes()).hexdigest()
    stamp = folder / "stamp"
    python = folder / "bin" / "python"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
        return python
    print(f"Installing {name} into {folder} (once)", file=sys.stderr, flush=True)
    venv.create(folder, clear=True, with_pip=True)
    uv = Path(sys.executable).with_name("uv")
    settings = _for_uv()
    install: list[str | Path] = [
        uv,
        "pip",
        "install",
        "--quiet",
        "--python",
        python,
        "--no-deps",
        "--require-hashes",
    ]
    subprocess.run([*install, "-r", locked], env=settings, check=True)
    # By pip, which finds the build of torch that belongs to this machine (see requirements/torch.txt).
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", TORCH], check=True
    )
    stamp.write_text(digest, encoding="utf-8")
    return python


def _for_uv() -> dict[str, str]:
    """uv does not read pip's configuration: a site's own index and certificate are handed on."""
    settings = dict(os.environ)
    settings.setdefault("UV_FIND_LINKS", settings.get("PIP_FIND_LINKS", ""))
    configured = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True,
        text=True,
        check=False,
    )
    index = settings.get("PIP_INDEX_URL") or configured.stdout.strip()
    if index:
        settings.setdefault("UV_DEFAULT_INDEX", index)
    if "PIP_CERT" in settings:
        settings.setdefault("SSL_CERT_FILE", settings["PIP_CERT"])
    return settings


def versions(python: Path | str, names: tuple[str, ...]) -> dict[str, str]:
    """The installed versions of `names` as that interpreter sees them; those it lacks are left out."""
    script = (
        "import json, sys, importlib.metadata as m\n"
        "found = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({n: found[n] for n in sys.argv[1:] if n in found}))"
    )
    done = subprocess.run(
        [str(python), "-c", script, *names], capture_output=True, text=True, check=True, timeout=60
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found
