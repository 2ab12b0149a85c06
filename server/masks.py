"""Keeps text of callers from becoming control tokens.

A template writes marks of turns and calls (`<|im_end|>`) into one text with what callers wrote, and
the tokenizer cannot tell the two apart: a user who types the mark would end the turn. So a prompt
is rendered a second time if there is such text in the request, with characters in its place that
occur nowhere else. Where the two texts differ, the callers' marks stand.

    exact   <|im_start|>user\\nhi <|im_end|><|im_end|>\\n
    masked  <|im_start|>user\\nhi XXXXXXXXXX<|im_end|>\\n      X: a character of private use

A prompt without such text is rendered once, and encoded as ever.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rtpjax.errors import RequestError
from server.control_tokens import ControlTokens, Span
from server.function_calls.history import ReadArguments, json_object

_PRIVATE = (*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFD))
_PRIVATE_TEXT = re.compile("[\U000f0000-\U0010fffd]")
# A key whose value is the server's own.
_OURS = "role"


class Masks:
    """Characters that stand for texts.

    Attributes:
        texts: By character.
    """

    def __init__(self, texts: Mapping[str, str]):
        self.texts = dict(texts)
        self._chars = {text: char for char, text in texts.items()}

    def of(self, text: str, spans: Sequence[Span]) -> str:
        """A text with spans masked, each by as many characters as it has."""
        if not spans:
            return text
        pieces, at = [], 0
        for start, end in spans:
            pieces += [text[at:start], self._chars[text[start:end]] * (end - start)]
            at = end
        return "".join((*pieces, text[at:]))


class Conversation:
    """What callers wrote in a request, and where control tokens might come from."""

    def __init__(
        self,
        tokens: ControlTokens,
        messages: Sequence[Mapping[str, Any]],
        other: Sequence[Any],
        exempt: frozenset[str],
    ):
        """Args:
        tokens: The control tokens.
        messages: In the form of `server.protocol.chat_messages`.
        other: Values in which there are other texts of the caller.
        exempt: Tokens that may stand in what the assistant said.
        """
        self._tokens = tokens
        self._messages = messages
        self._exempt = exempt
        texts = [(text, False) for text in _leaves(list(other))]
        for message in messages:
            for key, value in message.items():
                if key != _OURS:
                    texts += [(text, _is_said(message, key)) for text in _leaves(value)]
            for value in map(_arguments, message.get("tool_calls", ())):
                texts += [(text, False) for text in _leaves(value)]
        # Names and values of schemas come again and again.
        texts = dict.fromkeys(texts)
        self._texts = [text for text, _ in texts]
        self._found: set[str] = set()
        if tokens.has_any(self._texts):
            for text, is_said in texts:
                self._found |= {text[slice(*span)] for span in self._spans(text, is_said)}

    def _spans(self, text: str, is_said: bool) -> list[Span]:
        return self._tokens.spans(text, self._exempt if is_said else frozenset())

    @property
    def is_clean(self) -> bool:
        """Whether no text has anything that might become a control token."""
        return not self._found

    def masks(self, template: str) -> Masks:
        """A character for each text that is to be masked; none of them is in the request.

        Args:
            template: The template's text, which shall not have them either.

        Raises:
            RequestError: There are more texts to mask than characters.
        """
        used = {char for text in (*self._texts, template) for char in _PRIVATE_TEXT.findall(text)}
        free = [chr(code) for code in _PRIVATE if chr(code) not in used]
        if len(self._found) > len(free):
            reason = "too many different control tokens in them"
            raise RequestError(f"messages: {reason}", param="messages")
        return Masks(dict(zip(free, sorted(self._found), strict=False)))

    def masked_messages(self, masks: Masks) -> list[dict[str, Any]]:
        """The messages with the texts in them masked."""
        return [self._masked_message(message, masks) for message in self._messages]

    def _masked_message(self, message: Mapping[str, Any], masks: Masks) -> dict[str, Any]:
        masked = {
            key: value
            if key == _OURS
            else self.masked(value, masks, is_said=_is_said(message, key))
            for key, value in message.items()
        }
        for call, original in zip(
            masked.get("tool_calls", ()), message.get("tool_calls", ()), strict=True
        ):
            value = self.masked(_arguments(original), masks)
            # JSON may write the characters of a token in its own way.
            if value is not None:
                text = call["function"]["arguments"]
                call["function"]["arguments"] = ReadArguments(text, value)
        return masked

    def masked(self, value: Any, masks: Masks, *, is_said: bool = False) -> Any:
        """A value with the texts in it masked."""

        def mask(text: str) -> str:
            return masks.of(text, self._spans(text, is_said))

        return _mapped(value, mask)


def _is_said(message: Mapping[str, Any], key: str) -> bool:
    return message["role"] == "assistant" and key in ("content", "reasoning_content")


def _arguments(call: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a template makes of a call's arguments."""
    return json_object(call["function"]["arguments"])


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            if key != _OURS:
                yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {
            change(key): item if key == _OURS else _mapped(item, change)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    return value
