"""Waiting for what other threads and processes bring about."""

import inspect
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(condition: Callable[[], T | None], seconds: float = 20.0) -> T:
    """Ask until the answer is true, and return it; an AssertionError when it is not within `seconds`."""
    began = time.monotonic()
    while not (found := condition()):
        waited = time.monotonic() - began
        assert waited < seconds, f"not so after {waited:.1f} s: {_words(condition)}"
        time.sleep(min(0.02 + waited / 100, 0.1))  # what takes long is asked less often
    return found


def _words(condition: Callable[[], object]) -> str:
    """The line where a lambda stands, or the name of another function."""
    name = getattr(condition, "__qualname__", repr(condition))
    return " ".join(inspect.getsource(condition).split()) if name.endswith("<lambda>") else name
