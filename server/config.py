"""What the operator can set on the server. The entry point resolves the values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Settings of the HTTP side.

    Attributes:
        host, port: Where to listen; port 0 takes a free one.
        api_keys: Keys that callers may send as `Authorization: Bearer KEY`; empty accepts anyone.
        max_body_bytes: A larger body gets a 413.
        max_choices: Most sequences one request may ask for (`n`, or `n` times its prompts).
        response_timeout_s: Longest time for one answer, streamed or not.
        drain_timeout_s: After SIGTERM, how long running requests may take to finish.
        allow_user_template: Whether a request may bring its own chat template (`user_template`).
        template_timeout_s: Longest time for rendering one chat template.
        model_type: As in config.json; it tells how the model writes calls and reasoning.
        tool_call_parser, reasoning_parser: Names of modules in `server/tool_parsers` and
            `server/reasoning_parsers`; None goes by template and model type.
        ignores_unknown_fields: What no field is known by is left out of a request, and logged; else
            the request is refused.
        sampling_defaults: Fields that a request has where it says nothing of them.
        prepare_timeout_s: Longest time from a whole body to the engine, waiting included.
        load_format: `auto`, or `dummy` where the model's weights are random: /v1/models says so.
    """

    host: str = "0.0.0.0"
    port: int = 8088
    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = 16 * 1024 * 1024
    max_choices: int = 16
    response_timeout_s: float = 24 * 3600.0
    drain_timeout_s: float = 30.0
    allow_user_template: bool = False
    template_timeout_s: float = 5.0
    model_type: str = ""
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    ignores_unknown_fields: bool = False
    sampling_defaults: Mapping[str, Any] = field(default_factory=dict)
    prepare_timeout_s: float = 60.0
    load_format: str = "auto"
