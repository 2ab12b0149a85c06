"""The lists of fields in docs/api.md, written from the classes: python -m server.field_docs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from server.protocol.anthropic_messages import CountRequest, MessagesRequest
from server.protocol.body import StrictModel, shape_of
from server.protocol.chat import ChatRequest
from server.protocol.completions import CompletionRequest
from server.protocol.fields import FieldClass, Ignored, Kinds, Refused, Shape
from server.protocol.generate_config import GenerateConfig
from server.protocol.raw import RawRequest
from server.protocol.responses import ResponsesRequest
from server.protocol.tokens import TokenizeRequest

DOCS = Path(__file__).parents[1] / "docs" / "api.md"
BEGIN = "<!-- written by python -m server.field_docs: {name} -->"
END = "<!-- end -->"

# What the bodies are called in the docs.
APIS: Mapping[str, type[StrictModel]] = {
    "chat": ChatRequest,
    "completions": CompletionRequest,
    "responses": ResponsesRequest,
    "messages": MessagesRequest,
    "count_tokens": CountRequest,
    "raw": RawRequest,
    "extra_configs": GenerateConfig,
    "tokenize": TokenizeRequest,
}


def fields() -> Iterator[tuple[str, str, FieldClass]]:
    """Every classed field: the API, the path without indices, and its class."""
    for api, model in APIS.items():
        yield from _fields(api, "", shape_of(model))


def _fields(
    api: str, path: str, inside: Shape | Kinds | None
) -> Iterator[tuple[str, str, FieldClass]]:
    if isinstance(inside, Kinds):
        # Fields of several types of one object are one field here.
        found = {
            entry[1]: entry
            for shape in inside.shapes.values()
            for entry in _fields(api, path, shape)
        }
        yield from found.values()
    elif inside is not None:
        for name, each in inside.others.items():
            yield api, f"{path}{name}", each
        for name, within in inside.honoured.items():
            if name != "extra_configs":  # an entry of APIS
                yield from _fields(api, f"{path}{name}.", within)


def tables() -> dict[str, str]:
    """The tables by name, as Markdown: fields that share a sentence are a row."""
    rows: dict[str, dict[str, dict[str, list[str]]]] = {"ignored": {}, "refused": {}}
    for api, path, found in fields():
        if isinstance(found, Ignored):
            name, text = "ignored", found.why + (" (logged once)" if found.is_logged else "")
            shown = f"`{path}`"
        else:
            name, text = "refused", found.reason
            shown = f"`{path}`{_neutral(found)}"
        rows[name].setdefault(text, {}).setdefault(shown, []).append(api)
    heads = {"ignored": "Why", "refused": "Why, or what to do instead"}
    return {
        name: _table(("Fields", head), ((_names(n), text) for text, n in rows[name].items()))
        for name, head in heads.items()
    }


def _neutral(found: Refused) -> str:
    values = [f"`{json.dumps(value)}`" for value in found.neutral]
    if found.neutral_item is not None:
        values.append(f"lists with `{found.neutral_item}`")
    return f" ({', '.join(values)})" if values else ""


def _names(places: Mapping[str, list[str]]) -> str:
    """Fields with the APIs that they are classed in, those of the same APIs together."""
    by_apis: dict[tuple[str, ...], list[str]] = {}
    for path, apis in places.items():
        by_apis.setdefault(tuple(apis), []).append(path)
    return "; ".join(f"{_where(apis)}: {', '.join(paths)}" for apis, paths in by_apis.items())


def _where(apis: tuple[str, ...]) -> str:
    return "everywhere" if len(apis) == len(APIS) else ", ".join(apis)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def written(text: str) -> str:
    """A document with its tables as they are now."""
    for name, table in tables().items():
        begin = BEGIN.format(name=name)
        before, mark, after = text.partition(begin)
        assert mark, f"docs/api.md has no line {begin}"
        text = f"{before}{begin}\n{table}\n{END}{after.partition(END)[2]}"
    return text


def main() -> None:
    """Writes the tables into docs/api.md."""
    DOCS.write_text(written(DOCS.read_text()))


if __name__ == "__main__":
    main()
