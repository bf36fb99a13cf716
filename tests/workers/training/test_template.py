"""A template is a stranger's program: whatever it does, there is a sentence, and the next one is rendered."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from workers.data.spread import spread
from workers.training import template
from workers.training.errors import TrainingError
from workers.training.template import Messages

CHAT = [{"role": "user", "content": "Hello"}]
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
NEXT = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture
def soon_too_long(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A child that may spend one second of processor time only."""
    monkeypatch.setattr(template, "SECONDS", 1.0)
    template._child_of.cache_clear()
    yield
    template._child_of.cache_clear()


def render(source: str, messages: Messages, variables: dict[str, Any]) -> str:
    """One chat, or why it could not be rendered, raised."""
    return only(template.render(source, [(messages, variables)]))


def only(rendered: list[str | TrainingError]) -> str:
    (found,) = rendered
    if isinstance(found, TrainingError):
        raise found
    return found


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "characters"),
        ("{{ ('x' * 100000000) * 1000 }}", "memory"),
        ("{{ raise_exception('no') }}", "TemplateError"),
        ("{% for", "TemplateSyntaxError"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages[0].content.nothing.here }}", "UndefinedError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
    ],
)
def test_a_template_that_does_harm(source: str, said: str) -> None:
    with pytest.raises(TrainingError) as caught:
        render(source, CHAT, {})
    assert caught.value.code == "template_failed"
    assert said in caught.value.message
    assert render(NEXT, CHAT, {}) == "Hello"


@pytest.mark.usefixtures("soon_too_long")
def test_a_template_that_never_ends() -> None:
    with pytest.raises(TrainingError, match="ran too long"):
        render(LOOP, CHAT, {})
    assert render(NEXT, CHAT, {}) == "Hello"


@pytest.mark.usefixtures("soon_too_long")
def test_a_template_that_doubles_its_text_for_ever() -> None:
    """Whether time or memory runs out first is the machine's affair."""
    double = "{% set n = namespace(s='x') %}{% for a in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}"
    with pytest.raises(TrainingError, match=r"too much memory|ran too long"):
        render(double, CHAT, {})


def test_a_child_that_is_gone_is_replaced() -> None:
    child = template._child_of(os.getpid())
    assert child.render(NEXT, [(CHAT, {})]) == ["Hello"]
    assert child._process is not None
    child._process.kill()
    child._process.wait()
    assert child.render(NEXT, [(CHAT, {})]) == ["Hello"]


def test_special_tokens_and_flags_reach_the_template() -> None:
    source = "{{ bos_token }}{{ messages[0].content }}{{ add_generation_prompt }}"
    assert render(source, CHAT, {"bos_token": "<s>", "add_generation_prompt": True}) == "<s>HelloTrue"


def test_a_forked_process_renders_with_a_child_of_its_own() -> None:
    """The pipes of one child, read by two, would give each the other's chats."""
    assert render(NEXT, CHAT, {}) == "Hello"

    def rendered(text: str) -> str:
        return render(NEXT, [{"role": "user", "content": text}], {})

    texts = [f"chat {number}" for number in range(40)]
    assert list(spread(rendered, iter(texts), 3)) == texts


def said(text: str) -> tuple[Messages, dict[str, Any]]:
    return [{"role": "user", "content": text}], {}


def test_chats_of_one_message_answer_in_order_and_one_that_fails_stands_in_its_place() -> None:
    """More of them than the pipe between the processes holds."""
    source = "{% if messages[0].content == 'bad' %}{{ raise_exception('no') }}{% endif %}" + NEXT
    texts = [f"{number} {'é' * 3000}" for number in range(100)]
    rendered = template.render(source, [*map(said, texts), said("bad"), said("last")])
    assert rendered[:100] == texts and rendered[101] == "last"
    assert isinstance(rendered[100], TrainingError) and "TemplateError" in rendered[100].message


@pytest.mark.usefixtures("soon_too_long")
def test_a_chat_that_brings_the_child_down_keeps_those_before_it() -> None:
    source = "{% if messages[0].content == 'bad' %}" + LOOP + "{% endif %}" + NEXT
    first, *lost = template.render(source, [said("first"), said("bad"), said("after")])
    assert first == "first" and len(lost) == 2
    assert all(isinstance(each, TrainingError) and "ran too long" in each.message for each in lost)
    assert template.render(source, [said("after")]) == ["after"]
