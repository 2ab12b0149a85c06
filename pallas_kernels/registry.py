"""The op registry: an op has a name, one signature, and implementations for platforms.

Callers call the op; which implementation runs is decided when the step is traced, by platform or by
the name that the operator gave. A new implementation registers itself and touches no caller.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute an op.

    Attributes:
        name: What the operator calls it (`xla`, `reference`, ...).
        function: Takes the op's arguments.
        platforms: Where it can run; the first implementation that names a platform is its default.
    """

    name: str
    function: Callable[..., jax.Array]
    platforms: tuple[str, ...]


class Op:
    """A named computation with several implementations."""

    def __init__(self, name: str):
        self.name = name
        self.implementations: dict[str, Implementation] = {}

    def register(self, name: str, *platforms: str) -> Callable[..., Callable[..., jax.Array]]:
        """Decorator: adds the function as an implementation for the platforms (`cpu`, `gpu`)."""

        def add(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
            assert name not in self.implementations
            self.implementations[name] = Implementation(name, function, platforms)
            return function

        return add

    def choose(self, name: str | None = None) -> Implementation:
        """The implementation of that name, or the default of the platform jax runs on.

        Raises:
            ValueError: No such implementation, or it cannot run on this platform.
        """
        platform = jax.default_backend()
        usable = [i for i in self.implementations.values() if platform in i.platforms]
        if name is not None:
            usable = [i for i in usable if i.name == name]
        if not usable:
            have = ", ".join(
                f"{i.name} ({'/'.join(i.platforms)})" for i in self.implementations.values()
            )
            raise ValueError(
                f"{self.name}: no implementation {name or 'at all'} for platform {platform}; "
                f"have {have}"
            )
        return usable[0]

    def __call__(self, *args: Any, implementation: str | None = None, **kwargs: Any) -> jax.Array:
        return self.choose(implementation).function(*args, **kwargs)
