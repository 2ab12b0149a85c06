"""How a format writes its calls -> grammars: of calls that must be made, and of calls that may be.

forced   calls
auto     free text, in which a call that has opened is one of a known function that fits
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rtpjax.engine.grammar_check import grammar_error
from rtpjax.engine.request import JSON_OPTIONS, Grammar
from server.function_calls import CallOptions
from server.grammars.offered import Offered, offered, warn_of_calls
from server.grammars.parameters import NotWritable, ParameterRules
from server.grammars.remembered import remembered
from server.parsing.written import Written
from server.tool_parsers import ToolFormat

_INDEX = "{index}"
_NO_SUCH_NAME = "the model's format of calls has no such names: it cannot be called"


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

    @property
    def certain(self) -> tuple[str, ...]:
        """Texts after which `auto` holds the model to a call."""
        return (self.written.trigger,) if self.written.trigger else ()

    @remembered
    def can_write(self, calls: CallOptions) -> bool:
        """Whether every function that may be called can be written as its schema wants it.

        Raises:
            RequestError: A function is strict, and its schema cannot be enforced.
        """
        try:
            _Rules(self, calls, offered(calls), is_exact=True)
        except NotWritable:
            return False
        return True

    @remembered
    def forced(
        self, calls: CallOptions, *, after: str | None = None, is_exact: bool = True
    ) -> Grammar:
        """Nothing but calls, of the function that is named if one is.

        Args:
            calls: What the request says.
            after: The grammar starts after this text.
            is_exact: The format must write all that can be enforced of each schema; otherwise it
                does what it can.

        Raises:
            RequestError: A function is strict, and its schema cannot be enforced.
            NotWritable: A function cannot be written, or none of them can.
        """
        grammar = self._fitting(calls, self._required, is_exact=is_exact)
        return replace(grammar, after=after)

    @remembered
    def auto(self, calls: CallOptions, *, after: str | None = None) -> Grammar:
        """Free text, and in it calls. Their arguments are held to what can be enforced and written.

        Raises:
            RequestError: A function is strict, and its schema cannot be enforced.
            NotWritable: No function can be written.
        """
        make = self._triggered if self.written.trigger else self._bare
        return replace(self._fitting(calls, make, is_exact=False), after=after)

    def _fitting(
        self, calls: CallOptions, make: Callable[[_Rules], Grammar], *, is_exact: bool
    ) -> Grammar:
        """A grammar that compiles: where all schemas together are too much, the largest give way.

        Raises:
            RequestError: Strict ones are too much.
            NotWritable: The names alone are.
        """
        functions = offered(calls)
        order = sorted(range(len(functions)), key=lambda i: -len(json.dumps(functions[i].schema)))

        def attempt(num_loose: int) -> tuple[str | None, _Rules, Grammar]:
            loose = {i: functions[i].loose for i in order[:num_loose]}
            chosen = [loose.get(i, function) for i, function in enumerate(functions)]
            rules = _Rules(self, calls, chosen, is_exact=is_exact)
            grammar = make(rules)
            return grammar_error(grammar), rules, grammar

        error, rules, grammar = attempt(0)
        if error is not None:
            too_few, enough = 0, len(functions)
            error, rules, grammar = attempt(enough)
            if error is not None:
                raise NotWritable(f"calls of these functions cannot be told apart: {error}")
            while enough - too_few > 1:
                middle = (too_few + enough) // 2
                error, tried, tried_grammar = attempt(middle)
                if error is None:
                    enough, rules, grammar = middle, tried, tried_grammar
                else:
                    too_few = middle
        warn_of_calls([*rules.functions, *rules.unwritable])
        return grammar

    def _required(self, rules: _Rules) -> Grammar:
        lines = [f"start: {rules.section(rules.text(self.written.begin))}", *rules.lines]
        return self._grammar(rules, lines)

    def _grammar(self, rules: _Rules, lines: Sequence[str], **said: Any) -> Grammar:
        text = "\n".join(lines) + "\n"
        return Grammar("lark", text, param=rules.param, marks=self.marks, is_flat=True, **said)

    def _triggered(self, rules: _Rules) -> Grammar:
        written = self.written
        text = written.begin + written.call
        at = text.index(written.trigger) + len(written.trigger)
        if at <= len(written.begin):
            part = rules.section(rules.text(written.begin[at:]))
        else:
            part = rules.calls_from(at - len(written.begin))
        lines = [f"part_0: {part}", *rules.lines]
        return self._grammar(rules, lines, triggers=(written.trigger,))

    def _bare(self, rules: _Rules) -> Grammar:
        """Calls without a mark: the answer begins with one, up to the function's name."""
        written = self.written
        begin = written.begin + written.call
        at = begin.index("{name}") + len("{name}") + 1
        heads, parts = [], []
        for i, function in enumerate(rules.functions):
            heads.append(begin[:at].replace("{name}", function.name))
            rest = f"{rules.text(begin[at:])} {rules.arguments[i]} {rules.text(written.end)}"
            parts.append(f"part_{i}: {rest} {rules.others} {rules.text(written.section_end)}")
        lines = [*parts, *rules.lines]
        return self._grammar(rules, lines, triggers=tuple(heads), is_at_start=True)


class _Rules:
    """The rules that both grammars have in common.

    Attributes:
        param: The field that the functions stand in.
        functions, unwritable: Those that can be written, and those that cannot.
        arguments: For each one what stands for its arguments.
        others: What stands for the calls after the first one.
        lines: The rules.
    """

    def __init__(
        self, style: CallStyle, calls: CallOptions, functions: Sequence[Offered], *, is_exact: bool
    ):
        """Raises: NotWritable: None can be written, or with is_exact one of them cannot."""
        self._written = written = style.written
        self._marks = style.marks
        pieces = sorted((*style.marks, _INDEX), key=len, reverse=True)
        self._pieces = re.compile(f"({'|'.join(map(re.escape, pieces))})")
        self.param = calls.dialect
        others = [f for f in functions if not re.fullmatch(written.names, f.name)]
        self.functions = [function for function in functions if function not in others]
        if not self.functions or (is_exact and others):
            raise NotWritable(f"a function is called {others[0].name!r}")
        self.unwritable = [f.without("", _NO_SUCH_NAME) for f in others]
        self._is_exact = is_exact
        self.lines: list[str] = []
        self.arguments = self._all_arguments()
        ways = [self._call(i, written.call) for i in range(len(self.functions))]
        self.lines += [f"call_{i}: {way}" for i, way in enumerate(ways)]
        self.lines.append("call: " + " | ".join(f"call_{i}" for i in range(len(ways))))
        most = min(written.most, calls.max_calls or written.most) - 1
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
        text = self.text(before.replace("{name}", self.functions[i].name))
        return f"{text} {self.arguments[i]} {self.text(self._written.end)}"

    def _all_arguments(self) -> list[str]:
        if self._written.arguments is None:
            for i, function in enumerate(self.functions):
                shown = json.dumps(function.schema | {"x-guidance": JSON_OPTIONS})
                self.lines.append(f"args_{i}: %json {shown}")
            return [f"args_{i}" for i in range(len(self.functions))]
        parameters = ParameterRules(self._written.arguments, self.text)
        all_of = [self._parameters(parameters, i) for i in range(len(self.functions))]
        self.lines += parameters.rules
        return all_of

    def _parameters(self, parameters: ParameterRules, i: int) -> str:
        """Arguments that are written one by one; what cannot be written so is left out."""

        def report(key: str, reason: str) -> None:
            if self._is_exact:
                raise NotWritable(reason)
            reason = f"the model's format of calls cannot be held to it: {reason}"
            self.functions[i] = self.functions[i].without(key, reason)

        return parameters.arguments(self.functions[i].schema, f"p_{i}", report)
