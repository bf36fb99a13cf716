"""Recognising what a file's fields mean, by the fields of its first rows."""

from collections import Counter
from collections.abc import Mapping as Dictionary
from collections.abc import Sequence

from workers.contract import CHAT, Mapping

QUESTIONS = (
    "question", "prompt", "instruction", "query", "input", "problem", "text", "user", "request", "frage",
    "eingabe", "pregunta", "domanda", "task", "clause", "source", "content",
)  # fmt: skip
ANSWERS = (
    "answer", "completion", "response", "output", "solution", "target", "label", "assistant", "reply",
    "antwort", "ausgabe", "respuesta", "réponse", "reponse", "risposta", "expected", "ideal",
    "final_answer", "category",
)  # fmt: skip
CONTEXTS = ("context", "input", "passage", "document", "background", "kontext")
REASONINGS = (
    "reasoning_content", "reasoning", "thinking", "think", "thought", "thoughts", "cot", "chain_of_thought",
    "rationale", "complex_cot", "begründung", "deepseek_reasoning",
)  # fmt: skip
SYSTEMS = ("system", "system_prompt", "systemprompt")
MESSAGE_LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "chat")
ROLE_KEYS, TEXT_KEYS = ("role", "from", "speaker", "author"), ("content", "value", "text", "message")
ABOUT = frozenset((
    "id", "ids", "nr", "no", "number", "index", "count", "length", "len", "tokens", "type", "kind", "url",
    "date", "time", "source", "lang", "language", "score", "model", "role", "topic", "title", "hash", "file",
    "name", "path", "page",
))  # fmt: skip
"""Words of names that speak of something beside the text."""
USUAL = 0.5
"""Share of the looked-at rows that must carry a field for it to count."""


def recognise(rows: Sequence[Dictionary[str, object]]) -> Mapping | None:
    """How to read rows like these; None when nothing fits. Names are compared without case and spaces."""
    counts = Counter(key for row in rows for key, value in row.items() if value is not None and value != "")
    names = {_bare(key): key for key, count in reversed(counts.most_common()) if count >= USUAL * len(rows)}
    if not names:
        return None
    return _chat(names, rows) or _preference(names, rows) or _columns(names)


def _bare(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _first(names: dict[str, str], wanted: Sequence[str], *, but: Sequence[str] = ()) -> str:
    """The field of the first of these names, or of a longer one that begins with it, such as `Question of the
    customer`."""
    free = {bare: name for bare, name in names.items() if name not in but}
    if found := next((free[each] for each in wanted if each in free), ""):
        return found
    worded = {bare.partition("_")[0]: name for bare, name in free.items() if not _about(bare)}
    return next((worded[each] for each in wanted if each in worded), "")


def _about(bare: str) -> bool:
    """Whether a name is one like `question_id`."""
    return not ABOUT.isdisjoint(bare.split("_"))


def _chat(names: dict[str, str], rows: Sequence[Dictionary[str, object]]) -> Mapping | None:
    """A list of messages, in OpenAI's spelling, ShareGPT's or another."""
    for wanted in MESSAGE_LISTS:
        field = names.get(wanted)
        if field is None:
            continue
        messages = _some_message(field, rows)
        if messages is None:
            continue
        role, text = _first_key(messages, ROLE_KEYS), _first_key(messages, TEXT_KEYS)
        if role and text:
            if (field, role, text) == ("messages", "role", "content"):
                return _as_openai(rows)
            name = "ShareGPT" if role == "from" else "conversation"
            system = _first(names, SYSTEMS)
            return Mapping(shape="chat", name=name, messages=field, role=role, text=text, system=system)
    return CHAT if "messages" in names else None


def _as_openai(rows: Sequence[Dictionary[str, object]]) -> Mapping:
    inside = {key for row in rows for message in _messages(row.get("messages")) for key in message}
    if "tool_calls" in inside or any("tools" in row for row in rows):
        return CHAT.model_copy(update={"name": "OpenAI chat with tools"})
    if "reasoning_content" in inside:
        return CHAT.model_copy(update={"name": "chat with reasoning traces (DeepSeek style)"})
    return CHAT


def _messages(value: object) -> list[dict[str, object]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _some_message(field: str, rows: Sequence[Dictionary[str, object]]) -> dict[str, object] | None:
    return next((message for row in rows for message in _messages(row.get(field))), None)


def _first_key(message: dict[str, object], wanted: Sequence[str]) -> str:
    return next((key for key in wanted if key in message), "")


def _preference(names: dict[str, str], rows: Sequence[Dictionary[str, object]]) -> Mapping | None:
    if "chosen" not in names or "rejected" not in names:
        return None
    question = _first(names, QUESTIONS)
    whole = any(len(_messages(row.get(names["chosen"]))) > 1 for row in rows)
    if whole and not any(len(_messages(row.get(names["chosen"]))) == 1 for row in rows):
        question = ""  # the chosen side is the whole conversation
    elif not question:
        return None
    return Mapping(
        shape="preference",
        name="preference pairs (the chosen answers are learned)",
        question=question,
        answer=names["chosen"],
        rejected=names["rejected"],
        system=_first(names, SYSTEMS),
    )


def _columns(names: dict[str, str]) -> Mapping | None:
    """A question and an answer in fields of their own, with what may go with them."""
    reasoning = _first(names, REASONINGS)
    answer = _first(names, ANSWERS, but=[reasoning])
    question = _first(names, QUESTIONS, but=[answer, reasoning])
    if not question or not answer:
        return None
    context = _first(names, CONTEXTS, but=[question, answer, reasoning])
    name = "questions and answers"
    if "instruction" in names and answer == names.get("output"):
        question, name = names["instruction"], "Alpaca"
        context = names.get("input", context)
    elif reasoning:
        name = "questions with reasoning and answer"
    elif {question, answer} == {"prompt", "completion"}:
        name = "prompt and completion"
    system = _first(names, SYSTEMS)
    return Mapping(
        shape="columns",
        name=name,
        question=question,
        answer=answer,
        context=context,
        reasoning=reasoning,
        system=system,
    )
