"""Which replica has most of a prompt in its cache, as far as one can know without asking.

A prompt's beginning is named like the pages of the cache are: by a chain of digests, one for each
BLOCK bytes. Who was sent a chain has its pages, until they are evicted. A chain that nobody
was sent goes to a replica that is drawn by its first block (rendezvous hashing), so fronts that
know nothing of each other send it to the same one.

    text     |---- block 0 ----|---- block 1 ----|-- rest --|
    blocks   d0 = H(block 0)    d1 = H(d0, block 1)
"""

from __future__ import annotations

import hashlib
import zlib
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from typing import Generic, TypeVar

from pydantic_core import from_json, to_json

from server.inflate import ENCODINGS

ReplicaT = TypeVar("ReplicaT", bound=Hashable)

BLOCK = 256  # bytes
MAX_BLOCKS = 256  # further ones do not change where a prompt belongs
# Of a body; the blocks of all that changes where a prompt belongs, and what may stand before it.
_MAX_BYTES = 2 * MAX_BLOCKS * BLOCK
_CAPACITY = 200_000  # digests that a front remembers, about 40 MB

# What a prompt is made of, in the order in which templates write it.
_FIELDS = (
    "cache_salt",
    "tools",
    "functions",
    "system",
    "instructions",
    "messages",
    "input",
    "prompt",
    "prompt_batch",
    "text",
)


def prefix_blocks(body: bytes, encoding: str = "") -> tuple[bytes, ...]:
    """The chain of a request's prompt; empty if the prompt is short or the body is no JSON object.

    Only the beginning of the body is looked at, so this takes a millisecond or two for any body: it
    runs on the front's event loop.

    Args:
        body: A request's body, of any of the server's APIs.
        encoding: Its Content-Encoding.
    """
    try:
        head = _beginning(body, encoding)
        # What is cut off counts as far as it goes, and so do texts.
        fields = from_json(head, allow_partial="trailing-strings")
    except (ValueError, zlib.error):
        return ()
    if not isinstance(fields, dict):
        return ()
    # A list that grows at its end keeps its beginning as text.
    present = (fields[name] for name in _FIELDS if fields.get(name))
    text = b"".join(to_json(value) for value in present)
    blocks, digest = [], b""
    for start in range(0, min(len(text) - BLOCK + 1, MAX_BLOCKS * BLOCK), BLOCK):
        block = text[start : start + BLOCK]
        digest = hashlib.blake2b(digest + block, digest_size=16).digest()
        blocks.append(digest)
    return tuple(blocks)


def _beginning(body: bytes, encoding: str) -> bytes:
    """The first bytes of a body, up to the end of a character."""
    if encoding in ENCODINGS:
        body = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(body, _MAX_BYTES)
    if len(body) <= _MAX_BYTES:
        return body
    head = body[:_MAX_BYTES]
    for end in range(_MAX_BYTES, _MAX_BYTES - 4, -1):
        if body[end] & 0xC0 != 0x80:  # a character begins here
            return head[:end]
    return head


class PrefixMemory(Generic[ReplicaT]):
    """Who was sent which prefixes; the least recently used ones are forgotten.

    Args:
        capacity: Digests to remember.
    """

    def __init__(self, capacity: int = _CAPACITY):
        self._capacity = capacity
        self._replicas: OrderedDict[bytes, dict[ReplicaT, None]] = OrderedDict()

    def note(self, blocks: Sequence[bytes], replica: ReplicaT) -> None:
        """A prompt went to a replica."""
        for digest in blocks:
            holders = self._replicas.setdefault(digest, {})
            holders[replica] = None
            self._replicas.move_to_end(digest)
        while len(self._replicas) > self._capacity:
            self._replicas.popitem(last=False)

    def matches(self, blocks: Sequence[bytes]) -> dict[ReplicaT, int]:
        """How many blocks from the beginning each replica was sent; no entry for none."""
        found: dict[ReplicaT, int] = {}
        for i, digest in enumerate(blocks):
            holders = self._replicas.get(digest, {})
            held = [r for r in holders if found.get(r, 0) == i]
            if not held:
                break
            for replica in held:
                found[replica] = i + 1
        return found

    def forget(self, replica: ReplicaT) -> None:
        """A replica is gone, and its cache with it."""
        for digest in [d for d, holders in self._replicas.items() if replica in holders]:
            del self._replicas[digest][replica]
            if not self._replicas[digest]:
                del self._replicas[digest]


def ranked(
    memory: PrefixMemory[ReplicaT],
    blocks: Sequence[bytes],
    loads: Mapping[ReplicaT, int],
    slack: int,
) -> list[ReplicaT]:
    """Replicas from best to worst for a prompt.

    A replica with the prefix saves the prefill, but only as long as it is not much busier than
    others: past `slack` requests more than the least busy one it comes after those that are not.

    Args:
        memory: Who was sent what.
        blocks: The prompt's chain; without one the least busy replica is the best.
        loads: Requests that each replica has now.
        slack: How many more of them a prefix is worth.
    """
    if not loads:
        return []
    if not blocks:
        return sorted(loads, key=lambda replica: loads[replica])
    matches, limit = memory.matches(blocks), min(loads.values()) + slack
    # Only the ties are drawn: most prompts have one holder, and hashing costs more than looking up.
    best = max(matches.get(replica, 0) for replica in loads)
    drawn = {r: _draw(blocks[0], r) for r in loads} if not best else {}
    return sorted(
        loads,
        key=lambda r: (
            max(0, loads[r] - limit),
            -matches.get(r, 0),
            drawn.get(r, b""),
            loads[r],
        ),
    )


def _draw(block: bytes, replica: Hashable) -> bytes:
    return hashlib.blake2b(block + str(replica).encode(), digest_size=8).digest()
