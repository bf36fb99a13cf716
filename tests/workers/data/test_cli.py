"""`python -m workers` as scripts see it: exit status, standard output, standard error."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from workers.data.limited import PACKAGE_ROOT

ROW = json.dumps({"prompt": "Two and two?", "completion": "Four."}) + "\n"
EXAMPLES = PACKAGE_ROOT / "examples" / "contracts"


def workers(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "workers", *map(str, arguments)]
    return subprocess.run(command, cwd=PACKAGE_ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("name", ["train.jsonl", "heldout.jsonl"])
def test_the_example_data_is_valid(name: str) -> None:
    done = workers("validate", EXAMPLES / name, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert (
        report["rows"]
        == report["valid"]
        == report["with_reasoning"]
        == {"train.jsonl": 180, "heldout.jsonl": 36}[name]
    )
    assert report["errors"] == report["warnings"] == []
    assert {"seconds", "peak_rss_bytes"} <= report.keys()


def test_the_example_data_is_what_its_generator_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, EXAMPLES / "generate.py", tmp_path], check=True, timeout=60)
    for name in ("train.jsonl", "heldout.jsonl"):
        assert (tmp_path / name).read_bytes() == (EXAMPLES / name).read_bytes()


def test_a_bad_row_makes_the_status_1(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(ROW + "{}\n")
    done = workers("validate", file, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert (report["rows"], report["valid"]) == (2, 1)
    assert report["errors"][0]["row"] == 2
    assert set(report["errors"][0]) == {"row", "field", "code", "message", "value", "source"}
    assert done.stderr == ""


def test_the_report_for_people(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(ROW + ROW + "{}\n")
    done = workers("validate", file)
    assert done.returncode == 1
    assert "3 rows, 2 of them can be trained on" in done.stdout
    assert "error: row 3: " in done.stdout and "[no_messages]" in done.stdout
    assert "warning: row 2: " in done.stdout


@pytest.mark.parametrize("path", ["nowhere.jsonl", "../../etc", "."])
def test_a_file_that_is_not_there(path: str) -> None:
    done = workers("validate", path)
    assert done.returncode == 1
    assert "[unreadable]" in done.stdout
    assert "Traceback" not in done.stderr
