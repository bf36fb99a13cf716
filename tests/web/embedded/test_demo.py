"""The parts of the demonstration that need no platform: reading pages, following a run, the closing table."""

import json
from pathlib import Path

import httpx
import pytest

from stillhouse.embedded.demo import Numbers, RunTeller, example_messages, read_environment, table
from stillhouse.embedded.hands import DemoError, checked, option, wait_for
from stillhouse.embedded.home import Home

PAGE = """
<select class="select" id="data" name="data" required>
  <option value="dsv_2" selected>Contract clauses, held out v1 · 36 rows</option>
  <option value="dsv_1">Contract clauses v1 · 180 rows</option>
</select>
<select name="eval_data"><option value="">Rows of the same data</option></select>
"""


def test_an_option_is_found_by_its_text() -> None:
    assert option(PAGE, "data", "Contract clauses v") == "dsv_1"
    assert option(PAGE, "data", "Contract clauses, held out v") == "dsv_2"
    assert option(PAGE, "data", "Invoices v") is None
    assert option(PAGE, "base", "Contract") is None


def test_what_the_platform_says_reaches_the_person() -> None:
    request = httpx.Request("POST", "http://127.0.0.1/w/acme/runs/new/")
    body = {"error": {"code": "name_taken", "message": "There is one.", "next_step": "Choose another."}}
    with pytest.raises(
        DemoError, match=r"/w/acme/runs/new/ answered 409: name_taken: There is one. Choose another."
    ):
        checked(httpx.Response(409, json=body, request=request))
    page = "<html><h1 class='x'>Nothing here</h1></html>"
    with pytest.raises(DemoError, match="answered 404: Nothing here"):
        checked(httpx.Response(404, text=page, request=request))


def test_waiting_ends() -> None:
    seen = iter([1, 2, 3])
    assert wait_for("it", lambda: next(seen), lambda value: value == 3, seconds=5, pause=0) == 3
    with pytest.raises(DemoError, match=r"It was not done after 0 s. Last seen: \"queued\""):
        wait_for("It", lambda: "queued", lambda _: False, seconds=0, pause=0)


def test_a_run_is_told_in_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    follow = RunTeller()
    state = {"total_steps": 7, "phase": "training", "message": "", "eta_seconds": 3.2, "loss": 0.5}
    for step in (None, 0, 1, 2, 3, 3, 4, 5, 6, 7):
        follow({**state, "step": step})
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in told if "step" in line] == ["3", "6", "7"]
    assert told[0].strip() == "training ..."


def test_the_table_says_what_was_measured() -> None:
    numbers = Numbers(rows=36, base_exact=0, adapter_exact=32, version="contract-clauses@0123456789ab")
    numbers.seconds["train"] = 95.25
    numbers.publish_to_first_token_ms = 412.4
    text = table(numbers)
    for part in ("0/36", "32/36", "contract-clauses@0123456789ab", "95.2", "412"):
        assert part in text


def test_it_worked_only_if_the_adapter_won_and_answered() -> None:
    assert Numbers(rows=36, base_exact=5, adapter_exact=6, publish_to_first_token_ms=100).worked
    assert not Numbers(rows=36, base_exact=5, adapter_exact=5, publish_to_first_token_ms=100).worked
    assert not Numbers(rows=36, base_exact=5, adapter_exact=6).worked
    assert not Numbers(adapter_exact=1, publish_to_first_token_ms=100).worked


def test_the_example_is_a_question_without_its_answer() -> None:
    messages = example_messages()
    assert messages[-1]["role"] == "user"
    assert "assistant" not in json.dumps(messages)


def test_a_demo_env_is_read_back(tmp_path: Path) -> None:
    home = Home(path=tmp_path, web_port=8000)
    assert read_environment(home) == {}
    (tmp_path / "demo.env").write_text("OPENAI_API_KEY=sk-sh-a=b\nSTILLHOUSE_MODEL=x\n")
    assert read_environment(home) == {"OPENAI_API_KEY": "sk-sh-a=b", "STILLHOUSE_MODEL": "x"}
