"""The op registry: an op has a name, one signature, and implementations for platforms.

Callers call the op; which implementation runs is decided when the step is traced:

    a name is given    by the caller, or by the operator for a whole step (`using`): that
                       implementation runs, or an error says why it cannot
    no name            the first one registered for the platform that supports the arguments; why
                       one was passed over is logged, once. Some are never chosen this way

A new implementation registers itself and touches no caller.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import logging
import types
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Target:
    """What a program is compiled for.

    Attributes:
        platform: `cpu` or `gpu`.
        compute_capability: Of an NVIDIA GPU, 10 * major + minor: 80 A100, 89 L4, 90 H100, 100 B200.
    """

    platform: str
    compute_capability: int = 0

    def __str__(self) -> str:
        return f"{self.platform} sm{self.compute_capability}" if self.platform == "gpu" else "cpu"


_TARGET: contextvars.ContextVar[Target | None] = contextvars.ContextVar("target", default=None)


# A GPU of each compute capability, by the name that JAX knows it under: from 0.11 on Pallas lowers
# for a device, which need not be there but must have a name.
_DEVICE_KINDS = {
    75: "Tesla T4",
    80: "NVIDIA A100",
    86: "NVIDIA A10",
    89: "NVIDIA L4",
    90: "NVIDIA H100",
    100: "NVIDIA B200",
}


@contextlib.contextmanager
def tracing_for(target: Target) -> Iterator[None]:
    """Chooses implementations for a target that is not the machine's own.

    Trace and lower in it: what is compiled ahead for a GPU where there is none has no other way to
    say so. A function that `jax.jit` has traced before keeps the implementations it got then.
    """
    token = _TARGET.set(target)
    try:
        with _lowering_for(target):
            yield
    finally:
        _TARGET.reset(token)


def _lowering_for(target: Target) -> contextlib.AbstractContextManager[object]:
    """Tells Pallas which GPU it lowers for, where JAX runs on none."""
    kind = _DEVICE_KINDS.get(target.compute_capability)
    if target.platform != "gpu" or kind is None or jax.default_backend() == "gpu":
        return contextlib.nullcontext()
    device = AbstractDevice(device_kind=kind, num_cores=None, platform="gpu")
    return use_abstract_mesh(AbstractMesh((), (), abstract_device=device))


_NAMED: contextvars.ContextVar[Mapping[str, str | Implementation]] = contextvars.ContextVar(
    "named", default=types.MappingProxyType({})
)


@contextlib.contextmanager
def using(named: Mapping[str, str | Implementation]) -> Iterator[None]:
    """Names the implementations of ops whose callers name none, while a step is traced.

    Args:
        named: By the op's name, an implementation's name, or one that is in no registry: a check
            traces a model with kernels in interpret mode that way.
    """
    token = _NAMED.set({**_NAMED.get(), **named})
    try:
        yield
    finally:
        _NAMED.reset(token)


def current_target() -> Target:
    """The target of `tracing_for`, else the device that jax runs on."""
    target = _TARGET.get()
    if target is not None:
        return target
    device = jax.devices()[0]
    if device.platform != "gpu":
        return Target(device.platform)
    major, minor = str(device.compute_capability).split(".")
    return Target("gpu", 10 * int(major) + int(minor))


def current_choice() -> Hashable:
    """What implementations are chosen by, besides the arguments of an op.

    A function that `jax.jit` has traced keeps the implementations it got then. One that outlives a
    step takes this as a static argument: it is then traced once for each choice.
    """
    return current_target(), frozenset(_NAMED.get().items())


class UnsupportedError(ValueError):
    """An implementation cannot compute an op for these arguments or this target.

    The message names what was asked for, what could be, and the implementation to use instead.
    """


Check = tuple[bool, str, str]
"""Whether something holds, what is there, and what would do."""


def expect(
    op: str, name: str, array: jax.Array, shape: tuple[int | str, ...], dtype: Any = None
) -> None:
    """Raises ValueError if an argument has another shape, or dtype where one is given.

    Args:
        op: The op's name.
        name: The argument's.
        array: The argument.
        shape: Sizes; a letter or name stands for any size.
        dtype: A numpy dtype, or None for any.
    """
    sizes_fit = array.ndim == len(shape) and all(
        isinstance(want, str) or have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if not sizes_fit or (dtype is not None and array.dtype != dtype):
        wanted = f"[{', '.join(map(str, shape))}]"
        raise ValueError(
            f"{op}: {name} is {array.dtype}{list(array.shape)}; expected "
            f"{'' if dtype is None else f'{jnp.dtype(dtype).name} '}{wanted}."
        )


def refuse(instead: str, *checks: Check) -> None:
    """Raises UnsupportedError for the first check that does not hold.

    Args:
        instead: The implementation to use then.
        *checks: Each whether it holds, the value that was found, and what is supported.
    """
    for holds, value, supported in checks:
        if not holds:
            raise UnsupportedError(
                f"{value} is not supported; supported: {supported}; "
                f"use implementation {instead} instead."
            )


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute an op.

    Attributes:
        name: What the operator calls it (`xla`, `reference`, ...).
        function: Takes the op's arguments.
        platforms: Where it can run; the first implementation that names a platform is its default.
        supports: Takes the target and the op's arguments; raises UnsupportedError.
        is_automatic: Whether it may be chosen where none is named.
    """

    name: str
    function: Callable[..., jax.Array]
    platforms: tuple[str, ...]
    supports: Callable[..., None] | None = None
    is_automatic: bool = True


class Op:
    """A named computation with several implementations.

    Args:
        name: What messages and settings call it.
        check: Takes the op's arguments; raises ValueError for what no implementation takes, such
            as shapes that do not belong together.
    """

    def __init__(self, name: str, check: Callable[..., None] | None = None):
        self.name = name
        self._check = check
        self.implementations: dict[str, Implementation] = {}
        self._warned: set[str] = set()

    def register(
        self,
        name: str,
        *platforms: str,
        supports: Callable[..., None] | None = None,
        is_automatic: bool = True,
    ) -> Callable[..., Callable[..., jax.Array]]:
        """Decorator: adds the function as an implementation for the platforms (`cpu`, `gpu`)."""

        def add(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
            assert name not in self.implementations
            self.implementations[name] = Implementation(
                name, function, platforms, supports, is_automatic
            )
            return function

        return add

    def choose(self, name: str | None = None, /, *args: Any, **kwargs: Any) -> Implementation:
        """The implementation of that name, or the target's default that supports the arguments.

        Raises:
            ValueError: The arguments fit no implementation; there is none of that name, or it is
                not for this target's platform.
            UnsupportedError: The named one does not support the arguments.
        """
        if self._check is not None and args:
            self._check(*args, **kwargs)
        target = current_target()
        named = name or _NAMED.get().get(self.name)
        if isinstance(named, Implementation):
            return named
        name = named
        usable = [i for i in self.implementations.values() if target.platform in i.platforms]
        usable = [i for i in usable if (i.is_automatic if name is None else i.name == name)]
        for implementation in usable:
            try:
                if implementation.supports is not None:
                    implementation.supports(target, *args, **kwargs)
            except UnsupportedError as error:
                reason = f"{self.name}: implementation {implementation.name} on {target}: {error}"
                if name is not None:
                    raise UnsupportedError(reason) from error
                self._warn(f"{reason} Another implementation is used.")
            else:
                return implementation
        have = ", ".join(
            f"{i.name} ({'/'.join(i.platforms)})" for i in self.implementations.values()
        )
        raise ValueError(
            f"{self.name}: no implementation {name or 'at all'} for platform {target.platform}; "
            f"have {have}"
        )

    def _warn(self, message: str) -> None:
        """Every layer of every bucket asks again; the operator reads it once."""
        if message not in self._warned:
            self._warned.add(message)
            logger.warning(message)

    def __call__(self, *args: Any, implementation: str | None = None, **kwargs: Any) -> jax.Array:
        return self.choose(implementation, *args, **kwargs).function(*args, **kwargs)
