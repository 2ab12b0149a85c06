"""Body of RTP-LLM's own API, POST / and /batch_infer: prompts and a generate config.

The settings of `generate_config` may also stand beside it, and win there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from server import limits
from server.protocol.body import check_fields, describe, field_error, parse_body
from server.protocol.chat import ChatRequest
from server.protocol.field_classes import GENERATE_CONFIG, RAW
from server.protocol.fields import REFUSE, FieldPolicy
from server.protocol.form import FormFields
from server.protocol.generate_config import GenerateConfig, config_fields
from server.protocol.values import Temperature


class RawSampling(FormFields):
    """Its defaults differ from the chat API's."""

    temperature: Temperature = 1.0
    aux_info: bool = True


class RawConfig(GenerateConfig):
    """What only this API can be told."""

    others = GENERATE_CONFIG
    yield_generator: bool = False
    return_incremental: bool = False
    return_input_ids: bool = False
    calculate_loss: Annotated[int, Field(ge=0, le=2)] = 0


class RawRequest(RawConfig):
    """The body as it comes."""

    others = RAW
    prompt: Any = None
    text: Any = None
    messages: list[Any] | None = None
    prompt_batch: list[Any] | None = None
    generate_config: dict[str, Any] | None = None
    generation_config: dict[str, Any] | None = None
    stream: bool = False

    def as_fields(self) -> dict[str, Any]:
        fields = super().as_fields()
        return {k: v for k, v in fields.items() if k not in _NO_SETTINGS}


_NO_SETTINGS = RawRequest.model_fields.keys() - RawConfig.model_fields.keys()

# A text, or checked messages of a chat.
RawPrompt = str | ChatRequest


@dataclass(frozen=True, slots=True)
class RawForm:
    """What the answer looks like.

    Attributes:
        n: Choices per prompt.
        is_batch: The answer is a `response_batch`.
        is_multi: Each prompt's `response` is a list.
        is_stream: It is sent as it grows ...
        is_incremental: ... each time what is new, else all so far.
        wants_input_ids: The prompts' token ids are part of it.
        wants_output_ids: The answers' token ids are.
        has_aux_info: Times and counts are.
        loss: 1 for the mean loss over a prompt's tokens, 2 for each one's, 0 for none.
    """

    n: int
    is_batch: bool
    is_multi: bool
    is_stream: bool
    is_incremental: bool
    wants_input_ids: bool
    wants_output_ids: bool
    has_aux_info: bool
    loss: int = 0


@dataclass(frozen=True, slots=True)
class RawBody:
    """The checked body.

    Attributes:
        prompts: At least one.
        sampling: For all of them.
        form: How they are answered.
    """

    prompts: list[RawPrompt]
    sampling: FormFields
    form: RawForm


def parse_raw(body: bytes, policy: FieldPolicy = REFUSE, *, is_batch: bool) -> RawBody:
    """Checks a body; `is_batch` for the route that always answers a batch.

    Raises:
        RequestError: A field is unknown, unsupported or wrong.
    """
    request = parse_body(body, RawRequest, policy)
    settings: dict[str, Any] = {}
    for where in ("generation_config", "generate_config"):
        config = getattr(request, where)
        if config is not None:
            settings |= config_fields(config, where, RawConfig, policy)
    settings |= request.as_fields()
    template_kwargs = settings.pop("chat_template_kwargs", None)
    is_multi = "n" in settings
    is_stream = settings.pop("yield_generator", False) or request.stream
    is_incremental = settings.pop("return_incremental", False)
    wants_input_ids = settings.pop("return_input_ids", False)
    loss = settings.pop("calculate_loss", 0)
    if loss and settings.get("num_beams", 1) > 1:
        raise field_error("calculate_loss", "not supported together with num_beams")
    if loss:
        settings["prompt_logprobs"] = 0
    if is_batch and is_stream:
        raise field_error("yield_generator", "/batch_infer answers in one piece")
    if is_incremental and not is_stream:
        raise field_error("return_incremental", "only allowed when yield_generator is true")
    prompts = _prompts(request, template_kwargs, policy)
    sampling = check_fields(settings, RawSampling)
    form = RawForm(
        n=sampling.n,
        is_batch=is_batch or request.prompt_batch is not None,
        is_multi=is_multi,
        is_stream=is_stream,
        is_incremental=is_incremental,
        wants_input_ids=wants_input_ids,
        wants_output_ids=sampling.return_token_ids,
        has_aux_info=sampling.aux_info,
        loss=loss,
    )
    return RawBody(prompts, sampling, form)


def _prompts(
    request: RawRequest, template_kwargs: dict[str, Any] | None, policy: FieldPolicy
) -> list[RawPrompt]:
    def chat(messages: list[Any], where: str) -> ChatRequest:
        if not messages:
            raise field_error(where, "expected at least one message")
        fields = {"messages": messages, "chat_template_kwargs": template_kwargs}
        return check_fields(fields, ChatRequest, policy)

    def prompt(value: Any, where: str) -> RawPrompt:
        if isinstance(value, str):
            return value
        if _is_messages(value):
            return chat(value, where)
        raise field_error(where, f"expected a string or messages, found {describe(value)}")

    names = ("prompt", "text", "messages", "prompt_batch")
    given = [name for name in names if getattr(request, name) is not None]
    if len(given) != 1:
        raise field_error("prompt", f"expected one of {', '.join(names)}")
    [name] = given
    value = getattr(request, name)
    if name == "messages" or (name != "prompt_batch" and _is_messages(value)):
        return [chat(value, name)]
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not 0 < len(value) <= limits.MAX_PROMPTS:
        reason = f"expected 1 to {limits.MAX_PROMPTS} prompts, found {describe(value)}"
        raise field_error(name, reason)
    return [prompt(item, f"{name}[{index}]") for index, item in enumerate(value)]


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)
