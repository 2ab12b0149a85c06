"""Failures that nobody foresaw: the log has the cause, the caller an id to find it by."""

from __future__ import annotations

import asyncio
import logging
import secrets

logger = logging.getLogger(__name__)

_EXITS = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError)


def report(what: str, error: BaseException) -> str:
    """Logs a failure with its traceback, and returns an id that the log has, too.

    Args:
        what: What failed, as the log's reader knows it.
        error: Why. A panic of a Rust library (tokenizers, llguidance) is no Exception, so callers
            catch BaseException; what asks to end the thread or task is raised again here.
    """
    if isinstance(error, _EXITS):
        raise error
    error_id = secrets.token_hex(6)
    logger.error("Error %s: %s failed", error_id, what, exc_info=error)
    return error_id


def told(error_id: str) -> str:
    """What the caller learns of a reported failure."""
    return (
        f"The engine failed on this request (error {error_id}). Try again; the server's log has "
        "the cause under this id."
    )
