"""The objects inside of bodies - messages, parts, blocks, items, tools - and their fields' classes.

Their readers are no models, so the honoured fields stand here as well.
"""

from __future__ import annotations

from collections.abc import Mapping

from server.protocol.field_classes import CACHED, Classes, each
from server.protocol.fields import Ignored, Kinds, Refused, Shape

Objects = Mapping[str, Shape | Kinds]

_SILENT = Ignored("it is no part of what the model is shown")
_BREAKPOINTS = each("cache_control prompt_cache_breakpoint", CACHED)
_LEFT_OUT = "only functions that the caller runs can be called"
# The model is told of all functions, and calls them itself.
_OFFERED: Classes = {
    **each("cache_control", CACHED),
    **each(
        "defer_loading",
        Ignored("the model is told of all functions from the beginning", is_logged=True),
    ),
    **each(
        "allowed_callers",
        Refused("the model calls functions itself, so it needs 'direct'", neutral_item="direct"),
    ),
}


def _shape(honoured: str, others: Classes, **inside: Shape | Kinds) -> Shape:
    return Shape({**dict.fromkeys(honoured.split()), **inside}, others)


# Chat.
_FUNCTION = Shape(
    dict.fromkeys(("name", "description", "parameters", "strict")), _OFFERED, is_open=True
)
_TOOLS = Kinds(
    {
        "function": _shape(
            "type",
            {**_OFFERED, **each("strict", Ignored("it belongs into `function`"))},
            function=_FUNCTION,
        )
    },
    default="function",
    left_out=_LEFT_OUT,
)
_PART = {**_BREAKPOINTS, **each("annotations citations id", _SILENT)}
_PARTS = Kinds({"text": _shape("type text", _PART), "refusal": _shape("type refusal", _PART)})
_MESSAGE = _shape(
    "role name reasoning_content reasoning tool_calls tool_call_id function_call partial",
    {
        **_BREAKPOINTS,
        **each(
            "id type status phase refusal annotations reasoning_details thinking_blocks"
            " provider_specific_fields metadata timestamp created_at",
            _SILENT,
        ),
        **each("audio", Refused("only text is supported")),
        **each("images tools", Refused("only text is supported", ([],))),
        **each("prefix", Refused("send it as partial", (False,))),
    },
    content=_PARTS,
)
# vLLM's; what it has besides of ways to say what an answer looks like.
FORM_OBJECTS: Objects = {
    "structured_outputs": _shape(
        "json regex choice grammar json_object",
        {
            **each("disable_fallback", Ignored("there is one grammar engine")),
            **each(
                "disable_any_whitespace disable_additional_properties",
                Refused("say it in the schema", (False,)),
            ),
            **each("whitespace_pattern", Refused("white space in JSON is what the server allows")),
            **each("structural_tag", Refused("send it as response_format")),
        },
    )
}
CHAT_OBJECTS: Objects = {
    **FORM_OBJECTS,
    "messages": _MESSAGE,
    "tools": _TOOLS,
    "functions": _FUNCTION,
}

# Responses.
_NAMED = _shape(
    "type name description parameters strict output_schema",
    {**_OFFERED, **each("async", Refused("the model waits for results", (False,)))},
)
_NAMED_TOOLS = Kinds(
    {
        "function": _NAMED,
        "namespace": _shape(
            "type name description",
            _OFFERED,
            tools=Kinds({"function": _NAMED}, left_out=_LEFT_OUT),
        ),
    },
    left_out=_LEFT_OUT,
)
_ITEM = {**_BREAKPOINTS, **each("id status phase caller async", _SILENT)}
_ITEM_PART = {**_PART, **each("logprobs", _SILENT)}
_ITEM_PARTS = Kinds(
    {
        **dict.fromkeys(
            ("input_text", "output_text", "text", "reasoning_text"),
            _shape("type text", _ITEM_PART),
        ),
        "refusal": _shape("type refusal", _ITEM_PART),
    }
)
_ITEMS = Kinds(
    {
        "message": _shape("type role", _ITEM, content=_ITEM_PARTS),
        "function_call": _shape("type call_id name namespace arguments", _ITEM),
        "function_call_output": _shape(
            "type call_id", {**_ITEM, **each("name namespace", _SILENT)}, output=_ITEM_PARTS
        ),
        "reasoning": _shape(
            "type", {**_ITEM, **each("summary encrypted_content", _SILENT)}, content=_ITEM_PARTS
        ),
    },
    default="message",
)
RESPONSES_OBJECTS: Objects = {"input": _ITEMS, "tools": _NAMED_TOOLS}

# Messages.
_CLIENT_TOOLS = Kinds(
    {
        "custom": _shape(
            "type name description input_schema input_examples strict",
            {
                **_OFFERED,
                **each("eager_input_streaming", Ignored("arguments stream as they are written")),
            },
        )
    },
    default="custom",
    left_out=_LEFT_OUT,
)
_BLOCK = each("cache_control", CACHED) | each("citations caller toolset_name", _SILENT)
_TEXT = _shape("type text", _BLOCK)
_TEXT_BLOCKS = Kinds({"text": _TEXT})
_TURNS = _shape(
    "role",
    each(
        "id type model stop_reason stop_sequence stop_details usage container context_management"
        " diagnostics",
        _SILENT,
    ),
    content=Kinds(
        {
            "text": _TEXT,
            "thinking": _shape("type thinking", {**_BLOCK, **each("signature", _SILENT)}),
            "tool_use": _shape("type id name input", _BLOCK),
            "tool_result": _shape("type tool_use_id is_error", _BLOCK, content=_TEXT_BLOCKS),
        }
    ),
)
MESSAGES_OBJECTS: Objects = {
    "messages": _TURNS,
    "system": _TEXT_BLOCKS,
    "tools": _CLIENT_TOOLS,
    "tool_choice": _shape("type name disable_parallel_tool_use", {}),
}
