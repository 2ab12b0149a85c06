"""A chat in the terminal with a running server; only the standard library."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Reads questions until the end of input; returns the exit status."""
    parser = argparse.ArgumentParser(prog="rtpjax chat", description=__doc__)
    parser.add_argument("--url", default="http://localhost:8088", help="default: %(default)s")
    parser.add_argument("--system", help="a system prompt")
    parser.add_argument("--temperature", type=float, default=0.7)
    args = parser.parse_args(argv)
    messages = [{"role": "system", "content": args.system}] if args.system else []
    with contextlib.suppress(KeyboardInterrupt, EOFError):
        while True:
            messages.append({"role": "user", "content": input("> ")})
            answer = ""
            try:
                for text in _answer(args.url, messages, args.temperature):
                    answer += text
                    print(text, end="", flush=True)
            except urllib.error.HTTPError as error:
                print(json.load(error)["error"]["message"], file=sys.stderr)
                messages.pop()
                continue
            except (OSError, http.client.HTTPException) as error:
                print(f"{args.url} cannot be reached: {error}", file=sys.stderr)
                return 1
            print()
            messages.append({"role": "assistant", "content": answer})
    return 0


def _answer(url: str, messages: list[dict[str, str]], temperature: float) -> Iterator[str]:
    """The answer's text as it streams."""
    body = {"messages": messages, "temperature": temperature, "stream": True}
    request = urllib.request.Request(
        f"{url.rstrip('/')}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        for line in response:
            data = line.decode().removeprefix("data: ").strip()
            if data and data != "[DONE]":
                choices = json.loads(data).get("choices", [])
                yield from (c["delta"].get("content") or "" for c in choices)
