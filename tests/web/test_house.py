"""Guards of the house itself: layout, imports, locks, and the production compose file."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose
from django.core.management import call_command

from stillhouse.embedded import platform as embedded_platform
from stillhouse.embedded.home import REPOSITORY, Home
from stillhouse.embedded.process import Program


def run_python(code: str, *, path: str = ".:platform") -> str:
    """What a fresh interpreter prints, with only `path` added to its import path."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return result.stdout.strip()


def test_the_folder_platform_does_not_shadow_the_standard_library() -> None:
    assert not (REPOSITORY / "platform" / "__init__.py").exists()
    for path in (".", "platform", ".:platform", "platform:."):
        assert run_python("import platform; print(platform.system())", path=path) == "Linux"


def test_the_contract_is_light() -> None:
    """Both sides import it: whatever it imported, both would have to install."""
    loaded = run_python("import sys, workers.contract; print(*sys.modules)").split()
    heavy = {name.partition(".")[0] for name in loaded} & {
        *("torch", "transformers", "django", "celery", "httpx", "aiohttp", "numpy", "stillhouse"),
    }
    assert not heavy


def test_a_celery_worker_does_not_hold_torch() -> None:
    """The trainer is a child process: the worker itself stays small and survives it."""
    settings = "import os; os.environ.update(STILLHOUSE_URL='http://127.0.0.1:9', WORKER_TOKEN='t', " + (
        "BROKER_URL='redis://127.0.0.1:9/0', BASES_DIR='/tmp', WORK_DIR='/tmp', WORKER_NAME='t'); "
    )
    loaded = run_python(settings + "import sys, workers.runtime.app; print(*sys.modules)").split()
    assert "celery" in loaded
    assert "torch" not in loaded


def test_who_may_import_whom() -> None:
    result = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": "platform:."},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.django_db
def test_no_migration_is_missing() -> None:
    try:
        call_command("makemigrations", check=True, dry_run=True, verbosity=1)
    except SystemExit:
        pytest.fail("A model has changed and its migration is missing: run manage.py makemigrations.")


def test_every_locked_package_has_a_hash() -> None:
    for name in ("web", "worker", "serving", "embedded", "dev", "engine", "uv"):
        text = (REPOSITORY / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
        pins = re.findall(
            r"^([a-zA-Z0-9._-]+)(?:\[.*\])?==\S+ \\\n\s+--hash=sha256:", text, flags=re.MULTILINE
        )
        named = re.findall(r"^[a-zA-Z0-9]", text, flags=re.MULTILINE)
        assert len(pins) == len(named) > 0, f"requirements/{name}.txt has a line without a hash"
        assert not [pin for pin in pins if pin.startswith(("nvidia-", "triton", "torch"))], name


VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::[-?][^${}]*)?\}")


def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8"))
    return parsed


def test_the_compose_file_follows_the_compose_specification() -> None:
    text = yaml.safe_dump(compose(), width=10_000)  # the checker reads no `<<` merges,
    while VARIABLE.search(text):  # and no variables
        text = VARIABLE.sub(lambda found: "/folder" if found[1].endswith("_DIR") else "value", text)
    checked = PyCompose.from_yaml(text)
    checked.validate()
    assert {"postgres", "valkey", "s3", "web", "keeper", "worker-cpu", "worker-gpu", "vllm", "agent"} <= set(
        checked.service_names()
    )


def test_compose_runs_the_commands_of_make_up(tmp_path: Path) -> None:
    """Same processes, same options: what differs are hosts, ports and folders."""
    home = Home(path=tmp_path, web_port=8000)
    home.create()
    services = compose()["services"]
    programs: list[Program] = [
        embedded_platform.web(home),
        embedded_platform.keeper(home),
        embedded_platform.worker(home, "cpu"),
        embedded_platform.worker(home, "gpu"),
        embedded_platform.agent(home),
    ]
    for program in programs:
        assert plain(services[program.name]["command"][1:]) == plain(program.argv[1:]), program.name
    engine = plain(embedded_platform.vllm(home).argv[1:])
    # The official image's entrypoint is `vllm serve`, whose first argument is the model.
    arguments = services["vllm"]["command"]
    assert plain(arguments[1:]) <= engine


def plain(command: Sequence[str]) -> set[str]:
    """The words of a command less what belongs to a machine: addresses, ports, paths, the engine's size."""
    words = [str(word) for word in command]
    placed = {
        "--host",
        "--port",
        "--model",
        "--served-model-name",
        "--max-model-len",
        "--max-num-seqs",
        "--max-lora-rank",
    }
    return {
        word
        for word, before in zip(words, ["", *words], strict=False)
        if before not in placed and word not in placed
    }


def test_every_secret_of_compose_comes_from_a_file() -> None:
    for name, service in compose()["services"].items():
        for variable in service.get("environment", {}):
            secret = re.search(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|DATABASE_URL|BROKER_URL", variable)
            assert not secret or variable.endswith("_FILE"), f"{name}: {variable} must be {variable}_FILE"


def test_no_image_of_ours_runs_as_root() -> None:
    dockerfiles = sorted((REPOSITORY / "deploy" / "docker").glob("*.Dockerfile"))
    assert dockerfiles
    for dockerfile in dockerfiles:
        users = re.findall(r"^USER (\S+)", dockerfile.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert users, dockerfile.name
        assert users[-1].partition(":")[0] not in ("root", "0"), dockerfile.name
