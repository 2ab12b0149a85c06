"""Bytes of a request -> a checked pydantic model, or a RequestError that names the field."""

from __future__ import annotations

import asyncio
import codecs
import json
from collections.abc import Mapping, Sized
from functools import cache
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import AliasChoices, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from rtpjax.errors import RequestError
from server.protocol.described import describe, shortened
from server.protocol.fields import (
    REFUSE,
    FieldClass,
    FieldPolicy,
    Ignored,
    Kinds,
    Shape,
    cleaned,
)


def _with_other_fields(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Adds what is accepted without being read to a model's JSON schema."""
    assert issubclass(model, StrictModel)
    for name, found in shape_of(model).others.items():
        if isinstance(found, Ignored):
            shown: dict[str, Any] = {"description": f"Ignored: {found.why}."}
            values = found.values
        else:
            shown = {"description": f"Nothing but a neutral value: {found.reason}."}
            values = found.neutral
            if not values:
                continue
        if values:
            shown["enum"] = list(values)
        schema.setdefault("properties", {}).setdefault(name, shown)


class StrictModel(BaseModel):
    """No conversions between types, no NaN or Infinity, no unknown fields.

    Attributes:
        others: The classes of the fields that are no fields of the model.
        inside: What is inside fields that the model itself does not look into; fields that its
            reader takes out before are named here, too.
    """

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra=_with_other_fields,
    )
    others: ClassVar[Mapping[str, FieldClass]] = {}
    inside: ClassVar[Mapping[str, Shape | Kinds | None]] = {}


_MAX_PATH_CHARS = 250

ModelT = TypeVar("ModelT", bound=StrictModel)


def parse_body(body: bytes, model: type[ModelT], policy: FieldPolicy = REFUSE) -> ModelT:
    """Checks a JSON body against `model`. A field that is null counts as absent.

    Raises:
        RequestError: The body is no JSON object, or a field is unknown, unsupported or wrong.
    """
    return check_fields(load_object(body), model, policy)


def check_fields(
    fields: dict[str, Any], model: type[ModelT], policy: FieldPolicy = REFUSE
) -> ModelT:
    """`parse_body` for fields that are no bytes any more."""
    given = cleaned(fields, shape_of(model), policy)
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise readable(error) from error


@cache
def shape_of(model: type[StrictModel]) -> Shape:
    """The shape of the objects that a model checks."""
    honoured: dict[str, Shape | Kinds | None] = {}
    for name, field in model.model_fields.items():
        names = [field.alias or name]
        if isinstance(field.validation_alias, AliasChoices):
            names = [choice for choice in field.validation_alias.choices if isinstance(choice, str)]
        honoured |= dict.fromkeys(names, _shape_in(field.annotation))
    honoured |= model.inside
    others = {name: found for name, found in model.others.items() if name not in honoured}
    return Shape(honoured, others)


def _shape_in(annotation: Any) -> Shape | None:
    """The shape of the model that a field holds, if it holds one."""
    for each in (annotation, *get_args(annotation)):
        if isinstance(each, type) and issubclass(each, StrictModel):
            return shape_of(each)
    return None


def load_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body, or a RequestError that says what it is instead."""
    assert not _is_on_event_loop(), "bodies are read in server.preparation, never on the event loop"
    if not body:
        raise RequestError("the request body is empty, expected a JSON object")
    try:
        text = _decoded(body)
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


# What a JSON text begins with in other encodings: a mark, or an ASCII character and zeros.
_OTHER_ENCODINGS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\x00\x00\x00", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
    (b"\x00", "UTF-16"),
)


def _decoded(body: bytes) -> str:
    """The text of a body; a mark of UTF-8 before it is skipped."""
    found = next((name for mark, name in _OTHER_ENCODINGS if body.startswith(mark)), None)
    if found is None and body[1:2] == b"\x00":
        found = "UTF-32" if body[2:4] == b"\x00\x00" else "UTF-16"
    if found is not None:
        raise RequestError(f"the request body is {found} text, expected UTF-8")
    return body.removeprefix(codecs.BOM_UTF8).decode("utf-8")


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
