"""A scripted engine that says what a test wants, in pieces of any size."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from rtpjax.engine.request import GenerationRequest, RequestOutput
from tests.server.scripted_engine import TEMPLATE, ScriptedEngine

# A template that renders tools, calls and results, in the manner of Qwen 3.
TOOL_TEMPLATE = (
    "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}\n{% endfor %}</tools>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.id }} {{ c.function.name }} "
    "{{ c.function.arguments | tojson }}</tool_call>{% endfor %}"
    "{% if m.role == 'tool' %} of {{ m.name }} {{ m.tool_call_id }}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class SpeakingEngine(ScriptedEngine):
    """Attributes:
    answer: The text of every answer.
    size: Characters per output.
    end: Its finish_reason.
    """

    max_model_len = 100_000

    def __init__(self, answer: str = "", *, template: str | None = TEMPLATE):
        super().__init__(template=template)
        self.answer = answer
        self.size = 5
        self.end = "stop"

    def prompt(self) -> str:
        """The last request's prompt."""
        ids = self.seen[-1].prompt_token_ids
        return self.tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False)

    async def _generate(self, request: GenerationRequest) -> AsyncGenerator[RequestOutput, None]:
        self.seen.append(request)
        pieces = [self.answer[i : i + self.size] for i in range(0, len(self.answer), self.size)]
        self.running.add(request.request_id)
        num_tokens, is_last = 0, False
        try:
            for number, piece in enumerate(pieces or [""]):
                is_last = number >= len(pieces) - 1
                token_ids = self.tokenizer.backend_tokenizer.encode(piece).ids
                num_tokens += len(token_ids)
                yield RequestOutput(
                    request_id=request.request_id,
                    text=piece,
                    token_ids=tuple(token_ids),
                    finish_reason=self.end if is_last else None,  # pyright: ignore
                    num_prompt_tokens=len(request.prompt_token_ids),
                    num_output_tokens=num_tokens,
                    stop_reason=self.stop_with if is_last else None,
                )
        finally:
            self.running.discard(request.request_id)
            if not is_last:
                self.aborted.append(request.request_id)
