"""What the `openai` package does with our server, of whatever version. Arguments: the address, and a key."""

from __future__ import annotations

import asyncio
import sys

import openai

address, key = sys.argv[1:3]
client = openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=60)

# Completions, whole and streamed.
whole = client.completions.create(model="tiny", prompt="Once upon a time", seed=7, max_tokens=12, logprobs=2)
assert whole.object == "text_completion" and whole.choices[0].finish_reason == "length"
assert whole.usage is not None and whole.usage.completion_tokens == 12
assert whole.choices[0].logprobs is not None and len(whole.choices[0].logprobs.tokens or []) == 12
stream = client.completions.create(
    model="tiny",
    prompt="Once upon a time",
    seed=7,
    max_tokens=12,
    stream=True,
    stream_options={"include_usage": True},
)
chunks = list(stream)
text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
assert text == whole.choices[0].text, (text, whole)
assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 12
several = client.completions.create(
    model="tiny",
    prompt=["Once", "Suddenly"],
    n=2,
    best_of=3,
    max_tokens=5,
    echo=True,
    stop=["."],
    top_p=0.9,
    presence_penalty=0.5,
    frequency_penalty=0.5,
    logit_bias={"50": 1},
    user="me",
    extra_body={"top_k": 5},
)
assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
assert several.choices[2].text.startswith("Suddenly")

# Chat.
messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
chat = client.chat.completions.create(
    model="tiny",
    messages=messages,
    seed=3,
    max_completion_tokens=9,
    logprobs=True,
    top_logprobs=2,  # type: ignore[arg-type]
)
assert chat.choices[0].message.role == "assistant" and chat.choices[0].logprobs is not None
parts = client.chat.completions.create(
    model="tiny",
    messages=messages,
    seed=3,
    max_tokens=9,
    stream=True,  # type: ignore[arg-type]
)
said = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
assert said == chat.choices[0].message.content, (said, chat)

# Embeddings come as base64 unless something else is asked for.
vectors = client.embeddings.create(model="tiny", input=["Hello", "there"])
floats = client.embeddings.create(model="tiny", input="Hello", encoding_format="float")
assert len(vectors.data) == 2
pairs = zip(vectors.data[0].embedding, floats.data[0].embedding, strict=True)
assert all(abs(a - b) < 1e-6 for a, b in pairs)

# Models, and errors by their classes.
assert [model.id for model in client.models.list()] == ["tiny"]
assert client.models.retrieve("tiny").id == "tiny"


def fails(kind: type[Exception], **fields: object) -> openai.APIError:
    try:
        client.completions.create(**{"model": "tiny", "prompt": "a", **fields})  # type: ignore[call-overload]
    except kind as error:
        assert isinstance(error, openai.APIError)
        return error
    raise AssertionError(f"no {kind.__name__} for {fields}")


assert fails(openai.BadRequestError, n=1000).param == "n"
assert fails(openai.BadRequestError, prompt="word " * 2000).code == "context_length_exceeded"
assert fails(openai.NotFoundError, model="gpt-5").code == "model_not_found"
try:
    openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0).models.list()
except openai.AuthenticationError as error:
    assert error.code == "invalid_api_key"
else:
    raise AssertionError("a wrong key was taken")

# A timeout, after which the slot is free for the next one.
impatient = client.with_options(timeout=0.05)
try:
    impatient.completions.create(model="tiny", prompt="Once", n=30, max_tokens=400, logit_bias={"0": -100})
except openai.APITimeoutError:
    pass
else:
    raise AssertionError("it was not slow")

# Retries: more at once than may wait, and each of them is answered in the end.
many = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=key, max_retries=30, timeout=60)


async def all_at_once() -> list[str]:
    async with many:
        asked = [
            many.completions.create(model="tiny", prompt="Once", seed=n % 3, max_tokens=20) for n in range(24)
        ]
        return [answer.choices[0].text for answer in await asyncio.gather(*asked)]


texts = asyncio.run(all_at_once())
assert len(set(texts)) == 3 and texts[:3] * 8 == texts

# A stream that is left in the middle.
left = client.completions.create(model="tiny", prompt="Once", max_tokens=400, stream=True)
next(iter(left))
left.close()
print("fine", openai.__version__)
