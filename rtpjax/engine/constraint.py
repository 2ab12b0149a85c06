"""One request's grammar and its limit on reasoning: which tokens may come next, whether one fits.

    accept(token) ──► matcher ──► needs a mask? ──► a worker thread fills it ──► mask

While the grammar is free (text before a call opens, reasoning before it ends) tokens are sampled
without a mask; each is checked when it is known. One that does not fit, since it goes from free
text into a part that is not, is dropped and sampled again under the mask. Whether a token is
sampled under a mask depends on the tokens before it alone, never on timing, so that a seed repeats
its tokens. Free text is valid UTF-8: in the middle of a character the grammar is not free.

Where the reasoning's end is forced, one token is all that fits; it goes through the grammar, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future

import numpy as np
from llguidance.numpy import fill_next_token_bitmask

from rtpjax.engine.grammar import CompiledConstraint, refusal
from rtpjax.engine.reasoning import ReasoningClock
from rtpjax.errors import EngineError, RequestError

_SLOW_S = 0.02  # a mask that takes longer would be waited for in vain


class Constraint:
    """One request's place in its grammar, in its reasoning, or both. Belongs to the engine.

    Args:
        compiled: What constrains it.
        pool: Fills masks.
        allowed_token_ids: No other token may be chosen; empty allows all.
        on_mask: Called from another thread when a mask is there, or could not be made.

    Attributes:
        is_free: The next tokens need no mask.
        is_finished: The output is complete; nothing may follow.
    """

    def __init__(
        self,
        compiled: CompiledConstraint,
        pool: Executor,
        allowed_token_ids: Sequence[int] = (),
        *,
        on_mask: Callable[[], object] = lambda: None,
    ):
        grammar = compiled.grammar
        self._compiled = grammar
        self._tokenizer = compiled.tokenizer
        self._pool = pool
        self._on_mask = on_mask
        self._is_slow = False
        self._ends = _bits(compiled.end_token_ids, self._num_words)
        self._allowed = _bits(allowed_token_ids, self._num_words) if allowed_token_ids else None
        self._matcher = None if grammar is None else grammar.matcher.deep_copy()
        self._clock: ReasoningClock | None = compiled.make_clock()
        self._num_accepted = 0
        self._tail = b""
        self._has_begun = grammar is None or grammar.after is None
        self._mask: Future[np.ndarray] | None = None
        self.is_finished = False
        self.is_free = self._find_free()
        self._start_mask()

    @property
    def pending(self) -> Future[np.ndarray] | None:
        """The mask under way, if there is one."""
        return None if self._mask is None or self._mask.done() else self._mask

    @property
    def error(self) -> BaseException | None:
        """Why there is no mask, if making it failed."""
        return self._mask.exception() if self._mask is not None and self._mask.done() else None

    def close(self) -> None:
        """The request has ended: a mask that is not begun is not made."""
        if self._mask is not None:
            self._mask.cancel()

    def can_run(self, num_sampled: int) -> bool:
        """Whether the token after num_sampled ones can be computed now.

        One token in flight is fine: it will be known before the next one is chosen. But where the
        last mask took long, this one may be late, too, and the step would wait for nothing.
        """
        if num_sampled == self._num_accepted + 1:
            return self.is_free or not self._is_slow
        return self.is_ready

    @property
    def is_ready(self) -> bool:
        """Whether the token after the known ones can be chosen: the mask it needs is there."""
        return self._mask is None or (self._mask.done() and self._mask.exception() is None)

    @property
    def mask(self) -> np.ndarray | None:
        """What that token may be: int32 `[ceil(V / 32)]`, bit set for allowed; None for any."""
        assert self.is_ready
        return None if self._mask is None else self._mask.result()

    def accept(self, token_id: int, *, is_end: bool) -> bool:
        """Takes the next token in; False if it does not fit and must be sampled again.

        Args:
            token_id: The token.
            is_end: It ends the request, if it fits.

        Raises:
            EngineError: It does not fit although it was sampled under the mask.
        """
        if not self._fits(token_id, is_end=is_end):
            if self._mask is not None:
                raise EngineError(f"The grammar failed: token {token_id} does not fit")
            self._start_mask(needed=True)
            return False
        self._num_accepted += 1
        self._see(token_id)
        self.is_finished = self._matcher is not None and self._matcher.is_stopped()
        self.is_free = self._find_free()
        self._start_mask()
        return True

    def _fits(self, token_id: int, *, is_end: bool) -> bool:
        """Takes a token into the grammar, unless it does not fit."""
        forced_id = self._forced_id
        if forced_id is not None and token_id != forced_id:
            return False
        if self._matcher is None or self._compiled is None:
            return True
        is_silent = self._is_grammar_free() and token_id in self._compiled.silent_ids
        if is_silent and (self._has_begun or not is_end):
            return True
        fits = self._matcher.try_consume_tokens([token_id]) == 1
        if self._matcher.is_error():  # it also counts as stopped
            raise EngineError(f"The grammar failed: {self._matcher.get_error()}")
        if not fits and forced_id is not None:
            raise EngineError("The grammar does not allow the reasoning to end here.")
        return fits

    @property
    def _forced_id(self) -> int | None:
        return None if self._clock is None else self._clock.forced_id

    def _find_free(self) -> bool:
        return self._forced_id is None and self._is_grammar_free()

    def _is_grammar_free(self) -> bool:
        if self._matcher is None or self._compiled is None or not self._has_begun:
            return True
        return self._compiled.source.is_free_text and self._matcher.is_accepting()

    def _see(self, token_id: int) -> None:
        """Looks for the text that the constraint comes after, and for the marks of reasoning."""
        if self._clock is not None:
            self._clock.see(token_id)
        after = None if self._compiled is None else self._compiled.after
        if self._has_begun or after is None:
            return
        if isinstance(after, int):
            self._has_begun = token_id == after
            return
        text = self._tail + self._tokenizer.decode_bytes([token_id])
        self._has_begun = after in text
        self._tail = text[-len(after) :]

    def _start_mask(self, *, needed: bool = False) -> None:
        forced_id = self._forced_id
        self._mask = None
        if self.is_finished or (self.is_free and not needed):
            return
        if forced_id is not None:
            self._mask = self._forced_mask(forced_id)
        elif self._matcher is not None:
            self._mask = self._pool.submit(self._fill)
            self._mask.add_done_callback(lambda _: self._on_mask())

    @property
    def _num_words(self) -> int:
        return -(-self._tokenizer.vocab_size // 32)

    def _fill(self) -> np.ndarray:
        matcher = self._matcher
        assert matcher is not None
        mask = np.zeros((1, self._num_words), np.int32)
        started = time.perf_counter()
        fill_next_token_bitmask(matcher, mask)
        self._is_slow = time.perf_counter() - started > _SLOW_S
        assert self._compiled is not None
        source = self._compiled.source
        if matcher.is_error():
            reason = "the output cannot go on: nothing fits a part of it, or it is too complex"
            raise refusal(source, f"{reason} ({matcher.stop_reason()})")
        if not mask.any():
            raise refusal(source, "the output cannot go on: nothing fits a part of it")
        return mask[0] if self._allowed is None else self._narrowed(mask[0], self._allowed)

    def _narrowed(self, mask: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        """A grammar's mask without the tokens that the request leaves out.

        Raises:
            RequestError: Nothing is left, and the output may not end here.
        """
        if (mask & allowed).any():
            return mask & allowed
        if (mask & self._ends).any():
            return mask & self._ends
        raise RequestError(
            "allowed_token_ids: what the answer must look like can go on with none of them here. "
            "Allow the tokens that it is written with, or leave one of the two out.",
            param="allowed_token_ids",
        )

    def _forced_mask(self, token_id: int) -> Future[np.ndarray]:
        """The mask of the token that ends the reasoning."""
        mask: Future[np.ndarray] = Future()
        bits = _bits([token_id], self._num_words)
        if self._allowed is None or (bits & self._allowed).any():
            mask.set_result(bits)
        else:
            reason = f"token {token_id}, which ends the reasoning in time, is not among them"
            error = RequestError(f"allowed_token_ids: {reason}", param="allowed_token_ids")
            mask.set_exception(error)
        return mask


def _bits(token_ids: Iterable[int], num_words: int) -> np.ndarray:
    """The mask of some tokens."""
    mask = np.zeros(num_words, np.uint32)
    for token_id in token_ids:
        if token_id < 32 * num_words:
            mask[token_id // 32] |= np.uint32(1 << (token_id % 32))
    return mask.view(np.int32)
