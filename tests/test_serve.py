"""`gpt2cli serve`: what its endpoints answer, asked over real sockets of a real process."""

from __future__ import annotations

import base64
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from cli import call
from serving import Server, ask_on, serving
from support import END_OF_TEXT_ID, load_on, load_torch, make_model, native_available, text_logits

from gpt2cli.api import bodies
from gpt2cli.core.engine import Engine
from gpt2cli.options import GenerateOptions, LoadOptions

CONTEXT = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("served") / "small")


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    with serving("-m", model, "-m", "tiny", "--precision", "fp32", "--threads", "1") as running:
        yield running


@pytest.fixture(scope="module")
def engine(model: Path) -> Engine:
    return Engine.load(model, LoadOptions(precision="fp32", threads=1))


def texts(engine: Engine, prompt: Any, **options: Any) -> list[str]:
    """What the engine itself draws."""
    result = engine.generate(prompt, engine.options(**options))
    return [choice.text for choice in result.choices]


class TestCompletions:
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        ("fields", "options"),
        [
            ({}, {}),
            ({"n": 3}, {"num_return_sequences": 3}),
            ({"n": 11, "max_tokens": 4}, {"num_return_sequences": 11, "max_new_tokens": 4}),
            ({"temperature": 0}, {"temperature": 0.0}),
            ({"temperature": 0.6, "top_p": 0.9, "top_k": -1}, {"temperature": 0.6, "top_p": 0.9, "top_k": 0}),
            ({"top_k": 7, "min_p": 0.02, "typical_p": 0.9}, {"top_k": 7, "min_p": 0.02, "typical_p": 0.9}),
            (
                {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
                {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
            ),
            (
                {"presence_penalty": 1, "frequency_penalty": -0.5, "logit_bias": {"70": 3, "71": -100}},
                {"presence_penalty": 1, "frequency_penalty": -0.5, "logit_bias": ((70, 3), (71, -100))},
            ),
            ({"stop": "e"}, {"stop": ("e",)}),
            (
                {"stop": ["e", "\x00", "ab"], "ignore_eos": True},
                {"stop": ("e", "\x00", "ab"), "ignore_eos": True},
            ),
        ],
        ids=lambda part: ",".join(part) or "plain",
    )
    def test_the_text_is_the_engines(
        self, server: Server, engine: Engine, fields: dict[str, Any], options: dict[str, Any], stream: bool
    ) -> None:
        """To the last byte, for each option, whole and streamed."""
        answer = server.complete("ab", **{"seed": 7, "max_tokens": 30, **fields}, stream=stream)
        assert answer.texts == texts(engine, "ab", **{"seed": 7, "max_new_tokens": 30, **options})

    def test_it_is_what_generate_prints(self, server: Server, model: Path) -> None:
        outcome = call(
            *("generate", "-m", model, "--precision", "fp32", "--json", "--seed", "5", "-n", "2"),
            *("--max-new-tokens", "20", "ab"),
        )
        document = server.complete("ab", seed=5, n=2, max_tokens=20, return_token_ids=True).document
        for ours, printed in zip(document["choices"], outcome.document["choices"], strict=True):
            assert (ours["text"], ours["token_ids"], ours["seed"], ours["stop_reason"]) == (
                printed["text"],
                printed["token_ids"],
                printed["seed"],
                printed["finish_reason"],
            )
        assert document["usage"]["completion_tokens"] == outcome.document["usage"]["completion_tokens"]

    def test_prompts_of_all_kinds(self, server: Server, engine: Engine) -> None:
        """A text, several, ids, lists of ids; each text as it is alone."""
        ids = engine.encode("ab")
        expected = texts(engine, "ab", seed=3, max_new_tokens=9)
        other = texts(engine, "xyz", seed=3, max_new_tokens=9)
        for prompt, wanted in (
            ("ab", expected),
            (["ab"], expected),
            (["ab", "xyz", "ab"], [*expected, *other, *expected]),
            (ids, expected),
            ([ids, engine.encode("xyz")], [*expected, *other]),
        ):
            document = server.complete(prompt, seed=3, max_tokens=9).document
            assert [choice["text"] for choice in document["choices"]] == wanted
            assert [choice["index"] for choice in document["choices"]] == [*range(len(wanted))]
        several = server.complete(["ab", "xyz"], n=2, seed=3, max_tokens=9)
        assert several.texts == [
            text
            for prompt in ("ab", "xyz")
            for text in texts(engine, prompt, seed=3, num_return_sequences=2, max_new_tokens=9)
        ]

    def test_an_empty_prompt_starts_from_bos(self, server: Server, engine: Engine) -> None:
        expected = texts(engine, [END_OF_TEXT_ID], seed=3, max_new_tokens=9)
        for prompt in ("", None, [END_OF_TEXT_ID]):
            assert server.complete(prompt, seed=3, max_tokens=9).texts == expected

    @pytest.mark.parametrize("seed", [2**32 + 7, 2**63 - 1, -1, -(2**63), 2**32 - 1])
    def test_seeds_are_folded(self, server: Server, engine: Engine, seed: int) -> None:
        """Each text says the seed that draws it alone, also where they pass the largest."""
        document = server.complete("ab", seed=seed, n=3, max_tokens=8).document
        folded = [(seed + n) % 2**32 for n in range(3)]
        assert [choice["seed"] for choice in document["choices"]] == folded
        expected = [texts(engine, "ab", seed=each, max_new_tokens=8)[0] for each in folded]
        assert [choice["text"] for choice in document["choices"]] == expected

    def test_without_a_seed_one_is_drawn_and_said(self, server: Server, engine: Engine) -> None:
        answers = [server.complete("ab", max_tokens=12).document["choices"][0] for _ in range(3)]
        assert len({answer["seed"] for answer in answers}) == 3
        for answer in answers:
            assert [answer["text"]] == texts(engine, "ab", seed=answer["seed"], max_new_tokens=12)

    def test_reasons(self, server: Server, engine: Engine) -> None:
        """OpenAI's two words, and ours."""
        found = {}
        for fields in (
            {"max_tokens": 3},
            {"max_tokens": 1000, "ignore_eos": True},
            {"logit_bias": {str(END_OF_TEXT_ID): 100}, "temperature": 0},
            {"logit_bias": {"70": 100}, "temperature": 0, "stop": engine.tokenizer.decode([70] * 3)},  # type: ignore[union-attr]
        ):
            choice = server.complete("ab", seed=1, **fields).document["choices"][0]
            found[choice["stop_reason"]] = choice["finish_reason"]
        assert found == {"length": "length", "context": "length", "eos": "stop", "stop": "stop"}

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("echo", [False, True])
    @pytest.mark.parametrize("logprobs", [0, 1, 5])
    def test_logprobs(self, server: Server, model: Path, stream: bool, echo: bool, logprobs: int) -> None:
        """Against torch: of each token, and of the likeliest; where each begins in the text."""
        prompt = "aé b"
        answer = server.complete(
            prompt, seed=4, max_tokens=12, logprobs=logprobs, echo=echo, stream=stream, return_token_ids=True
        )
        events = answer.events if stream else [answer.document]
        text = "".join(event["choices"][0]["text"] for event in events)
        ids = [token for event in events for token in event["choices"][0]["token_ids"]]
        begun = events[0]["choices"][0]["prompt_token_ids"]
        found: dict[str, list[Any]] = {}
        for event in events:
            for name, values in event["choices"][0]["logprobs"].items():
                found.setdefault(name, []).extend(values)
        whole = [*begun, *ids]
        (logits,) = text_logits(load_torch(model), whole)
        expected = logits.double().log_softmax(-1)
        first = 1 if echo else len(begun)
        if echo:
            assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
        assert found["token_logprobs"][int(echo) :] == pytest.approx(
            [float(expected[at - 1][whole[at]]) for at in range(first, len(whole))], abs=1e-4
        )
        for at, top in zip(range(first, len(whole)), found["top_logprobs"][int(echo) :], strict=True):
            best = expected[at - 1].topk(logprobs).values.tolist() if logprobs else []
            own = float(expected[at - 1][whole[at]])
            wanted = sorted({round(value, 3) for value in [*best, own]}, reverse=True)
            assert sorted((round(value, 3) for value in top.values()), reverse=True) == pytest.approx(
                wanted, abs=2e-3
            )
        assert text.startswith(prompt) == echo
        assert len(found["tokens"]) == len(found["text_offset"]) == len(whole) - first + int(echo)
        for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
            if not token.startswith("bytes:"):
                assert text[offset : offset + len(token)] == token

    @pytest.mark.parametrize("most", [0, 1])
    def test_a_prompt_is_scored(self, server: Server, model: Path, most: int) -> None:
        """`echo` with nothing to draw: what lm-eval asks for. The context may be full."""
        prompt = "x" * (CONTEXT - most)
        document = server.complete(prompt, echo=True, logprobs=1, max_tokens=most, temperature=0).document
        choice = document["choices"][0]
        outcome = call("score", "-m", model, "--json", "--precision", "fp32", prompt)
        nll = -sum(value for value in choice["logprobs"]["token_logprobs"][1 : len(prompt)])
        assert nll == pytest.approx(outcome.document["total"]["nll"], rel=1e-5)
        assert len(choice["logprobs"]["tokens"]) == CONTEXT
        assert document["usage"]["completion_tokens"] == most
        for top, value in zip(
            choice["logprobs"]["top_logprobs"][1:], choice["logprobs"]["token_logprobs"][1:], strict=True
        ):
            assert max(top.values()) >= value

    def test_a_prompt_that_is_too_long(self, server: Server) -> None:
        error = server.complete("x" * CONTEXT, max_tokens=1).error
        assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
        assert server.complete("x" * (CONTEXT + 1), max_tokens=0, echo=True).status == 400
        assert server.complete("x" * 100_000, max_tokens=5).status == 400

    def test_the_best_of_several(self, server: Server) -> None:
        """Those of the highest mean log-probability, the best first."""
        every = server.complete("ab", seed=9, n=6, max_tokens=10, logprobs=0).document["choices"]

        def mean(choice: dict[str, Any]) -> float:
            values = choice["logprobs"]["token_logprobs"]
            return float(np.mean(values)) if values else float("-inf")

        wanted = sorted(every, key=mean, reverse=True)[:2]
        document = server.complete("ab", seed=9, n=2, best_of=6, max_tokens=10).document
        assert [choice["text"] for choice in document["choices"]] == [choice["text"] for choice in wanted]
        assert [choice["seed"] for choice in document["choices"]] == [choice["seed"] for choice in wanted]
        assert [choice["index"] for choice in document["choices"]] == [0, 1]
        drawn = sum(len(choice["logprobs"]["tokens"]) for choice in every)
        assert document["usage"]["completion_tokens"] == drawn
        assert server.complete("ab", n=3, best_of=2).error["param"] == "best_of"
        assert server.complete("ab", n=1, best_of=2, stream=True).error["param"] == "best_of"

    def test_a_stream(self, server: Server) -> None:
        """ASCII, one head, a reason once for each text, usage in a last chunk without choices."""
        answer = server.complete(
            ["é", "ab"], n=2, seed=2, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
        assert answer.headers["content-type"].startswith("text/event-stream")
        *events, last = answer.events
        assert len({(event["id"], event["created"], event["model"]) for event in events}) == 1
        assert all(event["usage"] is None for event in events)
        assert last["choices"] == [] and last["usage"]["prompt_tokens"] == 4
        reasons = [
            (c["index"], c["finish_reason"]) for e in events for c in e["choices"] if c["finish_reason"]
        ]
        assert sorted(index for index, _ in reasons) == [0, 1, 2, 3]
        plain = server.complete("ab", seed=2, max_tokens=8, stream=True)
        assert all("usage" not in event for event in plain.events)

    def test_a_second_model(self, server: Server) -> None:
        document = server.complete("Once upon a time", model="tiny", seed=1, max_tokens=20).document
        assert document["model"] == "tiny"
        outcome = call(
            *("generate", "-m", "tiny", "--precision", "fp32", "--json", "--seed", "1"),
            *("--max-new-tokens", "20", "Once upon a time"),
        )
        assert document["choices"][0]["text"] == outcome.document["choices"][0]["text"]

    def test_prompts_that_begin_alike_are_read_once(self, server: Server) -> None:
        """And the text stays what it is."""
        prompt = "Once upon a time there was a small boat that wanted to see the whole wide sea."
        first = server.complete(prompt, model="tiny", seed=3, max_tokens=24).document
        again = server.complete(prompt, model="tiny", seed=3, max_tokens=24).document
        longer = prompt + first["choices"][0]["text"]
        on = server.complete(longer, model="tiny", seed=4, max_tokens=4).document
        assert again["choices"][0]["text"] == first["choices"][0]["text"]
        read = again["usage"]["prompt_tokens"]
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == read - 1
        assert on["usage"]["prompt_tokens_details"]["cached_tokens"] >= read


REFUSED: list[tuple[dict[str, Any], str | None]] = [
    ({"model": "gpt-4"}, "model"),
    ({"model": "../../etc/passwd"}, "model"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt[0]"),
    ({"prompt": ["a", 1]}, "prompt[0]"),
    ({"prompt": [300]}, "prompt"),
    ({"prompt": [300], "max_tokens": 0}, "prompt"),
    ({"prompt": "a\ud800"}, "prompt"),
    ({"prompt": ["x"] * 257}, "prompt"),
    ({"prompt": ["x"] * 200, "n": 3}, "n"),
    ({"n": 129}, "n"),
    ({"n": 0}, "n"),
    ({"n": True}, "n"),
    ({"n": 2, "temperature": 0}, "n"),
    ({"logprobs": 6}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": [""]}, "stop[0]"),
    ({"stop": "x" * 513}, "stop"),
    ({"suffix": "the end"}, "suffix"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": 1e-9}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"seed": 2**64}, "seed"),
    ({"logit_bias": {"257": 1}}, "logit_bias"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1"),
    ({"stream_options": {"what": True}}, "stream_options.what"),
    ({"temprature": 1}, "temprature"),
    ({"template": "{{ 1 }}"}, "template"),
]


class TestRefusals:
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(("fields", "param"), REFUSED, ids=lambda part: str(part)[:40])
    def test_before_the_first_byte(
        self, server: Server, fields: dict[str, Any], param: str | None, stream: bool
    ) -> None:
        """With the status of an error, also where a stream was asked for; and the field is named."""
        answer = server.post("/v1/completions", {"prompt": "a", "stream": stream, **fields})
        assert answer.status == (404 if param == "model" else 400), answer.body
        assert answer.error["param"] == param
        assert len(answer.error["message"]) < 300

    @pytest.mark.parametrize(
        "body",
        [
            *(b"", b"{", b"[]", b"null", b"5", b'"x"', b'{"prompt": NaN}', b'{"prompt": "a", "n": Infinity}'),
            *(b"\xff\xfe", b"[" * 100_000, b'{"prompt": ' + b"9" * 5000 + b"}", b'{"prompt": "a"} x'),
        ],
        ids=lambda body: str(body)[:20],
    )
    def test_what_is_no_request(self, server: Server, body: bytes) -> None:
        assert server.ask("POST", "/v1/completions", body).status == 400

    def test_methods_and_paths(self, server: Server) -> None:
        for method, path, status in (
            ("GET", "/v1/completions", 405),
            ("DELETE", "/v1/models", 405),
            ("OPTIONS", "/v1/completions", 405),
            ("GET", "/", 404),
            ("GET", "/v1/models/nothing", 404),
            ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404),
            ("POST", "/v1/completions/", 404),
        ):
            answer = server.ask(method, path)
            assert answer.status == status and answer.error["message"], (method, path)

    def test_only_json(self, server: Server) -> None:
        """A form of a web page is none, and no page can send JSON without asking first."""
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
            assert server.ask("POST", "/v1/completions", b'{"prompt": "a"}', content_type=kind).status == 415
        answer = server.ask("POST", "/v1/completions", b"x", content_encoding="gzip")
        assert answer.status == 415

    def test_a_connection_goes_on_after_an_error(self, server: Server) -> None:
        connection = server.connect()
        for _ in range(3):
            assert ask_on(connection, "POST", "/v1/completions", {"n": 0}).status == 400
            assert ask_on(connection, "GET", "/v1/models").status == 200
        connection.close()


class TestChat:
    def test_a_transcript(self, server: Server, engine: Engine) -> None:
        """Messages become lines of speakers; the answer ends where the next one would speak."""
        messages = [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Yes?"},
            {"role": "user", "content": [{"type": "text", "text": "Go"}]},
        ]
        text = "Be kind.\n\nUser: Hi\nAssistant: Yes?\nUser: Go\nAssistant:"
        (expected,) = texts(engine, text, seed=6, max_new_tokens=12, stop=("\nUser:", "\nAssistant:"))
        body = {"messages": messages, "seed": 6, "max_tokens": 12}
        document = server.post("/v1/chat/completions", body).document
        assert document["object"] == "chat.completion"
        assert document["choices"][0]["message"]["content"] == expected.strip()
        events = server.post("/v1/chat/completions", {**body, "stream": True}).events
        assert events[0]["object"] == "chat.completion.chunk"
        deltas = [event["choices"][0]["delta"] for event in events]
        assert deltas[0]["role"] == "assistant" and all("role" not in delta for delta in deltas[1:])
        assert "".join(delta.get("content", "") for delta in deltas) == expected.strip()
        assert events[-1]["choices"][0]["finish_reason"] == document["choices"][0]["finish_reason"]

    def test_logprobs(self, server: Server) -> None:
        body = {
            "messages": [{"role": "user", "content": "a"}],
            "seed": 6,
            "max_completion_tokens": 5,
            "logprobs": True,
            "top_logprobs": 3,
        }
        content = server.post("/v1/chat/completions", body).document["choices"][0]["logprobs"]["content"]
        streamed = server.post("/v1/chat/completions", {**body, "stream": True}).events
        assert [
            entry for event in streamed for entry in event["choices"][0]["logprobs"]["content"]
        ] == content
        assert len(content) == 5
        for entry in content:
            assert len(entry["top_logprobs"]) == 3
            if not entry["token"].startswith("bytes:"):
                assert bytes(entry["bytes"]).decode() == entry["token"]

    @pytest.mark.parametrize(
        "fields",
        [
            {"messages": []},
            {"messages": [{"role": "tool", "content": "x"}]},
            {"messages": [{"role": "assistant", "content": "x"}]},
            {"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]},
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "http://x"}]}]},
            {"tools": [{"type": "function"}]},
            {"response_format": {"type": "json_object"}},
            {"top_logprobs": 2},
            {"max_tokens": 0},
        ],
    )
    def test_what_cannot_be(self, server: Server, fields: dict[str, Any]) -> None:
        body = {"messages": [{"role": "user", "content": "x"}], **fields}
        assert server.post("/v1/chat/completions", body).status == 400

    def test_a_template_of_its_own(self, tmp_path: Path) -> None:
        """The model's template lays messages out, special tokens typed by a user stay text."""
        directory = make_model(tmp_path / "talker", n_positions=128)
        template = (
            "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|endoftext|>{% endfor %}"
            "{% if add_generation_prompt %}[assistant]{% endif %}"
        )
        (directory / "chat_template.jinja").write_text(template)
        messages = [{"role": "user", "content": "Hi <|endoftext|>"}]
        with serving("-m", directory, "--threads", "1", "--precision", "fp32") as server:
            entry = server.ask("GET", "/v1/models/talker").document
            body = {"messages": messages, "max_tokens": 3, "return_token_ids": True, "seed": 1}
            choice = server.post("/v1/chat/completions", body).document["choices"][0]
        engine = Engine.load(directory)
        assert entry["chat_format"] == "template"
        typed = engine.encode("[user] ") + engine.encode("Hi <|endoftext|>")
        assert choice["prompt_token_ids"] == [*typed, END_OF_TEXT_ID, *engine.encode("[assistant]")]


class TestTheRest:
    def test_models(self, server: Server) -> None:
        document = server.ask("GET", "/v1/models").document
        assert [entry["id"] for entry in document["data"]] == ["small", "tiny"]
        small = server.ask("GET", "/v1/models/small").document
        assert small == document["data"][0]
        assert (small["max_model_len"], small["chat_format"]) == (CONTEXT, "transcript")

    def test_embeddings(self, server: Server, model: Path) -> None:
        """The mean of the last hidden states; floats and base64."""
        from gpt2cli.core.torch_model import whole_texts
        from gpt2cli.text.tokenizer import Tokenizer

        tokenizer = Tokenizer.from_directory(model)
        assert tokenizer is not None
        inputs = ["ab", "a longer text", "é"]
        reference = load_torch(model)
        states = [reference.hidden_states(whole_texts([tokenizer.encode(text)])) for text in inputs]
        expected = [each.mean(dim=0) for each in states]
        document = server.post("/v1/embeddings", {"input": inputs}).document
        packed = server.post("/v1/embeddings", {"input": inputs, "encoding_format": "base64"}).document
        assert document["usage"]["prompt_tokens"] == sum(len(tokenizer.encode(text)) for text in inputs)
        for index, wanted in enumerate(expected):
            found = document["data"][index]["embedding"]
            assert np.allclose(found, wanted.numpy(), atol=1e-5)
            data = base64.b64decode(packed["data"][index]["embedding"])
            assert list(struct.unpack(f"<{len(found)}f", data)) == pytest.approx(found)
        ids = server.post("/v1/embeddings", {"input": [tokenizer.encode("ab")]}).document
        assert ids["data"][0]["embedding"] == document["data"][0]["embedding"]
        assert server.post("/v1/embeddings", {"input": "a", "dimensions": 7}).error["param"] == "dimensions"
        assert server.post("/v1/embeddings", {"input": "x" * 65}).status == 400
        assert server.post("/v1/embeddings", {"input": [300]}).status == 400

    def test_tokens_and_back(self, server: Server) -> None:
        text = "Once upon a time, é 🚀 <|endoftext|>"
        document = server.post(
            "/tokenize", {"prompt": text, "model": "tiny", "return_token_strs": True}
        ).document
        assert document["count"] == len(document["tokens"]) == len(document["token_strs"])
        back = server.post("/detokenize", {"tokens": document["tokens"], "model": "tiny"}).document
        assert back == {"prompt": text}
        assert "".join(document["token_strs"]).startswith("Once upon a time, ")
        assert server.post("/detokenize", {"tokens": [10**6]}).status == 400
        assert server.post("/tokenize", {"prompt": "\udc00"}).status == 400

    def test_health_and_metrics(self, server: Server) -> None:
        assert server.ask("GET", "/health").document == {"status": "ok"}
        before = server.metric("generation_tokens_total")
        server.complete("ab", max_tokens=7, ignore_eos=True, seed=1)
        assert server.metric("generation_tokens_total") == before + 7
        text = server.ask("GET", "/metrics").body.decode()
        assert '\ngpt2cli:time_to_first_token_seconds_bucket{le="+Inf"} ' in text
        assert '\ngpt2cli:http_requests_total{path="/v1/completions",status="200"} ' in text
        for line in text.splitlines():
            assert line.startswith("# ") or len(line.rsplit(" ", 1)) == 2

    def test_the_schema_is_the_one_that_is_checked(self, server: Server) -> None:
        document = server.ask("GET", "/openapi.json").document
        posted = document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]
        assert posted["schema"] == json.loads(json.dumps(bodies.COMPLETION))
        for path, body in (
            ("/v1/completions", {"prompt": "a"}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
            ("/v1/embeddings", {"input": "a"}),
            ("/tokenize", {"prompt": "a"}),
            ("/detokenize", {"tokens": [1]}),
        ):
            schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
            jsonschema.Draft202012Validator.check_schema(schema)
            jsonschema.validate(body, schema)
            assert server.post(path, body).status == 200

    @pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
    def test_the_line_to_try(self, server: Server) -> None:
        """What it says at its start is a line that works."""
        line = next(line for line in server.log if line.startswith("try: "))
        done = subprocess.run(["bash", "-c", line.removeprefix("try: ")], capture_output=True, check=True)
        assert json.loads(done.stdout)["choices"][0]["text"]

    def test_the_log_has_no_words_of_anybody(self, server: Server) -> None:
        server.complete("a secret word", max_tokens=5, stop="another secret")
        server.ask("GET", "/a-secret-path")
        server.ask("GET", "/v1/models/a-secret-model")
        server.wait_until_idle()
        log = "\n".join(server.log)
        assert "POST /v1/completions 200, 13 + " in log and "secret" not in log


@pytest.mark.skipif(not native_available(), reason="the native library is not available")
def test_torch_is_not_loaded_to_serve_texts(model: Path) -> None:
    """Nor transformers, nor what only a terminal needs."""
    with serving("-m", model) as server:
        server.complete("ab", max_tokens=3)
        maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "libtorch" not in maps


@pytest.mark.slow
def test_on_torch(model: Path) -> None:
    """Where the library is not there, torch serves."""
    with serving("-m", model, env={**os.environ, "GPT2CLI_NATIVE": "0"}) as server:
        document = server.complete("ab", max_tokens=8, seed=2, n=2, echo=True, logprobs=1).document
    expected = load_on("torch", model).generate(
        "ab", GenerateOptions(seed=2, max_new_tokens=8, num_return_sequences=2)
    )
    assert [choice["text"] for choice in document["choices"]] == [f"ab{c.text}" for c in expected.choices]
