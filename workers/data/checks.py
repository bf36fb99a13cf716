"""Checks of one row: from bytes or cells to a normalised row, or to the reasons why there is none."""

from workers.contract import Items, Mapping, items_of
from workers.data.chat import TOOLS, ChatMessage, Row
from workers.data.checked import CheckedLine, kind_of
from workers.data.lines import Line
from workers.data.readers.source import RawRow
from workers.data.strict_json import JsonProblem, parse, shown
from workers.data.think import OPEN, split_think
from workers.data.tools import read_calls, read_tools
from workers.data.turns import check_turns

ROLES = ("system", "user", "assistant", "tool")
KNOWN_FIELDS = frozenset({"messages", "prompt", "completion"})
KNOWN_MESSAGE_FIELDS = frozenset(
    {"role", "content", "reasoning_content", "reasoning", "name", "tool_calls", "tool_call_id"}
)
REFUSED_MESSAGE_FIELDS = ("function_call", "weight")
REASONING_FIELDS = ("reasoning_content", "reasoning")


def check_line(
    line: Line, max_row_bytes: int, mapping: Mapping | None = None, source: str = ""
) -> CheckedLine:
    """Check one line that is not blank, and normalise it when nothing is wrong with it."""
    checked = CheckedLine(line.number, source=source)
    text = _decode(line, max_row_bytes, checked)
    return checked if text is None else _check_text(text, mapping, checked)


def check_raw(raw: RawRow, max_row_bytes: int, mapping: Mapping | None = None) -> CheckedLine:
    """The same for a row of any reader."""
    if isinstance(raw.value, bytes):
        line = Line(raw.number, raw.value, len(raw.value))
        return check_line(line, max_row_bytes, mapping, raw.source)
    checked = CheckedLine(raw.number, source=raw.source)
    if raw.value is None:
        checked.error("", raw.code, raw.message)
        return checked
    if raw.extra is not None:
        checked.extra = raw.extra
        return _ordered(_messages(raw.value, checked), checked)
    return _check_value(raw.value, mapping, checked, from_table=True)


def is_plain(mapping: Mapping | None) -> bool:
    """Whether rows may be in either of the two plain spellings, `messages` or `prompt` and `completion`."""
    if mapping is None:
        return True
    if mapping.shape == "chat":
        usual = (mapping.messages, mapping.role, mapping.text) == ("messages", "role", "content")
        return usual and not mapping.roles
    return mapping.shape == "columns" and mapping.fields == {"prompt", "completion"}


def _check_text(text: str, mapping: Mapping | None, checked: CheckedLine) -> CheckedLine:
    try:
        value = parse(text)
    except JsonProblem as problem:
        checked.error(problem.field, problem.code, problem.message, text.lstrip())
        return checked
    if not isinstance(value, dict):
        checked.error(
            "",
            "not_an_object",
            f'This line holds {kind_of(value)}. Write an object such as {{"messages": [...]}}.',
            value,
        )
        return checked
    return _check_value(value, mapping, checked)


def _check_value(
    value: dict[str, object], mapping: Mapping | None, checked: CheckedLine, *, from_table: bool = False
) -> CheckedLine:
    if mapping is None or (is_plain(mapping) and not from_table):
        messages = _messages(value, checked)
    else:
        messages = _mapped(value, mapping, checked)
    return _ordered(messages, checked)


def _ordered(messages: list[ChatMessage] | None, checked: CheckedLine) -> CheckedLine:
    if messages is not None and not checked.errors:
        check_turns(messages, checked)
        read_tools(messages, checked)
    if messages is not None and not checked.errors:
        checked.row = Row(messages=messages)
    return checked


def _decode(line: Line, max_row_bytes: int, checked: CheckedLine) -> str | None:
    if line.too_long:
        checked.error(
            "",
            "line_too_long",
            f"This line is {line.size:,} bytes long; at most {max_row_bytes:,} are read. "
            "Split it into several rows, or check that every row ends in a line feed.",
        )
        return None
    if (position := line.data.find(0)) >= 0:
        checked.error(
            "", "nul_byte", f"Byte {position + 1} of this line is NUL. Save the file as UTF-8 text."
        )
        return None
    try:
        return line.data.decode("utf-8")
    except UnicodeDecodeError as error:
        checked.error(
            "",
            "not_utf8",
            f"Byte {error.start + 1} of this line (0x{line.data[error.start]:02x}) is not UTF-8. "
            "Save the file as UTF-8.",
        )
        return None


def _messages(row: dict[str, object], checked: CheckedLine) -> list[ChatMessage] | None:
    """The normalised messages of a row in either spelling; None when they could not be read."""
    _set_aside(row, KNOWN_FIELDS, checked)
    paired = "prompt" in row or "completion" in row
    if "messages" in row and paired:
        checked.error(
            "", "two_formats", "This row has `messages` and `prompt`/`completion`. Keep one of the two."
        )
        return None
    if paired:
        items = _pair(row, checked)
    elif "messages" in row:
        items = _listed(row["messages"], "messages", checked)
    else:
        checked.error(
            "",
            "no_messages",
            "This row has neither `messages` nor `prompt` and `completion`. Add one of them.",
        )
        return None
    if items is None:
        return None
    read = [_message(item, place, checked) for place, item in items]
    return [message for message in read if message is not None]


def _mapped(row: dict[str, object], mapping: Mapping, checked: CheckedLine) -> list[ChatMessage] | None:
    """The normalised messages of a row as the mapping reads it."""
    _set_aside(row, mapping.fields, checked)
    row = {key: _opened(value, key, checked) for key, value in row.items() if key in mapping.fields}
    if checked.errors:
        return None
    for place in _needed(mapping):
        if row.get(place) is None or row[place] == "":
            checked.error(place, "missing_field", f"`{place}` is empty or missing. Fill it in.")
            return None
    if mapping.shape == "chat" and not _listed(row[mapping.messages], mapping.messages, checked):
        return None
    items: Items = items_of(row, mapping)
    read = [_message(item, place, checked) for place, item in items]
    return [message for message in read if message is not None]


def _set_aside(row: dict[str, object], read: frozenset[str], checked: CheckedLine) -> None:
    """Fields beside the conversation are kept with the row."""
    extra = {key: value for key, value in row.items() if key not in read}
    if extra:
        checked.ignored = [*checked.ignored, *(key for key in extra if key != TOOLS)]
        checked.extra = extra


def _needed(mapping: Mapping) -> list[str]:
    return [name for name in (mapping.messages, mapping.question, mapping.answer) if name]


def _opened(value: object, place: str, checked: CheckedLine) -> object:
    """A cell that holds JSON messages as text, as tables must write them, is read."""
    if not isinstance(value, str) or not value.startswith('[{"') or not value.rstrip().endswith("}]"):
        return value
    try:
        return parse(value)
    except JsonProblem as problem:
        checked.error(place, problem.code, problem.message, value)
        return value


def _listed(value: object, place: str, checked: CheckedLine) -> list[tuple[str, object]] | None:
    if not isinstance(value, list):
        checked.error(place, "not_a_list", f"`{place}` is {kind_of(value)}. Write a list of messages.")
        return None
    if not value:
        checked.error(
            place, "no_messages", f"`{place}` is an empty list. Add a user and an assistant message."
        )
        return None
    return [(f"{place}[{index}]", item) for index, item in enumerate(value)]


def _pair(row: dict[str, object], checked: CheckedLine) -> list[tuple[str, object]] | None:
    """`prompt` and `completion`, each a text or a list of messages, as places and messages."""
    items: list[tuple[str, object]] = []
    for place, role in (("prompt", "user"), ("completion", "assistant")):
        value = row.get(place)
        if isinstance(value, str):
            items.append((place, {"role": role, "content": value}))
        elif isinstance(value, list):
            items.extend(_listed(value, place, checked) or [])
        else:
            what = kind_of(value) if place in row else "missing"
            checked.error(place, "not_text", f"`{place}` is {what}. Write a text or a list of messages.")
    return None if checked.errors else items


def _message(item: object, place: str, checked: CheckedLine) -> ChatMessage | None:
    if not isinstance(item, dict):
        checked.error(
            place,
            "not_an_object",
            f"This message is {kind_of(item)}. Write an object with `role` and `content`.",
        )
        return None
    for name in REFUSED_MESSAGE_FIELDS:
        if item.get(name) is not None:
            checked.error(
                f"{place}.{name}",
                "unsupported_field",
                f"`{name}` cannot be trained on yet. Remove the field, or write what matters into `content`.",
            )
    listed = place.partition("[")[0]
    if item.keys() - KNOWN_MESSAGE_FIELDS:
        more = [f"{listed}[].{key}" for key in item if key not in KNOWN_MESSAGE_FIELDS]
        checked.ignored = [*checked.ignored, *(name for name in more if name not in checked.ignored)]
    role = item.get("role")
    if role not in ROLES:
        what = "has no `role`" if "role" not in item else f"has the role {shown(role)}"
        message = f"This message {what}. Use system, user, assistant or tool."
        checked.error(f"{place}.role", "unknown_role", message, role)
        return None
    inside = _content_place(place)
    content = _text(item.get("content"), inside, checked)
    if content is None:
        return None
    if role in _READERS:
        return _READERS[role](item, content, place, checked)
    if not content.strip():
        checked.error(inside, "empty_content", f"This {role} message is empty. Write its text.")
        return None
    return {"role": role, "content": content}


def _content_place(place: str) -> str:
    """Where the text of a message stands: `prompt` and `completion` may be the text itself."""
    return f"{place}.content" if place.endswith("]") else place


def _text(value: object, place: str, checked: CheckedLine) -> str | None:
    """A text, given as such or as a list of `{"type": "text", "text": ..}` parts; null is an empty text."""
    if value is None:
        return ""
    if isinstance(value, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in value
    ):
        value = "".join(part["text"] if isinstance(part.get("text"), str) else "" for part in value)
    if not isinstance(value, str):
        checked.error(place, "not_text", f"This is {kind_of(value)}. Write a text.", value)
        return None
    if "\x00" in value:
        checked.error(place, "nul_byte", "This text holds a NUL character (\\u0000). Remove it.")
        return None
    try:
        value.encode()
    except UnicodeEncodeError as error:
        if "\udc80" <= value[error.start] <= "\udcff":
            byte = ord(value[error.start]) - 0xDC00
            message = f"Character {error.start + 1} of this text (byte 0x{byte:02x}) is not UTF-8. Mend it."
            checked.error(place, "not_utf8", message)
            return None
        checked.error(
            place,
            "bad_unicode",
            f"Character {error.start + 1} of this text is half of a surrogate pair (\\ud800 to \\udfff). "
            "Write the whole character.",
        )
        return None
    return value


def _result(item: dict[str, object], content: str, place: str, checked: CheckedLine) -> ChatMessage | None:
    """What a tool gave back, be it nothing."""
    message: ChatMessage = {"role": "tool", "content": content}
    if item.get("tool_call_id") is not None:
        call = _text(item["tool_call_id"], f"{place}.tool_call_id", checked)
        if call:
            message["tool_call_id"] = call
    return message


def _assistant(item: dict[str, object], content: str, place: str, checked: CheckedLine) -> ChatMessage | None:
    """An assistant turn with its reasoning apart, from a field or from an inline think block."""
    inline = split_think(content)
    given = {name: _text(item[name], f"{place}.{name}", checked) for name in REASONING_FIELDS if name in item}
    texts = {text.strip() for text in [*given.values(), inline.reasoning] if text and text.strip()}
    if len(texts) > 1:
        checked.error(
            place,
            "two_reasonings",
            "This answer carries two different reasonings. Keep one field or the think block.",
        )
        return None
    calls = read_calls(item.get("tool_calls"), f"{place}.tool_calls", checked)
    if not inline.answer.strip() and item.get("tool_calls") and not calls:
        return None  # what is wrong with them is told already
    if not inline.answer.strip() and not calls:
        checked.error(
            _content_place(place),
            "empty_answer",
            "This answer is empty"
            + (" after its think block. " if texts else ". ")
            + "Write what the model should say.",
        )
        return None
    if not inline.closed:
        checked.warn(
            _content_place(place),
            "unclosed_think",
            f"A {OPEN} block is opened and never closed, so it is trained as part of the answer. Close it.",
        )
    elif inline.answer is not content and not inline.reasoning:
        checked.warn(
            _content_place(place),
            "empty_think",
            "This answer's think block is empty, so it is learned as an answer without reasoning.",
        )
    elif OPEN in inline.answer:
        checked.warn(
            _content_place(place),
            "many_thinks",
            f"Another {OPEN} stands inside the answer and is trained as text.",
        )
    message: ChatMessage = {"role": "assistant", "content": inline.answer}
    if texts:
        message["reasoning_content"] = texts.pop()
    if calls:
        message["tool_calls"] = calls
    return message


_READERS = {"assistant": _assistant, "tool": _result}
