"""Compiles grammars with llguidance, away from the engine's thread.

A compiled grammar is a matcher in its first state; each request gets a copy (15 us). Compiling
takes milliseconds, and its work is bounded twice: by llguidance's own limits, and by a time limit
for whoever waits. Equal grammars are compiled once, also when they come together. Few can wait for
a thread; one that all its callers have given up before that is dropped.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark
from llguidance.numpy import fill_next_token_bitmask

from rtpjax.engine.faults import report, told
from rtpjax.engine.reasoning import ReasoningClock
from rtpjax.engine.request import JSON_OPTIONS, Grammar, ReasoningLimit
from rtpjax.errors import EngineError, QueueFullError, RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TIME_LIMIT_S = 10.0
MAX_GRAMMAR_CHARS = 256 * 1024
MAX_DEPTH = 120
# A chain of rules or references is compiled by recursion: 2,000 of them overflow 8 MiB of stack,
# which ends the process.
MAX_RULES = 1000
_STACK_BYTES = 64 << 20
_MAX_CACHED = 256
_MAX_THREADS = 2
MAX_QUEUED = 64  # grammars under way or waiting for a thread

_TEXT = r"/(.|\n)*/"


@dataclass(frozen=True, slots=True)
class CompiledGrammar:
    """A grammar for one tokenizer.

    Attributes:
        source: What it was made from.
        matcher: In its first state; never advanced, only copied.
        silent_ids: Special tokens that the grammar does not name: free text may have them.
        after: The bytes that must come before the constraint, or the one special token.
    """

    source: Grammar
    matcher: LLMatcher
    silent_ids: frozenset[int]
    after: bytes | int | None


@dataclass(frozen=True, slots=True)
class CompiledConstraint:
    """What one or several requests are held to, for one tokenizer.

    Attributes:
        grammar: What the output must look like, or None.
        tokenizer: The tokenizer's tables.
        limit: How long the model may reason, or None.
        closing_ids: The tokens of the mark that ends the reasoning.
        end_token_ids: The model's end tokens.
    """

    grammar: CompiledGrammar | None
    tokenizer: LLTokenizer
    limit: ReasoningLimit | None = None
    closing_ids: tuple[int, ...] = ()
    end_token_ids: tuple[int, ...] = ()

    def make_clock(self) -> ReasoningClock | None:
        """A request's own count of its reasoning."""
        if self.limit is None:
            return None
        return ReasoningClock(
            self.limit, self.closing_ids, lambda t: self.tokenizer.decode_bytes([t])
        )


@dataclass(slots=True)
class _Job:
    """A grammar that is or was compiled, and how many wait for it."""

    future: Future[CompiledConstraint]
    num_waiting: int = 0


class Compilation:
    """One caller's wait for a grammar.

    Attributes:
        future: Shared with others, so do not cancel it; `result_of` takes its result.
    """

    def __init__(self, job: _Job, lock: threading.RLock):
        self.future = job.future
        self._job = job
        self._lock = lock
        self._is_waiting = True

    def release(self) -> None:
        """The caller has its result, or waits no longer. Nobody waits: it need not begin."""
        with self._lock:
            self._job.num_waiting -= self._is_waiting
            self._is_waiting = False
            if not self._job.num_waiting:
                self.future.cancel()  # has no effect on one that runs or is done


def result_of(future: Future[CompiledConstraint]) -> CompiledConstraint:
    """The result of a future that is done.

    Raises:
        RequestError: The grammar is wrong. A new one for each caller: an error keeps the stack of
            all who raised it.
        EngineError: It could not be compiled for a reason that may not be there another time.
    """
    error = future.exception()
    if isinstance(error, RequestError):
        raise RequestError(str(error), param=error.param, code=error.code)
    return future.result()


class GrammarCompiler:
    """Compiles for one tokenizer.

    Args:
        tokenizer: The model's.
        end_token_ids: The model's end tokens: a complete output allows them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, end_token_ids: Iterable[int]):
        self._hf = tokenizer
        self._end_token_ids = sorted(end_token_ids)
        self._jobs: OrderedDict[Any, _Job] = OrderedDict()
        self._num_queued = 0
        self._lock = threading.RLock()  # a future that is done calls back at once
        self._making = threading.Lock()

    def begin(self, grammar: Grammar | None, limit: ReasoningLimit | None = None) -> Compilation:
        """Has a grammar compiled, unless that has been done before. Thread-safe.

        Raises:
            QueueFullError: Too many grammars are being compiled.
        """
        key = grammar, limit
        with self._lock:
            job = self._jobs.get(key)
            if job is None:
                job = self._begin(key)
            else:
                self._jobs.move_to_end(key)
            job.num_waiting += 1
            return Compilation(job, self._lock)

    def compile(
        self, grammar: Grammar | None, limit: ReasoningLimit | None = None
    ) -> CompiledConstraint:
        """Waits for what was compiled.

        Raises:
            RequestError: It is wrong, too large, or takes too long.
            QueueFullError: Too many grammars are being compiled.
        """
        compilation = self.begin(grammar, limit)
        try:
            wait_for([compilation.future], TIME_LIMIT_S)
            if not compilation.future.done():
                raise too_slow(grammar)
            return result_of(compilation.future)
        finally:
            compilation.release()

    def _begin(self, key: tuple[Grammar | None, ReasoningLimit | None]) -> _Job:
        if self._num_queued >= MAX_QUEUED:
            raise QueueFullError(
                f"{MAX_QUEUED} grammars are being compiled already. Try again later.",
                code="queue_full",
            )
        job = self._jobs[key] = _Job(self._pool.submit(self._work, *key))
        self._num_queued += 1
        job.future.add_done_callback(partial(self._settle, key))
        return job

    def _settle(
        self, key: tuple[Grammar | None, ReasoningLimit | None], future: Future[CompiledConstraint]
    ) -> None:
        """Keeps what would be the same another time: a result, or that the grammar is wrong."""
        with self._lock:
            self._num_queued -= 1
            if future.cancelled() or not isinstance(future.exception(), RequestError | None):
                del self._jobs[key]
            done = [key for key, job in self._jobs.items() if job.future.done()]
            for oldest in done[: max(0, len(self._jobs) - _MAX_CACHED)]:
                del self._jobs[oldest]

    def _work(self, grammar: Grammar | None, limit: ReasoningLimit | None) -> CompiledConstraint:
        try:
            return self._compile(grammar, limit)
        except RequestError:
            raise
        except BaseException as error:
            error_id = report("Compiling a grammar", error)
            if grammar is None or isinstance(error, Exception):
                raise EngineError(told(error_id)) from error
            # A panic of the library: it depends on the grammar alone.
            reason = f"the grammar library cannot take it (error {error_id})"
            raise refusal(grammar, reason) from error

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        # Its threads need a deep stack; they are the only ones that start meanwhile.
        previous = threading.stack_size(_STACK_BYTES)
        try:
            pool = ThreadPoolExecutor(_MAX_THREADS, "grammar")
            barrier = threading.Barrier(_MAX_THREADS + 1)
            for _ in range(_MAX_THREADS):
                pool.submit(barrier.wait)
        finally:
            threading.stack_size(previous)
        barrier.wait()
        return pool

    def _tokenizer(self) -> LLTokenizer:
        """Made at the first grammar: it takes a second for a large vocabulary."""
        with self._making:
            return self._ll_tokenizer

    @cached_property
    def _ll_tokenizer(self) -> LLTokenizer:
        backend = copy.copy(self._hf.backend_tokenizer)
        backend.no_padding()
        backend.no_truncation()
        ends = self._end_token_ids or None
        try:
            return LLTokenizer(backend.to_str(), eos_token=ends)
        except ValueError as error:
            raise RequestError(
                f"This model's tokenizer cannot be used with a grammar: {error}"
            ) from error

    def _compile(self, grammar: Grammar | None, limit: ReasoningLimit | None) -> CompiledConstraint:
        compiled = None if grammar is None else self._compile_grammar(grammar)
        ends = tuple(self._end_token_ids)
        if limit is None:
            return CompiledConstraint(compiled, self._tokenizer(), end_token_ids=ends)
        closing = self._hf.backend_tokenizer.encode(limit.closes, add_special_tokens=False)
        return CompiledConstraint(compiled, self._tokenizer(), limit, tuple(closing.ids), ends)

    def _compile_grammar(self, grammar: Grammar) -> CompiledGrammar:
        for part in (grammar, grammar.instead):
            if part is not None:
                check_size(part)
        tokenizer = self._tokenizer()
        added = self._hf.backend_tokenizer.get_added_tokens_decoder()
        specials = {token.content: i for i, token in added.items() if token.special}
        try:
            text = to_llguidance(grammar, specials)
            matcher = LLMatcher(
                tokenizer, text, log_level=0, limits=LLParserLimits(verbose_errors=False)
            )
        except (ValueError, KeyError, TypeError, RecursionError, GbnfToLarkError) as error:
            raise refusal(grammar, f"it cannot be read: {_brief(str(error))}") from error
        if matcher.is_error():
            raise refusal(grammar, _brief(matcher.get_error()))
        check_start(grammar, tokenizer, matcher)
        after = grammar.after
        return CompiledGrammar(
            source=grammar,
            matcher=matcher,
            silent_ids=frozenset(specials.values()) - _named(grammar, specials),
            after=None if after is None else specials.get(after, after.encode()),
        )


def check_start(grammar: Grammar, tokenizer: LLTokenizer, matcher: LLMatcher) -> None:
    """Refuses what is noticed only where the first token is asked for: rules that never end."""
    probe = matcher.deep_copy()
    mask = np.zeros((1, -(-tokenizer.vocab_size // 32)), np.int32)
    fill_next_token_bitmask(probe, mask)
    if probe.is_error():
        reason = "no text can begin it; is there a rule or reference that only names itself?"
        raise refusal(grammar, f"{reason} ({_brief(probe.get_error())})")
    if not mask.any():
        raise refusal(grammar, "no text fits it")


def refusal(grammar: Grammar, reason: str) -> RequestError:
    """The error for a grammar that cannot be used."""
    field = grammar.param
    return RequestError(f"{field}: {reason}", param=field, code="invalid_grammar")


def too_slow(grammar: Grammar | None) -> RequestError:
    """The error for a grammar that is not compiled in time."""
    if grammar is None:
        return RequestError("thinking_budget: the tokenizer was not ready in time; try again")
    return refusal(grammar, f"it took over {TIME_LIMIT_S:.0f} s to compile; simplify it")


def to_llguidance(grammar: Grammar, special_ids: dict[str, int]) -> str:
    """The grammar as llguidance takes it.

    Args:
        grammar: Of any kind.
        special_ids: The tokenizer's special tokens; a grammar names these by id, not as text.
    """
    grammars = [_body(grammar, special_ids)]
    if grammar.instead is not None:
        other = _body(grammar.instead, special_ids) | {"name": "other"}
        one = grammars[0] | {"name": "one"}
        grammars = [{"lark_grammar": "start: @one | @other\n"}, one, other]
    if grammar.after is not None:
        # Reasoning ends with line breaks, which the constrained part does not have.
        lark = 'start: before ("\\n" | "\\n\\n")? @body\n' + _before(grammar, special_ids)
        grammars[0] |= {"name": "body"}
        grammars = [{"name": "whole", "lark_grammar": lark}, *grammars]
    return json.dumps({"grammars": grammars})


def _before(grammar: Grammar, special_ids: dict[str, int]) -> str:
    """The rule `before`: free text up to the mark that the constraint comes after."""
    assert grammar.after is not None
    skipped = _skipped(grammar, special_ids, grammar.after)
    rules = [f"before: ({' | '.join(skipped)})* opens" if skipped else "before: opens"]
    rules += [_opens("opens", grammar.after, special_ids), f"TEXT: {_TEXT}"]
    return "\n".join(rules) + "\n"


def _opens(name: str, trigger: str, special_ids: dict[str, int]) -> str:
    """A rule for free text up to a trigger."""
    if trigger in special_ids:
        return f"{name}: TEXT <[{special_ids[trigger]}]>"
    return f"{name}[lazy]: TEXT {_literal(trigger)}"


def _skipped(grammar: Grammar, special_ids: dict[str, int], *triggers: str) -> list[str]:
    """Special tokens that have a meaning in the grammar, but none in free text."""
    ids = sorted(_named(grammar, special_ids) - {special_ids.get(t, -1) for t in triggers})
    return [f"TEXT <[{token_id}]>" for token_id in ids]


def _body(grammar: Grammar, special_ids: dict[str, int]) -> dict[str, Any]:
    if grammar.kind == "json_object":
        return {"json_schema": {"type": "object", "x-guidance": JSON_OPTIONS}}
    if grammar.kind == "json_schema":
        return {"json_schema": _spaced(json.loads(grammar.text))}
    if grammar.kind == "regex":
        return json.loads(LLMatcher.grammar_from_regex(grammar.text))["grammars"][0]
    if grammar.kind == "structural_tag":
        grammar = _tagged(grammar)
    if grammar.kind == "ebnf":
        return {"lark_grammar": any_to_lark(grammar.text)}
    return {"lark_grammar": _lark(grammar, special_ids)}


def _lark(grammar: Grammar, special_ids: dict[str, int]) -> str:
    """The grammar's own rules, and those for its marks and triggers."""
    rules = [grammar.text]
    for i, mark in enumerate(grammar.marks):
        is_special = mark in special_ids
        rules.append(f"mark_{i}: " + (f"<[{special_ids[mark]}]>" if is_special else _literal(mark)))
        kept, dropped = ("+", "-") if is_special else ("-", "+")
        rules[0] = re.sub(rf"^\{dropped}mark_{i} .*\n|^\{kept}mark_{i} ", "", rules[0], flags=re.M)
    if grammar.triggers:
        make = _starts if grammar.is_at_start else _triggered
        rules += [*make(grammar, special_ids), f"TEXT: {_TEXT}"]
    return "\n".join(rules) + "\n"


def _triggered(grammar: Grammar, special_ids: dict[str, int]) -> list[str]:
    """Free text, and in it any number of parts, each constrained from its trigger on."""
    tags = [f"opens_{i} part_{i}" for i in range(len(grammar.triggers))]
    tags += _skipped(grammar, special_ids, *grammar.triggers)
    opens = (_opens(f"opens_{i}", t, special_ids) for i, t in enumerate(grammar.triggers))
    return [f"start: ({' | '.join(tags)})* TEXT", *opens]


def _starts(grammar: Grammar, special_ids: dict[str, int]) -> list[str]:
    """Text that begins with no trigger, or a trigger, its part and free text."""
    heads = [f"HEAD_{i}" for i in range(len(grammar.triggers))]
    parts = (f"{head} part_{i}" for i, head in enumerate(heads))
    rules = [f"{h}: /\\s*/ {_literal(t)}" for h, t in zip(heads, grammar.triggers, strict=True)]
    return [
        f"start: ({' | '.join(parts)}) TEXT | OTHER",
        f"OTHER: TEXT & ~(({' | '.join(heads)}) TEXT)",
        *rules,
    ]


def _spaced(schema: Any) -> dict[str, Any]:
    """The schema with our white space."""
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    if not isinstance(schema, dict):
        raise TypeError("a JSON schema is an object")
    return schema | {"x-guidance": JSON_OPTIONS | schema.get("x-guidance", {})}


def _tagged(grammar: Grammar) -> Grammar:
    """Tags as a grammar with triggers."""
    bodies: dict[str, list[str]] = {}
    for tag in json.loads(grammar.text):
        rest, schema = tag["begin"][len(tag["trigger"]) :], json.dumps(_spaced(tag["schema"]))
        body = f"{_literal(rest)} %json {schema} {_literal(tag['end'])}"
        bodies.setdefault(tag["trigger"], []).append(body)
    rules = (f"part_{i}: {' | '.join(choices)}" for i, choices in enumerate(bodies.values()))
    return dataclasses.replace(grammar, kind="lark", text="\n".join(rules), triggers=tuple(bodies))


def _named(grammar: Grammar, special_ids: dict[str, int]) -> set[int]:
    """Special tokens that the grammar names."""
    names = [grammar.after, *grammar.marks, *grammar.triggers]
    if grammar.kind == "structural_tag":
        names += [tag["trigger"] for tag in json.loads(grammar.text)]
    return {special_ids[name] for name in names if name in special_ids}


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def check_size(grammar: Grammar) -> None:
    """Refuses what is too large to be compiled in time.

    Raises:
        RequestError: It is.
    """
    text = grammar.text
    if len(text) > MAX_GRAMMAR_CHARS:
        raise refusal(
            grammar, f"it has {len(text)} characters, at most {MAX_GRAMMAR_CHARS} are allowed"
        )
    num_rules = text.count("\n") + text.count('"$ref"')
    if num_rules > MAX_RULES and not grammar.is_flat:
        raise refusal(grammar, f"it has {num_rules} rules, at most {MAX_RULES} are allowed")
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    if deepest > MAX_DEPTH:
        raise refusal(grammar, f"it is nested {deepest} deep, at most {MAX_DEPTH} is allowed")


def _brief(error: str) -> str:
    """The library's message in one line."""
    line = " ".join(error.split())
    return line if len(line) <= 300 else line[:300] + " ..."
