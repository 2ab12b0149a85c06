"""Encodes text in which some added tokens shall be plain text."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer

from rtpjax.errors import RequestError
from server.control_tokens import Span


class PlainEncoder:
    """An encoder for one tokenizer. Threads may share it."""

    def __init__(self, backend: Tokenizer):
        self._backend = backend
        self._added = {
            token_id: token.content
            for token_id, token in backend.get_added_tokens_decoder().items()
        }

    def encode(self, text: str, spans: Sequence[Span], control: frozenset[str]) -> list[int]:
        """Token ids of a prompt.

        Args:
            text: Its text.
            spans: Where no added token may be, in order.
            control: The tokens that no text but the template's may become.

        Raises:
            RequestError: The tokenizer makes a control token of any text that has it.
        """
        # A batch of one: encode() would keep the interpreter's lock.
        [found] = self._backend.encode_batch([text], add_special_tokens=False)
        offsets = found.offsets
        ids: list[int] = []
        first = start = 0
        is_changed = False
        num_passed = 0
        for index, token_id in enumerate([*found.ids, None]):
            if token_id is not None:
                if token_id not in self._added:
                    continue
                begin, end = offsets[index]
                while num_passed < len(spans) and spans[num_passed][1] <= begin:
                    num_passed += 1
                if num_passed < len(spans) and spans[num_passed][0] < end:
                    is_changed = True
                    continue
            else:
                begin = end = len(text)
            if is_changed:
                ids += self._plain(text[start:begin], control, is_inside=start > 0)
            else:
                ids += found.ids[first:index]
            ids += [] if token_id is None else [token_id]
            first, start, is_changed = index + 1, end, False
        return ids

    def _plain(self, text: str, control: frozenset[str], *, is_inside: bool) -> list[int]:
        """Token ids of a text that stands between added tokens, without any in it."""
        anchor = "\U0010fffd"
        while anchor in text:
            anchor += "\U0010fffd"
        plain = Tokenizer(self._backend.model)
        for name in ("normalizer", "pre_tokenizer"):
            if getattr(self._backend, name) is not None:
                setattr(plain, name, getattr(self._backend, name))
        # Some tokenizers put a blank before the text, but only at its beginning.
        plain.add_special_tokens([AddedToken(anchor, normalized=False)])
        before = anchor if is_inside else ""
        ids = plain.encode(before + text, add_special_tokens=False).ids[len(before) and 1 :]
        made = next((self._added[i] for i in ids if self._added.get(i) in control), None)
        if made is None:
            return ids
        # Unigram models have the texts of added tokens in their vocabulary.
        at = text.find(made)
        if at < 0 or len(made) < 2:
            reason = f"this model's tokenizer makes a control token of any text with {made!r}"
            raise RequestError(f"messages: {reason}", param="messages")
        middle = at + len(made) // 2
        head = self._plain(text[:middle], control, is_inside=is_inside)
        return head + self._plain(text[middle:], control, is_inside=True)
