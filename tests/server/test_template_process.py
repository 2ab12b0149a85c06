"""Whatever a template does, its memory and its time are bounded, and the server says so."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rtpjax.errors import ConfigError, QueueFullError, RequestError
from server.chat_template import ChatTemplate
from server.template_process import TemplateProcesses
from server.template_worker import Job
from tests.server.live_server import LiveServer
from tests.server.scripted_engine import ScriptedEngine

ROOT = Path(__file__).parents[2]
MIB = 1024 * 1024
MAX_RSS = 100 * MIB  # a process without work has about 30

BIG = "('a' * 1000000)"
HUGE = 10**10
MANY = "([" + BIG + "] * 1000)"
ITEMS = "range(100000)"

# An expression for each operation that would make far more than the limit, if it could.
OPERATORS = {
    "*": f"'a' * {HUGE}",
    "* of lists": f"[1] * {HUGE}",
    "**": "10 ** (10 ** 9)",
    "%": f"'%{HUGE}d' % 1",
    "% of a width": f"'%*d' % ({HUGE // 10}, 1)",
    "% of many": f"('%s' * 1000) % (({BIG},) * 1000)",
    "+ and ~": f"{BIG}" + f" ~ {BIG}" * 40,
    "text of a list": f"{MANY} ~ ''",
    "big integers": "(7 ** 999999 | int) * (7 ** 999999) * (7 ** 999999)",
}
GROWING = {
    "~": "{% set ns.x = ns.x ~ ns.x %}",
    "+": "{% set ns.x = ns.x + ns.x %}",
    "lists": "{% set ns.x = (ns.x | list) + (ns.x | list) %}",
    "nested lists": "{% set ns.x = [ns.x, ns.x] %}{% set y = ns.x | string %}",
    "json": "{% set ns.x = [ns.x, ns.x] %}{% set y = ns.x | tojson(indent=9) %}",
    "append": "{% for k in range(99999) %}{% set _ = ns.y.append(ns.x ~ k) %}{% endfor %}",
    "set block": "{% set z %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = z %}",
    "macro": "{% macro m() %}{{ ns.x }}{{ ns.x }}{% endmacro %}{% set ns.x = m() %}",
    "call block": "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    "{% set z %}{% call m() %}{{ ns.x }}{% endcall %}{% endset %}{% set ns.x = z %}",
    "output": "{% for k in range(99999) %}{{ ns.x }}{% endfor %}",
    "filter block": "{% filter center(999999999) %}{{ ns.x }}{% endfilter %}",
    "replace": "{% set ns.x = ns.x | replace('a', ns.x) %}",
    "join": "{% set ns.x = range(99999) | join(ns.x) %}",
    "format": "{% set ns.x = '{0}{0}'.format(ns.x) %}",
    "dict": "{% set ns.x = dict(a=ns.x, b=ns.x | string) %}",
}

FILTERS: dict[str, str] = {
    "abs": "(10 ** (10 ** 9)) | abs",
    "attr": f"{BIG} | attr('center')({HUGE})",
    "batch": f"[1] | batch({HUGE}, {BIG}) | list",
    "capitalize": f"{MANY} | join | capitalize",
    "center": f"'a' | center({HUGE})",
    "count": f"({MANY} | join) | count",
    "d": f"x | d({MANY} | join)",
    "default": f"x | default({MANY} | join)",
    "dictsort": f"dict(a={MANY} | join) | dictsort",
    "e": "('<' * 9999999) | e",
    "escape": "('<' * 9999999) | escape",
    "filesizeformat": "(10 ** (10 ** 9)) | filesizeformat",
    "first": f"[{MANY} | join] | first",
    "float": f"({MANY} | join) | float",
    "forceescape": "('<' * 9999999) | forceescape",
    "format": f"'%{HUGE}d' | format(1)",
    "groupby": f"[dict(a={MANY} | join)] | groupby('a')",
    "indent": "('\\n' * 999999) | indent(99999, true, true)",
    "int": "(10 ** (10 ** 9)) | int",
    "items": f"dict(a={MANY} | join) | items | list",
    "join": f"{ITEMS} | join({BIG})",
    "last": f"[{MANY} | join] | last",
    "length": f"({MANY} | join) | length",
    "list": f"({BIG} * 9) | list",
    "lower": f"{MANY} | join | lower",
    "map": f"{MANY} | map('upper') | list",
    "max": f"[{MANY} | join] | max",
    "min": f"[{MANY} | join] | min",
    "pprint": f"{MANY} | pprint",
    "random": f"[{MANY} | join] | random",
    "reject": f"{MANY} | map('upper') | reject('none') | list",
    "rejectattr": f"[dict(a={MANY} | join)] | rejectattr('b') | list",
    "replace": "('a' * 9999) | replace('a', 'b' * 99999)",
    "reverse": f"({MANY} | join) | reverse",
    "round": f"(1.5 * 10 ** (10 ** 9)) | round({HUGE})",
    "safe": f"{MANY} | join | safe",
    "select": f"{MANY} | map('upper') | select('string') | list",
    "selectattr": f"[dict(a={MANY} | join)] | selectattr('a') | list",
    "slice": f"[1] | slice({HUGE}, {BIG}) | list",
    "sort": f"{MANY} | map('upper') | sort",
    "string": f"{MANY} | string",
    "striptags": f"{MANY} | join | striptags",
    "sum": f"{MANY} | sum(start='')",
    "title": f"{MANY} | join | title",
    "trim": f"({MANY} | join) | trim",
    "truncate": f"({MANY} | join) | truncate({HUGE})",
    "unique": f"{MANY} | map('upper') | unique | list",
    "upper": f"({MANY} | join) | upper",
    "urlencode": "('ä' * 9999999) | urlencode",
    "urlize": "(('http://a.de ') * 999999) | urlize",
    "wordcount": f"({MANY} | join) | wordcount",
    "wordwrap": "('a' * 9999999) | wordwrap(1, true, 'b' * 99999)",
    "xmlattr": f"dict(a={MANY} | join) | xmlattr",
    "tojson": f"{MANY} | tojson(indent={HUGE})",
}

# What every admitted method of a value is tried with.
VALUES = {
    "str": "('a\\t' * 1000)",
    "list": "(['a' * 100000] * 100)",
    "tuple": "(('a' * 100000,) * 100)",
    "dict": "dict(a='a' * 100000)",
    "int": "(10 ** 1000)",
    "float": "1.5",
    "bytes": "('a' * 1000).encode()",
}
ARGUMENTS = (f"{HUGE}", f"{HUGE}, 'b'", "'a', 'b' * 1000000", f"{MANY}")


def _methods() -> list[str]:
    environment = ImmutableSandboxedEnvironment()
    found = []
    for kind, text in VALUES.items():
        value = environment.compile_expression(text)()
        for name in dir(value):
            if environment.is_safe_attribute(value, name, getattr(value, name)):
                found += [f"{text}.{name}({arguments})" for arguments in ARGUMENTS]
        assert kind == type(value).__name__
    return found


def _templates() -> dict[str, str]:
    templates = {f"operator {k}": f"{{{{ {v} }}}}" for k, v in OPERATORS.items()}
    templates |= {f"filter {k}": f"{{% set y = {v} %}}done" for k, v in FILTERS.items()}
    head = "{% set ns = namespace(x='a' * 100, y=[]) %}{% for i in range(60) %}"
    templates |= {f"growing {k}": f"{head}{v}{{% endfor %}}done" for k, v in GROWING.items()}
    return templates | {e: f"{{% set y = {e} %}}done" for e in _methods()}


# Runs each template in a fork of a small process: the memory of a child counts from its parent's.
_SCRIPT = """
import json, os, pickle, resource, select, signal, sys, time
from server import template_worker
template_worker._MAX_BYTES = 16 * 1024 * 1024
values = {"messages": [{"role": "user", "content": "hi"}], "tools": None}
signal.signal(signal.SIGALRM, template_worker._late)
results = {}
for name, source in json.load(sys.stdin).items():
    start_s, (reads, writes) = time.monotonic(), os.pipe()
    pid = os.fork()
    if not pid:
        answer = template_worker._bounded(pickle.dumps(template_worker.Job(source, values, 0.5)))
        os.write(writes, json.dumps([answer.kind, answer.reason[:200]]).encode())
        os._exit(0)
    os.close(writes)
    if not select.select([reads], [], [], 1.5)[0]:
        os.kill(pid, signal.SIGKILL)  # as the server does
    os.waitpid(pid, 0)
    answer = os.read(reads, 4096) or b'["killed", ""]'
    os.close(reads)
    results[name] = (*json.loads(answer), time.monotonic() - start_s)
print(json.dumps([resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, results]))
"""


@pytest.fixture(scope="module")
def tried() -> tuple[int, dict[str, tuple[str, str, float]]]:
    """The most memory that a process had, and what came of each template."""
    templates = json.dumps(_templates())
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], input=templates, stdout=-1, text=True, cwd=ROOT, check=True
    )
    max_rss, results = json.loads(done.stdout)
    return max_rss, results


def test_no_operation_takes_more_memory_or_time_than_the_limit(tried: Any) -> None:
    max_rss, results = tried
    assert max_rss < MAX_RSS
    assert max(seconds for _, _, seconds in results.values()) < 0.5 + 1 + 2
    kinds = {kind for kind, _, _ in results.values()}
    assert kinds <= {"done", "refused", "memory", "late", "long", "killed"}


def test_each_growing_template_is_stopped(tried: Any) -> None:
    _, results = tried
    for name, (kind, reason, _) in results.items():
        if name.startswith("growing "):
            assert kind in ("memory", "late", "long", "killed"), (name, kind, reason)
        if name.startswith("filter ") and kind == "refused":
            assert "filter" not in reason, (name, reason)


def test_every_filter_is_tried() -> None:
    """A filter that a new version of Jinja brings needs its line above."""
    assert FILTERS.keys() == ImmutableSandboxedEnvironment().filters.keys()


MESSAGES = [{"role": "user", "content": "hi"}]


def test_a_large_request_may_need_more() -> None:
    source = (
        "{% for i in range(3) %}{% for m in messages %}"
        "{{ m.content | trim ~ (m.content | tojson) }}{% endfor %}{% endfor %}"
    )
    template = ChatTemplate(source, {}, timeout_s=20)
    text = "ä\n" * 4_000_000
    with pytest.raises(RequestError, match=r"too (long a text|much memory)"):
        template.render([{"role": "user", "content": text}] * 2)
    assert len(
        ChatTemplate("{{ messages[0].content }}", {}, timeout_s=20).render(
            [{"role": "user", "content": text}]
        )
    ) == len(text)


def test_the_text_is_bounded_by_the_request() -> None:
    source = "{% for i in range(50) %}{{ 'a' * 100000 }}{% endfor %}"
    with pytest.raises(RequestError, match="too long a text"):
        ChatTemplate(source, {}, timeout_s=5).render(MESSAGES)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' | center(9999999999) }}",  # made when the template is compiled
        "{% if true %}" * 3000,
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{{ [" * 900 + "]}}",
    ],
)
def test_a_callers_template_that_cannot_be_compiled(source: str) -> None:
    with LiveServer(ScriptedEngine(), allow_user_template=True) as server:
        answer = server.chat(user_template=source)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] in ("user_template", "messages")
        assert server.chat().status_code == 200


def test_slow_templates_of_callers_hold_up_nobody_else() -> None:
    slow = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
    settings = {"allow_user_template": True, "template_timeout_s": 2}
    with LiveServer(ScriptedEngine(), **settings) as server:
        statuses: list[int] = []
        threads = [
            threading.Thread(
                target=lambda: statuses.append(server.chat(user_template=slow).status_code)
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        start_s = time.monotonic()
        assert server.chat(max_tokens=1).status_code == 200
        assert time.monotonic() - start_s < 1.5
        for thread in threads:
            thread.join()
    assert set(statuses) <= {400, 429}
    assert 400 in statuses


def test_all_processes_may_be_busy() -> None:
    processes = TemplateProcesses(1)
    slow = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
    values = {"messages": MESSAGES, "tools": None}
    processes.run(Job("", None, 5))
    thread = threading.Thread(target=processes.run, args=(Job(slow, values, 1),))
    thread.start()
    time.sleep(0.1)
    with pytest.raises(QueueFullError):
        processes.run(Job("x", values, 0.1))
    thread.join()
    assert processes.run(Job("x", values, 5)).text == "x"
    processes.end()


def test_a_process_that_was_killed_is_replaced() -> None:
    processes = TemplateProcesses(1)
    values = {"messages": MESSAGES, "tools": None}
    for _ in range(2):
        assert processes.run(Job("x", values, 5)).text == "x"
        processes._idle[0]._process.kill()
        processes._idle[0]._process.wait()
    processes.end()


def test_the_servers_keys_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "secret")
    processes = TemplateProcesses(1)
    processes.run(Job("x", None, 5))
    environment = Path(f"/proc/{processes._idle[0]._process.pid}/environ").read_bytes()
    assert b"secret" not in environment
    processes.end()


def test_too_deep_a_request() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RequestError, match="too deep"):
        ChatTemplate("{{ x }}", {}, timeout_s=5).render(MESSAGES, x=deep)


def test_an_error_names_what_the_template_was_at() -> None:
    source = (
        "{% macro call(c) %}{{ c.function.arguments | items | list }}{% endmacro %}"
        "{% for m in messages %}{% if m.content == 'bad' %}{{ m.content.x.y }}{% endif %}"
        "{% for c in m.tool_calls %}{{ call(c) }}{% endfor %}{% endfor %}"
        "{% for t in tools or [] %}{{ t.function.description.x.y }}{% endfor %}"
    )
    template = ChatTemplate(source, {}, timeout_s=5)
    calls = [{"function": {"name": "f", "arguments": text}} for text in ({}, "x")]
    assistant = {"role": "assistant", "content": "", "tool_calls": calls}
    cases: list[tuple[list[dict[str, Any]], list[Any] | None, str]] = [
        ([*MESSAGES, {"role": "user", "content": "bad"}], None, "messages[1]"),
        ([*MESSAGES, assistant], None, "messages[1].tool_calls[1]"),
        (MESSAGES, [{"function": {"name": "f", "description": "d"}}], "tools[0]"),
    ]
    for messages, tools, place in cases:
        with pytest.raises(RequestError) as error:
            template.render(messages, tools=tools)
        assert error.value.param == place
        assert str(error.value).startswith(f"{place}: the chat template refuses")


def test_what_is_no_template_at_all() -> None:
    with pytest.raises(ConfigError, match="line 1"):
        ChatTemplate("{% for %}", {}, timeout_s=5)
    assert json.dumps(MESSAGES)
