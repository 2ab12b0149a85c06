"""The fields that say what an answer must look like, and how long the model may reason for it."""

from __future__ import annotations

from typing import Any

from pydantic import AliasChoices, Field

from server.protocol.sampling import SamplingFields
from server.protocol.shapes import FORM_OBJECTS
from server.protocol.values import Int32


class FormFields(SamplingFields):
    """Fields of the APIs whose answers can follow a grammar.

    The `guided_` fields and `structured_outputs` are vLLM's names for what `response_format` says.
    """

    inside = FORM_OBJECTS

    response_format: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    structured_outputs: Any = None
    thinking_budget: Int32 | None = Field(
        default=None, validation_alias=AliasChoices("thinking_budget", "thinking_token_budget")
    )
