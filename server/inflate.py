"""Bodies that come compressed, inflated to no more than a body may have."""

from __future__ import annotations

import zlib

from sanic.exceptions import PayloadTooLarge

from rtpjax.errors import RequestError

# What Content-Encoding may say; "identity" is a body as it is.
ENCODINGS = ("gzip", "x-gzip")
_WITH_GZIP_HEAD = 16 + zlib.MAX_WBITS
_PIECE_BYTES = 1024 * 1024


def inflated(body: bytes, max_bytes: int) -> bytes:
    """What a gzip body holds. For a thread: it takes up to some 50 ms, mostly without the GIL.

    Args:
        body: One gzip member.
        max_bytes: Most bytes that it may hold. No more are ever made.

    Raises:
        PayloadTooLarge: It holds more.
        RequestError: It is no gzip, ends too early, or something follows it.
    """
    member = zlib.decompressobj(_WITH_GZIP_HEAD)
    pieces: list[bytes] = []
    size = 0
    try:
        while not member.eof:
            piece = member.decompress(body, min(_PIECE_BYTES, max_bytes + 1 - size))
            body = member.unconsumed_tail
            size += len(piece)
            if size > max_bytes:
                raise PayloadTooLarge(
                    f"the request body is larger than {max_bytes} bytes once it is inflated; the "
                    "setting MAX_BODY_MB moves the limit"
                )
            if not (piece or member.eof):
                raise RequestError("the request body is gzip that ends too early")
            pieces.append(piece)
    except zlib.error as error:
        reason = f"Content-Encoding says gzip, but the request body is none: {error}"
        raise RequestError(reason) from error
    if member.unused_data:
        raise RequestError("the request body goes on after the end of its gzip")
    return b"".join(pieces)
