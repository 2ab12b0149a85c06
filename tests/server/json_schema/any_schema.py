"""JSON schemas of all kinds, nonsense among them; and texts that a schema's grammar allows."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
from hypothesis import strategies as st
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from rtpjax.engine.grammar_check import END, byte_matcher
from rtpjax.engine.request import Grammar

NAMES = st.sampled_from(["a", "b", "c", "a b", "ü", "$ref", "", "x.y"])
NUMBERS = st.sampled_from(
    [0, 1, -1, 2, 3.5, 0.1, -7, 10**18, 2**53 + 1, 2**63, 2**64, -(2**63), 1e19, 1e-300, 1e308,
     1.7976931348623157e308, -3.4e38, 10**30, True]
)  # fmt: skip
COUNTS = st.sampled_from([0, 1, 2, 3, 1.0, 2**31, 2**70, -1, 1.5])
PATTERNS = st.sampled_from(
    ["^a$", "^(a|b)$", "b", "^a+$", "(?!a)b", r"(a)\1", "[^]", "[[a]", "^[a-c]{2,4}$", "", "(", "."]
)
TYPES = st.sampled_from(
    ["object", "array", "string", "number", "integer", "boolean", "null", "STRING", "any", "dict",
     "frob", ""]
)  # fmt: skip
VALUES = st.recursive(
    st.sampled_from([None, True, 0, 1, 1.5, 2**53 + 1, 2**70, "", "a", "ab", "ü\n"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=3,
)
FORMATS = st.sampled_from(["date", "date-time", "email", "uuid", "ipv4", "regex", "int64", "frob"])
REFERENCES = st.sampled_from(
    ["#", "#/$defs/a", "#/$defs/a%20b", "#/definitions/b", "#/properties/a", "#/anyOf/0", "#a",
     "http://example.com/x", "x.json", "#/$defs/%"]
)  # fmt: skip


def _keywords(schema: st.SearchStrategy[Any]) -> dict[str, st.SearchStrategy[Any]]:
    named = st.dictionaries(NAMES, schema, max_size=3)
    listed = st.lists(schema, min_size=1, max_size=3)
    patterns = st.dictionaries(PATTERNS, schema, max_size=2)
    return {
        "type": TYPES | st.lists(TYPES, max_size=3),
        "properties": named
        | st.lists(st.fixed_dictionaries({"name": NAMES}, optional={"schema": schema}), max_size=2),
        "required": st.lists(NAMES, max_size=2),
        **dict.fromkeys(("additionalProperties", "items", "additionalItems"), schema),
        "patternProperties": patterns,
        "prefixItems": listed,
        **dict.fromkeys(("anyOf", "oneOf", "allOf"), listed),
        **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), COUNTS),
        **dict.fromkeys(("minProperties", "maxProperties", "minContains"), COUNTS),
        **dict.fromkeys(("minimum", "maximum", "multipleOf"), NUMBERS),
        **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), NUMBERS | st.booleans()),
        "pattern": PATTERNS,
        "format": FORMATS,
        "enum": st.lists(VALUES, max_size=3),
        "const": VALUES,
        "uniqueItems": st.booleans(),
        **dict.fromkeys(("contains", "not", "if", "then", "else", "propertyNames"), schema),
        **dict.fromkeys(("unevaluatedItems", "unevaluatedProperties"), schema),
        "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, max_size=1), max_size=1),
        **dict.fromkeys(("dependentSchemas", "$defs", "definitions"), named),
        "$ref": REFERENCES,
        "$dynamicRef": REFERENCES,
        "title": st.just("T"),
        "default": VALUES,
    }


def _object(schema: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keywords = _keywords(schema)

    @st.composite
    def drawn(draw: st.DrawFn) -> dict[str, Any]:
        names = draw(st.lists(st.sampled_from(sorted(keywords)), min_size=1, max_size=4))
        is_odd = st.integers(0, 11).map(lambda number: number == 0)
        return {name: draw(VALUES if draw(is_odd) else keywords[name]) for name in names}

    return drawn()


def schemas() -> st.SearchStrategy[Any]:
    """Schemas that are JSON objects or booleans; in them there may be anything."""
    leaf = st.booleans() | st.builds(dict) | st.builds(lambda t: {"type": t}, TYPES)
    inner = st.recursive(leaf, _object, max_leaves=6)
    definitions = st.dictionaries(st.sampled_from(["a", "a b", "b"]), inner, min_size=1, max_size=2)
    return _object(inner) | st.builds(
        lambda schema, parts: {**schema, "$defs": parts}, _object(inner), definitions
    )


# In this order; outside of strings.
_CLOSING = b'}]:,"0123456789nultrefas'


def shrunk_text(schema: dict[str, Any], rng: random.Random) -> str | None:
    """A text that the schema's grammar allows, and that tries to be short; None if it never ends.

    Args:
        schema: As it is enforced.
        rng: Chooses, at first.
    """
    matcher = byte_matcher(Grammar("json_schema", json.dumps(schema)))
    mask = allocate_token_bitmask(1, END + 1)
    text, is_in_string = bytearray(), False
    for step in range(3000):
        fill_next_token_bitmask(matcher, mask)
        assert not matcher.is_error(), matcher.get_error()
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        assert len(allowed), "nothing may come next"
        allowed = allowed[allowed <= END]
        if END in allowed:
            break
        closing = [byte for byte in (b'"' if is_in_string else _CLOSING) if byte in allowed]
        likely = [byte for byte in b"abc" if is_in_string and byte in allowed]
        is_late = step > 30 or rng.random() < 0.5
        byte = int(rng.choice(closing[:1] * is_late or likely * is_late or list(allowed)))
        assert matcher.consume_token(byte)
        is_in_string ^= byte == ord('"') and not text.endswith(b"\\")
        text.append(byte)
        if matcher.is_stopped():
            break
    else:
        return None
    return text.decode()
