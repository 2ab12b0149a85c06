"""Drafts by n-gram lookup: what followed the last time that a request's latest tokens were there.

A draft costs no model: it is read off the request's own context. A step computes a row's next
token and its drafts together, and samples after each. As long as the tokens sampled are those that
were drafted, they count; the first other one still does, and what comes after it is dropped. Each
token is sampled as it would be without drafts (same context, same seed and position), so the answer
is the same, greedy or not.

Paper: https://arxiv.org/abs/2211.17192 (a draft here is certain of its tokens, q = 1, so accepting
with probability p is the same as drawing from p and comparing).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rtpjax.config import DraftConfig

_MAX_PAUSE = 32  # tokens


@dataclass(slots=True)
class DraftStats:
    """Counters that only grow; accepted_by_position[i] counts drafts whose token i was accepted."""

    num_drafts: int = 0
    num_draft_tokens: int = 0
    accepted_by_position: tuple[int, ...] = ()

    @staticmethod
    def of(config: DraftConfig | None) -> DraftStats:
        """Nothing yet."""
        return DraftStats(accepted_by_position=(0,) * (config.num_tokens if config else 0))

    def count(self, num_drafted: int, num_accepted: int) -> None:
        """A row's drafts were judged."""
        self.num_drafts += 1
        self.num_draft_tokens += num_drafted
        self.accepted_by_position = tuple(
            n + (i < num_accepted) for i, n in enumerate(self.accepted_by_position)
        )


class Drafter:
    """Proposes tokens for one request.

    After drafts of which nothing was accepted it pauses, for twice as many tokens each time: where
    the context repeats by chance only, hardly a step is wasted.

    Args:
        config: What counts as a match, and how much is proposed.
    """

    def __init__(self, config: DraftConfig):
        self._config = config
        self._ids = np.zeros(0, np.int32)  # the context, and room for more
        self._count = 0
        self._num_misses = 0
        self._pause = 0

    def propose(self, token_ids: list[int], num_pending: int, most: int) -> tuple[int, ...]:
        """The tokens that may come next, as far as there is a match.

        Args:
            token_ids: The known context; between two calls it only grows.
            num_pending: Tokens in flight behind it, which are guessed, too, and not returned.
            most: How many are wanted.
        """
        if self._pause > 0:
            self._pause -= 1
            return ()
        if len(token_ids) > len(self._ids):
            self._ids = np.append(self._ids, np.zeros(2 * len(token_ids), np.int32))
        self._ids[self._count : len(token_ids)] = token_ids[self._count :]
        self._count = len(token_ids)
        end = self._last_match()
        if end is None:
            return ()
        wanted = min(most, self._config.num_tokens) + num_pending
        following = self._ids[end : min(end + wanted, self._count)].tolist()
        period = len(following)  # where the match runs into its own end, it goes on as it began
        following += [following[i % period] for i in range(period, wanted)]
        return tuple(following[num_pending:])

    def _last_match(self) -> int | None:
        """Where the latest of the longest matches ends: the place of the token that followed."""
        ids, last, found = self._ids, self._count - 1, None
        ends = np.flatnonzero(ids[:last] == ids[last])
        for length in range(1, self._config.max_match + 1):
            if not len(ends):
                break
            if length >= self._config.min_match:
                found = int(ends[-1]) + 1
            ends = ends[ends >= length]
            ends = ends[ids[ends - length] == ids[last - length]]
        return found

    def judge(self, num_accepted: int) -> None:
        """Says how many of the tokens that were proposed last were right."""
        self._num_misses = 0 if num_accepted else self._num_misses + 1
        if self._num_misses:
            self._pause = min(1 << self._num_misses, _MAX_PAUSE)
