"""The engine: requests in, text out, one step at a time. loop.py runs it for a server.

    step():  schedule N+1 -> forward N+1 -> collect N -> record tokens, detokenize, notice stops
             -> choose the tokens of N+1, under the masks of those with a grammar

A step with drafts is collected before the next one is scheduled: where a row goes on depends on how
many of them were right, and guessing that would cost more than the host's work does.

The device works on N+1 while the host reads N and makes masks. That a request ended with N is
noticed when N+1 is under way already; what N+1 computes for it is dropped. A mask that is late does
not hold up the others: its row's token is dropped, and computed again when the mask is there.
A request whose grammar is still compiled waits in the queue, and lets others pass.

What fails for one row ends that request. What fails for a step has all requests start again, and a
trial (rtpjax.engine.trial) finds out whose fault it was. Where not even the engine's own probe
works any more the engine has failed: all requests end, and `failure` says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import secrets
import threading
import time
from collections.abc import Iterable
from collections.abc import Sequence as Many
from concurrent import futures
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from rtpjax.config import EngineConfig
from rtpjax.engine.admission import MAX_INT32, check_request
from rtpjax.engine.batch import pack, sampling_fields
from rtpjax.engine.cache_manager import CacheManager
from rtpjax.engine.constraint import Constraint
from rtpjax.engine.detokenizer import Detokenizer
from rtpjax.engine.drafts import Drafter, DraftStats
from rtpjax.engine.failures import fields_of
from rtpjax.engine.faults import report, told
from rtpjax.engine.grammar import (
    TIME_LIMIT_S,
    CompiledConstraint,
    GrammarCompiler,
    result_of,
    too_slow,
)
from rtpjax.engine.groups import Groups
from rtpjax.engine.outputs import added_by, joined, keep_scores, output_of
from rtpjax.engine.request import (
    EngineStats,
    FinishReason,
    GenerationRequest,
    Grammar,
    RequestOutput,
    SamplingParams,
)
from rtpjax.engine.runner import Forwarded, Runner, StepHandle, biases_of
from rtpjax.engine.sampling import Sampled
from rtpjax.engine.scheduler import ScheduledRow, Scheduler
from rtpjax.engine.sequence import Sequence
from rtpjax.engine.trial import Trial
from rtpjax.errors import (
    DrainingError,
    EngineError,
    QueueFullError,
    RequestError,
    RequestTimeoutError,
)

logger = logging.getLogger(__name__)

_MASK_THREADS = 4
_MASK_WAIT_S = 0.005  # then the tokens whose mask is late are dropped
_MAX_WAIT_S = 1.0
_NO_TOKENS: frozenset[int] = frozenset()
_MAX_FAILED_PROBES = 3  # in a row


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

    Attributes:
        wake: Set whenever there may be something to do for a thread that waits.
        failure: Why the engine cannot go on, or None.
        probe: A request of the engine's own, which any engine that works can answer.
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
        self.wake = threading.Event()
        self.failure: str | None = None
        self.probe = GenerationRequest(
            f"probe-{secrets.token_hex(8)}",
            (0,),
            SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True),
            priority=-MAX_INT32,
        )
        self.grammars = GrammarCompiler(tokenizer, self.end_token_ids)
        self._runner = runner
        self._groups = Groups(
            Scheduler(
                CacheManager(
                    config.cache_groups,
                    config.page_size,
                    config.max_num_batched_tokens,
                    use_prefix_cache=config.use_prefix_cache,
                ),
                max_num_seqs=config.max_num_seqs,
                max_num_batched_tokens=config.max_num_batched_tokens,
            )
            for _ in range(config.dp_size)
        )
        self._live: dict[str, tuple[Sequence, Detokenizer]] = {}
        self._in_flight: StepHandle | None = None
        self._is_device_lost = False
        self._is_stalled = False
        self._trial = Trial()
        self._probe: Sequence | None = None
        self._has_probe_ended = False
        self._book_error: BaseException | None = None
        self._num_failed_probes = 0
        self._ended: list[RequestOutput] = []  # between two steps
        self._arrivals = itertools.count()
        self._constrained: dict[str, Sequence] = {}
        # Until when they may wait for their grammars.
        self._compiling: dict[Sequence, float] = {}
        self._timed: dict[str, Sequence] = {}
        self._mask_pool = futures.ThreadPoolExecutor(_MASK_THREADS, "masks")
        self._num_prompt_tokens = 0
        self._num_output_tokens = 0
        self._drafts = DraftStats.of(config.drafts)

    @property
    def has_work(self) -> bool:
        """Whether step() has anything to do."""
        is_waiting = self._in_flight is not None or self._book_error is not None
        return bool(self._live or self._ended) or is_waiting

    def wait(self) -> None:
        """Returns once step() may have something to do, which is at once as a rule.

        After a step that found nothing to do, all requests wait for their masks. `wake` ends the
        wait; a thread clears it before it looks for work.
        """
        if self._is_stalled or not self.has_work:
            self.wake.wait(self._next_deadline_s() if self.has_work else None)
            self._is_stalled = False

    @property
    def num_tokens(self) -> int:
        """Tokens that the tokenizer knows."""
        return self._runner.num_tokens

    def check(self, request: GenerationRequest) -> None:
        """Refuses what cannot be honoured now.

        Raises:
            RequestError: The prompt does not fit, or a parameter is out of the engine's range.
            QueueFullError: Too many requests wait.
            DrainingError: The engine has failed.
        """
        self._check_alone(request)
        self.check_queue()

    def check_queue(self) -> None:
        """The part of check that depends on the other requests; it costs nothing."""
        num_waiting = self._groups.num_waiting + self._trial.num_held
        if num_waiting >= self.config.max_num_waiting:
            raise QueueFullError(
                f"{self.config.max_num_waiting} requests are waiting already. Try again later.",
                code="queue_full",
            )

    def _check_alone(self, request: GenerationRequest) -> None:
        if self.failure is not None:
            raise DrainingError(self.failure, code="stopped")
        check_request(
            request, self.config.max_model_len, self._runner.num_tokens, self.end_token_ids
        )
        if request.request_id in self._live:
            raise RequestError(
                f"request_id: {request.request_id!r} is in use; give each request its own.",
                param="request_id",
            )

    def constrain(self, compiled: CompiledConstraint, sampling: SamplingParams) -> Constraint:
        """A request's own place in what constrains it."""
        return Constraint(
            compiled, self._mask_pool, sampling.allowed_token_ids, on_mask=self.wake.set
        )

    def add(self, request: GenerationRequest) -> None:
        """Queues a request, or raises and leaves everything as it was.

        That its grammar cannot be compiled is told by its only output.

        Raises:
            RequestError: It cannot be honoured.
            QueueFullError: Too many grammars are being compiled.
        """
        self._check_alone(request)
        sequence, detokenizer = self._begun(request)
        if request.is_constrained:
            sequence.compilation = self.grammars.begin(request.grammar, request.reasoning_limit)
        try:
            self._enqueue(sequence)
        except BaseException:
            _stop_compiling(sequence)
            raise
        self._live[request.request_id] = sequence, detokenizer
        if request.timeout_s is not None:
            self._timed[request.request_id] = sequence
        if sequence.compilation is None:
            self._num_prompt_tokens += sequence.num_prompt_tokens
        else:
            self._compiling[sequence] = time.monotonic() + TIME_LIMIT_S
            sequence.compilation.future.add_done_callback(lambda _: self.wake.set())

    def _enqueue(self, sequence: Sequence) -> None:
        is_on = self._trial.is_on or self._is_device_lost
        if is_on and sequence.request is self.probe:
            self._trial.send_probe(sequence)
        elif is_on:
            self._trial.hold(sequence)
        else:
            try:
                self._groups.add(sequence)
            except BaseException as error:
                self._book_error = error
                raise

    def _check_books(self) -> None:
        """Raises what went wrong when a sequence was added or taken out: its pages may be lost."""
        error, self._book_error = self._book_error, None
        if error is not None:
            raise error

    def _begun(self, request: GenerationRequest) -> tuple[Sequence, Detokenizer]:
        """A request's state before its first step."""
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
        if self.config.drafts is not None and request.use_drafts:
            sequence.drafter = Drafter(self.config.drafts)
        return sequence, Detokenizer(
            self.tokenizer,
            prompt_token_ids=request.prompt_token_ids,
            skip_special_tokens=sampling.skip_special_tokens,
            stop=sampling.stop,
            min_tokens=sampling.min_tokens,
            include_stop_str_in_output=sampling.include_stop_str_in_output,
            stop_sequences=sampling.stop_sequences,
        )

    def abort(self, request_id: str) -> RequestOutput | None:
        """Ends a request now; its pages are free then. None if it has ended already."""
        if request_id not in self._live:
            return None
        return self._end(self._live[request_id][0], "abort")

    def step(self) -> list[RequestOutput]:
        """Dispatches the next step and returns what the one before it added to its requests.

        It does not raise: what goes wrong ends requests, or all of them (see `failure`).
        """
        started, waited = time.perf_counter(), self.timings.wait_s
        rows: list[ScheduledRow] | None = None
        outputs: list[RequestOutput] = []
        collected, self._in_flight = self._in_flight, None
        try:
            self._check_books()
            if self._is_device_lost:
                self._runner.reset()
                self._is_device_lost = False
            if collected is not None and collected.batch.has_drafts:
                self._collect(collected, outputs)
            for sequence in self._trial.admit():
                self._groups.add(sequence)
            if self._compiling:
                self._take_grammars(outputs)
            groups = self._groups.schedule()
            rows = list(itertools.chain(*groups))
            forwarded = self._forward(groups) if rows else None
            if collected is not None and not collected.batch.has_drafts:
                self._collect(collected, outputs)
            if forwarded is not None:
                self._in_flight = self._choose(forwarded, outputs)
            self._end_failed(outputs)
            self._end_late(outputs)
            self._check_books()
        except BaseException as error:  # noqa: BLE001 (see report)
            collecting = [row for row, _ in collected.batch.rows] if collected else ()
            # Where scheduling itself failed, it may be for any request.
            self._recover([] if rows is None else [*collecting, *rows], error, outputs)
        self._is_stalled = not (rows or collected or self._is_device_lost)
        if self.failure is not None:
            self._in_flight = None
        outputs += self._ended
        self._ended = []
        if self._has_probe_ended:
            outputs = self._without_probes(outputs)
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

        Raises:
            RequestError: One cannot be honoured, its grammar included.
        """
        for grammar in grammars:
            if grammar is not None:
                self.grammars.compile(grammar)
        grammars = grammars or [None] * len(prompts)
        each = [sampling] * len(prompts) if isinstance(sampling, SamplingParams) else sampling
        outputs: dict[str, list[RequestOutput]] = {}
        for prompt, params, grammar in zip(prompts, each, grammars, strict=True):
            request = GenerationRequest(
                f"offline-{len(outputs)}", tuple(prompt), params, grammar=grammar
            )
            self.check_queue()
            self.add(request)
            outputs[request.request_id] = []
        while self.has_work:
            self.wake.clear()
            for output in self.step():
                outputs[output.request_id].append(output)
            if self.has_work:
                self.wait()
        return list(outputs.values())

    def stats(self) -> EngineStats:
        """A snapshot; safe to call from another thread."""
        schedulers, stats = self._groups.schedulers, self._groups.stats
        num_pages, num_free = self._groups.pages
        return EngineStats(
            num_running=sum(len(s.running) for s in schedulers),
            num_waiting=self._groups.num_waiting + self._trial.num_held,
            num_pages=num_pages,
            num_free_pages=num_free,
            page_size=self.config.page_size,
            num_steps=self.timings.num_steps,
            num_prompt_tokens=self._num_prompt_tokens,
            num_output_tokens=self._num_output_tokens,
            prefix_queried_tokens=stats.prefix_queried_tokens,
            prefix_hit_tokens=stats.prefix_hit_tokens,
            num_preemptions=stats.num_preemptions,
            num_recompiles=self._runner.num_recompiles,
            num_drafts=self._drafts.num_drafts,
            num_draft_tokens=self._drafts.num_draft_tokens,
            accepted_by_position=self._drafts.accepted_by_position if self.config.drafts else None,
            host_s=self.timings.host_s,
            wait_s=self.timings.wait_s,
        )

    def check_integrity(self) -> None:
        """Asserts that the books agree (tests call it after every step)."""
        self._groups.check()
        live = {id(s) for s, _ in self._live.values()}
        groups, held = self._groups, self._trial.held
        assert live == {id(s) for s in (*groups.running, *groups.waiting, *held)}
        assert len(live) == len(groups.running) + len(groups.waiting) + len(held)

    def _end_ids(self, sampling: SamplingParams) -> frozenset[int]:
        own = _NO_TOKENS if sampling.ignore_eos else self.end_token_ids
        return own.union(sampling.stop_token_ids) if sampling.stop_token_ids else own

    def _next_deadline_s(self) -> float:
        """Seconds until a request's own time is over, and a second at most."""
        now = time.monotonic()
        ends = (s.arrived_s + (s.request.timeout_s or 0.0) for s in self._timed.values())
        return min((max(end - now, 0.0) for end in ends), default=_MAX_WAIT_S)

    def _await_masks(self, constraints: Iterable[Constraint], timeout_s: float) -> None:
        """Waits for masks, or until the time is over."""
        # Each is read once: it may become ready meanwhile.
        pending = [c.pending for c in constraints]
        futures.wait([mask for mask in pending if mask is not None], timeout_s)

    def _take_grammars(self, outputs: list[RequestOutput]) -> None:
        """Gives requests the grammars that are compiled now, and ends those whose cannot be."""
        now = time.monotonic()
        for sequence, deadline in list(self._compiling.items()):
            request, compilation = sequence.request, sequence.compilation
            assert compilation is not None
            try:
                if compilation.future.done():
                    compiled = result_of(compilation.future)
                    sequence.constraint = self.constrain(compiled, request.sampling)
                elif now > deadline:
                    raise too_slow(request.grammar)
                else:
                    continue
            except EngineError as error:  # reported where it was compiled
                outputs.append(self._end(sequence, "error", **fields_of(error)))
            except BaseException as error:  # noqa: BLE001 (see report)
                outputs.append(self._fail_row(sequence, error))
            else:
                del self._compiling[sequence]
                _stop_compiling(sequence)
                self._constrained[request.request_id] = sequence
                self._num_prompt_tokens += sequence.num_prompt_tokens

    def _end_failed(self, outputs: list[RequestOutput]) -> None:
        """Ends requests whose mask could not be made; the others go on."""
        for sequence in list(self._constrained.values()):
            error = sequence.constraint.error if sequence.constraint else None
            if error is not None and not sequence.is_finished:
                outputs.append(self._fail_row(sequence, error))

    def _fail_row(self, sequence: Sequence, error: BaseException) -> RequestOutput:
        """Ends a request for which something failed on the host; the others are untouched."""
        if isinstance(error, RequestError):
            return self._end(sequence, "error", **fields_of(error))
        error_id = report(f"Request {sequence.request.request_id}", error)
        output = self._end(sequence, "error", error=told(error_id))
        self.send_probe()  # the next one may fail in the same way
        return output

    def _end_late(self, outputs: list[RequestOutput]) -> None:
        """Ends requests whose own time limit is over."""
        now = time.monotonic()
        for sequence in list(self._timed.values()):
            timeout_s = sequence.request.timeout_s
            assert timeout_s is not None
            if now - sequence.arrived_s > timeout_s and not sequence.is_finished:
                error = f"The request took longer than {timeout_s * 1000:.0f} ms, its own limit; "
                if sequence.compilation is not None:
                    error += "its grammar was not compiled yet."
                else:
                    error += f"it had {sequence.num_output_tokens} tokens of output."
                late = RequestTimeoutError(error, param="timeout_ms", code="timeout")
                outputs.append(self._end(sequence, "error", **fields_of(late)))

    def _forward(self, groups: list[list[ScheduledRow]]) -> Forwarded:
        config = self.config
        self.timings.num_steps += 1
        batch = pack(
            groups,
            self._runner.buckets,
            config.table_width,
            config.page_size,
            len(config.cache_groups),
        )
        return self._runner.forward(batch)

    def _choose(self, forwarded: Forwarded, outputs: list[RequestOutput]) -> StepHandle:
        """Has a step's tokens chosen; those whose mask is late do not count."""
        constrained = {
            places[row.num_scored]: (row.sequence, row.sequence.constraint)
            for row, places in (forwarded.batch.rows if self._constrained else ())
            if row.samples and row.sequence.constraint is not None and not row.sequence.num_dropped
        }
        self._await_masks((c for _, c in constrained.values()), _MASK_WAIT_S)
        masks: dict[int, np.ndarray] = {}
        for place, (sequence, constraint) in constrained.items():
            if sequence.is_finished:
                continue
            try:
                if not constraint.is_ready:
                    self._groups.of(sequence).retract(sequence)
                elif constraint.mask is not None:
                    masks[place] = constraint.mask
            except BaseException as error:  # noqa: BLE001 (see report)
                outputs.append(self._fail_row(sequence, error))
        return self._runner.choose(forwarded, masks)

    def _collect(self, handle: StepHandle, outputs: list[RequestOutput]) -> None:
        """Adds a step's outputs to a list, which keeps what was done if one of them fails."""
        started = time.perf_counter()
        sampled = self._runner.collect(handle)
        self.timings.wait_s += time.perf_counter() - started
        for row, places in handle.batch.rows:
            if row.sequence.is_finished:
                continue
            try:
                output = self._take(row, places, sampled)
            except BaseException as error:  # noqa: BLE001 (see report)
                output = self._fail_row(row.sequence, error)
            if output is not None:
                outputs.append(output)

    def _take(self, row: ScheduledRow, places: Many[int], sampled: Sampled) -> RequestOutput | None:
        """What a row's outputs add to its request; None for nothing."""
        keep_scores(row, places[: row.num_scored], sampled)
        return self._take_samples(row, places[row.num_scored :], sampled) if row.samples else None

    def _take_samples(
        self, row: ScheduledRow, places: Many[int], sampled: Sampled
    ) -> RequestOutput | None:
        """Adds a token to its request, and more while they are those that were drafted.

        Ends the request if one of them does. None if there is none: what was sampled does not fit
        the grammar and will be sampled again.
        """
        sequence = row.sequence
        if sequence.num_dropped:
            sequence.num_dropped -= 1
            return None
        added: dict[str, Any] = {}
        num_accepted = 0
        for place, draft in zip(places, [*row.drafts, None], strict=True):
            token_id = int(sampled.token_ids[place])
            is_end = token_id in self._end_ids(sequence.request.sampling)
            constraint = sequence.constraint
            if constraint is not None and not constraint.accept(token_id, is_end=is_end):
                self._groups.of(sequence).retract(sequence)
                sequence.num_dropped -= 1  # this one is not in flight any more
                break
            detokenizer = self._live[sequence.request.request_id][1]
            self._groups.of(sequence).record(sequence, token_id)
            self._num_output_tokens += 1
            finish_reason, more = added_by(sequence, detokenizer, sampled, place, is_end=is_end)
            added = joined(added, more)
            if finish_reason is not None:
                self._judge_drafts(row, num_accepted)
                return self._end(sequence, finish_reason, **added)
            # Where the grammar is not free any more, the next one was sampled without its mask.
            if token_id != draft or (constraint is not None and not constraint.is_free):
                break
            self._groups.of(sequence).accept_draft(sequence)
            num_accepted += 1
        self._judge_drafts(row, num_accepted)
        return output_of(sequence, **added) if added else None

    def _judge_drafts(self, row: ScheduledRow, num_accepted: int) -> None:
        if row.drafts and row.sequence.drafter is not None:
            row.sequence.drafter.judge(num_accepted)
            self._drafts.count(len(row.drafts), num_accepted)

    def _end(self, sequence: Sequence, finish_reason: FinishReason, **fields) -> RequestOutput:
        """Takes the sequence out and makes its one terminal output."""
        request_id = sequence.request.request_id
        self._has_probe_ended |= sequence.request is self.probe
        del self._live[request_id]
        self._constrained.pop(request_id, None)
        self._timed.pop(request_id, None)
        self._compiling.pop(sequence, None)
        _stop_compiling(sequence)
        output = output_of(sequence, finish_reason, **fields)
        if sequence.constraint is not None:
            sequence.constraint.close()
        try:
            if self._trial.discard(sequence):
                sequence.is_finished = True
            else:
                self._groups.finish(sequence)
        except BaseException as error:  # noqa: BLE001 (see report)
            sequence.is_finished = True
            self._book_error = error  # the answer is right all the same
            return output
        if sequence is self._probe:
            self._judge(finish_reason)
        return output

    def _judge(self, finish_reason: FinishReason) -> None:
        """A probe has ended."""
        self._probe = None
        if finish_reason == "length":
            self._num_failed_probes = 0
        elif finish_reason == "error":
            self._num_failed_probes += 1
            self.send_probe()

    def _recover(
        self, rows: list[ScheduledRow], error: BaseException, outputs: list[RequestOutput]
    ) -> None:
        """Has all requests start again after a failed step, and ends the one to blame, if known."""
        in_step = list(dict.fromkeys(r.sequence for r in rows if not r.sequence.is_finished))
        message = told(report(f"A step of {len(in_step)} requests", error))
        if self.failure is not None:
            return
        try:
            self._in_flight = self._book_error = None
            self._is_device_lost = True
            live = [sequence for sequence, _ in self._live.values()]
            self._groups.reset()
            blamed = self._trial.fail(in_step, live)
            for sequence in live:
                sequence.restart()
            self._drop_probe(live, blamed)
            outputs += [self._end(sequence, "error", error=message) for sequence in blamed]
            self.send_probe()
        except BaseException as second:  # noqa: BLE001 (see report)
            report("Starting again after a failed step", second)
            self._fail()

    def _drop_probe(self, live: list[Sequence], blamed: list[Sequence]) -> None:
        """Ends a probe that was under way: after a failed step a new one comes first."""
        if self._probe is None or self._probe in blamed:
            return
        if self._probe in live:
            self._end(self._probe, "abort")
        else:  # it failed while it ended
            self._probe = None
            self._num_failed_probes += 1

    def send_probe(self) -> None:
        """Has the engine answer a request of its own, to find out whether it still can.

        Whoever sees something fail for one request asks for it: the next one may fail likewise.
        Where one probe after the other fails, the engine has failed.
        """
        while self._probe is None and self.failure is None:
            if self._num_failed_probes >= _MAX_FAILED_PROBES:
                self._fail()
                return
            try:
                self.add(self.probe)
                self._probe = self._live[self.probe.request_id][0]
            except BaseException as error:  # noqa: BLE001 (see report)
                report("The engine's own probe", error)
                self._num_failed_probes += 1

    def _fail(self) -> None:
        """Ends all requests, for good."""
        self.failure = (
            "The engine has failed: requests of its own fail, too. Restart the server; its log "
            "has the cause."
        )
        logger.critical("%s", self.failure)
        for sequence, _ in self._live.values():
            sequence.is_finished = True
            if sequence.request is not self.probe:
                self._ended.append(output_of(sequence, "error", error=self.failure))
            _stop_compiling(sequence)
        for known in (self._live, self._constrained, self._timed, self._compiling):
            known.clear()
        self._in_flight = self._probe = None
        self._trial = Trial()
        with contextlib.suppress(Exception):
            self._groups.reset()

    def _without_probes(self, outputs: list[RequestOutput]) -> list[RequestOutput]:
        self._has_probe_ended = False
        return [output for output in outputs if output.request_id != self.probe.request_id]


def _stop_compiling(sequence: Sequence) -> None:
    """It has its grammar, or needs it no more."""
    if sequence.compilation is not None:
        sequence.compilation.release()
        sequence.compilation = None
