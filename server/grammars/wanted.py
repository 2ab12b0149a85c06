"""The one grammar that a request asks for, by whichever of the names that it goes by."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from rtpjax.engine.request import Grammar
from server import limits
from server.grammars.response_format import response_grammar
from server.json_schema.enforce import enforceable
from server.protocol.body import describe, field_error
from server.protocol.form import FormFields

_OUTPUTS = "structured_outputs"


def wanted_grammar(body: FormFields) -> Grammar | None:
    """What the answer must look like; None for free text.

    Raises:
        RequestError: A field is wrong, or two of them say what the answer must look like.
    """
    found = response_grammar(body.response_format)
    guided = [
        (name, read, value)
        for name, read in _GUIDED.items()
        if (value := getattr(body, name)) is not None
    ]
    guided += _structured_outputs(body.structured_outputs)
    for path, read, value in guided:
        if found is not None:
            raise field_error(path, f"not allowed together with {found.param}")
        found = dataclasses.replace(read(value, path), param=path)
    return found


def _structured_outputs(given: Any) -> list[tuple[str, Callable[[Any, str], Grammar], Any]]:
    if given is None:
        return []
    if not isinstance(given, dict):
        raise field_error(_OUTPUTS, f"expected an object, found {describe(given)}")
    for name in given:
        if name not in _STRUCTURED:
            expected = f"expected one of {', '.join(_STRUCTURED)}"
            raise field_error(f"{_OUTPUTS}.{name}", f"unknown field, {expected}")
    return [
        (f"{_OUTPUTS}.{name}", _STRUCTURED[name], value)
        for name, value in given.items()
        if value is not None and not (name == "json_object" and value is False)
    ]


def _json(value: Any, path: str) -> Grammar:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise field_error(path, f"the text is no JSON: {error}") from error
    return Grammar("json_schema", json.dumps(enforceable(value, path, is_strict=True).schema))


def _regex(value: Any, path: str) -> Grammar:
    return Grammar("regex", _text(value, path))


def _choice(value: Any, path: str) -> Grammar:
    if not isinstance(value, list) or not all(isinstance(choice, str) for choice in value):
        raise field_error(path, f"expected a list of strings, found {describe(value)}")
    if not 0 < len(value) <= limits.MAX_GUIDED_CHOICES:
        most = limits.MAX_GUIDED_CHOICES
        raise field_error(path, f"expected 1 to {most} strings, found {describe(value)}")
    if not all(value):
        raise field_error(path, "one of the strings is empty")
    choices = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in dict.fromkeys(value))
    return Grammar("lark", f"start: {choices}\n")


def _grammar(value: Any, path: str) -> Grammar:
    text = _text(value, path)
    return Grammar("ebnf" if "::=" in text else "lark", text)


def _json_object(value: Any, path: str) -> Grammar:
    if value is not True:
        raise field_error(path, f"expected true or false, found {describe(value)}")
    return Grammar("json_object")


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str) or not value:
        raise field_error(path, f"expected a string, found {describe(value)}")
    return value


_GUIDED: dict[str, Callable[[Any, str], Grammar]] = {
    "guided_json": _json,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _grammar,
}
_STRUCTURED: dict[str, Callable[[Any, str], Grammar]] = {
    **{name.removeprefix("guided_"): read for name, read in _GUIDED.items()},
    "json_object": _json_object,
}
