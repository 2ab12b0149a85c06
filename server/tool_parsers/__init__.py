"""One file per tool-call format. A module with a `FORMAT` is a format by being in this folder.

A format is a grammar from `server.parsing` with its marks, how calls are written where a model is
held to its format, and how the models that write it are recognised. `TOOL_CALL_PARSER` names a
module of this folder to choose another one.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from rtpjax.errors import ConfigError
from server.parsing.calls import Calls, call_id
from server.parsing.source import Source, Steps
from server.parsing.written import Written

# What models are taught that know no format of their own, by a system text.
DEFAULT = "hermes"


class Grammar(Protocol):
    """Reads a whole answer: content and calls."""

    @property
    def marks(self) -> tuple[str, ...]: ...
    def read(self, source: Source, calls: Calls) -> Steps[None]: ...


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How one family of models writes its calls.

    Attributes:
        grammar: Reads them.
        written: Ways to write them, of which the first one counts that the model's template has a
            text of, or that names none.
        in_template: Texts that are all in the chat template of a model that writes this format;
            of several formats the one with the most texts is meant. None: it is never guessed.
        model_types: Model types (of config.json) that write it whatever their template says.
        stop: Strings after which the model would write the calls' results itself.
        make_id: Makes ids where the format has none.
    """

    grammar: Grammar
    written: tuple[Written, ...]
    in_template: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    make_id: Callable[[], str] = call_id

    def written_by(self, template: str) -> Written:
        """How a model with this chat template writes its calls."""
        return next(way for way in self.written if way.in_template in template)

    def marks_of(self, written: Written) -> tuple[str, ...]:
        """Texts that are special tokens in some models."""
        return tuple(dict.fromkeys((*self.grammar.marks, *written.marks)))


@cache
def tool_formats() -> dict[str, ToolFormat]:
    """All formats by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}").FORMAT for name in names}


def find_tool_format(template: str, model_type: str = "") -> str:
    """The name of the format that a model writes.

    Args:
        template: Its chat template.
        model_type: As in config.json, "" when it is not known.
    """
    formats = tool_formats()
    for name, found in formats.items():
        if model_type and model_type in found.model_types:
            return name
    evidence = {
        name: len(found.in_template)
        for name, found in formats.items()
        if found.in_template and all(text in template for text in found.in_template)
    }
    return max(evidence, key=lambda name: evidence[name], default=DEFAULT)


def check_tool_format(name: str) -> str:
    """Raises: ConfigError: There is no format of that name."""
    if name not in tool_formats():
        known = ", ".join(tool_formats())
        raise ConfigError(f"TOOL_CALL_PARSER is {name!r}; known are {known}")
    return name
