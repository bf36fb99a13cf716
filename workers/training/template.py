"""Chat templates are programs that come with a base: they run in a child, bounded in time, memory and output.

The child renders with transformers' own function, as serving engines do, and lives as long as this process.
"""

import ctypes
import functools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workers.training.errors import TrainingError

SECONDS = 3.0
"""Processor time of one rendering; an honest one takes about a millisecond."""
MEMORY_BYTES = 2 * 1024**3
"""Address space of the child."""
EXTRA_CHARACTERS = 100_000
GROWTH = 4
"""A prompt may have `GROWTH` times the characters of its messages, and `EXTRA_CHARACTERS` more."""
PR_SET_PDEATHSIG = 1
PACKAGE_ROOT = Path(__file__).resolve().parents[2]

Messages = Sequence[Mapping[str, Any]]
Chat = tuple[Messages, Mapping[str, Any]]
"""The messages, and the special tokens and flags that the template may use."""


def render(template: str, chats: Sequence[Chat]) -> list[str | TrainingError]:
    """What the template makes of each chat, in their order.

    TrainingError `template_failed` stands where a template raises, loops, explodes or is no template, and for
    all chats after one that brought the child down.
    """
    return _child_of(os.getpid()).render(template, chats)


@functools.cache
def _child_of(process: int) -> "TemplateChild":
    """One for each process: two that share one, after a fork, would read each other's answers."""
    return TemplateChild()


class TemplateChild:
    """The child process, started when it is first needed and again after a template has brought it down."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._one_at_a_time = threading.Lock()

    def render(self, template: str, chats: Sequence[Chat]) -> list[str | TrainingError]:
        asked = [{"messages": list(messages), "variables": dict(flags)} for messages, flags in chats]
        with self._one_at_a_time:
            answers = self._answers(template, asked)
        return [str(answer["text"]) if "text" in answer else _failure(answer["error"]) for answer in answers]

    def _answers(self, template: str, chats: list[dict[str, Any]]) -> list[dict[str, Any]]:
        answers, why = self._ask(template, chats)
        if len(rest := chats[len(answers) :]) > 1:
            # Answers that were under way went down with the child: one by one tells which chat did it.
            for chat in rest:
                answer, why = self._ask(template, [chat])
                answers += answer
                if not answer:
                    break
        return answers + [{"error": why}] * (len(chats) - len(answers))

    def _ask(self, template: str, chats: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
        """The first answers, and where some are missing, why."""
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        lines: list[str] = []
        try:
            process.stdin.write(json.dumps({"template": template, "chats": chats}) + "\n")
            process.stdin.flush()
            # A line without its end was cut off with the child.
            while len(lines) < len(chats) and (line := process.stdout.readline()).endswith("\n"):
                lines.append(line)
        except BrokenPipeError:
            pass
        except BaseException:
            self._end()  # an answer that nobody has read would be taken for the next one
            raise
        answers = [dict(json.loads(line)) for line in lines]
        if len(answers) == len(chats):
            return answers, ""
        return answers, "ran too long" if self._end() == -signal.SIGPROF else "broke off"

    def _running(self) -> "subprocess.Popen[str]":
        if self._process is not None and self._process.poll() is not None:
            self._end()  # it dies with the thread that started it
        if self._process is None:
            command = [sys.executable, "-m", "workers.training.template", str(os.getpid()), str(SECONDS)]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=PACKAGE_ROOT,
                # Every thread of a library takes of the address space, and rendering needs one.
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                text=True,
                encoding="utf-8",
            )
        return self._process

    def _end(self) -> int:
        assert self._process is not None
        process, self._process = self._process, None
        process.kill()
        with process:
            return process.wait()


def _failure(why: str) -> TrainingError:
    return TrainingError(
        "template_failed",
        f"The base's chat template could not render a chat ({why}). "
        "Check that it belongs to this base and accepts system, user and assistant messages, and tool calls "
        "where rows have some.",
    )


def _limit_this_process(parent: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit("The parent died before it could be watched.")
    for limit, wanted in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(limit)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(limit, (value, value))
    # Ctrl-C goes to the whole group, and this process ends with its parent anyway.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)


def _size(value: object) -> int:
    """Characters of all texts inside."""
    if isinstance(value, dict):
        return sum(len(name) + _size(item) for name, item in value.items())
    return sum(map(_size, value)) if isinstance(value, list) else len(str(value))


def _answer(template: str, chat: dict[str, Any], render_jinja_template: Callable[..., Any]) -> dict[str, str]:
    messages, variables = chat["messages"], chat["variables"]
    room = GROWTH * (_size(messages) + _size(variables.get("tools"))) + EXTRA_CHARACTERS
    try:
        rendered, _ = render_jinja_template([messages], chat_template=template, **variables)
    except MemoryError:
        return {"error": "needs too much memory"}
    except Exception as error:  # whatever a template raises, by itself or through Jinja
        return {"error": type(error).__name__}
    if len(rendered[0]) > room:
        return {"error": f"writes {len(rendered[0]):,} characters"}
    return {"text": rendered[0]}


def _serve(parent: int, seconds: float) -> None:
    """Answer a JSON line of chats with a line for each of them, until the parent closes the pipe."""
    _limit_this_process(parent)
    from transformers.utils.chat_template_utils import render_jinja_template  # noqa: PLC0415 - only the child

    for line in sys.stdin:
        request = json.loads(line)
        for chat in request["chats"]:
            # Spent processor time ends the process by SIGPROF, in the middle of whatever it is doing.
            signal.setitimer(signal.ITIMER_PROF, seconds)
            answer = _answer(request["template"], chat, render_jinja_template)
            signal.setitimer(signal.ITIMER_PROF, 0)
            print(json.dumps(answer))
        # Not after each: the two processes would take turns on the processor for every chat.
        sys.stdout.flush()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), float(sys.argv[2]))
