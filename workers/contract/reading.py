"""How a file is read: which of its columns hold what, as recognised by looking or as a person says."""

from collections.abc import Mapping as Dictionary
from typing import Literal

from pydantic import Field

from workers.contract.base import Message

ROLE_NAMES: Dictionary[str, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "instruction": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "response": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""What other tools call the roles."""

Items = list[tuple[str, object]]
"""Messages of a row, each with its place in the row; still unchecked."""

Shape = Literal["chat", "columns", "preference"]


class Mapping(Message):
    """Which fields of a row hold the conversation. Fields that are not named are not read."""

    shape: Shape
    """`chat`: one field holds a list of messages. `columns`: question, answer and more stand in fields of
    their own. `preference`: like `columns`, with a chosen and a rejected answer; the chosen one is
    learned."""
    name: str = Field(default="", max_length=80)
    """What people call this shape, such as `ShareGPT`."""
    messages: str = Field(default="", max_length=200)
    role: str = Field(default="role", max_length=200)
    """Inside a message: the field that says who speaks."""
    text: str = Field(default="content", max_length=200)
    """Inside a message: the field that says what."""
    system: str = Field(default="", max_length=200)
    question: str = Field(default="", max_length=200)
    context: str = Field(default="", max_length=200)
    """Added to the question after a blank line, where it is not empty."""
    reasoning: str = Field(default="", max_length=200)
    answer: str = Field(default="", max_length=200)
    rejected: str = Field(default="", max_length=200)
    roles: dict[str, Literal["system", "user", "assistant"]] = Field(default={}, max_length=20)
    """What this file calls roles, in lower case, beside the usual names such as `human` and `gpt`."""

    @property
    def fields(self) -> frozenset[str]:
        """The fields of a row that are read."""
        names = (self.messages, self.system, self.question, self.context, self.reasoning, self.answer)
        return frozenset(filter(None, (*names, self.rejected)))


CHAT = Mapping(shape="chat", name="OpenAI chat", messages="messages")


class Reading(Message):
    """What the file turned out to be."""

    format: str
    """Such as `JSON Lines`, `CSV`, `Excel workbook`, `ZIP of 3 files`."""
    encoding: str = ""
    """Of a text file, such as `UTF-8` or `Windows-1252`; it was converted to UTF-8 while reading."""
    delimiter: str = ""
    """Of a CSV file."""
    mapping: Mapping | None = None
    """None when no shape was recognised."""
    recognised: bool = True
    """False when a person said how to read it."""
    columns: list[str] = []
    """Fields of the first rows, at most 100."""
    preview: list[dict[str, str]] = []
    """The first few rows as they stand in the file, cells cut: for a form that shows another reading."""


def items_of(row: Dictionary[str, object], mapping: Mapping) -> Items:
    """The messages of a row as `mapping` reads them, with the places their texts come from."""
    if mapping.shape == "chat":
        return _listed(row, mapping)
    before = row.get(mapping.question) if mapping.question else None
    answer = row.get(mapping.answer)
    if isinstance(answer, list):
        items = _turns(answer, mapping.answer)
        return items if before is None else [*_opening(row, mapping, before), *items]
    said: dict[str, object] = {"role": "assistant", "content": _plain(answer)}
    if mapping.reasoning and row.get(mapping.reasoning) is not None:
        said["reasoning_content"] = _plain(row[mapping.reasoning])
    return [*_opening(row, mapping, before), (mapping.answer, said)]


def _opening(row: Dictionary[str, object], mapping: Mapping, question: object) -> Items:
    """System message, if there is one, and question."""
    system = row.get(mapping.system) if mapping.system else None
    items: Items = (
        [(mapping.system, {"role": "system", "content": _plain(system)})] if _filled(system) else []
    )
    if isinstance(question, list):
        return [*items, *_turns(question, mapping.question)]
    text = _plain(question)
    context = row.get(mapping.context) if mapping.context else None
    if _filled(context) and isinstance(text, str):
        text = f"{text}\n\n{_plain(context)}" if text.strip() else _plain(context)
    return [*items, (mapping.question, {"role": "user", "content": text})]


def _listed(row: Dictionary[str, object], mapping: Mapping) -> Items:
    value = row.get(mapping.messages)
    system = row.get(mapping.system) if mapping.system else None
    items: Items = [(mapping.system, {"role": "system", "content": system})] if _filled(system) else []
    if isinstance(value, list):
        items += [
            (f"{mapping.messages}[{index}]", _message(item, mapping)) for index, item in enumerate(value)
        ]
    return items


def _message(item: object, mapping: Mapping) -> object:
    """A message under our names for its fields and roles."""
    plain = (mapping.role, mapping.text) == ("role", "content") and not mapping.roles
    if plain or not isinstance(item, dict):
        return item
    rest = {key: value for key, value in item.items() if key not in (mapping.role, mapping.text)}
    role = item.get(mapping.role)
    known = role
    if isinstance(role, str):
        known = mapping.roles.get(role.lower()) or ROLE_NAMES.get(role.lower(), role)
    return {**rest, "role": known, "content": item.get(mapping.text)}


def _turns(value: list[object], place: str) -> Items:
    return [(f"{place}[{index}]", item) for index, item in enumerate(value)]


def _filled(value: object) -> bool:
    return value is not None and str(value).strip() != ""


def _plain(value: object) -> object:
    """A cell as text: tables hold numbers and truth values where a text is meant."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value) if isinstance(value, int | float) else value
