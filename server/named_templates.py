"""A checkpoint's chat templates by name, and the one that a request gets."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from rtpjax.errors import RequestError
from server.chat_template import DEFAULT, TOOL_USE
from server.function_calls.support import CallSupport
from server.protocol.body import field_error

logger = logging.getLogger(__name__)


class NamedTemplates:
    """Chooses as transformers' `get_chat_template` does. Each template has a CallSupport of its
    own, for the template says how a model writes its calls and its reasoning.

    Attributes:
        supports: By the names of the templates.
    """

    def __init__(self, supports: Mapping[str, CallSupport]):
        """Logs which templates no request gets unless it names them."""
        self.supports = dict(supports)
        others = sorted(supports.keys() - {DEFAULT, TOOL_USE})
        if others:
            logger.warning(
                "the checkpoint has more chat templates (%s), which only requests with a "
                "template_key of that name are rendered with",
                ", ".join(others),
            )
        for has_tools in (False, True):
            if self._found(has_tools) is None:
                kind = "with" if has_tools else "without"
                logger.warning(
                    "the checkpoint has no chat template for requests %s tools: they are refused "
                    "unless they name one (%s) as template_key",
                    kind,
                    ", ".join(sorted(supports)),
                )
        if self.with_tools.is_format_unknown:
            logger.warning(
                "the chat template writes function calls in a form that is not known: calls are "
                "looked for in the hermes format, and others come back as text; "
                "TOOL_CALL_PARSER names another parser"
            )

    def __contains__(self, name: str) -> bool:
        return name in self.supports

    def _found(self, has_tools: bool) -> CallSupport | None:
        found = self.supports.get(TOOL_USE) if has_tools else None
        return found or self.supports.get(DEFAULT)

    @property
    def with_tools(self) -> CallSupport:
        """The one that requests with tools get; any one where they must name it."""
        return self._found(True) or next(iter(self.supports.values()))

    @property
    def without_tools(self) -> CallSupport:
        """The one that requests without tools get; any one where they must name it."""
        return self._found(False) or next(iter(self.supports.values()))

    def named(self, name: str, *, param: str) -> CallSupport:
        """The one of that name.

        Raises:
            RequestError: There is none; it names `param`.
        """
        if name not in self.supports:
            known = ", ".join(sorted(self.supports))
            raise field_error(param, f"this model has no chat template {name!r}; it has {known}")
        return self.supports[name]

    def choose(self, *, has_tools: bool) -> CallSupport:
        """The one for a request that names none.

        Raises:
            RequestError: The model has several, and none that is meant for such a request.
        """
        found = self._found(has_tools)
        if found is None:
            known = ", ".join(sorted(self.supports))
            kind = "with" if has_tools else "without"
            message = f"this model has no chat template for requests {kind} tools"
            raise RequestError(
                f"{message}; name one as template_key: {known}", param="template_key"
            )
        return found
