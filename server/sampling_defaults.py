"""The model's own sampling defaults: what its generation_config.json says.

They stand where a request says nothing, on every generating route, before the defaults of the API.
As in vLLM, `do_sample` does not count: most of these files are written by hand or left over from
training, and hardly one that says nothing of sampling means greedy answers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from server.protocol.described import describe
from server.protocol.values import RepetitionPenalty, Temperature, TopK, TopP, Unit

logger = logging.getLogger(__name__)

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_FIELDS: Mapping[str, TypeAdapter[Any]] = {
    "temperature": TypeAdapter(Temperature, config=_STRICT),
    "top_p": TypeAdapter(TopP, config=_STRICT),
    "top_k": TypeAdapter(TopK, config=_STRICT),
    "min_p": TypeAdapter(Unit, config=_STRICT),
    "repetition_penalty": TypeAdapter(RepetitionPenalty, config=_STRICT),
}


def sampling_defaults(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults in a generation config; values out of range are warned of and left out."""
    found: dict[str, Any] = {}
    for name, field in _FIELDS.items():
        value = generation_config.get(name)
        if value is None:
            continue
        try:
            found[name] = field.validate_python(value)
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"].replace(
                "Input should be", "expected"
            )
            logger.warning(
                "generation_config.json: %s is ignored: %s, found %s", name, reason, describe(value)
            )
    return found


def log_sampling_defaults(defaults: Mapping[str, Any]) -> None:
    """Says at the start what requests that say nothing get."""
    if defaults:
        shown = ", ".join(f"{name} {value:g}" for name, value in defaults.items())
        logger.info(
            "defaults of the model (generation_config.json; GENERATION_CONFIG=none turns them "
            "off): %s",
            shown,
        )
