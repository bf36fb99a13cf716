"""Who speaks after whom."""

from workers.data.chat import ChatMessage, Role
from workers.data.checked import CheckedLine


def check_turns(messages: list[ChatMessage], checked: CheckedLine) -> None:
    """System first or not at all; then user and assistant in turn, tools after calls; assistant last."""
    if all(message["role"] != "assistant" for message in messages):
        checked.error(
            "messages", "no_answer", "This chat has no assistant message, so there is nothing to train."
        )
        return
    due: tuple[Role, ...] = ("system", "user")
    for index, message in enumerate(messages):
        role = message["role"]
        if role not in due:
            checked.error(f"messages[{index}].role", "role_order", _out_of_turn(role, due))
            return
        due = _due_after(message)
    if messages[-1]["role"] != "assistant":
        checked.error(
            f"messages[{len(messages) - 1}].role",
            "role_order",
            f"The last message is the {messages[-1]['role']}'s, so nothing answers it. "
            "Add an answer or remove it.",
        )
        return
    _check_results(messages, checked)


def _due_after(message: ChatMessage) -> tuple[Role, ...]:
    if message["role"] == "tool":
        return ("assistant", "tool")
    if message["role"] == "assistant":
        return ("tool",) if "tool_calls" in message else ("user",)
    return ("user",) if message["role"] == "system" else ("assistant",)


def _out_of_turn(role: Role, due: tuple[Role, ...]) -> str:
    if role == "system":
        return "A system message may only come first. Move or remove it."
    if role == "tool":
        return (
            "This result of a tool answers no call. Put the assistant's `tool_calls` before it, or remove it."
        )
    if due == ("tool",):
        return f"Here comes {role} where the result of a tool call is due. Add the tool's message."
    return (
        f"Here comes {role} where {due[-1] if 'tool' not in due else 'assistant'} is due: user and assistant "
        "take turns, user first. Join messages that follow each other from the same side."
    )


def _check_results(messages: list[ChatMessage], checked: CheckedLine) -> None:
    """A result that names its call names one that was made."""
    made: set[str] = set()
    for index, message in enumerate(messages):
        if "tool_calls" in message:
            made = {call["id"] for call in message["tool_calls"] if "id" in call}
        named = message.get("tool_call_id")
        if named is not None and made and named not in made:
            checked.error(
                f"messages[{index}].tool_call_id",
                "unknown_call",
                "This result names a call that was not made just before it. Write the id of that call.",
                named,
            )
