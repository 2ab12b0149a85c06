"""Reads a compiled program's text: its kernels, the bytes each moves, and what is updated in place.

Each instruction of a scheduled computation that is not bookkeeping is a kernel; it reads its
operands and writes its result. A gather, a slice or an update in place touches what it addresses.
Loops count their bodies as often as they run; what the compiler does not know, the caller says.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
_FREE = frozenset(
    (
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "partition-id",
        "replica-id",
        "opt-barrier",
        "add-dependency",
    )
)
_VIEWS = frozenset(("bitcast", "reshape", "get-tuple-element"))
_SLICES = frozenset(("gather", "slice", "dynamic-slice"))
# A fusion computes these only where something asks for their values.
_POINTWISE = frozenset(
    (
        *("add", "and", "broadcast", "compare", "convert", "divide", "exponential", "maximum"),
        *("minimum", "multiply", "negate", "not", "or", "pad", "select", "shift-left"),
        *("shift-right-arithmetic", "shift-right-logical", "subtract", "xor"),
    )
)
_MOVES = _VIEWS | {"parameter", "copy", "transpose", "convert", "concatenate", "tuple"}
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_LARGE_BYTES = 1 << 18  # a smaller parameter (a norm, a bias) may be moved


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: Without the percent sign.
        sizes: Bytes of the result, of each part of a tuple.
        opcode: As the text has it.
        operands: Names.
        attributes: The rest of the line.
        number: Of a parameter.
        is_root: Whether it is the computation's result.
    """

    name: str
    sizes: tuple[int, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    number: int | None
    is_root: bool

    @property
    def size(self) -> int:
        """Bytes of the result."""
        return sum(self.sizes)

    def called(self, key: str) -> str | None:
        """The computation that an attribute (`calls`, `body`) names."""
        match = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return match.group(1) if match else None


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
        entry: The computation that runs.
        computations: All by name.
        aliased: Numbers of the parameters that outputs take the memory of.
    """

    entry: Computation
    computations: dict[str, Computation]
    aliased: frozenset[int]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What runs as one launch: its instruction, how often, and the bytes it moves each time."""

    name: str
    opcode: str
    runs: int
    read: int
    written: int


@dataclasses.dataclass(frozen=True)
class Pool:
    """Cache arrays of one size, of which kernels of our own touch a part.

    Attributes:
        size: Bytes of one array on one device, which nothing else may have.
        live: Bytes that a kernel reads which gets the array: those of the rows' contexts.
        open: Bytes that a kernel which updates the array in place reads, and writes, at most: the
            pages that new tokens go into.
    """

    size: int
    live: int
    open: int


_NAME = re.compile(r"%([\w.\-]+)")
_SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\]")


def parse(text: str) -> Module:
    """Reads `Compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry: Computation = {}
    current: Computation | None = None
    for line in text.splitlines():
        if line.endswith("{") and (line.startswith(("%", "ENTRY "))):
            match = _NAME.search(line)
            assert match is not None, line
            current = computations[match.group(1)] = {}
            if line.startswith("ENTRY"):
                entry = current
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            instruction = _instruction(line)
            current[instruction.name] = instruction
    header = text.split("\n", 1)[0]
    return Module(entry, computations, frozenset(_aliased(header)))


def _instruction(line: str) -> Instruction:
    left, right = line.strip().split(" = ", 1)
    end = _closing(right, 0) if right.startswith("(") else right.index(" ")
    shape, rest = right[:end], right[end:].lstrip()
    opened = rest.index("(")
    closed = _closing(rest, opened)
    return Instruction(
        name=left.removeprefix("ROOT ").lstrip("%"),
        sizes=tuple(_bytes(dtype, dims) for dtype, dims in _SHAPE.findall(shape)),
        opcode=rest[:opened],
        operands=tuple(_NAME.findall(rest[opened:closed])),
        attributes=rest[closed:],
        number=int(rest[opened + 1 : closed - 1]) if rest.startswith("parameter(") else None,
        is_root=left.startswith("ROOT "),
    )


def _closing(text: str, opened: int) -> int:
    """Index after the parenthesis that closes the one at `opened`."""
    depth = 0
    for i in range(opened, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"unbalanced: {text[:80]}")


def _bytes(dtype: str, dims: str) -> int:
    bits = _BITS.get(dtype)
    if bits is None:
        bits = int(next(iter(re.findall(r"^[a-z]+(\d+)", dtype))))
    return math.prod(int(d) for d in dims.split(",") if d) * bits // 8


def _aliased(header: str) -> Iterator[int]:
    match = re.search(r"input_output_alias=\{(.*?)\}, [a-z_]+=", header)
    for number in re.findall(r": \((\d+),", match.group(1) if match else ""):
        yield int(number)


def kernels(
    module: Module,
    trips: Sequence[int] = (),
    pools: Sequence[Pool] = (),
    *,
    shortest: bool = False,
) -> list[Kernel]:
    """All kernels of a run, loops unrolled.

    Args:
        module: The program.
        trips: How often loops run whose count the compiler does not know: the outer ones, those
            inside of them, ...
        pools: The cache's arrays, one entry for each size.
        shortest: Whether of the branches of a conditional the one runs that moves least; the one
            that moves most if not.
    """
    sizes = {pool.size: pool for pool in pools}
    return list(_Counter(module, tuple(trips), sizes, shortest).run(module.entry, 1, 0))


@dataclasses.dataclass(frozen=True)
class _Counter:
    module: Module
    trips: tuple[int, ...]
    pools: dict[int, Pool]
    shortest: bool

    def run(self, computation: Computation, runs: int, depth: int) -> Iterator[Kernel]:
        """Kernels of a computation that runs so often, inside of so many loops."""
        for i in computation.values():
            if i.opcode in _FREE or i.opcode.endswith(("-done", "-update")):
                continue
            if i.opcode == "while":
                yield from self._loop(i, runs, depth)
            elif i.opcode in ("call", "async-start"):
                yield from self.run(self._body(i, "to_apply", "calls"), runs, depth)
            elif i.opcode == "conditional":
                yield from self._branch(i, runs, depth)
            else:
                yield Kernel(i.name, i.opcode, runs, *self._moved(i, computation))

    def _loop(self, i: Instruction, runs: int, depth: int) -> Iterator[Kernel]:
        known = _trip_count(i)
        if known is None and depth >= len(self.trips):
            raise ValueError(f"{i.name}: say how often loops of depth {depth} run")
        count = self.trips[depth] if known is None else known
        inside = depth + (known is None)
        yield from self.run(self._body(i, "body"), runs * count, inside)
        yield from self.run(self._body(i, "condition"), runs * (count + 1), inside)

    def _branch(self, i: Instruction, runs: int, depth: int) -> Iterator[Kernel]:
        listed = re.search(r"branch_computations=\{([^}]*)\}", i.attributes)
        names = _NAME.findall(listed.group(1)) if listed else []
        names += re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", i.attributes)
        branches = [list(self.run(self.module.computations[n], runs, depth)) for n in names]
        yield from (min if self.shortest else max)(branches, key=total_bytes)

    def _body(self, i: Instruction, *keys: str) -> Computation:
        name = next(filter(None, map(i.called, keys)))
        return self.module.computations[name]

    def _moved(self, i: Instruction, computation: Computation) -> tuple[int, int]:
        """Bytes that a kernel reads and writes."""
        operands = [computation[name].size for name in i.operands]
        if i.opcode == "fusion":
            return _fusion_bytes(self._body(i, "calls"), operands)
        if i.opcode == "custom-call":
            return self._moved_by_ours(i, operands)
        # A single instruction is like a fusion of nothing else.
        return _read_by(i, operands), _written_by(i, computation)

    def _moved_by_ours(self, i: Instruction, operands: list[int]) -> tuple[int, int]:
        """All of what it is given and makes, but for what the pools say of their arrays."""
        updated = _updated_in_place(i)

        def read(number: int, size: int) -> int:
            if size not in self.pools:
                return size
            pool = self.pools[size]
            return pool.open if number in updated.values() else pool.live

        def written(number: int, size: int) -> int:
            is_update = number in updated and size in self.pools
            return self.pools[size].open if is_update else size

        return (
            sum(itertools.starmap(read, enumerate(operands))),
            sum(itertools.starmap(written, enumerate(i.sizes))),
        )


def known_trip_count(module: Module, name: str) -> int | None:
    """How often the loop of this name runs; None if only the data says so, or there is none."""
    loops = (body[name] for body in module.computations.values() if name in body)
    return next((_trip_count(i) for i in loops if i.opcode == "while"), None)


def _trip_count(i: Instruction) -> int | None:
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', i.attributes)
    return int(known.group(1)) if known else None


def _updated_in_place(i: Instruction) -> dict[int, int]:
    """Parts of a custom call's result that take an operand's memory, both by number."""
    match = re.search(r"output_to_operand_aliasing=\{(.*?)\}, [a-z_]+=", i.attributes)
    pairs = re.findall(r"\{(\d*)\}: \((\d+), \{\}", match.group(1) if match else "")
    return {int(part or 0): int(operand) for part, operand in pairs}


def _fusion_bytes(body: Computation, operands: list[int]) -> tuple[int, int]:
    parameters = [i for i in body.values() if i.opcode == "parameter"]
    users: dict[str, list[Instruction]] = {}
    for i in body.values():
        for name in set(i.operands):
            users.setdefault(name, []).append(i)
    known: dict[str, int] = {}
    read = sum(min(p.size, _touched(p, users, known)) for p in parameters)
    root = next(i for i in body.values() if i.is_root)
    roots = [body[n] for n in root.operands] if root.opcode == "tuple" else [root]
    return read, sum(_written_by(_source(r, body), body) for r in roots)


def _touched(i: Instruction, users: dict[str, list[Instruction]], known: dict[str, int]) -> int:
    """Bytes that a fusion's computation reads of one of its values; known ones are kept."""
    if i.name not in known:
        total = 0
        for user in users.get(i.name, []):
            if user.opcode in _VIEWS:
                total += _touched(user, users, known)
            elif user.opcode in _SLICES and user.operands[0] == i.name:
                total += user.size
            elif user.opcode in _POINTWISE and not user.is_root and user.size:
                part = min(_touched(user, users, known), user.size)
                total += -(-i.size * part // user.size)
            elif not (_is_update(user) and user.operands[0] == i.name):
                total += i.size
        known[i.name] = min(total, i.size)
    return known[i.name]


def _source(i: Instruction, body: Computation) -> Instruction:
    while i.opcode in _VIEWS and i.operands:
        i = body[i.operands[0]]
    return i


def _is_update(i: Instruction) -> bool:
    return i.opcode in ("scatter", "dynamic-update-slice")


def _written_by(i: Instruction, body: Computation) -> int:
    if not _is_update(i):
        return i.size
    update = i.operands[-1] if i.opcode == "scatter" else i.operands[1]
    return body[update].size


def _read_by(i: Instruction, operands: list[int]) -> int:
    if i.opcode in _SLICES:
        return i.size + sum(operands[1:])
    if _is_update(i):
        return sum(operands[1:])
    if i.opcode.endswith("-start"):
        return operands[0] if operands else 0
    return sum(operands)


def total_bytes(found: Sequence[Kernel]) -> int:
    """Bytes that all runs of the kernels move."""
    return sum(k.runs * (k.read + k.written) for k in found)


def num_launches(found: Sequence[Kernel]) -> int:
    """Runs of all kernels."""
    return sum(k.runs for k in found)


def collectives(found: Sequence[Kernel]) -> Counter[str]:
    """Runs of each collective."""
    counts: Counter[str] = Counter()
    for kernel in found:
        name = kernel.opcode.removesuffix("-start")
        if name in _COLLECTIVES:
            counts[name] += kernel.runs
    return counts


def copied_parameters(module: Module) -> list[int]:
    """Numbers of large parameters that are copied, transposed or cast before they are used.

    Looks at the entry computation and, for what loops and calls are handed, no further.
    """
    found = []
    for i in module.entry.values():
        if i.opcode == "fusion":
            body = module.computations[i.called("calls") or ""]
            is_move = all(inner.opcode in _MOVES for inner in body.values())
        else:
            is_move = i.opcode in ("copy", "transpose", "convert", "copy-start")
        if is_move:
            found += _large_parameters(i, module.entry)
    return found


def gathered_parameters(module: Module) -> list[int]:
    """Numbers of large parameters that an all-gather of the entry computation sends as they are."""
    found = []
    for i in module.entry.values():
        if i.opcode in ("all-gather", "all-gather-start"):
            found += _large_parameters(i, module.entry)
    return found


def library_calls(module: Module) -> list[str]:
    """Targets of the vendor's libraries (`__cublas$gemm`), once for each call in the text."""
    targets = (_target(i) for body in module.computations.values() for i in body.values())
    return [t for t in targets if t.startswith(("__cublas", "__cudnn"))]


def products(module: Module) -> list[str]:
    """Names of the kernels that multiply matrices: fusions of a dot, and kernels of our own.

    A kernel of ours that ends in `_merge` adds up partial results, `rotate` turns vectors,
    `rms_norm` divides and `quantized_write` rounds them: they multiply no matrices.
    """
    found = []
    for body in module.computations.values():
        for i in body.values():
            called = module.computations.get(i.called("calls") or "", {})
            if i.opcode == "fusion" and any(x.opcode == "dot" for x in called.values()):
                found.append(i.name)
            elif "triton" in _target(i) or "mosaic_gpu" in _target(i):
                name = kernel_name(i)
                if not name.endswith(("_merge", "rotate", "rms_norm", "quantized_write")):
                    found.append(name)
    return found


def _target(i: Instruction) -> str:
    match = re.search(r'custom_call_target="([^"]*)"', i.attributes)
    return match.group(1) if match and i.opcode == "custom-call" else ""


def kernel_name(i: Instruction) -> str:
    """A kernel of our own has the name that pallas_call was given."""
    match = re.search(r'\bname ?= ?\\?"([^"\\]+)', i.attributes)
    return match.group(1) if match else i.name


def _large_parameters(i: Instruction, entry: Computation) -> list[int]:
    sources = [_source(entry[name], entry) for name in i.operands]
    return [s.number for s in sources if s.number is not None and s.size >= _LARGE_BYTES]
