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


def render(template: str, messages: Messages, variables: Mapping[str, Any]) -> str:
    """What the template makes of the messages. `variables` are the special tokens and flags it may use.

    Raises TrainingError `template_failed` for a template that raises, loops, explodes or is no template.
    """
    return _child_of(os.getpid()).render(template, messages, variables)


@functools.cache
def _child_of(process: int) -> "TemplateChild":
    """One for each process: two that share one, after a fork, would read each other's answers."""
    return TemplateChild()


class TemplateChild:
    """The child process, started when it is first needed and again after a template has brought it down."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._one_at_a_time = threading.Lock()

    def render(self, template: str, messages: Messages, variables: Mapping[str, Any]) -> str:
        request = json.dumps({"template": template, "messages": list(messages), "variables": dict(variables)})
        with self._one_at_a_time:
            answer = self._ask(request)
        if "text" not in answer:
            raise _failure(answer["error"])
        return str(answer["text"])

    def _ask(self, request: str) -> dict[str, Any]:
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(request + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        except BaseException:
            self._end()  # an answer that nobody has read would be taken for the next one
            raise
        if line:
            return dict(json.loads(line))
        status = self._end()
        return {"error": "ran too long" if status == -signal.SIGPROF else "broke off"}

    def _running(self) -> "subprocess.Popen[str]":
        if self._process is not None and self._process.poll() is not None:
            self._end()  # it dies with the thread that started it
        if self._process is None:
            command = [sys.executable, "-m", "workers.training.template", str(os.getpid())]
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


def _answer(request: dict[str, Any], render_jinja_template: Callable[..., Any]) -> dict[str, str]:
    messages = request["messages"]
    room = GROWTH * (_size(messages) + _size(request["variables"].get("tools"))) + EXTRA_CHARACTERS
    try:
        rendered, _ = render_jinja_template(
            [messages], chat_template=request["template"], **request["variables"]
        )
    except MemoryError:
        return {"error": "needs too much memory"}
    except Exception as error:  # whatever a template raises, by itself or through Jinja
        return {"error": type(error).__name__}
    if len(rendered[0]) > room:
        return {"error": f"writes {len(rendered[0]):,} characters"}
    return {"text": rendered[0]}


def _serve(parent: int) -> None:
    """Answer one JSON line with another until the parent closes the pipe."""
    _limit_this_process(parent)
    from transformers.utils.chat_template_utils import render_jinja_template  # noqa: PLC0415 - only the child

    for line in sys.stdin:
        # Spent processor time ends the process by SIGPROF, in the middle of whatever it is doing.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        answer = _answer(json.loads(line), render_jinja_template)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
