"""litellm against the server at the URL it is given; prints a JSON object of what it got.

It runs in a Python of its own (`make test-all` makes it), which has litellm and nothing of ours.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import litellm

MESSAGES = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def main(url: str) -> None:
    def ask(**fields: Any) -> Any:
        return litellm.completion(
            model="openai/any",
            api_base=f"{url}/v1",
            api_key="none",
            messages=MESSAGES,
            temperature=0,
            max_tokens=60,
            **fields,
        )

    whole = ask()
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    forced = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    called = ask(**forced)
    pieces = list(ask(**forced, stream=True))
    rebuilt = litellm.stream_chunk_builder(pieces, messages=MESSAGES)
    structured = ask(response_format={"type": "json_object"})
    text = litellm.text_completion(
        model="text-completion-openai/any",
        api_base=f"{url}/v1",
        api_key="none",
        prompt="The capital of France is",
        temperature=0,
        max_tokens=8,
    )
    try:
        ask(top_logprobs=99, logprobs=True)
        refused = ""
    except litellm.BadRequestError as error:
        refused = str(error)
    message = asyncio.run(
        litellm.anthropic.messages.acreate(
            model="anthropic/any",
            api_base=url,
            api_key="none",
            messages=MESSAGES,
            max_tokens=60,
            temperature=0,
        )
    )
    found = {
        "whole": whole.choices[0].message.content,
        "streamed": "".join(
            choice.delta.content or "" for chunk in chunks for choice in chunk.choices
        ),
        "usage": [whole.usage.completion_tokens, chunks[-1].usage.completion_tokens],
        "calls": [
            (call.function.name, call.function.arguments)
            for answer in (called, rebuilt)
            for call in answer.choices[0].message.tool_calls
        ],
        "finish_reason": called.choices[0].finish_reason,
        "json": structured.choices[0].message.content,
        "json_finish_reason": structured.choices[0].finish_reason,
        "text": text.choices[0].text,
        "refused": refused,
        "anthropic": message["content"][0]["text"],
    }
    print(json.dumps(found))


main(sys.argv[1])
