"""Who may import whom (docs/architecture.md)."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("rtpjax", "pallas_kernels", "server", "checkpoints_conv", "bench")

# First matching prefix decides which of our own modules a module may import.
ALLOWED = {
    "rtpjax.start_server": ("rtpjax", "server"),
    "rtpjax.served_model": ("rtpjax", "checkpoints_conv"),
    "rtpjax.replicas": ("rtpjax", "server"),
    "rtpjax.cli": ("rtpjax", "server", "checkpoints_conv", "bench"),
    "rtpjax.errors": (),
    "rtpjax.models": ("rtpjax.models", "rtpjax.errors", "pallas_kernels"),
    "rtpjax.engine.request": ("rtpjax.errors",),
    "rtpjax": ("rtpjax", "pallas_kernels"),
    "pallas_kernels": ("pallas_kernels",),
    "server": ("server", "rtpjax.engine", "rtpjax.errors"),
    "checkpoints_conv": ("checkpoints_conv", "rtpjax"),
    "bench.null_engine": ("bench", "rtpjax", "checkpoints_conv", "server"),
    "bench.fleet": ("bench", "server.replicas.prefix"),
    "bench": ("bench", "rtpjax", "checkpoints_conv"),
}
NOT_BY = {
    "rtpjax": ("rtpjax.start_server", "rtpjax.replicas", "rtpjax.cli"),
    "checkpoints_conv": (
        "rtpjax.engine",
        "rtpjax.start_server",
        "rtpjax.replicas",
        "rtpjax.cli",
    ),
    "rtpjax.sharding": ("rtpjax.engine",),
    "rtpjax.checkpoint": ("rtpjax.engine",),
}
NO_JAX = (
    "rtpjax.errors",
    "rtpjax.engine.request",
    "rtpjax.engine.grammar",
    "rtpjax.engine.grammar_check",
    "rtpjax.engine.constraint",
    "rtpjax.engine.reasoning",
    "rtpjax.engine.page_pool",
    "rtpjax.engine.sequence",
    "rtpjax.engine.scheduler",
    "rtpjax.engine.groups",
    "rtpjax.engine.detokenizer",
    # The server's side of an engine in another process.
    "rtpjax.engine.async_engine",
    "rtpjax.engine.process",
    "server.app",
    "server.lifecycle",
)


@cache
def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(path: Path) -> set[str]:
    """Modules that a file imports, at any depth, except for types only."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    names = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == p or name.startswith(p + ".") for p in prefixes)


def rule(table: dict[str, tuple[str, ...]], module: str) -> tuple[str, ...]:
    return next((v for prefix, v in table.items() if under(module, (prefix,))), ())


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_down(module):
    own = {n for n in imports(modules()[module]) if under(n, PACKAGES)}
    entry_point = module in ("rtpjax.start_server", "rtpjax.replicas", "rtpjax.cli")
    wrong = {
        n
        for n in own
        if not under(n, rule(ALLOWED, module))
        or (not entry_point and under(n, rule(NOT_BY, module)))
    }
    assert not wrong, f"{module} must not import {sorted(wrong)}"


@pytest.mark.parametrize("module", NO_JAX)
def test_no_jax(module):
    seen, todo = set(), [module]
    while todo:
        name = todo.pop()
        for imported in imports(modules()[name]):
            top = imported.split(".")[0]
            assert top not in ("jax", "flax"), f"{module} reaches {imported} through {name}"
            for candidate in (imported, imported.rpartition(".")[0]):
                if candidate in modules() and candidate not in seen:
                    seen.add(candidate)
                    todo.append(candidate)


def test_only_entry_points_read_the_environment():
    reads = re.compile(r"os\.environ\[|os\.environ\.get|os\.getenv|import argparse")
    entry_points = {
        "rtpjax.start_server",
        "rtpjax.plan.__main__",
        "rtpjax.plan.check",
        "rtpjax.check.__main__",
        "rtpjax.lab.cli",
        "checkpoints_conv.__main__",
        "server.chat",
    }
    for module, path in modules().items():
        if module not in entry_points and not module.startswith("bench"):
            assert not reads.search(path.read_text()), module
