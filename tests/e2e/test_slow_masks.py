"""A mask that takes long, and grammars that take long to compile, hold up nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time
from concurrent.futures import wait

import pytest

from rtpjax.engine import grammar as grammar_module
from rtpjax.engine.constraint import Constraint
from rtpjax.engine.grammar import GrammarCompiler, result_of
from rtpjax.engine.request import Grammar
from rtpjax.errors import EngineError, QueueFullError, RequestError, RequestTimeoutError
from tests.e2e import byte_model
from tests.e2e.test_constrained_async import JSON, request, serve, text_of
from tests.rtpjax.engine import tiny

SLOW = Grammar("regex", "slow[0-9]{3}")


class Slow:
    """Masks of one grammar wait until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self._open = threading.Event()
        self.is_begun = threading.Event()
        fill = Constraint._fill

        def slow(constraint: Constraint):
            if constraint._compiled.source == SLOW:
                self.is_begun.set()
                assert self._open.wait(60)
            return fill(constraint)

        monkeypatch.setattr(Constraint, "_fill", slow)

    def open(self) -> None:
        self._open.set()


def test_others_go_on_while_one_mask_is_late(monkeypatch):
    slow = Slow(monkeypatch)

    async def main(engine, inner):
        with contextlib.ExitStack() as stack:
            stack.callback(slow.open)
            waiting = asyncio.create_task(text_of(engine, request("slow", SLOW)))
            await asyncio.to_thread(slow.is_begun.wait)
            for i in range(3):
                assert await text_of(engine, request(f"free-{i}", None))
                assert (await text_of(engine, request(f"json-{i}", JSON, i))).lstrip()
            assert not waiting.done()
        assert (await waiting).startswith("slow")

    serve(main)


def test_all_wait_for_masks_without_a_hot_loop_and_one_that_is_ready_goes_on(monkeypatch):
    """Only constrained requests run: new ones, ends and aborts are taken at once."""
    slow = Slow(monkeypatch)

    async def main(engine, inner):
        with contextlib.ExitStack() as stack:
            stack.callback(slow.open)
            stuck = [
                asyncio.create_task(text_of(engine, request(f"slow-{i}", SLOW))) for i in range(2)
            ]
            await asyncio.to_thread(slow.is_begun.wait)
            steps, step = [], inner.step
            inner.step = lambda: steps.append(1) or step()
            await asyncio.sleep(0.5)
            assert len(steps) < 10
            stuck[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await stuck[0]
            # Well within the second after which it looks again by itself.
            started = time.monotonic()
            while inner.stats().num_running + inner.stats().num_waiting > 1:
                await asyncio.sleep(0.005)
                assert time.monotonic() - started < 20
            text = await text_of(engine, request("new", JSON, 1))
            assert text.lstrip().startswith("{")
        assert (await stuck[1]).startswith("slow")

    serve(main)


def test_a_time_limit_ends_a_request_that_waits_for_its_mask(monkeypatch):
    slow = Slow(monkeypatch)

    async def main(engine, inner):
        with contextlib.ExitStack() as stack:
            stack.callback(slow.open)
            asked = dataclasses.replace(request("slow", SLOW), timeout_s=0.2)
            outputs = [output async for output in engine.generate(asked)]
            assert outputs[-1].error_kind == "timeout"

    serve(main)


def test_a_slow_mask_is_not_waited_for_at_each_token(monkeypatch):
    """Its row joins a step only once the mask is there."""
    fill, waits = Constraint._fill, []

    def slow(constraint):
        mask = fill(constraint)
        time.sleep(0.03)
        constraint._is_slow = True  # what it measures
        return mask

    engine = byte_model.make_engine()
    await_masks = engine._await_masks

    def count(constraints, timeout_s):
        constraints = list(constraints)
        waits.append(sum(c.pending is not None for c in constraints))
        await_masks(constraints, timeout_s)

    monkeypatch.setattr(Constraint, "_fill", slow)
    monkeypatch.setattr(engine, "_await_masks", count)
    outputs = engine.generate([byte_model.encode("a")], tiny.GREEDY, [SLOW])[0]
    assert "".join(o.text for o in outputs).startswith("slow")
    assert sum(waits) <= 1


class Blocked:
    """A compiler whose work waits until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.compiler = GrammarCompiler(byte_model.tokenizer(), [byte_model.end_id()])
        self.gate = threading.Event()
        self.begun: list[Grammar] = []
        compile_ = self.compiler._compile

        def work(grammar, limit):
            self.begun.append(grammar)
            assert self.gate.wait(60)
            return compile_(grammar, limit)

        monkeypatch.setattr(self.compiler, "_compile", work)


def grammar(number: int) -> Grammar:
    return Grammar("regex", f"a{number}")


def test_the_queue_of_grammars_is_bounded(monkeypatch):
    monkeypatch.setattr(grammar_module, "MAX_QUEUED", 5)
    blocked = Blocked(monkeypatch)
    begin = blocked.compiler.begin
    with contextlib.ExitStack() as stack:
        stack.callback(blocked.gate.set)
        futures = [begin(grammar(i)).future for i in range(5)]
        # One that is there already takes no place.
        assert begin(grammar(3)).future is futures[3]
        with pytest.raises(QueueFullError, match="5 grammars"):
            begin(SLOW)
        blocked.gate.set()
        wait(futures, 60)
        assert all(result_of(future).grammar is not None for future in futures)
    assert blocked.compiler.compile(SLOW).grammar is not None


def test_what_nobody_waits_for_any_more_is_not_compiled(monkeypatch):
    blocked = Blocked(monkeypatch)
    begin = blocked.compiler.begin
    with contextlib.ExitStack() as stack:
        stack.callback(blocked.gate.set)
        for i in range(2):  # the threads are busy
            begin(grammar(i))
        given_up = [begin(grammar(2)), begin(grammar(3))]
        kept = begin(grammar(3)).future
        for compilation in given_up:
            compilation.release()
        blocked.gate.set()
        wait([kept], 60)
        assert grammar(2) not in blocked.begun
        assert grammar(3) in blocked.begun
        deadline = time.monotonic() + 20
        while blocked.compiler._num_queued:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert blocked.compiler.compile(grammar(2)).grammar is not None  # asked for again


def test_a_failure_that_may_pass_is_not_kept(monkeypatch):
    compiler = GrammarCompiler(byte_model.tokenizer(), [byte_model.end_id()])
    compile_, failures = compiler._compile, [MemoryError("injected"), RuntimeError("injected")]

    def work(*given):
        if failures:
            raise failures.pop()
        return compile_(*given)

    monkeypatch.setattr(compiler, "_compile", work)
    for _ in range(2):
        with pytest.raises(EngineError, match=r"\(error ") as failed:
            compiler.compile(JSON)
        assert "injected" not in str(failed.value)
    assert compiler.compile(JSON).grammar is not None


def test_a_panic_of_the_library_refuses_the_grammar(monkeypatch):
    class PanicException(BaseException):
        pass

    compiler = GrammarCompiler(byte_model.tokenizer(), [byte_model.end_id()])

    def work(*_):
        raise PanicException("injected")

    monkeypatch.setattr(compiler, "_compile", work)
    with pytest.raises(RequestError, match=r"response_format: .*cannot take it \(error ") as failed:
        compiler.compile(JSON)
    assert "injected" not in str(failed.value)


def test_a_wrong_grammar_is_compiled_once_and_each_caller_has_an_error_of_its_own(monkeypatch):
    compiler = GrammarCompiler(byte_model.tokenizer(), [byte_model.end_id()])
    calls, compile_ = [], compiler._compile
    monkeypatch.setattr(compiler, "_compile", lambda *g: calls.append(1) or compile_(*g))
    errors = []
    for _ in range(3):
        with pytest.raises(RequestError, match="unclosed") as refused:
            compiler.compile(Grammar("regex", "(a"))
        errors.append(refused.value)
    assert len(calls) == 1
    assert len({id(error) for error in errors}) == 3


def test_a_constraint_that_cannot_be_made_ends_its_request_alone(monkeypatch):
    async def main(engine, inner):
        constrain = inner.constrain

        def fail(compiled, sampling):
            raise RuntimeError("injected")

        inner.constrain = fail
        with pytest.raises(EngineError, match=r"\(error "):
            await text_of(engine, request("bad", JSON))
        inner.constrain = constrain
        assert await text_of(engine, request("good", JSON))

    serve(main)


def test_the_time_of_a_grammar_counts_from_the_arrival(monkeypatch):
    gate = threading.Event()

    async def main(engine, inner):
        compile_ = inner.grammars._compile
        inner.grammars._compile = lambda *given: gate.wait(30) and compile_(*given)
        asked = dataclasses.replace(request("late", JSON), timeout_s=0.2)
        with pytest.raises(RequestTimeoutError, match="its grammar was not compiled yet"):
            await text_of(engine, asked)
        gate.set()
        assert await text_of(engine, request("next", JSON))

    serve(main)
