"""One file per way of writing reasoning. A module with a `FORMAT` is one by being in this folder.

A reasoning parser stands before the tool-call parser: what it yields as content goes on to that
one, so a call inside the reasoning is none. `REASONING_PARSER` names a module of this folder to
choose another one, or `none`.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from rtpjax.errors import ConfigError
from server.parsing.source import Source, Steps

NONE = "none"


class ReasoningGrammar(Protocol):
    """Reads a whole answer: reasoning, and the rest as content."""

    @property
    def marks(self) -> tuple[str, ...]: ...
    @property
    def opens(self) -> str: ...
    @property
    def closes(self) -> str: ...
    @property
    def ends(self) -> tuple[str, ...]:
        """All marks that reasoning can end with."""
        ...

    @property
    def reopens(self) -> bool:
        """Whether reasoning may open after the answer's beginning, and again."""
        ...

    def is_open(self, prompt: str) -> bool:
        """Whether the prompt ends inside the reasoning."""
        ...

    def read(self, source: Source, is_open: bool) -> Steps[None]: ...


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """How one family of models writes its reasoning.

    Attributes:
        grammar: Reads it.
        in_template: Texts that are all in the chat template of such a model.
        model_types: Model types (of config.json) that write it whatever their template says.
    """

    grammar: ReasoningGrammar
    in_template: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()


@cache
def reasoning_formats() -> dict[str, ReasoningFormat]:
    """All formats by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}").FORMAT for name in names}


def find_reasoning_format(template: str, model_type: str = "") -> str:
    """The name of the format that a model writes, or "none"."""
    for name, found in reasoning_formats().items():
        if model_type and model_type in found.model_types:
            return name
        if found.in_template and all(text in template for text in found.in_template):
            return name
    return NONE


def check_reasoning_format(name: str) -> str:
    """Raises: ConfigError: There is no format of that name."""
    if name not in (NONE, *reasoning_formats()):
        known = ", ".join((NONE, *reasoning_formats()))
        raise ConfigError(f"REASONING_PARSER is {name!r}; known are {known}")
    return name
