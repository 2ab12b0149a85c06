"""langchain-openai against the server at the URL it is given; prints a JSON object of what it got.

It runs in a Python of its own (`make test-all` makes it), which has langchain and nothing of ours.
"""

from __future__ import annotations

import asyncio
import json
import sys

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field


class City(BaseModel):
    """A city and how many people live there."""

    name: str = Field(max_length=20)
    people: int = Field(ge=0, le=99_999_999)


@tool
def get_weather(city: str, unit: str) -> str:
    """The weather in a city, in celsius or fahrenheit."""
    return f"22 degrees {unit} in {city}"


@tool
def get_time(city: str) -> str:
    """The time in a city."""
    return f"noon in {city}"


def main(url: str) -> None:
    model = ChatOpenAI(
        base_url=f"{url}/v1",
        api_key="none",
        model="any",
        temperature=0,
        max_tokens=100,
        max_retries=0,
        stream_usage=True,
    )
    ask = HumanMessage("What is the weather in Paris, in celsius?")
    whole = model.invoke([ask])
    pieces = list(model.stream([ask]))
    joined = pieces[0]
    for piece in pieces[1:]:
        joined += piece

    tools = [get_weather, get_time]
    named = model.bind_tools(tools, tool_choice="get_weather").invoke([ask])
    forced = model.bind_tools(tools, tool_choice="any")
    streamed = None
    for piece in forced.stream([ask]):
        streamed = piece if streamed is None else streamed + piece
    any_call = forced.invoke([ask])
    call = named.tool_calls[0]
    result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
    after = model.bind_tools(tools).invoke([ask, named, result])

    cities = {
        method: model.with_structured_output(City, method=method).invoke("Tell me about Paris.")
        for method in ("json_schema", "function_calling")
    }
    batch = asyncio.run(model.abatch(["Count to three.", "Who are you?", "Count to three."]))
    found = {
        "whole": whole.content,
        "streamed": joined.content,
        "usage": [whole.usage_metadata["output_tokens"], joined.usage_metadata["output_tokens"]],
        "named": [call["name"], call["args"]],
        "any": [any_call.tool_calls[0]["name"], any_call.tool_calls[0]["args"]],
        "any_streamed": [streamed.tool_calls[0]["name"], streamed.tool_calls[0]["args"]],
        "finish_reason": named.response_metadata["finish_reason"],
        "after_the_result": after.content,
        "cities": {method: city.model_dump() for method, city in cities.items()},
        "batch": [answer.content for answer in batch],
    }
    print(json.dumps(found))


main(sys.argv[1])
