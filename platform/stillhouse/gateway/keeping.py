"""Prompts and answers of an alias whose workspace keeps them: collected here, written with the usage record.

They are kept as JSON inside of text: whatever characters an app sends, the record around them stays valid.
"""

import json
from collections import defaultdict
from typing import Any

from stillhouse.gateway.requests import InferenceRequest

MOST_CHARACTERS = 256 * 1024
"""Of prompt and answer together. A longer exchange is not kept: it would push usage records off the disk."""


class Kept:
    """One exchange, as it comes about."""

    def __init__(self, prompt: Any, days: int) -> None:
        self._prompt = prompt
        self._days = days
        self._reasoning: dict[int, list[str]] = defaultdict(list)
        self._content: dict[int, list[str]] = defaultdict(list)

    @classmethod
    def of(cls, request: InferenceRequest, days: int) -> "Kept":
        """Of a request that is about to be answered; kept for `days` from now."""
        return cls(request.body.get("messages") or request.body.get("prompt"), days)

    def anew(self) -> "Kept":
        """The same prompt, before any answer."""
        return Kept(self._prompt, self._days)

    def add(self, index: int, content: str | None, reasoning: str | None = None) -> None:
        """One more piece of a choice."""
        if content:
            self._content[index].append(content)
        if reasoning:
            self._reasoning[index].append(reasoning)

    def fields(self) -> dict[str, object]:
        """For the line of the usage record; empty where there is nothing to keep, or too much."""
        choices = sorted(self._content.keys() | self._reasoning.keys())
        answers = [
            {"content": "".join(self._content[index]), "reasoning": "".join(self._reasoning[index])}
            for index in choices
        ]
        prompt, answer = json.dumps(self._prompt), json.dumps(answers)
        if not answers or len(prompt) + len(answer) > MOST_CHARACTERS:
            return {}
        return {"kept_prompt": prompt, "kept_answers": answer, "kept_days": self._days}
