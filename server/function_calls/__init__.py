"""Functions that a request offers: how the model is told of them, and how its calls are read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from server import limits
from server.function_calls.schema import as_schema

Dialect = Literal["tools", "functions"]

_NO_PARAMETERS = {"type": "object", "properties": {}}


@dataclass(frozen=True)
class Function:
    """A function that the model may call, as the request describes it."""

    definition: dict[str, Any]

    @property
    def name(self) -> str:
        return self.definition["name"]

    @property
    def description(self) -> str:
        return self.definition.get("description") or ""

    @property
    def parameters(self) -> dict[str, Any]:
        """What the caller wrote, which may be RTP-LLM's list form."""
        return self.definition.get("parameters") or _NO_PARAMETERS

    @cached_property
    def schema(self) -> dict[str, Any]:
        """The parameters as a JSON schema."""
        return as_schema(self.parameters)

    @property
    def is_strict(self) -> bool:
        """Whether calls must follow the schema to the letter, or the request is refused."""
        return self.definition.get("strict") is True

    @property
    def as_tool(self) -> dict[str, Any]:
        """In the form that chat templates take."""
        return {"type": "function", "function": {**self.definition, "parameters": self.schema}}


@dataclass(frozen=True)
class CallOptions:
    """What a request says about calls.

    Attributes:
        functions: Those offered, in order.
        choice: "none" allows no call, "required" asks for at least one.
        named: The function that must be called; choice is "required" then.
        is_parallel: Whether one answer may hold several calls; None if the request does not say.
        dialect: How calls are answered: as `tool_calls`, or as the legacy `function_call`.
    """

    functions: tuple[Function, ...] = ()
    choice: Literal["none", "auto", "required"] = "auto"
    named: str | None = None
    is_parallel: bool | None = None
    dialect: Dialect = "tools"

    @property
    def offered(self) -> tuple[Function, ...]:
        """The functions that the model may call now."""
        return () if self.choice == "none" else self.functions

    @cached_property
    def digest(self) -> bytes:
        """Names all this; equal options have equal ones."""
        functions = [function.definition for function in self.functions]
        said = [functions, self.choice, self.named, self.is_parallel, self.dialect]
        return hashlib.blake2b(json.dumps(said).encode(), digest_size=16).digest()

    @property
    def max_calls(self) -> int:
        """Most calls in one answer: as many as a message of a history may have.

        A weak model that must call, and may call again, calls until its tokens are used up: it may
        do so less often.
        """
        if self.named is not None or self.is_parallel is False or self.dialect == "functions":
            return 1
        is_bounded = self.choice == "required" and self.is_parallel is None
        return limits.MAX_FORCED_CALLS if is_bounded else limits.MAX_CALLS_PER_MESSAGE

    @property
    def max_equal_calls(self) -> int:
        """How often one answer may have the same call."""
        return 1 if self.choice == "required" else limits.MAX_EQUAL_CALLS

    @property
    def finish_reason(self) -> str:
        return "tool_calls" if self.dialect == "tools" else "function_call"
