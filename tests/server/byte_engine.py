"""A scripted engine whose tokens are bytes, with texts from the engine's own detokenizer."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from rtpjax.engine.detokenizer import Detokenizer
from rtpjax.engine.request import GenerationRequest, RequestOutput, TokenLogprob
from server.token_text import TokenText
from tests.server.scripted_engine import ScriptedEngine


class ByteEngine(ScriptedEngine):
    """Answers with one text, a token for each byte of it (special ones are one token).

    Attributes:
        others: What is likeliest beside the right token; by default single bytes that are no text.
    """

    def __init__(self, answer: str):
        super().__init__()
        self.answer = answer
        self._tokens = TokenText(self.tokenizer)
        self.others = [i for i in range(len(self.tokenizer)) if self.text_of(i) is None][:20]

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.backend_tokenizer.encode(text).ids

    def bytes_of(self, token_id: int) -> bytes:
        return self._tokens.bytes_of(token_id)

    def text_of(self, token_id: int) -> str | None:
        return self._tokens.whole_text_of(token_id)

    async def _generate(self, request: GenerationRequest) -> AsyncGenerator[RequestOutput, None]:
        sampling = request.sampling
        detokenizer = Detokenizer(
            self.tokenizer,
            prompt_token_ids=request.prompt_token_ids,
            skip_special_tokens=sampling.skip_special_tokens,
        )
        ids = self.ids(self.answer)
        for position, token_id in enumerate(ids):
            is_last = position == len(ids) - 1
            text = detokenizer.push([token_id]) + (detokenizer.finish() if is_last else "")
            prompt_logprobs = None
            if sampling.prompt_logprobs is not None and position == 0:
                scored = [
                    self._entry(i, sampling.prompt_logprobs) for i in request.prompt_token_ids
                ]
                prompt_logprobs = (None, *scored[1:])
            yield RequestOutput(
                request_id=request.request_id,
                text=text,
                token_ids=(token_id,),
                logprobs=(self._entry(token_id, sampling.logprobs or 0),),
                finish_reason="stop" if is_last else None,
                num_prompt_tokens=len(request.prompt_token_ids),
                num_output_tokens=position + 1,
                prompt_logprobs=prompt_logprobs,
            )

    def _entry(self, token_id: int, num_top: int) -> TokenLogprob:
        others = [(i, -1.0 - n) for n, i in enumerate(self.others) if i != token_id]
        return TokenLogprob(token_id, -0.5, tuple([(token_id, -0.5), *others][:num_top]))
