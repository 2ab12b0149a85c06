"""Where the processes of a server log to, and how a line looks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

_FORMAT = "%(asctime)s %(levelname)s %(name)s:%(request)s %(message)s"


def configure_logging(settings: Mapping[str, Any]) -> list[logging.Handler]:
    """Logs as the settings say, from now on.

    Returns:
        The handlers. A filter of theirs may give records a `request` in brackets, the HTTP request
        that is worked on; without one it is left out.
    """
    handlers: list[logging.Handler] = []
    if settings["LOG_FILE"]:
        handlers.append(logging.FileHandler(settings["LOG_FILE"]))
    if not handlers or settings["FT_SERVER_TEST"]:
        handlers.append(logging.StreamHandler())
    for handler in handlers:
        handler.setFormatter(logging.Formatter(_FORMAT, defaults={"request": ""}))
    logging.basicConfig(level=settings["LOG_LEVEL"], handlers=handlers, force=True)
    for name in ("jax", "absl", "httpx", "filelock"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return handlers
