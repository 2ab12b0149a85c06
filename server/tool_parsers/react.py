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
from server.parsing.source import Source, Steps, as_events
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
        start, middle = padded.rfind(_ACTION), padded.rfind(_INPUT)
        end = padded.find(_OBSERVATION, middle)
        end = len(padded) if end < 0 else end
        name = padded[start + len(_ACTION) : middle].strip()
        if not 0 <= start < middle or not name:
            if text:
                yield Content(text)
            return
        before = padded[len(padded) - len(text) : start]
        if before:
            yield Content(before)
        yield calls.start(source, name)
        yield calls.fragment(padded[middle + len(_INPUT) : end].strip() or "{}")


FORMAT = ToolFormat(
    React(),
    written=(Written(call="\nAction: {name}\nAction Input: ", trigger="\nAction:", most=1),),
    stop=("Observation:", "<|endoftext|>"),
)
