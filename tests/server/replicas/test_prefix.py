from __future__ import annotations

import gzip
import json
import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.replicas.prefix import BLOCK, MAX_BLOCKS, PrefixMemory, prefix_blocks, ranked

LONG = "You are a patient assistant. " * 40


def chat(*contents: str, **fields: object) -> bytes:
    messages = [{"role": "user", "content": content} for content in contents]
    return json.dumps({"messages": messages, **fields}).encode()


@given(st.lists(st.text(max_size=600), min_size=1, max_size=6))
def test_a_conversation_that_goes_on_keeps_its_chain(contents: list[str]):
    before, after = prefix_blocks(chat(*contents)), prefix_blocks(chat(*contents, "and now?"))
    # The last block of the shorter one may hold the bracket that closes its list.
    shared = max(len(before) - 1, 0)
    assert after[:shared] == before[:shared]


def test_chains_part_where_the_texts_do():
    one, two = prefix_blocks(chat(LONG + "a" * 999)), prefix_blocks(chat(LONG + "b" * 999))
    equal = [a == b for a, b in zip(one, two, strict=True)]
    shared = (
        json.dumps([{"role": "user", "content": LONG}], separators=(",", ":")).index('"}]') // BLOCK
    )
    assert equal == [True] * shared + [False] * (len(one) - shared)
    assert shared >= 4


@pytest.mark.parametrize(
    "body", [b"", b"no json", b"[1, 2]", b'{"messages": null}', b"\xff", b'{"a":' * 100_000]
)
def test_what_has_no_prompt_has_no_chain(body: bytes):
    assert prefix_blocks(body) == ()


def test_what_comes_before_the_messages_is_in_the_chain():
    tools = [{"type": "function", "function": {"name": "f", "description": "x" * 400}}]
    plain, with_tools = prefix_blocks(chat(LONG)), prefix_blocks(chat(LONG, tools=tools))
    assert not set(plain) & set(with_tools)
    assert not set(plain) & set(prefix_blocks(chat(LONG, cache_salt="mine")))
    # Fields that are not of the prompt change nothing.
    assert plain == prefix_blocks(chat(LONG, temperature=0, max_tokens=7))


def test_long_prompts():
    assert len(prefix_blocks(json.dumps({"prompt": "x" * 10**6}).encode())) == MAX_BLOCKS


@given(st.text(min_size=1), st.integers(100_000, 200_000))
def test_long_bodies_have_the_chain_of_their_beginning(text: str, length: int):
    long = chat(text * (length // len(text)))
    assert prefix_blocks(long) == prefix_blocks(long + b" " * 10**6)
    packed = gzip.compress(long)
    assert prefix_blocks(packed, "gzip") == prefix_blocks(long)
    assert prefix_blocks(packed) == prefix_blocks(long, "gzip") == ()


HOSTILE = {
    "text": chat("x é" * 4_000_000),
    "objects": b'{"messages":[' + b'{"a":1},' * 2_000_000 + b"1]}",
    "ids": b'{"prompt":[' + b"77," * 5_000_000 + b"1]}",
    "names": b"{" + b",".join(b'"%d":1' % i for i in range(1_000_000)) + b"}",
    "brackets": b'{"messages":' + b"[" * 10**7,
    "bomb": gzip.compress(b" " * 10**8),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_body_costs_what_its_beginning_does(name: str):
    """The front's event loop waits for it, however long the body is."""
    body, encoding = HOSTILE[name], "gzip" if name == "bomb" else ""
    tracemalloc.start()
    prefix_blocks(body, encoding)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000


def test_the_longest_prefix_wins_within_the_slack():
    memory: PrefixMemory[str] = PrefixMemory()
    blocks = prefix_blocks(chat(LONG))
    memory.note(blocks[:2], "a")
    memory.note(blocks, "b")
    assert memory.matches(blocks) == {"a": 2, "b": len(blocks)}
    assert ranked(memory, blocks, {"a": 0, "b": 3, "c": 0}, slack=4)[0] == "b"
    assert ranked(memory, blocks, {"a": 0, "b": 5, "c": 0}, slack=4) == ["a", "c", "b"]
    memory.forget("b")
    assert memory.matches(blocks) == {"a": 2}


def test_without_a_prefix_the_least_busy_is_the_best():
    assert ranked(PrefixMemory(), (), {"a": 2, "b": 0, "c": 1}, slack=4) == ["b", "c", "a"]
    assert ranked(PrefixMemory(), (b"x",), {}, slack=4) == []


def test_fronts_that_know_nothing_agree_and_prompts_spread():
    loads = dict.fromkeys(map(str, range(8)), 0)
    shuffled = list(loads)
    counts = dict.fromkeys(loads, 0)
    for i in range(800):
        blocks = (str(i).encode(),)
        first = ranked(PrefixMemory(), blocks, loads, slack=4)[0]
        random.Random(i).shuffle(shuffled)
        assert ranked(PrefixMemory(), blocks, dict.fromkeys(shuffled, 0), slack=4)[0] == first
        counts[first] += 1
    assert min(counts.values()) > 60


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 3), max_size=5), st.sampled_from("abc")), max_size=30
    )
)
def test_matches_are_those_of_a_plain_count(sent: list[tuple[list[int], str]]):
    def chain(path: list[int]) -> tuple[bytes, ...]:
        return tuple(bytes(path[: i + 1]) for i in range(len(path)))

    memory: PrefixMemory[str] = PrefixMemory()
    for path, replica in sent:
        memory.note(chain(path), replica)
    for asked, _ in sent:
        longest: dict[str, int] = {}
        for path, replica in sent:
            n = next((i for i, (x, y) in enumerate(zip(path, asked)) if x != y),  # noqa: B905
                     min(len(path), len(asked)))  # fmt: skip
            longest[replica] = max(longest.get(replica, 0), n)
        assert memory.matches(chain(asked)) == {r: n for r, n in longest.items() if n}


def test_the_least_recently_used_are_forgotten():
    memory: PrefixMemory[str] = PrefixMemory(capacity=2)
    memory.note((b"1",), "a")
    memory.note((b"2",), "a")
    memory.note((b"1",), "a")
    memory.note((b"3",), "a")
    assert memory.matches((b"1",)) and memory.matches((b"3",)) and not memory.matches((b"2",))
