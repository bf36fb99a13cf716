"""A template is a stranger's program: whatever it does, there is a sentence, and the next one is rendered."""

import os

import pytest

from workers.data.spread import spread
from workers.training import template
from workers.training.errors import TrainingError
from workers.training.template import render

CHAT = [{"role": "user", "content": "Hello"}]
NEXT = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "ran too long"),
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


def test_a_template_that_doubles_its_text_for_ever() -> None:
    """Whether time or memory runs out first is the machine's affair."""
    double = "{% set n = namespace(s='x') %}{% for a in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}"
    with pytest.raises(TrainingError, match=r"too much memory|ran too long"):
        render(double, CHAT, {})


def test_a_child_that_is_gone_is_replaced() -> None:
    child = template._child_of(os.getpid())
    assert child.render(NEXT, CHAT, {}) == "Hello"
    assert child._process is not None
    child._process.kill()
    child._process.wait()
    assert child.render(NEXT, CHAT, {}) == "Hello"


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
