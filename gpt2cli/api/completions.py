"""The answer to `/v1/completions`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gpt2cli.api.answers import Answer, Offsets, State, finite, token_text
from gpt2cli.api.reading import Request
from gpt2cli.core.results import Chunk
from gpt2cli.core.sampling import TokenLogprobs


class Completion(Answer):
    """Texts, with their prompts where ``echo`` asks for them."""

    object = chunk_object = "text_completion"
    prefix = "cmpl"

    def __init__(self, request: Request, name: str | None = None) -> None:
        super().__init__(request, name)
        # The bos that stands for an empty prompt is listed, and is not in the text.
        prompts = [request.prompts[state.index // request.texts] for state in self.states]
        silent = [len(prompt.ids) if request.echo and not prompt.text else 0 for prompt in prompts]
        self._offsets = [
            Offsets(request.tokenizer, count, begins=request.echo or not prompt.text)
            for prompt, count in zip(prompts, silent, strict=True)
        ]

    def deltas(self, state: State, chunk: Chunk) -> Iterator[dict[str, Any]]:
        request, first = self.request, not state.begun
        text, ids = chunk.text, [] if chunk.token is None else [chunk.token]
        details: list[TokenLogprobs | None] = [chunk.logprobs] if chunk.logprobs is not None else []
        tokens = list(ids)
        if first and request.echo:
            prompt = request.prompts[state.index // request.texts]
            text = prompt.text + text
            tokens, details = [*prompt.ids, *tokens], [*self._prompt_details(state), *details]
        told = request.logprobs is not None or request.return_token_ids
        if not (text or (told and tokens) or chunk.finish_reason):
            return
        choice = {
            "index": state.index,
            "text": text,
            "logprobs": self._logprobs(state, tokens, details),
            **self.ending(state),
        }
        if request.return_token_ids:
            choice["token_ids"] = ids
            choice["prompt_token_ids"] = self._prompt_ids(state) if first else None
        yield choice

    def choice(self, state: State, index: int) -> dict[str, Any]:
        request = self.request
        text, tokens = "".join(state.text), state.ids
        details: list[TokenLogprobs | None] = list(state.logprobs)
        if request.echo:
            text = request.prompts[state.index // request.texts].text + text
            tokens, details = [*self._prompt_ids(state), *tokens], [*self._prompt_details(state), *details]
        choice = {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(state, tokens, details),
            **self.ending(state),
        }
        if request.return_token_ids:
            choice["token_ids"], choice["prompt_token_ids"] = state.ids, self._prompt_ids(state)
        return choice

    def _prompt_ids(self, state: State) -> list[int]:
        return self.request.prompts[state.index // self.request.texts].ids

    def _prompt_details(self, state: State) -> list[TokenLogprobs | None]:
        """Those of the prompt's tokens; of the first there are none, for nothing stands before it."""
        if self.request.logprobs is None:
            return []
        return [None, *self.scores[state.index // self.request.texts]]

    def _logprobs(
        self, state: State, tokens: Sequence[int], details: Sequence[TokenLogprobs | None]
    ) -> dict[str, Any] | None:
        """The four lists of the API. ``text_offset`` counts the characters of the text as it is returned."""
        if self.request.logprobs is None:
            return None
        tokenizer, offsets = self.request.tokenizer, self._offsets[state.index]
        likeliest: list[dict[str, float] | None] = []
        for token, detail in zip(tokens, details, strict=True):
            if detail is None:
                likeliest.append(None)
            else:
                pairs = [*detail.top[: self.request.logprobs], (token, detail.logprob)]
                likeliest.append({token_text(tokenizer, each): finite(value) for each, value in pairs})
        return {
            "tokens": [token_text(tokenizer, token) for token in tokens],
            "token_logprobs": [None if detail is None else finite(detail.logprob) for detail in details],
            "top_logprobs": likeliest,
            "text_offset": [offsets.next(token) for token in tokens],
        }
