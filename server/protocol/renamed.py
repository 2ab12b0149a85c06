"""Errors of a chat request that was made of another API's body, in the names of that API."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rtpjax.errors import RequestError


def renamed(error: RequestError, names: Sequence[tuple[str, str]]) -> RequestError:
    """The error with the caller's name of the field.

    Args:
        error: Of the chat request.
        names: Patterns for the beginning of our names, and what they become; the first one counts.
    """
    param = None if error.param is None else renamed_param(error.param, names)
    if param == error.param or param is None:
        return error
    message = str(error).replace(error.param or "", param, 1)
    return RequestError(message, param=param, code=error.code, details=error.details)


def renamed_param(param: str, names: Sequence[tuple[str, str]]) -> str:
    """The caller's name of a field."""
    for ours, theirs in names:
        name, count = re.subn(f"^{ours}", theirs, param, count=1)
        if count:
            return name
    return param
