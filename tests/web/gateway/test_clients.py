"""Other people's clients against a running gateway, each from an environment of its own, as apps have them.

`benchmarks/clients/install` makes the environments; it needs a package registry, so without them these tests
say that they were skipped.
"""

import os
import subprocess
from pathlib import Path

import pytest

from tests.web.gateway.engine import Script
from tests.web.gateway.house import House, Serving

pytestmark = pytest.mark.e2e
REPOSITORY = Path(__file__).resolve().parents[3]
SCRIPTS, ENVIRONMENTS = REPOSITORY / "benchmarks" / "clients", REPOSITORY / "var" / "bench" / "clients"
SECONDS = 120
LOOP = [
    "asyncio_mode=auto",
    "asyncio_default_fixture_loop_scope=session",
    "asyncio_default_test_loop_scope=session",
]
# One event loop for all: its clients keep their connections from one test to the next.
LANGCHAIN = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, *(f"-o{one}" for one in LOOP)]
CLIENTS = {
    "openai1": ["bin/python", str(SCRIPTS / "check_openai.py")],
    "openai2": ["bin/python", str(SCRIPTS / "check_openai.py")],
    "node": ["node", str(SCRIPTS / "check_node.mjs")],
    "langchain": [
        "bin/python",
        *LANGCHAIN,
        "--rootdir",
        str(SCRIPTS),
        str(SCRIPTS / "langchain_standard.py"),
    ],
}


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_finds_what_it_expects(name: str, house: House, alias: str, serving: Serving) -> None:
    command, where = CLIENTS[name], ENVIRONMENTS / name
    if not where.is_dir():
        pytest.skip(f"{where} is not there: run benchmarks/clients/install")
    house.engine.script = Script(text="Hello there, I am the engine of the tests.", piece=5)
    program = str(where / command[0]) if "/" in command[0] else command[0]
    done = subprocess.run(
        [program, *command[1:]],
        cwd=where,
        env={
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/tmp"),
            "OPENAI_BASE_URL": f"{serving.url}/v1",
            "OPENAI_API_KEY": house.secret,
            "MODEL": alias,
        },
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    print(done.stdout[-4000:])
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
