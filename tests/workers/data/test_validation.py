"""Every bad input gets a code, a place and a sentence; nothing gets a traceback."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from workers.contract import ValidateSpec, ValidationReport
from workers.data import validate
from workers.data.limited import PACKAGE_ROOT, validate_in_child

USER = {"role": "user", "content": "Two and two?"}
ANSWER = {"role": "assistant", "content": "Four."}
GOOD = json.dumps({"messages": [USER, ANSWER]}).encode()


def check(tmp_path: Path, *lines: bytes | dict[str, Any], **spec: Any) -> ValidationReport:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    )
    return validate(file, ValidateSpec(**spec))


def messages(*found: Any) -> dict[str, Any]:
    return {"messages": list(found)}


def turn(content: Any, role: Any = "assistant", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


BAD: list[tuple[str, str, bytes | dict[str, Any]]] = [
    ("not_json", "", b'{"messages": ['),
    ("not_json", "", b"hello"),
    ("not_json", "", GOOD + b" " + GOOD),
    ("not_an_object", "", b"[1, 2]"),
    ("not_an_object", "", b'"text"'),
    ("not_utf8", "", b'{"messages": "caf\xe9"}'),
    ("nul_byte", "", b'{"messages": "\x00"}'),
    ("nul_byte", "messages[1].content", messages(USER, turn("a\x00b"))),
    (
        "bad_unicode",
        "messages[1].content",
        b'{"messages": [{"role":"user","content":"x"},{"role":"assistant","content":"\\ud800"}]}',
    ),
    ("duplicate_key", "messages", b'{"messages": [], "messages": []}'),
    ("bad_number", "", b'{"messages": [], "score": NaN}'),
    ("bad_number", "", b'{"messages": [], "score": -Infinity}'),
    ("bad_number", "", b'{"messages": [], "score": 1e400}'),
    ("bad_number", "", b'{"messages": [], "score": ' + b"9" * 5000 + b"}"),
    ("too_deep", "", b"[" * 100_000),
    ("too_deep", "", b'{"messages": ' + b"[" * 70 + b"]" * 70 + b"}"),
    ("no_messages", "", {"text": "hello"}),
    ("no_messages", "messages", messages()),
    ("not_a_list", "messages", {"messages": "hello"}),
    ("two_formats", "", {"prompt": "a", "completion": "b", "messages": [USER, ANSWER]}),
    ("not_text", "completion", {"prompt": "a"}),
    ("not_text", "prompt", {"prompt": 5, "completion": "b"}),
    ("empty_content", "prompt", {"prompt": " ", "completion": "b"}),
    ("empty_answer", "completion", {"prompt": "a", "completion": ""}),
    ("not_an_object", "messages[0]", messages("hello", ANSWER)),
    ("unknown_role", "messages[0].role", messages(turn("x", role="human"), ANSWER)),
    ("unknown_role", "messages[0].role", messages(turn("x", role=["user"]), ANSWER)),
    ("unknown_role", "messages[1].role", messages(USER, {"content": "Four."})),
    ("role_order", "messages[0].role", messages(ANSWER)),
    ("role_order", "messages[1].role", messages(USER, USER, ANSWER)),
    ("role_order", "messages[2].role", messages(USER, ANSWER, ANSWER)),
    ("role_order", "messages[1].role", messages(USER, turn("Be brief.", role="system"), ANSWER)),
    ("role_order", "messages[2].role", messages(USER, ANSWER, USER)),
    ("no_answer", "messages", messages(USER)),
    ("no_answer", "messages", messages(turn("Be brief.", role="system"))),
    ("empty_content", "messages[0].content", messages(turn("", role="user"), ANSWER)),
    ("empty_content", "messages[0].content", messages(turn(" \n", role="system"), USER, ANSWER)),
    ("empty_answer", "messages[1].content", messages(USER, turn("  "))),
    ("empty_answer", "messages[1].content", messages(USER, turn(None))),
    ("empty_answer", "messages[1].content", messages(USER, turn("<think>Add.</think>\n"))),
    ("empty_answer", "messages[1].content", messages(USER, turn("", reasoning_content="Add."))),
    ("not_text", "messages[1].content", messages(USER, turn(4))),
    ("not_text", "messages[1].content", messages(USER, turn([{"type": "image_url", "image_url": "x"}]))),
    ("not_text", "messages[1].reasoning", messages(USER, turn("Four.", reasoning=["Add."]))),
    ("two_reasonings", "messages[1]", messages(USER, turn("<think>A</think>Four.", reasoning_content="B"))),
    ("bad_tool_call", "messages[1].tool_calls[0]", messages(USER, turn("Four.", tool_calls=[{"id": "x"}]))),
    ("unsupported_field", "messages[1].weight", messages(USER, turn("Four.", weight=0))),
]


@pytest.mark.parametrize(
    ("code", "field", "line"), BAD, ids=[f"{n}-{code}" for n, (code, _, _) in enumerate(BAD)]
)
def test_a_bad_row_is_reported_with_its_place(tmp_path: Path, code: str, field: str, line: Any) -> None:
    report = check(tmp_path, GOOD, b"", line, GOOD.replace(b"Four", b"4"))
    (problem,) = report.errors
    assert (problem.row, problem.code, problem.field) == (3, code, field)
    assert re.fullmatch(r"[A-Z`].*\.", problem.message), problem.message
    assert len(problem.message) < 300
    assert (report.rows, report.valid, report.error_count, report.error_counts) == (3, 2, 1, {code: 1})


def test_the_byte_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (problem,) = check(tmp_path, GOOD, b'{"a": "\xff"}').errors
    assert "Byte 8 of this line (0xff)" in problem.message


def test_all_that_is_wrong_in_a_row_is_listed(tmp_path: Path) -> None:
    report = check(tmp_path, GOOD, messages(turn("x", role="human"), turn("")))
    assert [problem.code for problem in report.errors] == ["unknown_role", "empty_answer"]


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", b"\xef\xbb\xbf"])
def test_an_empty_file(tmp_path: Path, content: bytes) -> None:
    report = check(tmp_path, content)
    assert [(problem.row, problem.code) for problem in report.errors] == [(0, "empty_file")]
    assert report.rows == report.valid == 0


def test_a_file_with_nothing_trainable(tmp_path: Path) -> None:
    report = check(tmp_path, messages(USER), messages(USER))
    assert [problem.code for problem in report.errors] == ["no_answer", "no_answer", "nothing_trainable"]


def test_a_json_list_is_recognised(tmp_path: Path) -> None:
    report = check(tmp_path, b"[", GOOD + b",", GOOD + b",", b"]")
    assert (report.rows, report.valid, report.errors) == (2, 2, [])
    assert report.reading is not None and report.reading.format == "JSON list"


def test_doubts_are_warnings_and_the_rows_stay_valid(tmp_path: Path) -> None:
    report = check(
        tmp_path,
        GOOD,
        {"prompt": "Two and two?", "completion": "Four.", "id": 1},
        messages(USER, turn("<think>Add")),
        {**messages(USER, turn("<think>a</think>b <think>c</think> d")), "id": 2},
    )
    assert report.valid == 4 and report.error_count == 0
    assert [(each.row, each.code) for each in report.warnings] == [
        (2, "ignored_field"),
        (2, "duplicate_row"),
        (3, "unclosed_think"),
        (4, "many_thinks"),
    ]
    assert "row 1" in report.warnings[1].message


def test_what_is_counted(tmp_path: Path) -> None:
    report = check(tmp_path, messages(USER, ANSWER, USER, turn("Four.", reasoning="Add.")), GOOD)
    assert (report.turns, report.with_reasoning) == (3, 1)
    assert report.characters == 3 * len("Two and two?Four.") + len("Add.")
    assert report.samples[1] == {"messages": [USER, ANSWER]}


def test_problems_are_listed_up_to_a_limit_and_counted_beyond(tmp_path: Path) -> None:
    report = check(tmp_path, *[b"{x"] * 50, max_problems=10)
    assert [problem.code for problem in report.errors] == ["not_json"] * 10 + ["nothing_trainable"]
    assert report.error_count == 51
    assert report.error_counts == {"not_json": 50, "nothing_trainable": 1}


@pytest.mark.parametrize("extra", [-1, 0, 1, 2, 3])
def test_the_line_cap_is_exact(tmp_path: Path, extra: int) -> None:
    """A line of exactly the cap is read, one of a byte more is not, and the next line is read either way."""
    report = check(tmp_path, GOOD, GOOD.replace(b"Four", b"4"), max_row_bytes=len(GOOD) - extra)
    assert report.valid == (2 if extra <= 0 else 1)


def test_a_huge_line_is_skipped_without_being_held(tmp_path: Path) -> None:
    """Beside a small file: how much the libraries themselves take depends on the machine's page cache."""
    small, file = tmp_path / "small.jsonl", tmp_path / "huge.jsonl"
    small.write_bytes(GOOD)
    file.write_bytes(
        GOOD + b"\n" + b'{"messages": "' + b"x" * 50_000_000 + b'"}\n' + GOOD.replace(b"Four", b"4") + b"\n"
    )
    report = validate_in_child(file, ValidateSpec())
    (problem,) = report.errors
    assert (problem.row, problem.code) == (2, "line_too_long")
    assert "50,000,016 bytes" in problem.message
    assert (report.rows, report.valid) == (3, 2)
    held = report.peak_rss_bytes - validate_in_child(small, ValidateSpec()).peak_rss_bytes
    assert held < 25_000_000


def test_libraries_leave_the_memory_to_the_rows(tmp_path: Path) -> None:
    """Allocators set a gigabyte of addresses aside where nobody tells them not to."""
    file = tmp_path / "rows.jsonl"
    file.write_bytes(GOOD)
    report = validate_in_child(file, ValidateSpec(memory_bytes=768 * 1024**2))
    assert (report.valid, report.error_counts) == (1, {})


def test_running_out_of_memory_is_a_report(tmp_path: Path) -> None:
    file = tmp_path / "big.jsonl"
    file.write_bytes(b"[" + b"{}," * 2_500_000 + b"{}]")
    report = validate_in_child(file, ValidateSpec(memory_bytes=200 * 1024**2))
    assert [problem.code for problem in report.errors] == ["memory_limit"]
    assert "200 MiB" in report.errors[0].message


def test_running_out_of_time_is_a_report(tmp_path: Path) -> None:
    pipe = tmp_path / "rows.jsonl"
    pipe.write_bytes((GOOD + b"\n") * 400_000)
    start = time.monotonic()
    report = validate_in_child(pipe, ValidateSpec(seconds=1))
    assert [problem.code for problem in report.errors] == ["time_limit"]
    assert report.valid == 0
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_a_file_that_cannot_be_read_is_a_report(tmp_path: Path, name: str) -> None:
    report = validate_in_child(tmp_path / name, ValidateSpec())
    assert [problem.code for problem in report.errors] == ["unreadable"]


def test_progress_is_told_and_may_stop_the_check(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes((GOOD + b"\n") * 300)
    told: list[int] = []
    assert validate_in_child(file, ValidateSpec(), told.append).rows == 300
    assert told[-1] == 300

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        validate_in_child(file, ValidateSpec(), stop)


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes((GOOD + b"\n") * 2_000_000)
    script = (
        "import sys; from pathlib import Path; from workers.contract import ValidateSpec\n"
        "from workers.data.limited import validate_in_child\n"
        "validate_in_child(Path(sys.argv[1]), ValidateSpec(), lambda rows: print('going', flush=True))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(file)], cwd=PACKAGE_ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None and parent.stdout.readline() == "going\n"
    (child,) = (Path("/proc") / str(parent.pid) / "task" / str(parent.pid) / "children").read_text().split()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(100):
        if not _is_running(int(child)):
            return
        time.sleep(0.05)
    os.kill(int(child), signal.SIGKILL)
    pytest.fail("the child outlived its parent")


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
