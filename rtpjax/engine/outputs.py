"""What a step's results add to a request's answer, as the caller gets it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rtpjax.engine.detokenizer import Detokenizer
from rtpjax.engine.request import FinishReason, RequestOutput, TokenLogprob
from rtpjax.engine.sampling import Sampled
from rtpjax.engine.scheduler import ScheduledRow
from rtpjax.engine.sequence import Sequence


def output_of(
    sequence: Sequence, finish_reason: FinishReason | None = None, **fields: Any
) -> RequestOutput:
    """An output with the request's totals so far.

    Args:
        sequence: The request.
        finish_reason: How it ended, if it has.
        fields: What is new, by field of RequestOutput.
    """
    return RequestOutput(
        sequence.request.request_id,
        fields.pop("text", ""),
        fields.pop("token_ids", ()),
        finish_reason=finish_reason,
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_output_tokens=sequence.num_output_tokens,
        num_cached_tokens=sequence.num_cached_tokens,
        wait_s=sequence.wait_s,
        **fields,
    )


def added_by(
    sequence: Sequence, detokenizer: Detokenizer, sampled: Sampled, b: int, *, is_end: bool
) -> tuple[FinishReason | None, dict[str, Any]]:
    """What the latest token of a request adds, and whether it ends the request.

    Args:
        sequence: The request; its token is recorded.
        detokenizer: Its text.
        sampled: The step's result.
        b: Its place in it.
        is_end: The token is one of those that end the request.

    Returns:
        How the request ends, or None; and the output's fields.
    """
    sampling, constraint = sequence.request.sampling, sequence.constraint
    token_id = sequence.token_ids[-1]
    added: dict[str, Any] = {"token_ids": (token_id,)}
    if sampling.logprobs is not None:
        added["logprobs"] = (_logprob(sampled, b, sampling.logprobs),)
    if sequence.scores_prompt and sequence.num_output_tokens == 1:
        scores = (sequence.prompt_logprobs[i] for i in range(sequence.num_prompt_tokens - 1))
        added["prompt_logprobs"] = (None, *scores)
    if is_end:
        added["text"] = detokenizer.finish()
        stop_reason = token_id if token_id in sampling.stop_token_ids else None
        return "stop", added | {"stop_reason": detokenizer.stop_reason or stop_reason}
    added["text"] = detokenizer.push((token_id,))
    is_full = sequence.num_output_tokens >= sequence.max_tokens
    is_complete = constraint is not None and constraint.is_finished
    if is_full or is_complete:
        added["text"] += detokenizer.finish()
    if detokenizer.stop_reason is not None:
        return "stop", added | {"stop_reason": detokenizer.stop_reason}
    if is_full or is_complete:
        return "stop" if is_complete else "length", added
    return None, added


def joined(fields: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """What two tokens of a step add, one after the other."""
    both = fields | more
    for name in ("token_ids", "text", "logprobs"):
        if name in fields and name in more:
            both[name] = fields[name] + more[name]
    return both


def keep_scores(row: ScheduledRow, places: Iterable[int], sampled: Sampled) -> None:
    """Keeps the log-probabilities of a prompt's tokens, for the request's first output."""
    count = row.sequence.request.sampling.prompt_logprobs or 0
    for i, place in enumerate(places):
        row.sequence.prompt_logprobs[row.start + i] = _logprob(sampled, place, count)


def _logprob(sampled: Sampled, b: int, count: int) -> TokenLogprob:
    """The log-probabilities at place b, with the count best alternatives."""
    top = zip(
        sampled.top_ids[b, :count].tolist(), sampled.top_logprobs[b, :count].tolist(), strict=True
    )
    return TokenLogprob(int(sampled.token_ids[b]), float(sampled.logprobs[b]), tuple(top))
