"""A grammar while one request is under way: which tokens may come next, and whether one fits.

    accept(token) ──► matcher ──► needs a mask? ──► a worker thread fills it ──► mask_for(...)

While the grammar is free (text before a call opens, reasoning before it ends) tokens are sampled
without a mask and run ahead like those of any other request; each is checked when it is known. One
that does not fit is dropped, with what was computed after it, and sampled again under the mask.
Whether a token is sampled under a mask depends on the tokens before it alone, never on timing, so
that a seed repeats its tokens. (Where the token after a trigger fits, nothing was lost; taking it
or else drawing again under the mask gives the masked distribution.) Free text is valid UTF-8: in
the middle of a character the grammar is not free.
"""

from __future__ import annotations

from concurrent.futures import Executor, Future

import numpy as np
from llguidance.numpy import fill_next_token_bitmask

from rtpjax.engine.grammar import CompiledGrammar
from rtpjax.errors import EngineError


class Constraint:
    """One request's place in its grammar. Belongs to the engine's thread.

    Args:
        compiled: The grammar.
        pool: Fills masks.

    Attributes:
        is_free: The next tokens need no mask.
        is_finished: The output is complete; nothing may follow.
    """

    def __init__(self, compiled: CompiledGrammar, pool: Executor):
        self._compiled = compiled
        self._pool = pool
        self._matcher = compiled.matcher.deep_copy()
        self._num_accepted = 0
        self._tail = b""
        self._has_begun = compiled.after is None
        self._mask: Future[np.ndarray] | None = None
        self.is_finished = False
        self.is_free = self._find_free()
        self._was_free = self.is_free
        self._start_mask()

    @property
    def pending(self) -> Future[np.ndarray] | None:
        """The mask under way, if there is one."""
        return None if self._mask is None or self._mask.done() else self._mask

    @property
    def error(self) -> BaseException | None:
        """Why there is no mask, if making it failed."""
        return self._mask.exception() if self._mask is not None and self._mask.done() else None

    def can_sample(self, num_sampled: int) -> bool:
        """Whether the token after num_sampled ones, known or in flight, can be sampled now."""
        num_ahead = num_sampled - self._num_accepted
        if num_ahead == 0:
            return self._mask is None or (self._mask.done() and self._mask.exception() is None)
        return num_ahead == 1 and self.is_free

    def mask_for(self, num_sampled: int) -> np.ndarray | None:
        """The mask of that token: int32 `[ceil(V / 32)]`, bit set for allowed; None for no mask."""
        assert self.can_sample(num_sampled)
        is_known = num_sampled == self._num_accepted
        return self._mask.result() if is_known and self._mask is not None else None

    def accept(self, token_id: int, *, is_end: bool) -> bool:
        """Takes the next token in; False if it does not fit and must be sampled again.

        Args:
            token_id: The token.
            is_end: It ends the request, if it fits.

        Raises:
            EngineError: It does not fit although it was sampled under the mask.
        """
        is_silent = self.is_free and token_id in self._compiled.silent_ids
        passes = is_silent and (self._has_begun or not is_end)
        if not passes and self._matcher.try_consume_tokens([token_id]) != 1:
            if self._mask is not None:
                reason = self._matcher.get_error() or f"token {token_id} does not fit"
                raise EngineError(f"The grammar failed: {reason}")
            self._start_mask(needed=True)
            return False
        if self._matcher.is_error():  # it also counts as stopped
            raise EngineError(f"The grammar failed: {self._matcher.get_error()}")
        self._num_accepted += 1
        self._see(token_id)
        self.is_finished = self._matcher.is_stopped()
        self._was_free, self.is_free = self.is_free, self._find_free()
        self._start_mask()
        return True

    def _find_free(self) -> bool:
        if not self._has_begun:
            return True
        return self._compiled.source.is_free_text and self._matcher.is_accepting()

    def _see(self, token_id: int) -> None:
        """Looks for the text that the constraint comes after."""
        after = self._compiled.after
        if self._has_begun or after is None:
            return
        if isinstance(after, int):
            self._has_begun = token_id == after
            return
        text = self._tail + self._compiled.tokenizer.decode_bytes([token_id])
        self._has_begun = after in text
        self._tail = text[-len(after) :]

    def _start_mask(self, *, needed: bool = False) -> None:
        needed = needed or not self._was_free
        is_wanted = needed and not self.is_finished
        self._mask = self._pool.submit(self._fill) if is_wanted else None

    def _fill(self) -> np.ndarray:
        num_words = -(-self._compiled.tokenizer.vocab_size // 32)
        mask = np.zeros((1, num_words), np.int32)
        fill_next_token_bitmask(self._matcher, mask)
        if self._matcher.is_error():
            raise EngineError(f"The grammar failed: {self._matcher.get_error()}")
        if not mask.any():
            raise EngineError("The grammar allows no token here.")
        return mask[0]
