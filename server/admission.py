"""What is known of a request before its body is read, and refused then."""

from __future__ import annotations

from sanic import Request
from sanic.exceptions import PayloadTooLarge, SanicException

from server.config import ServerConfig
from server.cors import Cors
from server.inflate import ENCODINGS

# With these types a page may send a body to a foreign server without asking it first.
_UNASKED = ("", "application/x-www-form-urlencoded", "multipart/form-data", "text/plain")
# Bodies are read as JSON under these types: curl -d calls everything a form.
_READ_AS_JSON = (
    "",
    "application/json",
    "application/octet-stream",
    "application/x-www-form-urlencoded",
    "text/json",
    "text/plain",
)
_CHARSETS = ("", "ascii", "us-ascii", "utf-8", "utf8")


class UnsupportedMediaType(SanicException):
    """The body is written in a way that is not read here."""

    status_code = 415
    quiet = True


def check_head(request: Request, config: ServerConfig, cors: Cors) -> None:
    """Refuses a body that would not be read, by what the head says of it.

    Raises:
        PayloadTooLarge: It is larger than it may be.
        UnsupportedMediaType: It is compressed in another way than gzip, or no JSON, or a page of
            an origin that is not allowed sends it without having asked.
    """
    if request.method != "POST":
        return
    headers = request.headers
    kind, _, parameters = headers.get("content-type", "").lower().partition(";")
    kind = kind.strip()
    if kind in _UNASKED and cors.is_foreign(request):
        raise UnsupportedMediaType(
            f"Content-Type: a page of {headers['origin']!r} sends its body as JSON, with "
            "Content-Type: application/json, and only if CORS_ALLOW_ORIGINS has its origin"
        )
    encoding = encoding_of(request)
    if encoding and encoding not in ENCODINGS:
        raise UnsupportedMediaType(
            f"Content-Encoding: {encoding!r} is not supported; send the body as it is, or gzip",
            headers={"Accept-Encoding": "gzip, identity"},
        )
    if not (kind in _READ_AS_JSON or (kind.startswith("application/") and kind.endswith("+json"))):
        raise UnsupportedMediaType(
            f"Content-Type: {kind!r} is not read here; send JSON, with Content-Type: "
            "application/json",
            headers={"Accept": "application/json"},
        )
    charset = parameters.partition("charset=")[2].partition(";")[0].strip().strip("\"'")
    if charset not in _CHARSETS:
        raise UnsupportedMediaType(f"Content-Type: the charset {charset!r} is not UTF-8; send that")
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > config.max_body_bytes:
        raise too_large(config)


def encoding_of(request: Request) -> str:
    """How a request's body is compressed; "" if it is not."""
    encoding = request.headers.get("content-encoding", "").strip().lower()
    return "" if encoding == "identity" else encoding


def too_large(config: ServerConfig) -> PayloadTooLarge:
    """The error for a body over the limit."""
    return PayloadTooLarge(
        f"the request body is larger than {config.max_body_bytes} bytes; the setting MAX_BODY_MB "
        "moves the limit"
    )
