"""The engine: requests in, text out, one step at a time. async_engine gives it a thread.

    step():  schedule N+1 -> forward N+1 -> collect N -> record tokens, detokenize, notice stops
             -> choose the tokens of N+1, under the masks of those with a grammar

The device works on N+1 while the host reads N and makes masks. That a request ended with N is
noticed when N+1 is under way already; what N+1 computes for it is dropped. A mask that is late does
not hold up the others: its row's token is dropped, and computed again when the mask is there.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import secrets
import time
from collections.abc import Iterable
from collections.abc import Sequence as Many
from concurrent import futures
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from rtpjax.config import EngineConfig
from rtpjax.engine.admission import check_request
from rtpjax.engine.batch import pack, sampling_fields
from rtpjax.engine.constraint import Constraint
from rtpjax.engine.detokenizer import Detokenizer
from rtpjax.engine.grammar import CompiledConstraint, GrammarCompiler
from rtpjax.engine.groups import Groups
from rtpjax.engine.page_pool import PagePool
from rtpjax.engine.request import (
    EngineStats,
    ErrorKind,
    FinishReason,
    GenerationRequest,
    Grammar,
    RequestOutput,
    SamplingParams,
    TokenLogprob,
)
from rtpjax.engine.runner import Forwarded, Runner, StepHandle, biases_of
from rtpjax.engine.sampling import Sampled
from rtpjax.engine.scheduler import ScheduledRow, Scheduler
from rtpjax.engine.sequence import Sequence
from rtpjax.errors import EngineError, QueueFullError, RequestError

logger = logging.getLogger(__name__)

_MASK_THREADS = 4
_MASK_WAIT_S = 0.005  # then the tokens whose mask is late are dropped


@dataclasses.dataclass(slots=True)
class StepTimings:
    """Where the engine's time goes, in seconds, added up over steps.

    Attributes:
        num_steps: Steps dispatched.
        host_s: Scheduling, packing, dispatching, detokenizing: everything but waiting.
        wait_s: Waiting for the device.
    """

    num_steps: int = 0
    host_s: float = 0.0
    wait_s: float = 0.0


class LLMEngine:
    """Serves requests on a runner.

    Args:
        runner: The device's side; its programs are compiled.
        config: Resolved settings.
        tokenizer: For text increments and stop strings.
        end_token_ids: The model's own end tokens.
    """

    def __init__(
        self,
        runner: Runner,
        config: EngineConfig,
        tokenizer: PreTrainedTokenizerFast,
        end_token_ids: Iterable[int],
    ):
        self.config = config
        self.tokenizer = tokenizer
        self.end_token_ids = frozenset(end_token_ids)
        self.timings = StepTimings()
        self.grammars = GrammarCompiler(tokenizer, self.end_token_ids)
        self._runner = runner
        self._groups = Groups(
            Scheduler(
                PagePool(config.num_pages),
                page_size=config.page_size,
                max_num_seqs=config.max_num_seqs,
                max_num_batched_tokens=config.max_num_batched_tokens,
                use_prefix_cache=config.use_prefix_cache,
            )
            for _ in range(config.dp_size)
        )
        self._live: dict[str, tuple[Sequence, Detokenizer]] = {}
        self._in_flight: StepHandle | None = None
        self._arrivals = itertools.count()
        self._constrained: dict[str, Sequence] = {}
        self._timed: dict[str, Sequence] = {}
        self._mask_pool = futures.ThreadPoolExecutor(_MASK_THREADS, "masks")
        self._num_prompt_tokens = 0
        self._num_output_tokens = 0

    @property
    def has_work(self) -> bool:
        """Whether step() has anything to do."""
        return bool(self._live) or self._in_flight is not None

    def check(self, request: GenerationRequest, *, num_arriving: int = 0) -> None:
        """Refuses what cannot be honoured. Of what step() changes it reads the queue's length only.

        Args:
            request: To be added.
            num_arriving: Requests that passed the check and are still to be added.

        Raises:
            RequestError: The prompt does not fit, or a parameter is out of the engine's range.
            QueueFullError: Too many requests wait.
        """
        check_request(request, self.config, self._runner.num_tokens, self.end_token_ids)
        if self._groups.num_waiting + num_arriving >= self.config.max_num_waiting:
            raise QueueFullError(
                f"{self.config.max_num_waiting} requests are waiting already. Try again later.",
                code="queue_full",
            )

    def constrain(self, compiled: CompiledConstraint, sampling: SamplingParams) -> Constraint:
        """A request's own place in what constrains it; thread-safe."""
        return Constraint(compiled, self._mask_pool, sampling.allowed_token_ids)

    def add(self, request: GenerationRequest, constraint: Constraint | None = None) -> None:
        """Queues a request that passed check.

        Args:
            request: What to generate.
            constraint: Made from its grammar and its limit on reasoning. Without one they are
                compiled now.

        Raises:
            RequestError: The grammar cannot be compiled.
        """
        if request.is_constrained and constraint is None:
            compiled = self.grammars.compile(request.grammar, request.reasoning_limit)
            constraint = self.constrain(compiled, request.sampling)
        sampling = request.sampling
        room = self.config.max_model_len - len(request.prompt_token_ids)
        sequence = Sequence(
            request,
            order=(request.priority, next(self._arrivals)),
            max_tokens=room if sampling.max_tokens is None else min(sampling.max_tokens, room),
        )
        seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
        sequence.sampling_fields = sampling_fields(sequence, seed)
        sequence.biases = biases_of(sequence, self._end_ids(sampling))
        detokenizer = Detokenizer(
            self.tokenizer,
            prompt_token_ids=request.prompt_token_ids,
            skip_special_tokens=sampling.skip_special_tokens,
            stop=sampling.stop,
            min_tokens=sampling.min_tokens,
            include_stop_str_in_output=sampling.include_stop_str_in_output,
            stop_sequences=sampling.stop_sequences,
        )
        sequence.constraint = constraint
        if constraint is not None:
            self._constrained[request.request_id] = sequence
        if request.timeout_s is not None:
            self._timed[request.request_id] = sequence
        self._live[request.request_id] = sequence, detokenizer
        self._groups.add(sequence)
        self._num_prompt_tokens += sequence.num_prompt_tokens

    def abort(self, request_id: str) -> RequestOutput | None:
        """Ends a request now; its pages are free then. None if it has ended already."""
        if request_id not in self._live:
            return None
        return self._end(self._live[request_id][0], "abort")

    def step(self) -> list[RequestOutput]:
        """Dispatches the next step and returns what the one before it added to its requests."""
        started, waited = time.perf_counter(), self.timings.wait_s
        rows: list[ScheduledRow] = []
        outputs: list[RequestOutput] = []
        collected, self._in_flight = self._in_flight, None
        try:
            groups = self._groups.schedule()
            rows = list(itertools.chain(*groups))
            forwarded = self._forward(groups) if rows else None
            if collected is not None:
                self._collect(collected, outputs)
            elif forwarded is None:
                self._await_masks(self._running_constraints(), 1.0)  # nothing else to do
            if forwarded is not None:
                self._in_flight = self._choose(forwarded)
            self._end_failed(outputs)
            self._end_late(outputs)
        except Exception as error:  # the one place where any failure of a step ends up
            logger.exception("A step failed; its requests end with an error")
            collecting = collected.batch.rows.values() if collected else ()
            outputs += self._recover([*collecting, *rows], error)
        waited = self.timings.wait_s - waited
        self.timings.host_s += time.perf_counter() - started - waited
        return outputs

    def generate(
        self,
        prompts: Many[Many[int]],
        sampling: SamplingParams | Many[SamplingParams],
        grammars: Many[Grammar | None] = (),
    ) -> list[list[RequestOutput]]:
        """Runs prompts to their ends, offline: each one's outputs, in order.

        Args:
            prompts: Token ids.
            sampling: One for all, or one each.
            grammars: What each output must look like; none by default.
        """
        grammars = grammars or [None] * len(prompts)
        each = [sampling] * len(prompts) if isinstance(sampling, SamplingParams) else sampling
        outputs: dict[str, list[RequestOutput]] = {}
        for prompt, params, grammar in zip(prompts, each, grammars, strict=True):
            request = GenerationRequest(
                f"offline-{len(outputs)}", tuple(prompt), params, grammar=grammar
            )
            self.check(request)
            outputs[request.request_id] = []
            self.add(request)
        while self.has_work:
            for output in self.step():
                outputs[output.request_id].append(output)
        return list(outputs.values())

    def stats(self) -> EngineStats:
        """A snapshot; safe to call from another thread."""
        schedulers, stats = self._groups.schedulers, self._groups.stats
        return EngineStats(
            num_running=sum(len(s.running) for s in schedulers),
            num_waiting=self._groups.num_waiting,
            num_pages=sum(s.pool.capacity for s in schedulers),
            num_free_pages=sum(s.pool.num_free for s in schedulers),
            page_size=self.config.page_size,
            num_steps=self.timings.num_steps,
            num_prompt_tokens=self._num_prompt_tokens,
            num_output_tokens=self._num_output_tokens,
            prefix_queried_tokens=stats.prefix_queried_tokens,
            prefix_hit_tokens=stats.prefix_hit_tokens,
            num_preemptions=stats.num_preemptions,
            num_recompiles=self._runner.num_recompiles,
            host_s=self.timings.host_s,
            wait_s=self.timings.wait_s,
        )

    def check_integrity(self) -> None:
        """Asserts that the books agree (tests call it after every step)."""
        self._groups.check()
        live = {id(s) for s, _ in self._live.values()}
        assert live == {id(s) for s in (*self._groups.running, *self._groups.waiting)}

    def _end_ids(self, sampling: SamplingParams) -> frozenset[int]:
        own = frozenset() if sampling.ignore_eos else self.end_token_ids
        return own | frozenset(sampling.stop_token_ids)

    def _running_constraints(self) -> list[Constraint]:
        running = (s.constraint for s in self._constrained.values() if s.slot >= 0)
        return [c for c in running if c is not None]

    def _await_masks(self, constraints: Iterable[Constraint], timeout_s: float) -> None:
        """Waits for masks, or until the time is over."""
        # Each is read once: it may become ready meanwhile.
        pending = [c.pending for c in constraints]
        futures.wait([mask for mask in pending if mask is not None], timeout_s)

    def _end_failed(self, outputs: list[RequestOutput]) -> None:
        """Ends requests whose mask could not be made; the others go on."""
        for sequence in list(self._constrained.values()):
            error = sequence.constraint.error if sequence.constraint else None
            if isinstance(error, RequestError):
                fields = {"error_kind": "request", "error_param": error.param}
                outputs.append(self._end(sequence, "error", error=str(error), **fields))
            elif error is not None:
                outputs.append(self._end(sequence, "error", error=str(error)))

    def _end_late(self, outputs: list[RequestOutput]) -> None:
        """Ends requests whose own time limit is over."""
        now = time.monotonic()
        for sequence in list(self._timed.values()):
            timeout_s = sequence.request.timeout_s
            assert timeout_s is not None
            if now - sequence.arrived_s > timeout_s:
                count = sequence.num_output_tokens
                error = f"The request took longer than {timeout_s * 1000:.0f} ms, its own limit; "
                error += f"it had {count} tokens of output."
                outputs.append(self._end(sequence, "error", error=error, error_kind="timeout"))

    def _forward(self, groups: list[list[ScheduledRow]]) -> Forwarded:
        config = self.config
        self.timings.num_steps += 1
        batch = pack(groups, self._runner.buckets, config.table_width, config.page_size)
        return self._runner.forward(batch)

    def _choose(self, forwarded: Forwarded) -> StepHandle:
        """Has a step's tokens chosen; those whose mask is late do not count."""
        constrained = {
            b: (row.sequence, row.sequence.constraint)
            for b, row in (forwarded.batch.rows.items() if self._constrained else ())
            if row.samples
            and row.sequence.constraint is not None
            and not row.sequence.is_finished
            and not row.sequence.num_dropped
        }
        self._await_masks((c for _, c in constrained.values()), _MASK_WAIT_S)
        masks: dict[int, np.ndarray] = {}
        for b, (sequence, constraint) in constrained.items():
            if not constraint.is_ready:
                self._groups.of(sequence).retract(sequence)
            elif constraint.mask is not None:
                masks[b] = constraint.mask
        return self._runner.choose(forwarded, masks)

    def _collect(self, handle: StepHandle, outputs: list[RequestOutput]) -> None:
        """Adds a step's outputs to a list, which keeps what was done if one of them fails."""
        started = time.perf_counter()
        sampled = self._runner.collect(handle)
        self.timings.wait_s += time.perf_counter() - started
        token_ids = sampled.token_ids.tolist()
        for b, row in handle.batch.rows.items():
            if row.target >= 0:
                count = row.sequence.request.sampling.prompt_logprobs or 0
                row.sequence.prompt_logprobs[row.start] = _logprob(sampled, b, count)
        for b, row in handle.batch.rows.items():
            sequence = row.sequence
            if not row.samples or sequence.is_finished:
                continue
            if sequence.num_dropped:
                sequence.num_dropped -= 1
                continue
            output = self._take(sequence, token_ids[b], sampled, b)
            if output is not None:
                outputs.append(output)

    def _take(
        self, sequence: Sequence, token_id: int, sampled: Sampled, b: int
    ) -> RequestOutput | None:
        """Adds a token to its request, and ends the request if the token does.

        None if the token does not fit the request's grammar: it will be sampled again.
        """
        sampling, constraint = sequence.request.sampling, sequence.constraint
        is_end = token_id in self._end_ids(sampling)
        if constraint is not None:
            try:
                fits = constraint.accept(token_id, is_end=is_end)
            except EngineError as error:
                return self._end(sequence, "error", error=str(error))
            if not fits:
                self._groups.of(sequence).retract(sequence)
                sequence.num_dropped -= 1  # this one is not in flight any more
                return None
        detokenizer = self._live[sequence.request.request_id][1]
        self._groups.of(sequence).record(sequence, token_id)
        self._num_output_tokens += 1
        added: dict[str, Any] = {"token_ids": (token_id,)}
        if sampling.logprobs is not None:
            added["logprobs"] = (_logprob(sampled, b, sampling.logprobs),)
        if sequence.scores_prompt and sequence.num_output_tokens == 1:
            scores = (sequence.prompt_logprobs[i] for i in range(sequence.num_prompt_tokens - 1))
            added["prompt_logprobs"] = (None, *scores)
        if is_end:
            added["text"] = detokenizer.finish()
            stop_reason = token_id if token_id in sampling.stop_token_ids else None
            stop_reason = detokenizer.stop_reason or stop_reason
            return self._end(sequence, "stop", stop_reason=stop_reason, **added)
        added["text"] = detokenizer.push((token_id,))
        is_full = sequence.num_output_tokens >= sequence.max_tokens
        is_complete = constraint is not None and constraint.is_finished
        if is_full or is_complete:
            added["text"] += detokenizer.finish()
        if detokenizer.stop_reason is not None:
            return self._end(sequence, "stop", stop_reason=detokenizer.stop_reason, **added)
        if is_full or is_complete:
            return self._end(sequence, "stop" if is_complete else "length", **added)
        return self._output(sequence, **added)

    def _end(self, sequence: Sequence, finish_reason: FinishReason, **fields) -> RequestOutput:
        """Takes the sequence out and makes its one terminal output."""
        self._groups.finish(sequence)
        del self._live[sequence.request.request_id]
        self._constrained.pop(sequence.request.request_id, None)
        self._timed.pop(sequence.request.request_id, None)
        return self._output(sequence, finish_reason=finish_reason, **fields)

    def _output(
        self,
        sequence: Sequence,
        *,
        text: str = "",
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] | None = None,
        finish_reason: FinishReason | None = None,
        stop_reason: str | int | None = None,
        prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None,
        error: str | None = None,
        error_kind: ErrorKind = "engine",
        error_param: str | None = None,
    ) -> RequestOutput:
        return RequestOutput(
            request_id=sequence.request.request_id,
            text=text,
            token_ids=token_ids,
            logprobs=logprobs,
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_output_tokens=sequence.num_output_tokens,
            num_cached_tokens=sequence.num_cached_tokens,
            wait_s=sequence.wait_s,
            prompt_logprobs=prompt_logprobs,
            error=error,
            error_kind=error_kind,
            error_param=error_param,
        )

    def _recover(self, rows: list[ScheduledRow], error: Exception) -> list[RequestOutput]:
        """Ends a failed step's requests. The others start again: the cache may be lost."""
        self._in_flight = None
        failed = {row.sequence: None for row in rows if not row.sequence.is_finished}
        message = f"{type(error).__name__}: {error}"
        outputs = [self._end(sequence, "error", error=message) for sequence in failed]
        self._groups.reset()
        self._runner.reset()
        return outputs


def _logprob(sampled: Sampled, b: int, count: int) -> TokenLogprob:
    """Row b's log-probabilities with the count best alternatives."""
    top = zip(
        sampled.top_ids[b, :count].tolist(), sampled.top_logprobs[b, :count].tolist(), strict=True
    )
    return TokenLogprob(int(sampled.token_ids[b]), float(sampled.logprobs[b]), tuple(top))
