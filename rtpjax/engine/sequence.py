"""A request while the engine works on it. Token counts only; no tensors.

    token_ids     [ prompt ............ | known output ... ]( in flight )
    num_tokens     prompt + output, the tokens still in flight included
    num_computed   tokens with keys and values in the cache, once the dispatched steps have run

A sequence wants num_tokens - num_computed tokens computed: its prompt (in chunks) at first, then
one at a time.
"""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rtpjax.engine.request import GenerationRequest, TokenLogprob

if TYPE_CHECKING:
    from rtpjax.engine.constraint import Constraint
    from rtpjax.engine.drafts import Drafter
    from rtpjax.engine.grammar import Compilation

Wait = Literal["grammar", "mask"]


@dataclass(slots=True, eq=False)
class Sequence:
    """One request's progress.

    Attributes:
        request: What was asked for.
        order: Sort key: priority, then arrival.
        max_tokens: Most tokens to sample, the context's limit taken into account.
        token_ids: Prompt and known output.
        num_sampled: Output tokens, the ones in flight included.
        num_computed: See above.
        num_cached_tokens: Prompt tokens that the prefix cache had, when it was first scheduled.
        pages: Pages of its context in each cache group, in order; 0 for those it has given back.
        num_passed: Of each group, how many it has given back: the first ones.
        num_promised: Of each group, pages that it may still take before others.
        num_admitted: Pages that the tokens take which it had when it was admitted.
        page_names: Names of its full pages of known tokens; a name covers all tokens up to its
            page's end.
        group: The dp group that serves it.
        slot: Its row in the group's per-request device state while it runs, else -1.
        epoch: Counts preemptions: a slot that was given up must be filled again.
        is_finished: Set once; what is still in flight for it is dropped.
        sampling_fields: The sampling parameters as the packed batch wants them, made once.
        arrived_s, wait_s: When the request came, and how long it then waited for its first step.
        prompt_logprobs: By position of the prompt token before, for requests that want them.
        biases: (token id, value, position before which it counts), added to logits.
        compilation: Its grammar, while that is compiled.
        constraint: Its place in the grammar that its output must follow; None for no grammar, or
            while it is compiled.
        drafter: Proposes its next tokens; None where that is not wanted.
        num_dropped: Samples in flight that do not count: one before them did not fit the grammar,
            or their mask was late.
        num_failures: Failed steps that it was in, and was not found to be the cause of.
        goal: Output tokens with which it is past the step that failed last (rtpjax.engine.trial).
    """

    request: GenerationRequest
    order: tuple[int, int]
    max_tokens: int
    token_ids: list[int] = field(init=False)
    num_prompt_tokens: int = field(init=False)
    num_sampled: int = 0
    num_computed: int = 0
    num_cached_tokens: int = 0
    pages: list[list[int]] = field(default_factory=list)
    num_passed: list[int] = field(default_factory=list)
    num_promised: list[int] = field(default_factory=list)
    num_admitted: int = 0
    page_names: list[bytes] = field(default_factory=list)
    num_published: int = 0
    group: int = 0
    slot: int = -1
    epoch: int = 0
    is_finished: bool = False
    sampling_fields: Any = None
    biases: list[tuple[int, float, int]] = field(default_factory=list)
    compilation: Compilation | None = None
    constraint: Constraint | None = None
    drafter: Drafter | None = None
    num_dropped: int = 0
    num_failures: int = 0
    goal: int = 0
    arrived_s: float = field(init=False)
    wait_s: float = 0.0
    prompt_logprobs: dict[int, TokenLogprob] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.arrived_s = self.request.arrived_s

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_sampled

    @property
    def waits_for(self) -> Wait | None:
        """What its next token cannot be sampled without, and is not there yet.

        Without its grammar a sequence is not started. Without a mask all but the last token, whose
        step samples, can be computed.
        """
        if self.compilation is not None:
            return "grammar"
        if self.constraint is not None and not self.constraint.can_run(self.num_sampled):
            return "mask"
        return None

    @property
    def num_wanted(self) -> int:
        """Tokens to compute next; 0 when all that may be sampled is sampled or in flight."""
        if self.num_sampled >= self.max_tokens:
            return 0
        return self.num_tokens - self.num_computed - (self.waits_for is not None)

    @property
    def may_draft(self) -> bool:
        """Whether tokens may be drafted now: a grammar's mask is known for one token at a time."""
        return self.drafter is not None and (self.constraint is None or self.constraint.is_free)

    @property
    def scores_prompt(self) -> bool:
        """Whether the log-probabilities of its prompt are wanted."""
        return self.request.sampling.prompt_logprobs is not None

    @property
    def num_output_tokens(self) -> int:
        """Known output tokens."""
        return len(self.token_ids) - self.num_prompt_tokens

    def restart(self) -> None:
        """Goes back to the known tokens: what the device and the scheduler had of it is lost."""
        self.epoch += self.slot >= 0
        self.slot = -1
        self.pages, self.num_passed, self.num_promised = [], [], []
        self.num_computed = self.num_published = self.num_dropped = 0
        self.num_sampled = self.num_output_tokens

    def names(self, page_size: int) -> list[bytes]:
        """Names of all full pages of known tokens.

        A name is a digest of the page's tokens and the name before it, so equal names mean equal
        contexts (and equal salts).
        """
        ids, names = self.token_ids, self.page_names
        while (len(names) + 1) * page_size <= len(ids):
            at = len(names) * page_size
            before = names[-1] if names else _digest(self.request.cache_salt.encode())
            names.append(_digest(before + array("i", ids[at : at + page_size]).tobytes()))
        return names


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
