"""`python -m workers evaluate` says what is wrong in one line."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def evaluate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "workers",
        "evaluate",
        "--base-model",
        "b",
        "--adapter-model",
        "a",
        *arguments,
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_problems_are_one_sentence_and_no_traceback(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": []}\n', encoding="utf-8")
    good = tmp_path / "rows.jsonl"
    good.write_text('{"prompt": "q", "completion": "a"}\n', encoding="utf-8")
    nobody = "http://127.0.0.1:9/v1"
    for arguments, expected in (
        (["--endpoint", nobody, "--data", str(tmp_path / "none.jsonl")], "none.jsonl"),
        (["--endpoint", nobody, "--data", str(bad)], "error: bad_row: Row 1"),
        (["--endpoint", nobody, "--data", str(good)], "error: model_not_ready"),
        (["--endpoint", nobody, "--data", str(good), "--out", str(tmp_path)], "would overwrite"),
    ):
        done = evaluate(*arguments)
        assert done.returncode == 1, done.stderr
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
    assert good.read_text(encoding="utf-8").startswith('{"prompt"')
