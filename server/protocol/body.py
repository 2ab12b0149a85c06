"""Bytes of a request -> a checked pydantic model, or a RequestError that names the field."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sized
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from rtpjax.errors import RequestError

# Accepted and ignored: none of them changes the text of the answer.
HARMLESS = frozenset(
    {
        "metadata",
        "prediction",
        "prompt_cache_options",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)

# They would change the answer, so a value other than the neutral ones is refused, never ignored.
UNSUPPORTED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "modalities": ("only text can be generated", (["text"],)),
    "audio": ("only text can be generated", ()),
    "suffix": ("inserting before a suffix is not supported", ("",)),
    "web_search_options": ("web search is not supported", ()),
    "verbosity": ("it is not supported; say in the prompt how long the answer shall be", ()),
    "template_key": ("this server has one template", ("",)),
    "adapter_name": ("LoRA adapters are not supported yet", ("", [])),
    "return_logits": ("logits are not given out; ask for logprobs", (False,)),
    "return_hidden_states": ("hidden states are not given out", (False,)),
    "calculate_loss": ("only the raw API answers with it; ask for prompt_logprobs", (0, False)),
    "use_beam_search": ("say how many beams as num_beams", (False,)),
}


class StrictModel(BaseModel):
    """No conversions between types, no NaN or Infinity, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


_MAX_NAME_CHARS = 80
_MAX_PATH_CHARS = 250

ModelT = TypeVar("ModelT", bound=BaseModel)


def parse_body(body: bytes, model: type[ModelT]) -> ModelT:
    """Checks a JSON body against `model`. A field that is null counts as absent.

    Raises:
        RequestError: The body is no JSON object, or a field is unknown, unsupported or wrong.
    """
    return check_fields(load_object(body), model)


def check_fields(fields: dict[str, Any], model: type[ModelT]) -> ModelT:
    """`parse_body` for fields that are no bytes any more."""
    given = {name: value for name, value in fields.items() if value is not None}
    for name in HARMLESS & given.keys():
        del given[name]
    for name in (UNSUPPORTED.keys() & given.keys()) - model.model_fields.keys():
        reason, neutral = UNSUPPORTED[name]
        if not any(_same(given[name], value) for value in neutral):
            raise RequestError(f"{name}: {reason}", param=name, code="unsupported_parameter")
        del given[name]
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise readable(error) from error


def _same(value: Any, neutral: Any) -> bool:
    return type(value) is type(neutral) and value == neutral


def load_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body, or a RequestError that says what it is instead."""
    assert not _is_on_event_loop(), "bodies are read in server.preparation, never on the event loop"
    if not body:
        raise RequestError("the request body is empty, expected a JSON object")
    try:
        text = body.decode("utf-8")
        value = json.loads(text, parse_constant=_refuse_constant)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise RequestError(f"the request body is not valid JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"the request body is not UTF-8: {error}") from error
    except UnicodeEncodeError as error:
        raise RequestError("the request body has half of a surrogate pair in a string") from error
    except RecursionError as error:
        raise RequestError("the request body is nested too deeply") from error
    except ValueError as error:
        reason = "it has too many digits" if "digits" in str(error) else str(error)
        raise RequestError(f"the request body has a number that is refused: {reason}") from error
    if not isinstance(value, dict):
        raise RequestError(f"the request body must be a JSON object, found {describe(value)}")
    return value


def _is_on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def readable(error: ValidationError, *, inside: tuple[int | str, ...] = ()) -> RequestError:
    """The first thing that pydantic found, in our words; `inside` is where the model stood."""
    first = error.errors(include_url=False)[0]
    path = field_path((*inside, *first["loc"]))
    # OpenAI's `param` is the path of the field, or null for the body as a whole.
    return RequestError(_explain(path, first), param=path or None)


def field_error(path: str, reason: str) -> RequestError:
    """The error for one field; pydantic lets it through its validators as it is."""
    if len(path) > _MAX_PATH_CHARS:
        path = f"{path[:_MAX_PATH_CHARS]}..."
    return RequestError(f"{path}: {reason}", param=path)


def check_count(path: str, values: Sized, most: int, what: str) -> None:
    """Raises: RequestError: There are more than the most that one field may have."""
    if len(values) > most:
        raise field_error(path, f"at most {most} {what} are allowed, found {len(values)}")


def field_path(location: tuple[int | str, ...]) -> str:
    """('messages', 0, 'content') -> 'messages[0].content'."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{shortened(part)}" if path else shortened(part)
    return path


def shortened(name: str) -> str:
    """A caller's name in a path. Names can have megabytes, and paths are made by the thousand."""
    return name if len(name) <= _MAX_NAME_CHARS else f"{name[:_MAX_NAME_CHARS]}..."


def _explain(path: str, error: ErrorDetails) -> str:
    kind = error["type"]
    if kind == "missing":
        return f"{path}: this field is required"
    if kind == "extra_forbidden":
        return f"{path}: unknown field"
    if kind in ("too_long", "too_short"):
        bound = "at most" if kind == "too_long" else "at least"
        most = error.get("ctx", {}).get("max_length" if kind == "too_long" else "min_length")
        return f"{path}: expected {bound} {most} items, found {describe(error['input'])}"
    message = error["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be ", "expected ")
    if kind == "value_error":
        return f"{path}: {message}"
    return f"{path}: {message}, found {describe(error['input'])}"


def describe(value: Any) -> str:
    """Names a JSON value for an error message, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        return f"the string {value if len(value) <= 40 else value[:40] + '...'!r}"
    if isinstance(value, int) and abs(value) > 10**20:
        return f"a number of {value.bit_length()} bits"
    return f"{value!r}"
