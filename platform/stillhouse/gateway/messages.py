"""The messages of a chat request."""

from typing import Any

from stillhouse.gateway.errors import ApiError, invalid

_ROLES = ("system", "developer", "user", "assistant", "tool")
_MAX_MESSAGES = 4096
_TEXT_PARTS = ("text", "refusal")
MEDIA_PARTS = (
    "image_url",
    "input_image",
    "input_audio",
    "audio_url",
    "video_url",
    "file",
    "input_file",
    "image_pil",
)


def check_messages(messages: Any) -> None:
    """Check every message; raises ApiError 400 that names the place.

    In place: `developer`, OpenAI's newer word, becomes `system`, the word the templates of open bases know.
    """
    if messages is None:
        raise invalid(
            "messages", "Send `messages`: a list of role and content.", code="missing_required_parameter"
        )
    if not isinstance(messages, list) or not 0 < len(messages) <= _MAX_MESSAGES:
        raise invalid("messages", f"`messages` must be a list of 1 to {_MAX_MESSAGES} messages.")
    for index, message in enumerate(messages):
        _check_message(f"messages[{index}]", message)


def _check_message(place: str, message: Any) -> None:
    if not isinstance(message, dict):
        raise invalid(place, f"`{place}` must be an object with role and content.")
    role = message.get("role")
    if role not in _ROLES:
        raise invalid(f"{place}.role", f"`{place}.role` must be one of {', '.join(_ROLES)}.")
    if role == "developer":
        message["role"] = "system"
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise invalid(
            f"{place}.tool_call_id", "A message of a tool names the call it answers in `tool_call_id`."
        )
    content = message.get("content")
    if content is None:
        if role != "assistant":
            raise invalid(
                f"{place}.content",
                f"`{place}.content` is missing: send text.",
                code="missing_required_parameter",
            )
    elif isinstance(content, list):
        for number, part in enumerate(content):
            _check_part(f"{place}.content[{number}]", part)
    elif not isinstance(content, str):
        raise invalid(f"{place}.content", f"`{place}.content` must be text, or a list of text parts.")


def _check_part(place: str, part: Any) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXT_PARTS and isinstance(part.get(kind), str):
        return
    if kind in MEDIA_PARTS:
        raise ApiError(
            400,
            "media_not_supported",
            f"`{place}` is a part of type {kind}. Only text is served here, "
            "and nothing is fetched from URLs. Remove the part.",
            param=place,
        )
    raise invalid(place, f'`{place}` must be {{"type": "text", "text": ...}}.')
