"""Answers that are probably wrong go to the larger model; the probability is fitted to an evaluation."""

import json
import random
from typing import Any

import httpx
import pytest

from stillhouse.core.errors import UserError
from stillhouse.evaluations.isotonic import FEWEST, at_thresholds, fit
from stillhouse.evaluations.models import EvaluationResult
from stillhouse.publishing.escalation import start_escalation
from stillhouse.publishing.models import Alias
from tests.web.gateway.elsewhere import ask, rows, terms
from tests.web.gateway.engine import Engine, Script
from tests.web.gateway.house import House, Serve, Serving, gateway_config
from workers.contract import Calibration, Sureness, sureness
from workers.contract.confidence import Step

CALIBRATION = Calibration(
    rows=100, length_weight=0.0, steps=[Step(score=-1.0, right=0.3), Step(score=0.5, right=0.95)]
)


@pytest.fixture
def doubting(
    house: House, stable: Alias, remote: Engine, destinations: tuple[str, ...], serve: Serve
) -> Serving:
    """A gateway of an alias that asks elsewhere when its answer is less likely right than 0.8."""
    EvaluationResult.objects.filter(evaluation__version__in=house.held).update(
        confidence=CALIBRATION.model_dump(mode="json")
    )
    start_escalation(by=house.lead, alias=stable, terms=terms(remote, reasons=("confidence",), threshold=0.8))
    return serve(gateway_config(destinations=destinations))


def said(answer: httpx.Response) -> str:
    """The text of an answer, streamed or not."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return str(answer.json()["choices"][0]["message"]["content"])
    chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    return "".join(each["delta"].get("content") or "" for chunk in chunks for each in chunk["choices"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_sure_answer_stays_and_shows_no_log_probabilities(
    house: House, doubting: Serving, remote: Engine, stream: bool
) -> None:
    house.engine.script = Script(text="The tenant pays.", margin=0.9)
    answer = ask(doubting, house.secret, stream=stream)
    assert answer.headers["x-stillhouse-confidence"] == "0.950"
    assert remote.seen == [] and "top_logprobs" not in answer.text
    assert house.engine.seen[-1]["top_logprobs"] == 2
    assert said(answer) == "The tenant pays."


@pytest.mark.parametrize("stream", [False, True])
def test_a_doubtful_answer_is_asked_elsewhere_and_booked(
    house: House, doubting: Serving, remote: Engine, stream: bool
) -> None:
    house.engine.script = Script(text="The landlord?", margin=0.1)
    answer = ask(doubting, house.secret, stream=stream)
    assert answer.headers["x-stillhouse-escalation"] == "confidence"
    assert said(answer) == '{"type": "fee"}'
    assert "logprobs" not in remote.seen[0]
    shown, unseen = rows(2)
    assert (shown.escalation, unseen.shadow, unseen.escalation) == ("confidence", True, "")


def test_an_app_that_asks_for_log_probabilities_gets_as_many_as_it_asked_for(
    house: House, doubting: Serving
) -> None:
    house.engine.script = Script(text="Yes.", margin=0.9)
    for top, shown in ((None, 0), (1, 1), (2, 2)):
        asked: dict[str, Any] = {"logprobs": True} if top is None else {"logprobs": True, "top_logprobs": top}
        (choice,) = ask(doubting, house.secret, None, **asked).json()["choices"]
        assert [len(each["top_logprobs"]) for each in choice["logprobs"]["content"]] == [shown]


def test_what_cannot_be_judged_stays(house: House, doubting: Serving, remote: Engine) -> None:
    house.engine.script = Script(text="No log-probabilities from here.")
    assert "x-stillhouse-confidence" not in ask(doubting, house.secret).headers
    house.engine.script = Script(text="Two.", margin=0.0)
    assert len(ask(doubting, house.secret, n=2).json()["choices"]) == 2
    assert "logprobs" not in house.engine.seen[-1] and remote.seen == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_thought_that_was_cut_off_is_no_answer_however_sure(
    house: House, doubting: Serving, remote: Engine, stream: bool
) -> None:
    house.engine.script = Script(text="<think>The tenant, surely, and", margin=0.99, finish="length")
    answer = ask(doubting, house.secret, stream=stream)
    assert answer.headers["x-stillhouse-escalation"] == "confidence" and len(remote.seen) == 1
    house.engine.script = Script(text="<think>The tenant.</think>It pays.", margin=0.99)
    assert said(ask(doubting, house.secret, stream=stream)) == "It pays." and len(remote.seen) == 1


def test_a_held_stream_that_the_app_leaves_is_counted(
    house: House, doubting: Serving, remote: Engine
) -> None:
    house.engine.script = Script(text="x" * 400, piece=4, pause=0.02, margin=0.9)
    body = {"model": "clauses", "messages": [{"role": "user", "content": "Who pays?"}], "stream": True}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{doubting.url}/v1/chat/completions",
            headers={"authorization": f"Bearer {house.secret}"},
            json=body,
            timeout=httpx.Timeout(10, read=0.8),
        )
    (row,) = rows(1)
    assert row.cancelled and row.completion_tokens > 0 and row.prompt_tokens == 7 and remote.seen == []


def test_a_stream_that_the_engine_gave_up_is_not_asked_elsewhere(
    house: House, doubting: Serving, remote: Engine
) -> None:
    house.engine.script = Script(text="Who knows, who knows?", margin=0.1, error_after=3)
    answer = ask(doubting, house.secret, stream=True)
    assert '"error"' in answer.text and "x-stillhouse-escalation" not in answer.headers and remote.seen == []


def test_a_threshold_is_a_probability(
    house: House, stable: Alias, remote: Engine, destinations: object
) -> None:
    for threshold in (0.0, 1.0, -1.0):
        with pytest.raises(UserError, match="no threshold"):
            start_escalation(
                by=house.lead, alias=stable, terms=terms(remote, reasons=("confidence",), threshold=threshold)
            )


def token(text: str, chosen: float, other: float) -> dict[str, object]:
    top = [{"token": text, "logprob": chosen}, {"token": "x", "logprob": other}]
    return {"token": text, "logprob": chosen, "top_logprobs": top}


def test_answer_and_reasoning_have_margins_of_their_own() -> None:
    thought = [token("hm", -0.7, -0.8), token("</think>", 0.0, -20.0)]
    answer = [token("\n", -0.6, -0.7), token("yes", -0.105, -2.3)]
    sure = sureness([*thought, *answer])
    assert sure.margin == pytest.approx(0.9 - 0.1, abs=0.01) and sure.reasoning_tokens == 2
    assert sure.reasoning_margin == pytest.approx(0.497 - 0.449, abs=0.01)
    assert sureness(answer) == Sureness(sure.margin, None, 0)
    split = [token("hm</th", -0.7, -0.8), token("ink>\n", 0.0, -20.0), token("yes", -0.105, -2.3)]
    assert sureness(split).reasoning_tokens == 2
    assert sureness(thought) == Sureness(None, sure.reasoning_margin, 2)
    assert sureness([]) == Sureness(None, None, 0)


def test_probabilities_rise_with_the_margin_and_match_what_was_seen() -> None:
    draw = random.Random(7)
    answers = []
    for _ in range(400):
        margin = draw.random()
        answers.append((Sureness(margin, None, 10), draw.random() < margin))
    calibration = fit(answers)
    assert calibration is not None
    chances = [calibration.confidence(Sureness(step / 20, None, 10)) for step in range(21)]
    assert chances == sorted(chances)
    assert max(abs(chance - step / 20) for step, chance in enumerate(chances)) < 0.2
    assert calibration.confidence(Sureness(None, None, 10)) == 0.0
    table = at_thresholds(calibration, answers)
    assert [row.local for row in table] == sorted((row.local for row in table), reverse=True)
    assert all(row.right >= row.threshold * row.local - 1e-9 for row in table)
    assert fit(answers[: FEWEST - 1]) is None


def test_an_adapter_that_decides_in_its_reasoning_is_judged_by_it() -> None:
    draw = random.Random(1)
    thoughts = [draw.random() for _ in range(200)]
    answers = [(Sureness(0.9, thought, 10), draw.random() < thought) for thought in thoughts]
    calibration = fit(answers)
    assert calibration is not None and calibration.reasoning_weight > 0
    least, most = (calibration.confidence(Sureness(0.9, thought, 10)) for thought in (0.05, 0.95))
    assert least < 0.3 and most > 0.7


def test_a_calibration_of_an_earlier_version_is_read() -> None:
    kept = {"rows": 40, "length_weight": 0.1, "steps": [{"score": -1.0, "right": 0.2}]}
    assert Calibration.model_validate(kept).confidence(Sureness(0.5, 0.1, 3)) == 0.2
