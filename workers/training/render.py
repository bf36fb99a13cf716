"""From chats to token ids: what the model will be shown when it serves, then the answer it should give.

The prompt is always what the base's own inference template makes of the earlier messages, generation prompt
included. The answer's ids are appended; templates are never asked to render it, because those of reasoning
bases drop or rewrite the reasoning of every assistant turn.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from workers.contract import ThinkContract, ThinkPolicy
from workers.data.chat import ChatMessage, Row, Tools, calls_of
from workers.data.think import block_of, with_reasoning
from workers.data.tools import as_openai
from workers.training import template
from workers.training.errors import TrainingError
from workers.training.template import Chat
from workers.training.tokenizer import encode

TURNS_AT_ONCE = 256
CHARACTERS_AT_ONCE = 1_000_000
"""Of the turns that are rendered and tokenised together."""
PROBE = "stillhouse"
"""An answer that no template would drop or change."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One assistant turn."""

    row: int
    """Index of its row, from 0."""
    turn: int
    """Index of its message in the row, from 0."""
    prompt_ids: list[int]
    target_ids: list[int]
    """The answer; the last id is the end token."""
    trained_from: int
    """Targets before this index are shown to the model but are not in the loss."""

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.target_ids)

    @property
    def trained_tokens(self) -> int:
        return len(self.target_ids) - self.trained_from


@dataclass(frozen=True, slots=True)
class _Turn:
    """An assistant turn to be rendered."""

    row: int
    turn: int
    messages: list[ChatMessage]
    tools: Tools | None

    @property
    def answer(self) -> ChatMessage:
        return self.messages[self.turn]

    @property
    def before(self) -> list[ChatMessage]:
        return self.messages[: self.turn]

    @property
    def characters(self) -> int:
        shown = self.messages[: self.turn + 1]
        return sum(len(said["content"]) + len(said.get("reasoning_content", "")) for said in shown)


@dataclass(frozen=True, slots=True)
class _Answer:
    text: str
    masked: int
    """Its first characters that are not in the loss."""
    literal: bool
    """What looks like a special token in it is text."""


class Renderer:
    """Renders rows for one base, with its fast tokenizer and the chat template that the tokenizer holds."""

    def __init__(self, tokenizer: Any, think: ThinkContract, policy: ThinkPolicy) -> None:
        self.tokenizer = tokenizer
        self.think = think
        self.policy = policy
        self._block = block_of(think)
        # Without a switch there is no way of not reasoning but an empty block: engines' parsers take a reply
        # of such a base that has no closing tag for reasoning alone.
        self._always_blocks = think.family != "plain" and think.switch == "none"
        special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special_ids = special | set(tokenizer.all_special_ids)
        self._special_texts = tokenizer.convert_ids_to_tokens(sorted(self._special_ids))
        tags = {tokenizer.convert_tokens_to_ids(tag) for tag in (think.open, think.close)}
        self._tags_are_special = bool(tags & self._special_ids)
        self.end_id = self._find_end_token()
        self._check_prompt_ending()

    def samples(self, rows: Iterable[Row], first: int = 0) -> Iterator[Sample]:
        """One sample for every assistant turn of every row, in order. `first` is the index of the first row.

        Raises TrainingError that names the row, counted from 1.
        """
        for batch in _batches(_turns(rows, first)):
            yield from self._rendered(batch)

    def sample(
        self, messages: list[ChatMessage], turn: int, row: int = 0, tools: Tools | None = None
    ) -> Sample:
        """The sample of one assistant turn. Raises TrainingError that names the row, counted from 1."""
        (sample,) = self._rendered([_Turn(row, turn, messages, tools)])
        return sample

    def prompt(self, messages: list[ChatMessage], *, thinks: bool, tools: Tools | None = None) -> str:
        """What the base's inference template makes of the messages before an answer."""
        (shown,) = render_chats(self.tokenizer, [self._asked(messages, tools, thinks=thinks)])
        return _shown(shown, messages)

    def _rendered(self, turns: list["_Turn"]) -> list[Sample]:
        """Templates and tokenizers take as long for one text as for several: both are asked once for all."""
        reasoning = [self._reasoning(turn) for turn in turns]
        asked = [
            self._asked(turn.before, turn.tools, thinks=bool(thought))
            for turn, thought in zip(turns, reasoning, strict=True)
        ]
        prompts: list[str] = []
        answers: list[_Answer] = []
        rendered = render_chats(self.tokenizer, asked)
        for turn, thought, shown in zip(turns, reasoning, rendered, strict=True):
            with _named(turn.row):
                prompts.append(_shown(shown, turn.before))
                answers.append(self._answer(turn, thought, prompts[-1]))
        encoded = zip(encode(self.tokenizer, prompts), self._targets(answers), strict=True)
        return [
            Sample(turn.row, turn.turn, prompt.ids, [*ids, self.end_id], trained_from)
            for turn, (prompt, (ids, trained_from)) in zip(turns, encoded, strict=True)
        ]

    def _reasoning(self, turn: "_Turn") -> str:
        return "" if self.policy == "no_think" else turn.answer.get("reasoning_content", "")

    def _asked(self, messages: list[ChatMessage], tools: Tools | None, *, thinks: bool) -> Chat:
        """The messages and flags as an app's request hands them to the inference template."""
        rendered = [self._as_history(message) for message in messages]
        flags: dict[str, Any] = {"add_generation_prompt": True, **({"tools": tools} if tools else {})}
        if self.think.switch == "template_flag":
            flags["enable_thinking"] = thinks
        if self.think.switch == "system_prompt":
            rendered = _with_switch(rendered, self.think, thinks=thinks)
        return rendered, flags

    def _answer(self, turn: "_Turn", reasoning: str, prompt: str) -> "_Answer":
        block = self._think_block(reasoning, prompt)
        has_calls = "tool_calls" in turn.answer
        calls = self._calls(turn.messages[: turn.turn + 1], turn.tools) if has_calls else ""
        # Text that only looks like a special token must not end the answer in its middle. Some bases mark
        # calls, or the think block, by special tokens, though: there the text must hold none.
        literal = not self._tags_are_special and not calls
        if not literal:
            _check_no_special(turn.answer, reasoning, self._special_texts)
        masked = len(block) if self.policy == "answer_only" else 0
        return _Answer(block + turn.answer["content"] + calls, masked, literal)

    def _targets(self, answers: list["_Answer"]) -> list[tuple[list[int], int]]:
        """Ids without the end token, and how many of them are masked."""
        found: list[tuple[list[int], int]] = [([], 0)] * len(answers)
        kinds: dict[tuple[bool, bool], list[int]] = {}
        for place, answer in enumerate(answers):
            kinds.setdefault((answer.literal, answer.masked > 0), []).append(place)
        for (literal, masks), places in kinds.items():
            texts = [answers[place].text for place in places]
            encoded = encode(self.tokenizer, texts, literal=literal, offsets=masks)
            for place, each in zip(places, encoded, strict=True):
                masked = answers[place].masked
                found[place] = each.ids, sum(start < masked for start, _ in each.offsets) if masks else 0
        return found

    def _calls(self, messages: list[ChatMessage], tools: Tools | None) -> str:
        """How the base writes the calls of the last message: what its template puts after the text."""
        *before, last = messages
        history, flags = [*map(self._as_history, before)], {"tools": tools} if tools else {}
        asked = [*history, as_openai(last, PROBE)]
        shown = render_chat(self.tokenizer, asked, add_generation_prompt=False, **flags)
        _, probe, after = shown.rpartition(PROBE)
        if not probe and not last["content"]:  # some templates write calls in place of the text
            prompt = render_chat(self.tokenizer, history, add_generation_prompt=True, **flags)
            after = shown.removeprefix(prompt) if shown.startswith(prompt) else ""
        elif not probe:
            after = ""
        calls = after.rpartition(self.tokenizer.convert_ids_to_tokens(self.end_id))[0]
        _check_calls_shown([last], calls)
        return calls if last["content"] else calls.lstrip()

    def _think_block(self, reasoning: str, prompt: str) -> str:
        """What comes between the generation prompt and the answer."""
        if self.think.prompt_opens:
            # The answer starts inside the block that the prompt opened, so it has to close it, empty or not.
            begun = (
                "" if prompt.endswith(self._block.opening) else self._block.opening[len(self.think.open) :]
            )
            return begun + reasoning + self._block.closing
        return self._block.around(reasoning) if reasoning or self._always_blocks else ""

    def _as_history(self, message: ChatMessage) -> dict[str, Any]:
        """An earlier message as an app would send it back."""
        keeps = self.think.history_keeps and self.policy != "no_think"
        content = with_reasoning(message, self.think) if keeps else message["content"]
        return as_openai(message, content)

    def _ids(self, text: str) -> list[int]:
        return list(encode(self.tokenizer, [text])[0].ids)

    def _find_end_token(self) -> int:
        """The token that the template writes after an answer: what the model must learn to say last."""
        asked = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}]
        shown = render_chat(self.tokenizer, asked, add_generation_prompt=False)
        after = self._ids(shown.rpartition(PROBE)[2])
        found = next((token for token in after if token in self._special_ids), self.tokenizer.eos_token_id)
        if found is None:
            raise TrainingError(
                "no_end_token",
                "This base's template and tokenizer name no end token, so no answer could ever end.",
            )
        return int(found)

    def _check_prompt_ending(self) -> None:
        """Contract and template must agree on who opens the think block, or training would open it twice."""
        prompt = self.prompt([{"role": "user", "content": PROBE}], thinks=True)
        opens = prompt.rstrip().endswith(self.think.open)
        if opens != self.think.prompt_opens:
            does = "ends" if opens else "does not end"
            raise TrainingError(
                "think_contract_mismatch",
                f"The think contract says prompt_opens={str(self.think.prompt_opens).lower()}, "
                f"but this base's generation prompt {does} in {self.think.open}. "
                "Give the contract that belongs to the base.",
            )


def _turns(rows: Iterable[Row], first: int) -> Iterator[_Turn]:
    for index, row in enumerate(rows, start=first):
        for turn, message in enumerate(row["messages"]):
            if message["role"] == "assistant":
                yield _Turn(index, turn, row["messages"], row.get("tools", []))


def _batches(turns: Iterable[_Turn]) -> Iterator[list[_Turn]]:
    """Bounded in number and in memory; a turn that is larger than that stands alone."""
    batch: list[_Turn] = []
    characters = 0
    for turn in turns:
        if batch and (len(batch) >= TURNS_AT_ONCE or characters + turn.characters > CHARACTERS_AT_ONCE):
            yield batch
            batch, characters = [], 0
        batch.append(turn)
        characters += turn.characters
    if batch:
        yield batch


@contextmanager
def _named(row: int) -> Iterator[None]:
    """Errors name the row, counted from 1."""
    try:
        yield
    except TrainingError as error:
        raise TrainingError(error.code, f"Row {row + 1}: {error.message}", fault=error.fault) from None


def _shown(rendered: str | TrainingError, messages: list[ChatMessage]) -> str:
    if isinstance(rendered, TrainingError):
        raise rendered
    _check_calls_shown(messages, rendered)
    return rendered


def _check_calls_shown(messages: list[ChatMessage], shown: str) -> None:
    """A template that drops calls without a word would have the model learn to answer from nowhere."""
    if any(call["name"] not in shown for message in messages for call in calls_of(message)):
        raise TrainingError(
            "template_without_tools",
            "This base's chat template does not write these tool calls, so they cannot be trained. "
            "Choose a base whose template knows tools, or leave out the rows that call some.",
        )


def _check_no_special(answer: ChatMessage, reasoning: str, special: list[str]) -> None:
    """Where special tokens mark calls or the think block, one in the text would be taken for the real one."""
    calls = [json.dumps([call["name"], call["arguments"]], ensure_ascii=False) for call in calls_of(answer)]
    said = "\n".join((reasoning, answer["content"], *calls))
    found = next((token for token in special if token in said), None)
    if found is not None:
        raise TrainingError(
            "special_token_in_answer",
            f"This answer holds {found}, which this base reads as a special token: it would be trained to "
            "stop or to change the speaker there. Take it out of the text, or leave out the row.",
        )


def render_chats(tokenizer: Any, chats: Sequence[Chat]) -> list[str | TrainingError]:
    """The chats by the tokenizer's template, or for each why it could not be rendered."""
    special = tokenizer.special_tokens_map
    known = [(messages, {**special, **flags}) for messages, flags in chats]
    return template.render(tokenizer.get_chat_template(), known)


def render_chat(tokenizer: Any, messages: template.Messages, **flags: Any) -> str:
    """One chat by the tokenizer's template. Raises TrainingError `template_failed`."""
    (shown,) = render_chats(tokenizer, [(messages, flags)])
    return _shown(shown, [])


def _with_switch(
    messages: list[dict[str, Any]], think: ThinkContract, *, thinks: bool
) -> list[dict[str, Any]]:
    """The words that turn reasoning on or off, before the system message's own text.

    A row's own words for it give way: what its answer shows is what the words must ask for.
    """
    has_system = bool(messages) and messages[0]["role"] == "system"
    own = messages[0]["content"] if has_system else ""
    for words in (think.switch_on, think.switch_off):
        if words and words in own:
            own = own.replace(words, "").strip()
    wanted = think.switch_on if thinks else think.switch_off
    content = "\n\n".join(part for part in (wanted, own) if part)
    rest = messages[1:] if has_system else messages
    return [{"role": "system", "content": content}, *rest] if content else rest


def contract_of(source: str, model_type: str, tokenizer: Any) -> ThinkContract:
    """The think contract that a base's template (`source`) shows, for runs that come without a catalog."""
    user = {"role": "user", "content": PROBE}
    prompt = render_chat(tokenizer, [user], add_generation_prompt=True)
    opens = prompt.rstrip().endswith("<think>")
    if "<｜Assistant｜>" in source:
        families = {"llama": "r1_llama", "qwen2": "r1_qwen", "qwen3": "r1_0528_qwen3"}
        return ThinkContract.model_validate(
            {"family": families.get(model_type, "r1_qwen"), "prompt_opens": opens}
        )
    if "/no_think" in source:
        nemotron = ThinkContract(family="nemotron", prompt_opens=opens, switch="system_prompt")
        return nemotron.model_copy(update={"switch_on": "", "switch_off": "/no_think"})
    # Nemotron v1 does not name its switch: the model knows the words, the template only passes them on.
    if "<|start_header_id|>" in source and ("</think>" in source or "<TOOLCALL>" in source):
        return ThinkContract(family="nemotron", prompt_opens=opens, switch="system_prompt")
    if "enable_thinking" in source:
        return ThinkContract(family="qwen3", prompt_opens=opens, switch="template_flag")
    if "<think>" in source or "</think>" in source:
        return ThinkContract(family="qwq", prompt_opens=opens)
    return ThinkContract(family="plain", prompt_opens=opens, history_keeps=True)
