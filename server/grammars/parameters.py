"""Arguments that are written one by one -> rules of a grammar.

A string is free text up to what ends it; every other value is the JSON of its schema. All that can
be said about a bare string is its length, its pattern and which strings it may be; a function whose
schema says more cannot be written this way (NotWritable).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from rtpjax.engine.request import JSON_OPTIONS
from server.parsing.typed_values import types_of
from server.parsing.written import Parameters

# Texts -> rules: literals, and marks where there are any.
Literals = Callable[[str], str]

_SAYS_NOTHING = frozenset({"title", "description", "default", "examples", "$schema", "$comment"})
_OBJECT = _SAYS_NOTHING | {
    "type", "properties", "required", "additionalProperties", "$defs", "definitions",
}  # fmt: skip
_STRING = _SAYS_NOTHING | {"type", "enum", "const", "pattern", "minLength", "maxLength"}
_DEFINITIONS = ("$defs", "definitions")


class NotWritable(ValueError):  # noqa: N818 (a turn, not an error: another format is taken)
    """The format has no way to write this."""


class ParameterRules:
    """The rules for the arguments of several functions.

    Args:
        parameters: How they are written.
        literals: Makes rules of texts.

    Attributes:
        rules: All made so far.
    """

    def __init__(self, parameters: Parameters, literals: Literals):
        self.rules: list[str] = []
        self._parameters = parameters
        self._literals = literals
        others = "|".join(re.escape(end).replace("/", r"\/") for end in parameters.ends)
        self._without_ends = rf" & ~/(.|\n)*({others})(.|\n)*/" if others else ""

    def arguments(self, schema: Mapping[str, Any], name: str) -> str:
        """What stands for the arguments in a rule.

        Args:
            schema: The function's, in normal form.
            name: What new rules begin with.

        Raises:
            NotWritable: The format cannot write them.
        """
        if not schema.keys() <= _OBJECT or "object" not in schema.get("type", "object"):
            raise NotWritable("the parameters are no plain object")
        properties, required = schema.get("properties", {}), set(schema.get("required", []))
        if not required <= properties.keys():
            raise NotWritable("a required parameter is not described")
        written: list[tuple[str, bool]] = []
        for i, (key, value) in enumerate(properties.items()):
            if not re.fullmatch(self._parameters.keys, key):
                raise NotWritable(f"a parameter is called {key!r}")
            rule = f"{name}_{i}"
            body = self._parameter(key, value, schema, rule)
            self.rules.append(f"{rule}: {body}")
            written.append((rule, key in required))
        return self._joined(written)

    def _joined(self, written: list[tuple[str, bool]]) -> str:
        separator = self._literals(self._parameters.separator)
        if not separator:
            return " ".join(rule if needed else f"{rule}?" for rule, needed in written)
        # With the required ones first, every other one has a separator before it.
        first = [rule for rule, needed in written if needed]
        others = [rule for rule, needed in written if not needed]
        tails = [f"({separator} {rule})?" for rule in others]
        if first:
            return " ".join([f" {separator} ".join(first), *tails])
        starts = (" ".join([rule, *tails[i + 1 :]]) for i, rule in enumerate(others))
        return f"({' | '.join(starts)})?" if others else ""

    def _parameter(self, key: str, schema: Any, root: Mapping[str, Any], rule: str) -> str:
        form = self._parameters
        types = types_of(schema, root)
        is_literal = form.is_python or "string" not in types
        before = form.before.replace("{key}", key)
        before = self._literals(before.replace("{is_string}", "false" if is_literal else "true"))
        if is_literal:
            after = self._literals(form.after)
            return f"{before} {self._literal(schema, types, root)} {after}"
        if types & {"object", "array"}:
            raise NotWritable("a parameter may be a string as well as an object or a list")
        # (What says that it is a string cannot be null.)
        may_be_null = "null" in types and "{is_string}" not in form.before
        value = self._string(_string_schema(schema, root), may_be_null, rule)
        return f"{before} {self._literals(form.quote)} {value}"

    def _literal(self, schema: Any, types: frozenset[str], root: Mapping[str, Any]) -> str:
        """A value as JSON, or Python where that differs at the top."""
        is_plain = isinstance(schema, dict) and not schema.keys() & {"enum", "const"}
        if self._parameters.is_python and types == {"boolean"} and is_plain:
            return '("True" | "False")'
        whole = schema if isinstance(schema, dict) else {} if schema else {"not": {}}
        definitions = {key: root[key] for key in _DEFINITIONS if key in root}
        if _refers_elsewhere(whole) or _refers_elsewhere(definitions):
            raise NotWritable("a parameter refers to another one")
        return "%json " + json.dumps(definitions | whole | {"x-guidance": JSON_OPTIONS})

    def _string(self, schema: Mapping[str, Any], may_be_null: bool, rule: str) -> str:
        """A string and what ends it."""
        form = self._parameters
        close = form.quote + form.after
        if "enum" in schema or "const" in schema:
            values = [v for v in schema.get("enum", [schema.get("const")]) if isinstance(v, str)]
            values += ["null"] * may_be_null
            if any(end in value for value in values for end in form.ends):
                raise NotWritable("a value has a mark of the format in it")
            choices = " | ".join(_quoted(value) for value in values)
            return f"({choices}) {self._literals(close)}"
        term, until = rule.upper(), f"{rule}_until"
        self.rules.append(f"{term}: {_text(schema)}{self._without_ends}")
        # A mark that is a special token is no text; what stands before it is part of the string.
        special = self._literals(close.lstrip("\n"))
        mark = special.split()[0]
        is_mark = mark.startswith("mark_")
        self.rules.append(f"{f'-{mark} ' * is_mark}{until}[lazy]: {term} {_quoted(close)}")
        if is_mark:
            self.rules.append(f"+{mark} {until}: {term} {special}")
        return until


def _text(schema: Mapping[str, Any]) -> str:
    """A terminal for a string's text."""
    if schema.keys() & {"minLength", "maxLength"}:
        least, most = schema.get("minLength", 0), schema.get("maxLength", "")
        text = rf"/(.|\n){{{least},{most}}}/"
    else:
        text = r"/(.|\n)*/"
    if "pattern" not in schema:
        return text
    pattern = schema["pattern"]
    if not isinstance(pattern, str):
        raise NotWritable("a pattern is no text")
    begin = "" if pattern.startswith("^") else r"(.|\n)*"
    end = "" if pattern.endswith("$") and not pattern.endswith(r"\$") else r"(.|\n)*"
    inner = re.sub(r"(\\.)|/", lambda m: m[1] or r"\/", pattern.removeprefix("^"), flags=re.S)
    inner = inner if end else inner.removesuffix("$")
    return f"{text} & /{begin}({inner}){end}/".replace("\n", r"\n")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _string_schema(schema: Any, root: Mapping[str, Any], depth: int = 0) -> Mapping[str, Any]:
    """Of a schema that allows strings, what it says about them."""
    if not isinstance(schema, Mapping) or depth > 8:
        raise NotWritable("a parameter's schema is no plain one")
    if "$ref" in schema:
        target: Any = root
        for part in str(schema["$ref"]).removeprefix("#").split("/")[1:]:
            target = target.get(part) if isinstance(target, Mapping) else None
        return _string_schema(target, root, depth + 1)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            found = [part for part in schema[key] if "string" in types_of(part, root)]
            if len(found) != 1 or not schema.keys() <= _SAYS_NOTHING | {key}:
                raise NotWritable("a parameter's strings are described twice")
            return _string_schema(found[0], root, depth + 1)
    if not schema.keys() <= _STRING:
        raise NotWritable("a parameter's schema says what only JSON can be held to")
    return schema


def _refers_elsewhere(value: Any) -> bool:
    """Whether there is a reference to anything but the definitions."""
    if isinstance(value, dict):
        reference = value.get("$ref", "#/$defs/")
        begins = str(reference).startswith(tuple(f"#/{key}/" for key in _DEFINITIONS))
        return not begins or any(_refers_elsewhere(v) for v in value.values())
    return isinstance(value, list) and any(_refers_elsewhere(v) for v in value)
