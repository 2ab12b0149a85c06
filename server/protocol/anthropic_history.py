"""`messages` of Anthropic's API - turns of blocks - as chat messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from server import limits
from server.protocol.body import check_count, describe, field_error
from server.protocol.history import History

# A block of a turn, and the path of it.
Place = tuple[str, dict[str, Any]]

# Keys that say nothing to the model, in every block.
_SILENT = frozenset({"type", "cache_control", "citations", "caller"})


def chat_messages(system: Any, messages: list[Any]) -> list[dict[str, Any]]:
    """The messages that a system prompt and the turns mean.

    Turns of one role that follow each other are one turn, as at Anthropic.

    Raises:
        RequestError: A block is malformed, or a result has no call that it belongs to.
    """
    history = History()
    if system is not None:
        history.say("system", _text("system", system))
    turns = [_turn(f"messages[{index}]", message) for index, message in enumerate(messages)]
    for role, same in groupby(turns, key=lambda turn: turn[0]):
        blocks = [block for _, blocks in same for block in blocks]
        if role == "system":  # what a client tells the model in the middle of a conversation
            history.say("system", "\n".join(_block_text(where, block) for where, block in blocks))
        else:
            (_add_user if role == "user" else _add_assistant)(history, blocks)
    return history.messages


def _turn(where: str, message: Any) -> tuple[str, list[Place]]:
    if not isinstance(message, dict):
        raise field_error(where, f"expected an object, found {describe(message)}")
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        reason = f"expected user, assistant or system, found {describe(role)}"
        raise field_error(f"{where}.role", reason)
    for key in message.keys() - {"role", "content"}:
        raise field_error(f"{where}.{key}", "unknown field")
    where = f"{where}.content"
    if isinstance(content, str):
        return role, [(where, {"type": "text", "text": content})]
    return role, list(_blocks(where, content))


def _blocks(where: str, content: Any) -> Iterator[Place]:
    if not isinstance(content, list):
        expected = "expected a string or a list of blocks"
        raise field_error(where, f"{expected}, found {describe(content)}")
    check_count(where, content, limits.MAX_PARTS, "blocks")
    for index, block in enumerate(content):
        at = f"{where}[{index}]"
        if not isinstance(block, dict):
            raise field_error(at, f"expected an object, found {describe(block)}")
        yield at, {key: value for key, value in block.items() if value is not None}


def _add_user(history: History, blocks: Sequence[Place]) -> None:
    """Adds a user's turn; results stand before texts, next to the calls that they answer."""
    texts: list[str] = []
    for where, block in blocks:
        if block.get("type") == "tool_result":
            _add_result(history, where, block)
        else:
            texts.append(_block_text(where, block))
    if texts or not blocks:
        history.say("user", "\n".join(texts))


def _add_result(history: History, where: str, block: dict[str, Any]) -> None:
    _check_keys(where, block, {"tool_use_id", "content", "is_error"})
    is_error = block.get("is_error", False)
    if not isinstance(is_error, bool):
        reason = f"expected true or false, found {describe(is_error)}"
        raise field_error(f"{where}.is_error", reason)
    text = _text(f"{where}.content", block.get("content", ""))
    # Templates have no other place for it.
    text = f"Error: {text}" if is_error else text
    history.answer(f"{where}.tool_use_id", _string(where, block, "tool_use_id"), text)


def _add_assistant(history: History, blocks: Iterable[Place]) -> None:
    history.write("")  # a turn without a block is one, too
    for where, block in blocks:
        match block.get("type"):
            case "tool_use":
                _add_call(history, where, block)
            case "thinking":
                _check_keys(where, block, {"thinking", "signature"})
                history.think(_string(where, block, "thinking", is_empty_allowed=True))
            case "redacted_thinking":
                pass  # nobody but its author can read it
            case _:
                history.write(_block_text(where, block))


def _add_call(history: History, where: str, block: dict[str, Any]) -> None:
    _check_keys(where, block, {"id", "name", "input"})
    call_id, name = (_string(where, block, key) for key in ("id", "name"))
    # An object; of a call that was cut, clients may have kept the text.
    arguments = block.get("input", {})
    if not isinstance(arguments, dict | str):
        raise field_error(f"{where}.input", f"expected an object, found {describe(arguments)}")
    is_text = isinstance(arguments, str)
    text = arguments if is_text else json.dumps(arguments, ensure_ascii=False)
    history.call(f"{where}.id", call_id, name, text)


def _text(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_block_text(at, block) for at, block in _blocks(where, content))


def _block_text(where: str, block: dict[str, Any]) -> str:
    if block.get("type") != "text":
        kind = block.get("type")
        if kind in ("image", "document"):
            raise field_error(f"{where}.type", f"{kind} input is not supported, only text is")
        raise field_error(f"{where}.type", f"only text is supported, found {describe(kind)}")
    _check_keys(where, block, {"text"})
    return _string(where, block, "text", is_empty_allowed=True)


def _string(where: str, block: dict[str, Any], key: str, *, is_empty_allowed: bool = False) -> str:
    value = block.get(key)
    if not isinstance(value, str) or not (value or is_empty_allowed):
        raise field_error(f"{where}.{key}", f"expected a string, found {describe(value)}")
    return value


def _check_keys(where: str, block: dict[str, Any], known: set[str]) -> None:
    for key in block.keys() - _SILENT - known:
        raise field_error(f"{where}.{key}", "unknown field")
