"""Rendering agrees with transformers, raises as a 400, and ends in time."""

from __future__ import annotations

import logging
import time

import pytest

from rtpjax.errors import ConfigError, RequestError
from server.chat_template import ChatTemplate
from tests.server.scripted_engine import make_tokenizer

MESSAGES = [
    {"role": "system", "content": "Be <brief> & 'kind'."},
    {"role": "user", "content": "héllo\n"},
    {"role": "assistant", "content": "hi", "reasoning_content": "short"},
    {"role": "user", "content": "你好"},
]

AGREES = {
    "trim": "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content }}\n"
    "  {% endif %}\n{% endfor %}\n",
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}",
    "loops": "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}"
    "{% if loop.index == 3 %}{% break %}{% endif %}{{ loop.nextitem.role }}{% endfor %}",
    "macro": "{% macro line(m) %}{{ bos_token }}{{ m.role | upper }}: {{ m.content }}{% endmacro %}"
    "{% for m in messages %}{{ line(m) }}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages if m.role == 'user' %}"
    "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "generation": "{% for m in messages %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "recursive": "{% for m in [[1, [2, 3]], 4] recursive %}"
    "{% if m is iterable %}<{{ loop(m) }}>{% else %}{{ m }}{% endif %}{% endfor %}",
    "slices": "{{ messages[1:] | map(attribute='role') | join(',') }}{{ eos_token }}{{ '-' * 3 }}"
    "{{ '%s!' % 'x' }}{{ 7 % 4 }}{% if add_generation_prompt %}go{% endif %}",
    "items": "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}",
}

LOOPS = {
    "nested ranges": "{% for i in range(90000) %}"
    "{% for j in range(90000) %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
}


def template(source: str | None, timeout_s: float = 5) -> ChatTemplate:
    return ChatTemplate.from_tokenizer(make_tokenizer(source), timeout_s=timeout_s)


@pytest.mark.parametrize("name", AGREES)
def test_agrees_with_transformers(name: str) -> None:
    tokenizer = make_tokenizer(AGREES[name])
    expected = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    rendered = ChatTemplate.from_tokenizer(tokenizer, timeout_s=5).render(MESSAGES)
    assert rendered == expected
    assert rendered


@pytest.mark.parametrize("name", LOOPS)
def test_stops_a_template_that_loops(name: str) -> None:
    start_s = time.monotonic()
    with pytest.raises(RequestError, match=r"ran longer than 0\.2 s"):
        template(LOOPS[name], timeout_s=0.2).render(MESSAGES)
    assert time.monotonic() - start_s < 2


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.clear() }}",
        "{{ messages[0].update(role='x') }}",
        "{{ messages.x.y }}",
        "{{ 'a' + none }}",
        "{{ 1 / 0 }}",
        "{% for m in 5 %}{% endfor %}",
        "{{ raise_exception('roles must alternate') }}",
    ],
)
def test_a_template_that_raises_is_a_request_error(source: str) -> None:
    with pytest.raises(RequestError, match=r"the chat template refuses these messages: .+"):
        template(source).render(MESSAGES)


def test_lists_are_queues_and_what_a_request_brought_stays_as_it_is() -> None:
    """Kimi K2's template appends to a list and pops from it."""
    source = (
        "{% set ns = namespace(ids=[]) %}{% for m in messages %}{% set _ = ns.ids.append(m.role) %}"
        "{% endfor %}{{ ns.ids.pop(0) }} {{ ns.ids | join(' ') }}"
        "{% set _ = tools[0].required.append('b') %}{% set _ = messages.pop() %}{{ tools }}"
    )
    tools = [{"required": ["a"]}]
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": ""}]
    rendered = template(source).render(messages, tools=tools)
    assert rendered == "system user[{'required': ['a', 'b']}]"
    assert tools == [{"required": ["a"]}]
    assert len(messages) == 2


def test_the_message_of_raise_exception_is_passed_on() -> None:
    with pytest.raises(RequestError, match="roles must alternate"):
        template("{{ raise_exception('roles must alternate') }}").render(MESSAGES)


def test_broken_template_is_the_operators_error() -> None:
    with pytest.raises(ConfigError, match="line 1"):
        template("{% for %}")


def test_without_a_template_chatml_and_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        rendered = template(None).render([{"role": "user", "content": "hi"}])
    assert rendered == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert [record.name for record in caplog.records] == ["server.chat_template"]


def test_variables_reach_the_template_but_do_not_replace_its_own() -> None:
    rendered = template("{{ enable_thinking }}{{ messages | length }}").render(
        MESSAGES, enable_thinking=False
    )
    assert rendered == "False4"
