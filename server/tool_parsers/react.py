"""ReAct, which Qwen 1, 1.5 and 2 were trained on for `functions`.

Thought: I should look it up.
Action: f
Action Input: {"a": 1}
Observation:
"""

from __future__ import annotations

from dataclasses import dataclass

from server.parsing.calls import Calls
from server.parsing.events import Content
from server.parsing.source import Source, Steps, as_events, partial_mark
from server.parsing.written import Written
from server.tool_parsers import ToolFormat

_ACTION, _INPUT, _OBSERVATION = "\nAction:", "\nAction Input:", "\nObservation:"


@dataclass(frozen=True, slots=True)
class React:
    """The last action of an answer is its call, so an action is held until the answer ends."""

    marks: tuple[str, ...] = ()

    def read(self, source: Source, calls: Calls) -> Steps[None]:
        """The grammar of a whole answer."""
        begins = yield from source.starts_with((_ACTION.lstrip(),))
        if not begins:
            yield from as_events(source.before((_ACTION,)), Content)
        text, _ = yield from source.collect(())
        # The model's first line has no line break before it.
        padded = "\n" + text if begins else text
        if source.is_cut:
            padded = padded[: partial_mark(padded, 0, len(padded), (_OBSERVATION,))]
        start, middle = padded.rfind(_ACTION), padded.rfind(_INPUT)
        end = padded.find(_OBSERVATION, middle)
        is_cut = source.is_cut and end < 0
        name = padded[start + len(_ACTION) : middle].strip()
        is_call = 0 <= start < middle and name != ""
        calls.was_cut = is_cut and (is_call or (start >= 0 and calls.is_certain(padded[start:])))
        if not is_call and not calls.was_cut:
            if text:
                yield Content(text)
            return
        before = padded[len(begins) > 0 : start]
        if before:
            yield Content(before)
        arguments = padded[middle + len(_INPUT) : end if end >= 0 else len(padded)].strip()
        if not arguments and not is_cut:
            arguments = "{}"
        if is_call and arguments:
            yield calls.start(source, name)
            yield calls.fragment(arguments)


FORMAT = ToolFormat(
    React(),
    written=(Written(call="\nAction: {name}\nAction Input: ", trigger="\nAction:", most=1),),
    stop=("Observation:", "<|endoftext|>"),
)
