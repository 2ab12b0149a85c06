"""Who may call what: keys of callers and of operators.

A route is open to anyone, or for callers, or for operators (`Route.access`). Callers send one of
API_KEYS, if there are any. Operators send ADMIN_API_KEY. Where no such key is set, operators are
those who call from the server's own host. What is decided here is decided from a request's head,
before its body is read.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import urlsplit

from sanic import Request
from sanic.exceptions import Forbidden, Unauthorized

from rtpjax.engine.request import GenerationRequest
from rtpjax.errors import RequestError
from server.config import ServerConfig

# Who may use a route: anyone (probes, documentation), callers of the model, or operators.
Access = Literal["open", "caller", "operator"]

# A proxy on this host puts them there; then the caller is somewhere else.
_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, as far as that changes what the engine does.

    Attributes:
        is_operator: Whether it could use the routes of operators.
        salt: Sets the cached prefixes of its prompts apart from those of other keys.
    """

    is_operator: bool
    salt: str = ""

    def request(self, request: GenerationRequest) -> GenerationRequest:
        """A request as the engine gets it from this caller.

        Raises:
            RequestError: It asks for more than this caller may have.
        """
        if request.priority < 0 and not self.is_operator:
            raise RequestError(
                f"priority: {request.priority} would run before the requests of other callers, "
                "which only operators may ask for; from 0 up anyone may. The operator's key is "
                "the setting ADMIN_API_KEY",
                param="priority",
                code="priority_not_allowed",
            )
        if not self.salt:
            return request
        return replace(request, cache_salt=f"{self.salt}:{request.cache_salt}")


class Gate:
    """Lets requests in, by their keys and where they come from."""

    def __init__(self, config: ServerConfig):
        self._keys = {_digest(key) for key in config.api_keys}
        self._admin_keys = {_digest(key) for key in config.admin_api_keys}
        self._operator_hosts = config.operator_hosts
        self._is_cache_shared = config.share_prefixes or not self._keys

    def admit(self, request: Request, access: Access) -> Caller:
        """Who sends this request.

        Raises:
            Unauthorized: A key is missing or wrong.
            Forbidden: The route is for operators.
        """
        # Digests are looked up, so that the time it takes tells nothing about the keys.
        digests = {_digest(key) for key in _given_keys(request)}
        is_admin = bool(digests & self._admin_keys)
        is_operator = is_admin or self._is_near(request)
        has_key = is_admin or not self._keys or bool(digests & self._keys)
        if access == "operator" and not is_operator:
            raise self._not_an_operator(has_key=bool(self._keys) and has_key)
        if access == "caller" and not has_key:
            raise Unauthorized(
                "the API key is missing or wrong: send Authorization: Bearer KEY", scheme="Bearer"
            )
        salt = ""
        if not self._is_cache_shared:
            known = digests & (self._keys | self._admin_keys)
            salt = min(known).hex()[:32] if known else ""
        return Caller(is_operator, salt)

    def _is_near(self, request: Request) -> bool:
        """Whether where the request comes from makes it an operator's."""
        address = _address(request)
        if address is None:
            return False
        if any(address in network for network in self._operator_hosts):
            return True
        return not self._admin_keys and address.is_loopback and _is_for_this_host(request)

    def _not_an_operator(self, *, has_key: bool) -> Forbidden | Unauthorized:
        if not self._admin_keys:
            return Forbidden(
                "this route is for operators, and without an operator's key it is answered to the "
                "server's own host only: set ADMIN_API_KEY (or ADMIN_API_KEY_FILE) and send it as "
                "Authorization: Bearer KEY, or name the hosts that may call it in OPERATOR_HOSTS"
            )
        if has_key:
            return Forbidden("this route is for operators: send the key of ADMIN_API_KEY")
        return Unauthorized(
            "this route is for operators: send the key of ADMIN_API_KEY as Authorization: "
            "Bearer KEY",
            scheme="Bearer",
        )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="surrogateescape")).digest()


def _given_keys(request: Request) -> list[str]:
    scheme, _, key = request.headers.get("authorization", "").strip().partition(" ")
    is_bearer = scheme.lower() in ("bearer", "token")
    # Anthropic's clients send the key in a header of its own.
    keys = (key.strip() if is_bearer else scheme, request.headers.get("x-api-key", ""))
    return [key for key in keys if key]


def _address(request: Request) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The other end of the connection; None for a socket of another kind."""
    try:
        address = ipaddress.ip_address(request.conn_info.client_ip if request.conn_info else "")
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_for_this_host(request: Request) -> bool:
    """Whether a request from this host was meant for it: no proxy sent it, and no page in a browser
    whose own name leads to this host (DNS rebinding)."""
    if any(name in request.headers for name in _FORWARDED):
        return False
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
