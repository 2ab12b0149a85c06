"""Reasoning between two tags, before everything else in the answer."""

from __future__ import annotations

from dataclasses import dataclass

from server.parsing.events import Content, Reasoning
from server.parsing.source import Source, Steps, as_events, trimmed


@dataclass(frozen=True, slots=True)
class TaggedReasoning:
    """White space inside the tags and after them belongs to the format and is left out.

    Attributes:
        opens, closes: The tags. The prompt may have the opening one already.
    """

    opens: str
    closes: str
    reopens: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.opens, self.closes)

    @property
    def ends(self) -> tuple[str, ...]:
        return (self.closes,)

    def is_open(self, prompt: str) -> bool:
        """Whether the prompt ends with the opening tag."""
        return prompt.rstrip().endswith(self.opens)

    def read(self, source: Source, is_open: bool) -> Steps[None]:
        """The grammar of a whole answer."""
        source.keep()
        yield from source.space()
        # A model may repeat the tag that its prompt has.
        is_repeated = bool((yield from source.accept(self.opens)))
        if not (is_open or is_repeated):
            source.rewind()
        else:
            source.commit()
            yield from self._reasoning(source)
            yield from source.space()
        yield from as_events(source.before(()), Content)

    def _reasoning(self, source: Source) -> Steps[None]:
        yield from source.space()
        yield from trimmed(source.before((self.closes,)), "", Reasoning)
        yield from source.accept(self.closes)
