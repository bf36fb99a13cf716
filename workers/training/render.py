"""From chats to token ids: what the model will be shown when it serves, then the answer it should give.

The prompt is always what the base's own inference template makes of the earlier messages, generation prompt
included. The answer's ids are appended; templates are never asked to render it, because those of reasoning
bases drop or rewrite the reasoning of every assistant turn.
"""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from workers.contract import ThinkContract, ThinkPolicy
from workers.data.chat import ChatMessage, Row
from workers.training.errors import TrainingError

PROBE = "stillhouse"
"""An answer that no template would drop or change."""
SYSTEM_SWITCH = "detailed thinking"


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


class Renderer:
    """Renders rows for one base, with its fast tokenizer and the chat template that the tokenizer holds."""

    def __init__(self, tokenizer: Any, think: ThinkContract, policy: ThinkPolicy) -> None:
        self.tokenizer = tokenizer
        self.think = think
        self.policy = policy
        # Reasoning bases put the tags on lines of their own; a plain base has no custom to follow.
        inside, after = ("", "\n") if think.family == "plain" else ("\n", "\n\n")
        self._opening = think.open + inside
        self._closing = inside + think.close + after
        self.end_id = self._find_end_token()
        self._check_prompt_ending()

    def samples(self, rows: Iterable[Row]) -> Iterator[Sample]:
        """One sample for every assistant turn of every row, in order."""
        for index, row in enumerate(rows):
            for turn, message in enumerate(row["messages"]):
                if message["role"] == "assistant":
                    yield self.sample(row["messages"], turn, row=index)

    def sample(self, messages: list[ChatMessage], turn: int, row: int = 0) -> Sample:
        target = messages[turn]
        reasoning = target.get("reasoning_content", "") if self.policy != "no_think" else ""
        prompt = self.prompt(messages[:turn], thinks=bool(reasoning))
        block = self._think_block(reasoning, prompt)
        encoded = self.tokenizer(
            block + target["content"], add_special_tokens=False, return_offsets_mapping=True
        )
        masked = len(block) if self.policy == "answer_only" else 0
        return Sample(
            row=row,
            turn=turn,
            prompt_ids=self.tokenizer(prompt, add_special_tokens=False)["input_ids"],
            target_ids=[*encoded["input_ids"], self.end_id],
            trained_from=sum(start < masked for start, _ in encoded["offset_mapping"]),
        )

    def prompt(self, messages: list[ChatMessage], *, thinks: bool) -> str:
        """What the base's inference template makes of the messages before an answer."""
        rendered = [self._as_history(message) for message in messages]
        flags: dict[str, bool] = {}
        if self.think.switch == "template_flag":
            flags["enable_thinking"] = thinks
        if self.think.switch == "system_prompt":
            rendered = _with_system_switch(rendered, thinks=thinks)
        return self._apply(rendered, add_generation_prompt=True, **flags)

    def _think_block(self, reasoning: str, prompt: str) -> str:
        """What comes between the generation prompt and the answer."""
        if self.think.prompt_opens:
            # The answer starts inside the block that the prompt opened, so it has to close it, empty or not.
            newline = "" if prompt.endswith(self._opening) else self._opening[len(self.think.open) :]
            return newline + reasoning + self._closing
        return self._opening + reasoning + self._closing if reasoning else ""

    def _as_history(self, message: ChatMessage) -> dict[str, str]:
        """An earlier message as an app would send it back."""
        reasoning = message.get("reasoning_content", "")
        content = message["content"]
        if reasoning and self.think.history_keeps and self.policy != "no_think":
            content = self._opening + reasoning + self._closing + content
        return {"role": message["role"], "content": content}

    def _apply(self, messages: list[dict[str, str]], **flags: bool) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(copy.deepcopy(messages), tokenize=False, **flags))
        except Exception as error:  # whatever a template raises, by itself or through Jinja
            raise TrainingError(
                "template_failed",
                f"The base's chat template could not render a chat ({type(error).__name__}). "
                "Check that it belongs to this base and accepts system, user and assistant messages.",
            ) from None

    def _find_end_token(self) -> int:
        """The token that the template writes after an answer: what the model must learn to say last."""
        shown = self._apply(
            [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}],
            add_generation_prompt=False,
        )
        after = self.tokenizer(shown.rpartition(PROBE)[2], add_special_tokens=False)["input_ids"]
        special = set(self.tokenizer.all_special_ids)
        found = next((token for token in after if token in special), self.tokenizer.eos_token_id)
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


def _with_system_switch(messages: list[dict[str, str]], *, thinks: bool) -> list[dict[str, str]]:
    """The sentence that turns reasoning on or off, before the system message's own text."""
    own = messages[0]["content"] if messages and messages[0]["role"] == "system" else ""
    if SYSTEM_SWITCH in own:
        return messages
    sentence = f"{SYSTEM_SWITCH} {'on' if thinks else 'off'}"
    rest = messages[1:] if own else messages
    return [{"role": "system", "content": f"{sentence}\n\n{own}" if own else sentence}, *rest]


def contract_of(template: str, model_type: str, tokenizer: Any) -> ThinkContract:
    """The think contract that a base's template shows, for runs that come without a catalog."""
    chat = [{"role": "user", "content": PROBE}]
    prompt = str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    opens = prompt.rstrip().endswith("<think>")
    if "<｜Assistant｜>" in template:
        families = {"llama": "r1_llama", "qwen2": "r1_qwen", "qwen3": "r1_0528_qwen3"}
        return ThinkContract.model_validate(
            {"family": families.get(model_type, "r1_qwen"), "prompt_opens": opens}
        )
    if SYSTEM_SWITCH in template:
        return ThinkContract(family="nemotron", prompt_opens=opens, switch="system_prompt")
    if "enable_thinking" in template:
        return ThinkContract(family="qwen3", prompt_opens=opens, switch="template_flag")
    if "<think>" in template or "</think>" in template:
        return ThinkContract(family="qwq", prompt_opens=opens)
    return ThinkContract(family="plain", prompt_opens=opens, history_keeps=True)
