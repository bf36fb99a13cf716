"""Calls of tools: read from OpenAI's spelling, checked, and written in it again."""

from workers.data.chat import TOOLS, ChatMessage, ToolCall, Tools
from workers.data.checked import CheckedLine, kind_of
from workers.data.strict_json import JsonProblem, parse

MAX_TOOLS = 128


def read_calls(value: object, place: str, checked: CheckedLine) -> list[ToolCall]:
    """The calls of an assistant turn; empty where there are none or they are in error."""
    if value is None or value == []:
        return []
    if not isinstance(value, list):
        checked.error(place, "bad_tool_call", f"This is {kind_of(value)}. Write a list of calls.", value)
        return []
    found = [_call(item, f"{place}[{index}]", checked) for index, item in enumerate(value)]
    return [call for call in found if call is not None]


def _call(item: object, place: str, checked: CheckedLine) -> ToolCall | None:
    """A call as OpenAI writes it, or already flat as the normalised layout keeps it."""
    function = item.get("function", item) if isinstance(item, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(item, dict) or not isinstance(function, dict) or not isinstance(name, str) or not name:
        checked.error(
            place,
            "bad_tool_call",
            'This call names no function. Write {"function": {"name": "..", "arguments": {..}}}.',
            item,
        )
        return None
    arguments = _arguments(function.get("arguments"), f"{place}.function.arguments", checked)
    if arguments is None or not _is_text([name, arguments, item.get("id")], place, checked):
        return None
    call: ToolCall = {"name": name, "arguments": arguments}
    if isinstance(item.get("id"), str) and item["id"]:
        call = {"id": item["id"], **call}
    return call


def _arguments(value: object, place: str, checked: CheckedLine) -> dict[str, object] | None:
    """Arguments are an object, or its JSON as a text."""
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = parse(value)
        except JsonProblem as problem:
            checked.error(place, problem.code, f"In the arguments: {problem.message}", value)
            return None
    if isinstance(value, dict):
        return value
    checked.error(
        place, "bad_tool_call", f"The arguments are {kind_of(value)}. Write an object or its JSON.", value
    )
    return None


def _is_text(value: object, place: str, checked: CheckedLine) -> bool:
    """Whether no text inside holds NUL or half a character: neither can be kept or shown to a model."""
    if isinstance(value, dict):
        return all(_is_text([key, item], place, checked) for key, item in value.items())
    if isinstance(value, list):
        return all(_is_text(item, place, checked) for item in value)
    if not isinstance(value, str) or ("\0" not in value and value.isascii()):
        return True
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        checked.error(place, "bad_unicode", "This call holds NUL or half of a character. Mend its texts.")
        return False
    return True


def read_tools(messages: list[ChatMessage], checked: CheckedLine) -> None:
    """Check what the row lets the model call, and keep it as a list."""
    called = {call["name"] for message in messages for call in message.get("tool_calls", ())}
    value = checked.extra.get(TOOLS) if checked.extra else None
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse(value)
        except JsonProblem as problem:
            checked.error(TOOLS, problem.code, problem.message, value)
            return
    if not value:
        if called:
            checked.warn(
                TOOLS,
                "undeclared_tool",
                "This row calls a tool but has no `tools`, so the model does not know what it may call. "
                "Add them.",
                min(called),
            )
        return
    tools = _declared(value, checked)
    if tools is None or checked.extra is None:
        return
    checked.extra = {**checked.extra, TOOLS: tools}
    if unknown := called - {_name(tool) for tool in tools}:
        message = "This row calls a tool that its `tools` do not name. Add it there."
        checked.warn(TOOLS, "undeclared_tool", message, min(unknown))


def _declared(value: object, checked: CheckedLine) -> Tools | None:
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        what = f"a list of {len(value):,}" if isinstance(value, list) else kind_of(value)
        checked.error(
            TOOLS, "bad_tools", f"`tools` is {what}. Write a list of at most {MAX_TOOLS} functions."
        )
        return None
    tools: Tools = []
    for index, item in enumerate(value):
        function = item.get("function", item) if isinstance(item, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            checked.error(
                f"{TOOLS}[{index}]",
                "bad_tools",
                'This is no function. Write {"type": "function", "function": {"name": ".."}}.',
                item,
            )
            return None
        tools.append({"type": "function", "function": function})
    return tools


def _name(tool: dict[str, object]) -> object:
    function = tool["function"]
    return function["name"] if isinstance(function, dict) else None


def as_openai(message: ChatMessage, content: str) -> dict[str, object]:
    """A message as apps send it and templates take it: with the arguments as objects."""
    sent: dict[str, object] = {"role": message["role"], "content": content}
    if "tool_calls" in message:
        sent["tool_calls"] = [
            {
                **({"id": call["id"]} if "id" in call else {}),
                "type": "function",
                "function": {"name": call["name"], "arguments": call["arguments"]},
            }
            for call in message["tool_calls"]
        ]
    if "tool_call_id" in message:
        sent["tool_call_id"] = message["tool_call_id"]
    return sent
