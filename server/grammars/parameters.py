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
from server.json_schema.references import follow
from server.parsing.typed_values import types_of
from server.parsing.written import Parameters

# Texts -> rules: literals, and marks where there are any.
Literals = Callable[[str], str]

# Says that the format cannot hold a parameter, or the arguments (""), to a part of the schema.
Report = Callable[[str, str], None]

_OBJECT = frozenset({"type", "properties", "required", "additionalProperties", "$defs"})
_MAX_REFERENCES = 8
_MAX_FREE = 16  # parameters where the schema lists none
_STRING = frozenset({"type", "enum", "const", "pattern", "minLength", "maxLength"})


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

    def arguments(self, schema: Mapping[str, Any], name: str, report: Report) -> str:
        """What stands for the arguments in a rule.

        Args:
            schema: The function's, in normal form.
            name: What new rules begin with.
            report: Is told what is left out where the format cannot write a part of the schema.
        """
        root = schema
        schema = _plain_object(schema, root, report)
        properties = dict(schema.get("properties", {}))
        required = dict.fromkeys(schema.get("required", []))
        is_open = schema.get("additionalProperties") is not False
        if is_open and not properties and not required:
            return self._free_arguments(name)
        for key in required:
            if key not in properties:
                report(key, "a required parameter is not described")
                properties[key] = {}
        written: list[tuple[str, bool]] = []
        for i, (key, value) in enumerate(properties.items()):
            if value is False:
                continue
            if not re.fullmatch(self._parameters.keys, key):
                report(key, f"a parameter is called {key!r}")
                continue
            rule = f"{name}_{i}"
            try:
                body = self._parameter(key, value, root, rule)
            except NotWritable as error:
                report(key, str(error))
                body = self._any_value(key, rule)
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
        if schema is True or schema == {}:
            return self._any_value(key, rule)
        types = types_of(schema, root)
        if form.is_python or "string" not in types:
            return self._literal_parameter(key, self._literal(schema, types, root))
        if types & {"object", "array"}:
            raise NotWritable("a parameter may be a string as well as an object or a list")
        # (What says that it is a string cannot be null.)
        may_be_null = "null" in types and "{is_string}" not in form.before
        value = self._string(_string_schema(schema, root), may_be_null, rule)
        return f"{self._before(key, is_string=True)} {self._literals(form.quote)} {value}"

    def _any_value(self, key: str, rule: str) -> str:
        """A parameter of any value: a string, or JSON where the format tells the two apart."""
        form = self._parameters
        literal = self._literal_parameter(key, _json({}, {}))
        if form.is_python:
            return literal
        before = self._before(key, is_string=True)
        string = f"{before} {self._literals(form.quote)} {self._string({}, False, rule)}"
        is_told = form.quote or "{is_string}" in form.before
        return f"({string}) | ({literal})" if is_told else string

    def _free_arguments(self, name: str) -> str:
        """Parameters of any names and values."""
        separator = self._literals(self._parameters.separator)
        self.rules.append(f"{name}_any: {self._any_value('{key}', f'{name}_any')}")
        return f"({name}_any ({separator} {name}_any){{0,{_MAX_FREE - 1}}})?"

    def _before(self, key: str, *, is_string: bool) -> str:
        before = self._parameters.before
        before = before.replace("{is_string}", "true" if is_string else "false")
        if key != "{key}":
            return self._literals(before.replace("{key}", key))
        first, last = map(self._literals, before.split("{key}"))
        return f"{first} /{self._parameters.keys}/ {last}"

    def _literal_parameter(self, key: str, value: str) -> str:
        before = self._before(key, is_string=False)
        return f"{before} {value} {self._literals(self._parameters.after)}"

    def _literal(self, schema: Any, types: frozenset[str], root: Mapping[str, Any]) -> str:
        """A value as JSON, or Python where that differs at the top."""
        is_plain = isinstance(schema, dict) and not schema.keys() & {"enum", "const"}
        if self._parameters.is_python and types == {"boolean"} and is_plain:
            return '("True" | "False")'
        return _json(schema if isinstance(schema, dict) else {}, root)

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


def _plain_object(
    schema: Mapping[str, Any], root: Mapping[str, Any], report: Report
) -> Mapping[str, Any]:
    """The schema as a list of properties."""
    for _ in range(_MAX_REFERENCES):
        if "$ref" not in schema or not isinstance(target := follow(schema["$ref"], root), dict):
            break
        rest = {key: value for key, value in schema.items() if key not in ("$ref", "type", "$defs")}
        if rest:
            break
        schema = target
    others = schema.keys() - _OBJECT
    if others or "object" not in schema.get("type", "object"):
        report(
            "", f"{', '.join(sorted(others)) or 'type'} says more than which parameters there are"
        )
    return schema


def _json(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    """A value as JSON, in a rule."""
    definitions = root.get("$defs")
    text = json.dumps({**schema, "x-guidance": JSON_OPTIONS})
    if definitions and '"$ref"' in text:
        text = json.dumps({**schema, "$defs": definitions, "x-guidance": JSON_OPTIONS})
    return f"%json {text}"


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
    if not isinstance(schema, Mapping) or depth > _MAX_REFERENCES:
        raise NotWritable("a parameter's schema is no plain one")
    if "$ref" in schema:
        if len(schema) > 1:
            raise NotWritable("a parameter's strings are described twice")
        return _string_schema(follow(schema["$ref"], root), root, depth + 1)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            found = [part for part in schema[key] if "string" in types_of(part, root)]
            if len(found) != 1 or len(schema) > 1:
                raise NotWritable("a parameter's strings are described twice")
            return _string_schema(found[0], root, depth + 1)
    if not schema.keys() <= _STRING:
        raise NotWritable("a parameter's schema says what only JSON can be held to")
    return schema
