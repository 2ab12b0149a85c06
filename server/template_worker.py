"""Renders chat templates in a process of its own, whose memory and time the system bounds.

Templates come from the internet with the weights, or from callers. Jinja's sandbox keeps them from
Python's internals; it does not keep them from filling the memory, for which every operator, filter,
method and format width is good enough, or from running for hours. So they run here: what the
kernel refuses to map, no template can build, and the server ends this process when time is up.

The server (`server.template_process`) writes jobs to stdin and reads answers from stdout:

    length of the job (8 bytes)      pickled Job
    lengths of both (4 and 8 bytes)  JSON of an Answer without its text, text as UTF-8

Answers are not pickled: a template that breaks out of the sandbox must not get into the server.
"""

from __future__ import annotations

import json
import pickle
import resource
import signal
import struct
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from server.function_calls.history import ArgumentsText

# Time in which a process that was asked to stop does so.
GRACE_S = 1.0

JOB_HEAD = struct.Struct(">Q")
ANSWER_HEAD = struct.Struct(">IQ")

# Bounds of a job, which grow with what a caller sent.
_MIB = 1024 * 1024
_MAX_BYTES, _MAX_BYTES_PER_BYTE = 64 * _MIB, 16
_MAX_CHARS, _MAX_CHARS_PER_BYTE = 4 * _MIB, 4
# A process that has grown by so much is replaced.
_MAX_KEPT_BYTES = 64 * _MIB
# Compiled templates that are kept: a checkpoint has a few, and callers repeat theirs.
_KEPT_TEMPLATES = 16

# Elsewhere than on Linux only the time is bounded.
_IS_BOUNDED = sys.platform == "linux"

# What a template that meets unexpected messages may raise, besides Jinja's own errors.
_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done with a template.

    Attributes:
        source: Its text.
        values: Its variables; None asks only what the template is like.
        timeout_s: Longest time.
    """

    source: str
    values: dict[str, Any] | None
    timeout_s: float


def max_chars(payload_len: int) -> int:
    """Most characters of a rendered text, for the length in bytes of the job."""
    return _MAX_CHARS + _MAX_CHARS_PER_BYTE * payload_len


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a job.

    Attributes:
        kind: "done", or why not: the template is no valid Jinja, it refused its variables, or ran
            into a bound.
        text: The rendered text.
        reason: Of an error.
        place: The message, call or tool that the template was at, as `messages[1].tool_calls[0]`.
        knows_tools: Whether the template looks at tools.
        literals: The texts that the template has in it.
        is_last: Whether the process ends.
    """

    kind: Literal["done", "syntax", "refused", "late", "memory", "long"]
    text: str = ""
    reason: str = ""
    place: str = ""
    knows_tools: bool = False
    literals: tuple[str, ...] = ()
    is_last: bool = False


class _LateError(BaseException):
    """Nothing that a filter catches."""


@dataclass(frozen=True, slots=True)
class _Compiled:
    template: jinja2.Template
    knows_tools: bool
    literals: tuple[str, ...]


@lru_cache(_KEPT_TEMPLATES)
def _compiled(source: str) -> _Compiled:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    parsed = environment.parse(source)
    texts = (node.data for node in parsed.find_all(nodes.TemplateData))
    constants = (node.value for node in parsed.find_all(nodes.Const))
    literals = dict.fromkeys((*texts, *(text for text in constants if isinstance(text, str))))
    knows_tools = "tools" in meta.find_undeclared_variables(parsed)
    return _Compiled(environment.from_string(source), knows_tools, tuple(literals))


class _Environment(ImmutableSandboxedEnvironment):
    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        # Kimi K2's template keeps ids in a list of its own.
        is_queue = attr in ("append", "pop") and type(obj) is list
        return is_queue or super().is_safe_attribute(obj, attr, value)


class _Generation(Extension):
    """`{% generation %}` marks the assistant's tokens for training; it renders as what it holds."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it this way)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller: Macro | Callable[[], str]) -> str:
        return caller()


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if isinstance(value, ArgumentsText):
        return str(value)
    # Jinja's own filter escapes HTML characters, which no model was trained on.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _render(template: jinja2.Template, values: dict[str, Any]) -> str:
    # Not `template.render`, which hides the frames that `_place` looks at.
    return template.environment.concat(template.root_render_func(template.new_context(values)))


def _work(job: Job) -> Answer:
    """Does a job. Bounds raise _LateError and MemoryError."""
    try:
        compiled = _compiled(job.source)
    except jinja2.TemplateSyntaxError as error:
        return Answer("syntax", reason=f"line {error.lineno}: {error}")
    except _FAILURES as error:
        return Answer("syntax", reason=str(error) or type(error).__name__)
    if job.values is None:
        return Answer("done", knows_tools=compiled.knows_tools, literals=compiled.literals)
    try:
        text = _render(compiled.template, job.values)
        text.encode()  # half of a surrogate pair is no text
    except _FAILURES as error:
        reason = str(error) or type(error).__name__
        return Answer("refused", reason=reason, place=_place(error.__traceback__, job.values))
    return Answer("done", text=text)


def _place(traceback: TracebackType | None, values: dict[str, Any]) -> str:
    """What of the request the template had in hand when it failed: the innermost of its loops."""
    paths = _paths(values)
    found = ""
    while traceback is not None:
        # The compiler numbers variables by the depth of their loop: l_1_message, l_2_call.
        local = traceback.tb_frame.f_locals
        for name in sorted(local, key=lambda name: name.split("_")[1:2]):
            if name.startswith("l_"):
                found = paths.get(id(local[name]), found)
        traceback = traceback.tb_next
    return found


def _paths(values: dict[str, Any]) -> dict[int, str]:
    paths: dict[int, str] = {}
    for index, message in enumerate(values["messages"]):
        paths[id(message)] = f"messages[{index}]"
        for number, call in enumerate(message.get("tool_calls") or ()):
            paths[id(call)] = paths[id(call["function"])] = (
                f"messages[{index}].tool_calls[{number}]"
            )
    for index, tool in enumerate(values["tools"] or ()):
        paths[id(tool)] = paths[id(tool["function"])] = f"tools[{index}]"
    return paths


def _bounded(payload: bytes) -> Answer:
    """Does a pickled job inside its bounds."""
    try:
        job: Job = pickle.loads(payload)
        _limit_memory(_virtual_bytes() + _MAX_BYTES + _MAX_BYTES_PER_BYTE * len(payload))
        signal.setitimer(signal.ITIMER_REAL, job.timeout_s)
        # Ends the process inside a call of C, which Python's handlers cannot, and without a server.
        signal.setitimer(signal.ITIMER_PROF, job.timeout_s + GRACE_S)
        try:
            answer = _work(job)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.setitimer(signal.ITIMER_PROF, 0)
    except _LateError:
        return Answer("late")
    except MemoryError:
        # What else is broken nobody knows.
        return Answer("memory", is_last=True)
    finally:
        _limit_memory(None)
    return Answer("long") if len(answer.text) > max_chars(len(payload)) else answer


def _virtual_bytes() -> int:
    """The size of this process."""
    pages = Path("/proc/self/statm").read_text().split()[0] if _IS_BOUNDED else 0
    return int(pages) * resource.getpagesize()


def _limit_memory(max_bytes: int | None) -> None:
    if _IS_BOUNDED:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (hard if max_bytes is None else max_bytes, hard))


def _late(_signal: int, _frame: FrameType | None) -> None:
    raise _LateError


def main() -> None:
    """Works until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends this process, not a Ctrl-C
    signal.signal(signal.SIGALRM, _late)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    jobs, answers = sys.stdin.buffer, sys.stdout.buffer
    most_bytes = _virtual_bytes() + _MAX_KEPT_BYTES
    while head := jobs.read(JOB_HEAD.size):
        (length,) = JOB_HEAD.unpack(head)
        answer = _bounded(jobs.read(length))
        if _virtual_bytes() > most_bytes:
            answer = replace(answer, is_last=True)
        text = answer.text.encode()
        fields = {key: value for key, value in asdict(answer).items() if key != "text"}
        described = json.dumps(fields).encode()
        answers.write(ANSWER_HEAD.pack(len(described), len(text)) + described + text)
        answers.flush()
        if answer.is_last:
            return


if __name__ == "__main__":
    main()
