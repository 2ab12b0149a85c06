"""The ReAct prompt that Qwen 1, 1.5 and 2 were trained on for `functions`, to the byte."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from server.function_calls import Function
from server.protocol.body import field_error

_FUNCTION = (
    "{name}: Call this tool to interact with the {name} API. "
    "What is the {name} API useful for? {description} Parameters: {parameters}"
)

_INSTRUCTION = """\
Answer the following questions as best you can. You have access to the following APIs:

{functions}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!

Question: """

_FINAL = "Thought: I now know the final answer.\nFinal Answer: "


def instruction(functions: Sequence[Function]) -> str:
    """What stands before the text of the last user turn."""
    texts = [
        _FUNCTION.format(
            name=function.name,
            description=function.description,
            parameters=json.dumps(function.parameters, ensure_ascii=False),
        )
        for function in functions
    ]
    names = ", ".join(function.name for function in functions)
    return _INSTRUCTION.format(functions="\n\n".join(texts), names=names)


class _Turn(NamedTuple):
    """A turn, its lines still to be joined."""

    role: str
    texts: list[str]


def react_turns(
    messages: Sequence[dict[str, Any]],
    functions: Sequence[Function],
    *,
    is_last_open: bool = False,
) -> tuple[list[dict[str, Any]], str]:
    """The conversation in plain turns.

    Args:
        messages: In the form of `server.protocol.chat_messages`.
        functions: Those offered.
        is_last_open: The last message is the assistant's, who goes on where it ends.

    Returns:
        The finished turns, and the beginning of the assistant's open one ("" for a new one).

    Raises:
        RequestError: The roles come in an order that this format cannot write.
    """
    last_user = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    if last_user < 0:
        raise field_error("messages", "expected at least one message of role 'user'")
    turns: list[_Turn] = []
    for index, message in enumerate(messages):
        role, content = message["role"], _trimmed(message["content"])
        follows = turns[-1].role if turns else ""
        if role == "tool":
            turns[-1].texts.append(f"Observation: {content}")
        elif role == "assistant":
            is_open = is_last_open and index == len(messages) - 1
            text = _open_text(message) if is_open else _assistant(message)
            if follows == "assistant":
                turns[-1].texts.append(text)
                continue
            if follows != "user":
                reason = "an assistant message must follow a message of role 'user'"
                raise field_error(f"messages[{index}].role", reason)
            turns.append(_Turn(role, [text]))
        else:
            before = instruction(functions) if index == last_user else ""
            turns.append(_Turn(role, [before + content]))
    joined = [{"role": turn.role, "content": "\n".join(turn.texts)} for turn in turns]
    if messages[-1]["role"] in ("user", "system"):
        return joined, ""
    if is_last_open:
        return joined[:-1], joined[-1]["content"]
    if messages[-1]["role"] == "assistant":
        reason = "the last message must be of role 'user' or a function's result"
        raise field_error(f"messages[{len(messages) - 1}].role", reason)
    return joined[:-1], joined[-1]["content"] + "\nThought:"


def _trimmed(content: str) -> str:
    """As Qwen's own code and RTP-LLM's trim every content."""
    return content.lstrip("\n").rstrip()


def _open_text(message: dict[str, Any]) -> str:
    """What the assistant has said so far, which is no final answer yet."""
    return _assistant(message) if message.get("tool_calls") else message["content"]


def _assistant(message: dict[str, Any]) -> str:
    content = _trimmed(message["content"])
    calls = message.get("tool_calls")
    has_thought = content.startswith("Thought:")
    if not calls:
        # An answer of this format that came back whole has its own thought.
        return content if has_thought and "\nFinal Answer:" in content else _FINAL + content
    texts = [content if has_thought else f"Thought: {content}"]
    for call in calls:
        function = call["function"]
        texts.append(f"Action: {function['name']}\nAction Input: {function['arguments']}")
    return "\n".join(texts)
