"""What the routes share, made once per app."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING

from rtpjax.errors import DrainingError
from server.chat_template import chat_templates
from server.config import ServerConfig
from server.connection import Limits
from server.engine_protocol import Engine
from server.errors import STOPPED
from server.function_calls.support import CallSupport
from server.lanes import SMALL
from server.metrics import Metrics
from server.named_templates import NamedTemplates
from server.preparation import Preparation
from server.prompt import PromptEncoder
from server.protocol.fields import FieldPolicy
from server.token_text import TokenText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class ModelContext:
    """What preparing a request needs: settings, and what is derived from the tokenizer.

    Attributes:
        lane: In which of the lanes of `server.lanes` requests are prepared with it.
    """

    def __init__(self, engine: Engine, config: ServerConfig):
        """Raises: ConfigError: The chat template is no valid Jinja, or no parser has that name."""
        self.engine = engine
        self.config = config
        self.fields = FieldPolicy(ignores_unknown=config.ignores_unknown_fields)
        self.lane = SMALL
        templates = chat_templates(engine.tokenizer, timeout_s=config.template_timeout_s)
        special = _special_tokens(engine.tokenizer)
        supports = {
            name: CallSupport(
                template,
                special,
                model_type=config.model_type,
                tool_call_parser=config.tool_call_parser,
                reasoning_parser=config.reasoning_parser,
            )
            for name, template in templates.items()
        }
        self.templates = NamedTemplates(supports)
        self.encoder = PromptEncoder(
            engine.tokenizer, allows_control_tokens=config.allow_control_tokens_in_content
        )

    @property
    def model_names(self) -> tuple[str, ...]:
        """What the model is called; the first name stands in answers."""
        return self.config.served_model_names or (self.engine.model_name,)

    @cached_property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: another one where answers to a seed may be others."""
        config = self.config
        defaults = sorted(config.sampling_defaults.items())
        said = [version("rtpjax"), self.engine.model_name, config.load_format, defaults]
        digest = hashlib.blake2b(json.dumps(said).encode(), digest_size=5).hexdigest()
        return f"fp_{digest}"

    @cached_property
    def token_text(self) -> TokenText:
        """Only requests for logprobs need it."""
        return TokenText(self.engine.tokenizer)


class ServerContext(ModelContext):
    """... and what answering it needs (`app.ctx.server`)."""

    def __init__(self, engine: Engine, config: ServerConfig):
        """Raises: ConfigError: As ModelContext."""
        super().__init__(engine, config)
        self.limits = Limits(
            max_connections=config.max_connections,
            max_body_bytes=config.max_bodies_bytes,
            write_timeout_s=config.write_timeout_s,
        )
        self.metrics = Metrics(engine.stats, self.limits, self.model_names[0])
        self.preparation = Preparation(
            self, lambda lane, seconds: self.metrics.prepare.labels(lane).observe(seconds)
        )

    def unavailable_reason(self) -> str | None:
        """Why no request can be taken now, or None."""
        if self.engine.failure is not None:
            return STOPPED
        if self.engine.is_draining:
            return "the server is shutting down"
        if not self.engine.is_ready:
            return "the model is still loading"
        return None

    def check_available(self) -> None:
        """Raises: DrainingError: The engine is loading or draining."""
        reason = self.unavailable_reason()
        if reason is not None:
            raise DrainingError(f"{reason}; try again later")


def _special_tokens(tokenizer: PreTrainedTokenizerFast) -> frozenset[str]:
    added = tokenizer.added_tokens_decoder.values()
    return frozenset(token.content for token in added if token.special)
