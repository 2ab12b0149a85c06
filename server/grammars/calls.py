"""How a format writes its calls -> grammars: of calls that must be made, and of calls that may be.

forced   calls
auto     free text, in which a call that has opened is one of a known function that fits
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rtpjax.engine.request import JSON_OPTIONS, Grammar
from server.function_calls import CallOptions, Function
from server.grammars.parameters import NotWritable, ParameterRules
from server.grammars.remembered import remembered
from server.json_schema import normalise
from server.parsing.written import Written
from server.tool_parsers import ToolFormat

_INDEX = "{index}"


@dataclass(frozen=True)
class CallStyle:
    """The calls of one request in the format of one model.

    Attributes:
        written: How they are written.
        marks: Texts in it that are special tokens in some models.
    """

    written: Written
    marks: tuple[str, ...]

    @classmethod
    def of(cls, tool_format: ToolFormat, template: str) -> CallStyle:
        """The style of a model with this chat template."""
        written = tool_format.written_by(template)
        return cls(written, tool_format.marks_of(written))

    @remembered
    def can_write(self, calls: CallOptions) -> bool:
        """Whether every function that may be called can be written.

        Raises:
            RequestError: A schema cannot be used.
        """
        try:
            _Rules(self, calls)
        except NotWritable:
            return False
        return True

    @remembered
    def forced(self, calls: CallOptions, *, after: str | None = None) -> Grammar:
        """Nothing but calls, of the function that is named if one is.

        Args:
            calls: What the request says.
            after: The grammar starts after this text.

        Raises:
            RequestError: A schema cannot be used.
            NotWritable: A function cannot be written.
        """
        rules = _Rules(self, calls)
        lines = [f"start: {rules.section(rules.text(self.written.begin))}", *rules.lines]
        return Grammar("lark", _joined(lines), after, param=calls.dialect, marks=self.marks)

    @remembered
    def auto(self, calls: CallOptions, *, after: str | None = None) -> Grammar:
        """Free text, and in it calls; the arguments are those of `forced`."""
        rules = _Rules(self, calls)
        written = self.written
        if not written.trigger:
            return self._bare(rules, calls, after)
        text = written.begin + written.call
        at = text.index(written.trigger) + len(written.trigger)
        if at <= len(written.begin):
            part = rules.section(rules.text(written.begin[at:]))
        else:
            part = rules.calls_from(at - len(written.begin))
        lines = [f"part_0: {part}", *rules.lines]
        triggers = (written.trigger,)
        return Grammar(
            "lark", _joined(lines), after, calls.dialect, marks=self.marks, triggers=triggers
        )

    def _bare(self, rules: _Rules, calls: CallOptions, after: str | None) -> Grammar:
        """Calls without a mark: the answer begins with one, up to the function's name."""
        written = self.written
        begin = written.begin + written.call
        at = begin.index("{name}") + len("{name}") + 1
        heads, parts = [], []
        for i, (name, _) in enumerate(rules.functions):
            heads.append(begin[:at].replace("{name}", name))
            rest = f"{rules.text(begin[at:])} {rules.arguments[i]} {rules.text(written.end)}"
            parts.append(f"part_{i}: {rest} {rules.others} {rules.text(written.section_end)}")
        return Grammar(
            "lark", _joined([*parts, *rules.lines]), after, calls.dialect,
            marks=self.marks, triggers=tuple(heads), is_at_start=True,
        )  # fmt: skip


class _Rules:
    """The rules that both grammars have in common.

    Attributes:
        functions: Names and schemas of those that may be called.
        arguments: For each one what stands for its arguments.
        others: What stands for the calls after the first one.
        lines: The rules.
    """

    def __init__(self, style: CallStyle, calls: CallOptions):
        self._written = written = style.written
        self._marks = style.marks
        pieces = sorted((*style.marks, _INDEX), key=len, reverse=True)
        self._pieces = re.compile(f"({'|'.join(map(re.escape, pieces))})")
        self.functions = [
            (function.name, schema_of(function, calls, i))
            for i, function in enumerate(calls.offered)
            if calls.named in (None, function.name)
        ]
        for name, _ in self.functions:
            if not re.fullmatch(written.names, name):
                raise NotWritable(f"a function is called {name!r}")
        self.lines: list[str] = []
        self.arguments = self._all_arguments()
        ways = [self._call(i, written.call) for i in range(len(self.functions))]
        self.lines += [f"call_{i}: {way}" for i, way in enumerate(ways)]
        self.lines.append("call: " + " | ".join(f"call_{i}" for i in range(len(ways))))
        is_one = not calls.is_parallel or calls.dialect == "functions"
        most = 0 if is_one else written.most - 1
        separator = self.text(written.separator)
        self.others = f"({separator} call){{0,{most}}}" if most else ""

    def section(self, begin: str) -> str:
        """All calls, after a beginning."""
        return f"{begin} call {self.others} {self.text(self._written.section_end)}"

    def calls_from(self, at: int) -> str:
        """One call whose text is written up to a place before the function's name."""
        call = self._written.call[at:]
        return " | ".join(self._call(i, call) for i in range(len(self.functions)))

    def text(self, text: str) -> str:
        """A text in a rule: its literals, and its marks, which may be special tokens."""
        return " ".join(self._piece(piece) for piece in self._pieces.split(text) if piece)

    def _piece(self, piece: str) -> str:
        if piece == _INDEX:
            return "/[0-9]{1,3}/"
        if piece in self._marks:
            return f"mark_{self._marks.index(piece)}"
        return json.dumps(piece, ensure_ascii=False)

    def _call(self, i: int, before: str) -> str:
        text = self.text(before.replace("{name}", self.functions[i][0]))
        return f"{text} {self.arguments[i]} {self.text(self._written.end)}"

    def _all_arguments(self) -> list[str]:
        if self._written.arguments is None:
            for i, (_, schema) in enumerate(self.functions):
                shown = json.dumps(schema | {"x-guidance": JSON_OPTIONS})
                self.lines.append(f"args_{i}: %json {shown}")
            return [f"args_{i}" for i in range(len(self.functions))]
        parameters = ParameterRules(self._written.arguments, self.text)
        all_of = [parameters.arguments(s, f"p_{i}") for i, (_, s) in enumerate(self.functions)]
        self.lines += parameters.rules
        return all_of


def schema_of(function: Function, calls: CallOptions, index: int) -> dict[str, Any]:
    """A function's parameters in normal form."""
    place = f"tools[{index}].function" if calls.dialect == "tools" else f"functions[{index}]"
    schema = normalise(function.parameters, f"{place}.parameters")
    if not schema:  # no parameters
        schema = {"properties": {}, "additionalProperties": False}
    return {"type": "object"} | schema


def _joined(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"
