"""The document names every route and field that there is."""

from __future__ import annotations

import re

from server.protocol.chat import ChatRequest
from server.routes import all_routes
from tests.server.live_server import LiveServer


def test_every_route_and_field(server: LiveServer) -> None:
    found = server.client.get("/openapi.json").json()
    listed = {
        (method.upper(), path)
        for path, operations in found["paths"].items()
        for method in operations
    }
    served = {(r.method, re.sub(r"<(\w+):path>", r"{\1}", r.path)) for r in all_routes()}
    assert listed == served
    schemas = found["components"]["schemas"]
    assert schemas["ChatRequest"]["properties"].keys() >= ChatRequest.model_fields.keys()
    for operations in found["paths"].values():
        for method, operation in operations.items():
            assert operation["summary"]
            if method == "post" and "requestBody" in operation:
                content = operation["requestBody"]["content"]
                ref = content["application/json"]["schema"]["$ref"]
                assert ref.rpartition("/")[2] in schemas
    ids = [o["operationId"] for operations in found["paths"].values() for o in operations.values()]
    assert len(set(ids)) == len(ids)


def test_the_page(server: LiveServer) -> None:
    response = server.client.get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    assert "POST /v1/chat/completions" in response.text
    assert "<code>temperature</code></td><td>number 0 to 2, default 0.7" in response.text
    assert "<script" not in response.text
