"""`/v1/chat/completions`: messages as one text for a model that continues texts, and the answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpt2cli.api.answers import Answer, State, finite, token_text
from gpt2cli.api.bodies import CHAT_REFUSED
from gpt2cli.api.errors import ApiError
from gpt2cli.api.models import Served
from gpt2cli.api.reading import (
    Prompt,
    Request,
    check_length,
    check_text,
    given,
    read_options,
    read_seed,
    split,
)
from gpt2cli.core.engine import Engine
from gpt2cli.core.results import Chunk
from gpt2cli.core.sampling import TokenLogprobs
from gpt2cli.repl.formats import Answer as AnswerPart
from gpt2cli.repl.formats import Format, Special, runs
from gpt2cli.repl.tree import Turn


def read_chat(body: Mapping[str, Any], model: Served) -> Request:
    """What a body that is as the schema says asks for. Raises `ApiError`, `Gpt2cliError`."""
    for name in CHAT_REFUSED:
        if body.get(name):
            raise ApiError(400, f"{name}: there are none here", param=name)
    form = given(body, "response_format", {"type": "text"})
    if form.get("type") != "text":
        raise ApiError(400, "response_format: only text can be asked for", param="response_format")
    top = body.get("top_logprobs")
    if top is not None and not body.get("logprobs"):
        raise ApiError(400, "top_logprobs: logprobs must be true for it", param="top_logprobs")
    engine = model.ready
    ids = message_ids(engine, model.format, given(body, "messages"))
    most = given(body, "max_completion_tokens", body.get("max_tokens"))
    wanted = engine.config.n_positions if most is None else most
    if wanted < 1:
        raise ApiError(400, "max_tokens: an answer has at least one token", param="max_tokens")
    logprobs = (top or 0) if body.get("logprobs") else None
    n, seed = given(body, "n", 1), read_seed(body)
    options = read_options(body, model, wanted, n, logprobs=logprobs, stops=model.format.stops)
    _, _, new = engine.prepare(ids, options)
    return Request(
        model,
        [Prompt(ids, "")],
        list(split(engine, 0, ids, options, new, seed, None, model.budget)),
        seed,
        n,
        n,
        given(body, "stream", False),
        bool(given(given(body, "stream_options", {}), "include_usage", False)),
        logprobs=logprobs,
        return_token_ids=given(body, "return_token_ids", False),
        options=options,
    )


def message_ids(engine: Engine, form: Format, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """The conversation as the model sees it, ready for an answer. Raises `ApiError`, `Gpt2cliError`."""
    ids: list[int] = []
    for message in messages:
        check_length(engine, _text(message["content"]))
    parts = form.layout(*_turns(messages))
    if any(isinstance(part, Special) for part in parts):
        # A template's text is one: an answer is tokenised with what stands around it.
        parts = [part.turn.answer if isinstance(part, AnswerPart) else part for part in parts]
    for part in runs(parts):
        if isinstance(part, int):
            ids.append(part)
        elif isinstance(part, AnswerPart):
            answer = part.turn.answer
            ids += engine.encode(form.lead + answer, continues=bool(ids)) if answer else []
        elif isinstance(part, list):
            ids += engine.encode_parts(part, continues=bool(ids)) if part else []
        elif isinstance(part, str) and part:
            ids += engine.encode(part, continues=bool(ids))
    return ids or engine.encode("")


def _turns(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[Turn], str]:
    """The system text, the turns, and what is to be answered. Texts of one speaker in a row are joined."""
    system: list[str] = []
    said: list[tuple[str, list[str]]] = []
    for number, message in enumerate(messages):
        role, text = message["role"], _text(message["content"])
        check_text(text, f"messages[{number}].content")
        if role in ("system", "developer"):
            if said:
                raise ApiError(400, "messages: what the system says comes first", param="messages")
            system.append(text)
        elif said and said[-1][0] == role:
            said[-1][1].append(text)
        else:
            said.append((role, [text]))
    if not said or said[-1][0] != "user":
        raise ApiError(400, "messages: the last one is to be the user's", param="messages")
    if said[0][0] == "assistant":
        said.insert(0, ("user", [""]))
    texts = ["\n".join(parts) for _, parts in said]
    turns = [
        Turn(id=n, parent=None, user=user, answer=answer.strip(), answer_ids=(), seed=0)
        for n, (user, answer) in enumerate(zip(texts[:-1:2], texts[1::2], strict=True))
    ]
    return "\n\n".join(system), turns, texts[-1]


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


class Stripped:
    """A text that comes in pieces, without white space around it."""

    def __init__(self) -> None:
        self._begun, self._held = False, ""

    def push(self, text: str) -> str:
        """What can be said now: white space at the end may turn out to be in the middle."""
        text = self._held + (text if self._begun else text.lstrip())
        said = text.rstrip()
        self._begun = self._begun or bool(said)
        self._held = text[len(said) :] if self._begun else ""
        return said


class ChatCompletion(Answer):
    """Messages of the assistant."""

    object, chunk_object, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, request: Request, name: str | None = None) -> None:
        super().__init__(request, name)
        strips = request.model.format.strips
        self._stripped = [Stripped() if strips else None for _ in self.states]

    def deltas(self, state: State, chunk: Chunk) -> Iterator[dict[str, Any]]:
        delta: dict[str, Any] = {} if state.begun else {"role": "assistant", "content": ""}
        stripped = self._stripped[state.index]
        text = chunk.text if stripped is None else stripped.push(chunk.text)
        tokens = [] if chunk.token is None else [chunk.token]
        details = [] if chunk.logprobs is None else [chunk.logprobs]
        if text:
            delta["content"] = text
        if not (delta or details or chunk.finish_reason or (tokens and self.request.return_token_ids)):
            return
        choice = {
            "index": state.index,
            "delta": delta,
            "logprobs": self._logprobs(tokens, details),
            **self.ending(state),
        }
        if self.request.return_token_ids:
            choice["token_ids"] = tokens
        yield choice

    def choice(self, state: State, index: int) -> dict[str, Any]:
        text = "".join(state.text)
        content = text.strip() if self.request.model.format.strips else text
        choice = {
            "index": index,
            "message": {"role": "assistant", "content": content, "refusal": None},
            "logprobs": self._logprobs(state.ids, state.logprobs),
            **self.ending(state),
        }
        if self.request.return_token_ids:
            choice["token_ids"] = state.ids
            choice["prompt_token_ids"] = self.request.prompts[0].ids
        return choice

    def _logprobs(self, tokens: Sequence[int], details: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        if self.request.logprobs is None:
            return None
        content = [
            {
                **self._entry(token, detail.logprob),
                "top_logprobs": [self._entry(*pair) for pair in detail.top],
            }
            for token, detail in zip(tokens, details, strict=True)
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        tokenizer = self.request.tokenizer
        text = token_text(tokenizer, token)
        data = tokenizer.token_bytes(token)
        return {"token": text, "logprob": finite(logprob), "bytes": list(data)}
