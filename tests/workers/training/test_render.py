"""Rendering and masking per think family, on fixtures of the templates' behaviour."""

import pytest

from tests.workers.training.tiny import FAMILIES, tokenizer_of
from workers.contract import ThinkContract, ThinkPolicy
from workers.data.chat import ChatMessage
from workers.training.errors import TrainingError
from workers.training.render import Renderer, Sample, contract_of

QUESTION = "How many legs has a cat?"
THOUGHT = "A cat is a mammal."
ANSWER = "Four."
CHAT: list[ChatMessage] = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT},
]
REASONING = [name for name in FAMILIES if name != "plain"]


def render(
    family: str, policy: ThinkPolicy, messages: list[ChatMessage], turn: int = -1
) -> tuple[Renderer, Sample]:
    renderer = Renderer(tokenizer_of(family), FAMILIES[family].think, policy)
    return renderer, renderer.sample(messages, turn % len(messages))


def text(renderer: Renderer, ids: list[int]) -> str:
    return str(renderer.tokenizer.decode(ids, skip_special_tokens=False))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["traces", "answer_only", "no_think"])
def test_the_prompt_is_what_inference_would_show(family: str, policy: ThinkPolicy) -> None:
    renderer, sample = render(family, policy, CHAT)
    flags = {"enable_thinking": policy != "no_think"} if family == "qwen3" else {}
    asked = [{"role": "user", "content": QUESTION}]
    if family == "nemotron":
        asked.insert(
            0, {"role": "system", "content": f"detailed thinking {'off' if policy == 'no_think' else 'on'}"}
        )
    served = renderer.tokenizer.apply_chat_template(
        asked, tokenize=False, add_generation_prompt=True, **flags
    )
    assert text(renderer, sample.prompt_ids) == served


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["traces", "answer_only", "no_think"])
def test_the_end_token_is_trained_once_and_last(family: str, policy: ThinkPolicy) -> None:
    renderer, sample = render(family, policy, CHAT)
    end = renderer.tokenizer.convert_tokens_to_ids(FAMILIES[family].end)
    assert sample.target_ids[-1] == end
    assert end not in sample.target_ids[:-1]
    assert sample.trained_from < len(sample.target_ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_there_is_one_bos_where_the_template_has_one(family: str) -> None:
    renderer, sample = render(family, "traces", CHAT)
    bos = renderer.tokenizer.bos_token_id
    if bos is not None:
        assert (sample.prompt_ids + sample.target_ids).count(bos) == 1


@pytest.mark.parametrize("family", REASONING)
def test_traces_keep_the_think_block_and_train_it(family: str) -> None:
    renderer, sample = render(family, "traces", CHAT)
    whole = text(renderer, sample.prompt_ids + sample.target_ids)
    assert f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}{FAMILIES[family].end}" in whole
    assert whole.count("<think>") == whole.count("</think>") == 1
    assert sample.trained_from == 0
    assert renderer.tokenizer.convert_tokens_to_ids("</think>") in sample.target_ids


def test_a_plain_base_writes_the_tags_as_the_data_does() -> None:
    renderer, sample = render("plain", "traces", CHAT)
    assert text(renderer, sample.target_ids) == f"<think>{THOUGHT}</think>\n{ANSWER}<|im_end|>"


@pytest.mark.parametrize("family", FAMILIES)
def test_answer_only_shows_the_think_block_without_training_it(family: str) -> None:
    renderer, sample = render(family, "answer_only", CHAT)
    assert text(renderer, sample.target_ids[sample.trained_from :]) == ANSWER + FAMILIES[family].end
    assert THOUGHT in text(renderer, sample.target_ids[: sample.trained_from])


@pytest.mark.parametrize("family", FAMILIES)
def test_no_think_trains_no_reasoning(family: str) -> None:
    renderer, sample = render(family, "no_think", CHAT)
    whole = text(renderer, sample.prompt_ids + sample.target_ids)
    assert THOUGHT not in whole
    expected = "\n</think>\n\n" if FAMILIES[family].think.prompt_opens else ""
    assert text(renderer, sample.target_ids) == expected + ANSWER + FAMILIES[family].end


@pytest.mark.parametrize("family", FAMILIES)
def test_earlier_reasoning_is_treated_as_inference_treats_it(family: str) -> None:
    messages: list[ChatMessage] = [
        *CHAT,
        {"role": "user", "content": "And a bird?"},
        {"role": "assistant", "content": "Two."},
    ]
    renderer, sample = render(family, "traces", messages)
    prompt = text(renderer, sample.prompt_ids)
    assert ANSWER in prompt
    assert (THOUGHT in prompt) == FAMILIES[family].think.history_keeps


def test_every_assistant_turn_is_a_sample() -> None:
    renderer = Renderer(tokenizer_of("qwq"), FAMILIES["qwq"].think, "traces")
    messages: list[ChatMessage] = [*CHAT, *CHAT]
    samples = list(renderer.samples([{"messages": CHAT}, {"messages": messages}]))
    assert [(sample.row, sample.turn) for sample in samples] == [(0, 1), (1, 1), (1, 3)]


def test_mixed_data_switches_thinking_row_by_row() -> None:
    bare: list[ChatMessage] = [CHAT[0], {"role": "assistant", "content": ANSWER}]
    renderer, without = render("qwen3", "traces", bare)
    assert text(renderer, without.prompt_ids).endswith("<think>\n\n</think>\n\n")
    assert text(renderer, without.target_ids) == ANSWER + "<|im_end|>"
    renderer, off = render("nemotron", "traces", bare)
    assert "detailed thinking off" in text(renderer, off.prompt_ids)


def test_nemotron_keeps_the_rows_own_system_text() -> None:
    messages: list[ChatMessage] = [{"role": "system", "content": "Be brief."}, *CHAT]
    renderer, sample = render("nemotron", "traces", messages)
    assert "detailed thinking on\n\nBe brief." in text(renderer, sample.prompt_ids)


def test_a_contract_that_contradicts_the_template_is_refused() -> None:
    with pytest.raises(TrainingError) as caught:
        Renderer(tokenizer_of("qwq"), ThinkContract(family="qwq", prompt_opens=False), "traces")
    assert caught.value.code == "think_contract_mismatch"


def test_a_template_that_fails_is_said_in_words() -> None:
    tokenizer = tokenizer_of("plain")
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(TrainingError) as caught:
        Renderer(tokenizer, FAMILIES["plain"].think, "traces")
    assert caught.value.code == "template_failed"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_contract_can_be_read_off_the_template(family: str) -> None:
    made = FAMILIES[family]
    assert contract_of(made.template, made.model, tokenizer_of(family)) == made.think
