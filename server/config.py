"""What the operator can set on the server. The entry point resolves the values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Any


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Settings of the HTTP side.

    Attributes:
        host, port: Where to listen; port 0 takes a free one.
        api_keys: Keys that callers may send as `Authorization: Bearer KEY`; empty accepts anyone.
        admin_api_keys: Keys of operators, sent in the same way; empty takes those for operators who
            call from this host.
        operator_hosts: Networks whose hosts are operators without a key.
        share_prefixes: Whether requests with different keys share cached prefixes.
        cors_allow_origins: Origins of pages that may call this server; "*" for all.
        max_body_bytes: A larger body gets a 413.
        max_bodies_bytes: Of all requests that are received or prepared; more get a 503.
        max_connections: Further ones get a 503.
        write_timeout_s: A client that reads nothing for this long is cut off.
        max_choices: Most sequences one request may ask for (`n`, or `n` times its prompts).
        response_timeout_s: Longest time for one answer, streamed or not.
        drain_timeout_s: After SIGTERM, how long running requests may take to finish.
        allow_user_template: Whether a request may bring its own chat template (`user_template`).
        allow_control_tokens_in_content: Whether text in a chat request (contents, results, names,
            schemas) may become control tokens, such as the mark that ends a turn.
        template_timeout_s: Longest time for rendering one chat template.
        model_type: As in config.json; it tells how the model writes calls and reasoning.
        tool_call_parser, reasoning_parser: Names of modules in `server/tool_parsers` and
            `server/reasoning_parsers`; None goes by template and model type.
        ignores_unknown_fields: What no field is known by is left out of a request, and logged; else
            the request is refused.
        sampling_defaults: Fields that a request has where it says nothing of them.
        prepare_timeout_s: Longest time from a whole body to the engine, waiting included.
        served_model_names: What the model is called: the first name stands in answers. Empty takes
            the engine's name.
        load_format: `auto`, or `dummy` where the model's weights are random: /v1/models says so.
    """

    host: str = "0.0.0.0"
    port: int = 8088
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    admin_api_keys: tuple[str, ...] = field(default=(), repr=False)
    operator_hosts: tuple[IPv4Network | IPv6Network, ...] = ()
    share_prefixes: bool = False
    cors_allow_origins: tuple[str, ...] = ()
    max_body_bytes: int = 16 * 1024 * 1024
    max_bodies_bytes: int = 512 * 1024 * 1024
    max_connections: int = 8192
    write_timeout_s: float = 60.0
    max_choices: int = 16
    response_timeout_s: float = 24 * 3600.0
    drain_timeout_s: float = 30.0
    allow_user_template: bool = False
    allow_control_tokens_in_content: bool = False
    template_timeout_s: float = 5.0
    model_type: str = ""
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    ignores_unknown_fields: bool = False
    sampling_defaults: Mapping[str, Any] = field(default_factory=dict)
    prepare_timeout_s: float = 60.0
    served_model_names: tuple[str, ...] = ()
    load_format: str = "auto"
