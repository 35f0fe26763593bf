"""A model on a server that does whatever servers do: each failure is one line, and the text so far stays."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import time
from pathlib import Path

import pytest
from cli import Outcome, call, start
from remote_server import (
    STREAM,
    Hostile,
    Step,
    error,
    event,
    hang,
    head,
    hostile,
    raw,
    reply,
    stream,
    text,
    then,
)
from test_layering import modules_loaded_by

from gpt2cli.errors import UsageError
from gpt2cli.remote.address import Key, parse_address

KEY = "sk-very-secret-indeed"


def generate(server: Hostile, *arguments: str | os.PathLike[str], **keywords: str) -> Outcome:
    return call("generate", "-m", server.url, "--seed", "7", *arguments, "ab", **keywords)


def failed(outcome: Outcome, code: int) -> str:
    """What is said of a failure: one line, and perhaps a hint, with no key in it."""
    assert outcome.code == code, outcome
    lines = [line for line in outcome.err.splitlines() if not line.startswith(("seed ", "warning: "))]
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert KEY not in outcome.err + outcome.out
    return "\n".join(lines[lines.index(errors[0]) :])


def test_a_text_and_what_is_sent() -> None:
    """Only what was set is sent, and the length and the seed."""
    with hostile(stream("one ", "two")) as server:
        done = generate(server, "--temperature", "0.5", "--stop", "x", "--logit-bias", "5=-1")
    assert (done.code, done.out) == (0, "one two\n")
    (body,) = server.bodies
    assert body == {
        "model": "m",
        "prompt": "ab",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 128,
        "seed": 7,
        "temperature": 0.5,
        "stop": ["x"],
        "logit_bias": {"5": -1.0},
    }
    assert server.of("authorization") == ""


def test_json_without_ids() -> None:
    """What a server does not tell is null."""
    with hostile(stream("one ", "two")) as server:
        document = generate(server, "--json").document
        events = generate(server, "--jsonl").events
    assert document["choices"] == [
        {
            "index": 0,
            "seed": 7,
            "text": "one two",
            "token_ids": None,
            "logprobs": None,
            "finish_reason": "eos",
        }
    ]
    assert document["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "dropped_tokens": 0}
    assert document["options"] == {"max_new_tokens": 128}
    assert [each["event"] for each in events] == ["start", "token", "end", "summary"]
    assert "".join(each.get("text", "") for each in events) == "one two"


def test_several_texts_are_several_requests() -> None:
    """Of a server that is not known to draw text i from the seed plus i."""
    with hostile(stream("a"), stream("b")) as server:
        done = generate(server, "-n", "2")
    assert done.out == "a\n---\nb\n"
    assert [(body["seed"], body.get("n")) for body in server.bodies] == [(7, None), (8, None)]


def test_a_server_that_does_not_stream() -> None:
    whole = {"choices": [{"index": 0, "text": "all at once", "finish_reason": "length"}]}
    with hostile(reply(200, whole)) as server:
        assert generate(server).out == "all at once\n"


def test_it_is_tried_again() -> None:
    """Two failures and a Retry-After, each of them said."""
    steps = (error(500, "oops"), error(503, "busy", retry_after="0"), error(429, "slow", retry_after="0"))
    with hostile(*steps, stream("fine")) as server:
        done = generate(server)
    assert (done.code, done.out, len(server.bodies)) == (0, "fine\n", 4)
    assert "cannot answer now (500): oops; again in 0." in done.err
    assert "asks to slow down (429): slow; again in 0.0 s" in done.err


def test_retry_after_that_is_too_long() -> None:
    with hostile(error(429, "slow", retry_after="4000")) as server:
        assert "asks to wait for 4000 s" in failed(generate(server), 4)
    assert len(server.bodies) == 1


CHUNKED = head(200, content_type="text/event-stream", transfer_encoding="chunked")
CUT: dict[str, tuple[Step, str]] = {
    "the connection ends": (raw(STREAM, event("so far")), "the answer ended before its end"),
    "a chunk is cut": (raw(CHUNKED, b"400\r\n" + event("so far")), "the connection broke"),
    "an error": (
        raw(STREAM, event("so far"), b'data: {"error": {"message": "no\\u001b[2J"}}\n\n'),
        "failed: no[2J",
    ),
    "garbage": (raw(STREAM, event("so far"), b"data: {]}\n\n"), "no JSON"),
    "another kind of JSON": (raw(STREAM, event("so far"), b"data: [1]\n\n"), "no answer"),
    "half an event": (raw(STREAM, event("so far"), b'data: {"choices": [{"te'), "no JSON"),
}


@pytest.mark.parametrize("name", CUT)
def test_a_stream_that_breaks_off(name: str) -> None:
    """The text so far stays, the error comes after it."""
    step, said = CUT[name]
    with hostile(step) as server:
        done = generate(server)
        assert said in failed(done, 1)
        assert done.out == "so far\n"
    with hostile(step) as server:
        done = generate(server, "--json")
    assert done.code == 1
    document = json.loads(done.out)
    assert document["choices"][0]["text"] == "so far"
    assert document["choices"][0]["finish_reason"] == "interrupted"
    assert said in document["error"]


REFUSED: dict[str, tuple[Step, int, str]] = {
    "401": (error(401, f"bad key {KEY}"), 4, "the key is refused (401): bad key …"),
    "403": (error(403, "no"), 4, "--api-key-file FILE, or set GPT2CLI_API_KEY"),
    "redirect": (
        reply(307, location="http://127.0.0.1:9/v1"),
        4,
        "a redirect to 'http://127.0.0.1:9/v1' is not",
    ),
    "404": (error(404, "no such model"), 3, "no such model\nhint: there is m"),
    "400": (error(400, "top_k is unknown"), 2, "(400): top_k is unknown\nhint: see --top-k"),
    "too long": (error(400, "maximum context length is 8"), 6, "lower --max-new-tokens"),
    "no HTTP": (raw(b"SSH-2.0-x\r\n\r\n"), 4, "does not speak HTTP"),
    "huge head": (raw(b"HTTP/1.1 200 OK\r\nx: " + b"a" * 200_000), 4, "does not speak HTTP"),
    "many heads": (raw(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 500), 4, "does not speak HTTP"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    step, code, said = REFUSED[name]
    with hostile(step) as server:
        done = generate(server, "--top-k", "5", GPT2CLI_API_KEY=KEY)
        assert said in failed(done, code)
    assert done.out == ""
    assert server.of("authorization") == f"bearer {KEY}"


SLOW: dict[str, Step] = {
    "no answer": hang,
    "half a head": then(raw(b"HTTP/1.1 200 OK\r\nx: "), hang),
    "a head that never ends": raw(b"HTTP/1.1 200 OK\r\nx: ", *[b"a"] * 40, pause=0.05),
}


@pytest.mark.parametrize("name", SLOW)
def test_it_does_not_wait_for_ever(name: str) -> None:
    with hostile(SLOW[name]) as server:
        said = failed(generate(server, "--timeout", "0.3"), 4)
    assert "no answer in 0.3 s\nhint: --timeout S waits longer" in said


def test_a_stream_that_stalls() -> None:
    """Bytes that make no line do not count."""
    with hostile(raw(STREAM + event("so far"), *[b"a"] * 40, pause=0.05)) as server:
        done = generate(server, "--timeout", "0.3")
        assert "nothing came for 0.3 s" in failed(done, 1)
    assert done.out == "so far\n"


def test_huge_lines() -> None:
    """A megabyte of text in one line is fine; a line without an end is not."""
    with hostile(stream("x" * 2**20)) as server:
        assert len(generate(server).out) == 2**20 + 1
    with hostile(raw(STREAM, event("so far"), *[b"x" * 2**20] * 20)) as server:
        done = generate(server)
        assert "a line of more than" in failed(done, 1)
    assert done.out == "so far\n"


def test_a_terminal_gets_no_escape_codes() -> None:
    evil = "a\x1b]0;title\x07\x1b[2Jb\u202ec"
    with hostile(stream(evil)) as server:
        assert "\x1b]" not in generate(server, tty="out").out
        assert generate(server, "--sanitize").out == "a]0;title[2Jbc\n"
        assert generate(server).out == evil + "\n"
    with hostile(error(400, evil)) as server:
        assert "\x1b" not in generate(server).err


def test_what_no_utf8_holds() -> None:
    """Half a pair of surrogates, and numbers beyond all bounds."""
    odd = b'data: {"choices": [{"index": 0, "text": "a\\ud800b", "finish_reason": "stop", "logprobs": '
    odd += b'{"tokens": ["a\\ud800b"], "token_logprobs": [1' + b"0" * 400 + b"]}}]}\n\n"
    with hostile(raw(STREAM, odd)) as server:
        assert generate(server).out == "a\ufffdb\n"
        document = generate(server, "--json", "--logprobs", "1").document
    assert document["choices"][0]["logprobs"][0]["logprob"] is None


def test_which_model() -> None:
    with hostile(stream("x")) as server:
        server.models = ("one", "two\x1b[2J")
        assert "which model? there is one, two[2J" in failed(generate(server), 2)
        said = failed(call("generate", "-m", server.url + "#three", "ab"), 3)
        assert "no model 'three' there\nhint: there is one, two[2J" in said
        assert call("generate", "--endpoint", server.url, "-m", "one", "ab").code == 0
        assert call("generate", "--endpoint", server.url + "#one", "ab").code == 0
    assert [body["model"] for body in server.bodies] == ["one", "one"]


def test_no_list_of_models() -> None:
    with hostile(stream("x"), models=reply(404)) as server:
        assert "the address of the API often" not in failed(generate(server), 4)
        other = server.url.replace("/v1", "/api")
        assert "the address of the API often ends in /v1" in failed(call("generate", "-m", other, "ab"), 4)
        bare = server.url.removesuffix("/v1")
    assert "nothing listens there" in failed(call("generate", "-m", bare, "ab"), 4)
    with hostile(stream("x")) as server:
        assert call("generate", "-m", server.url.removesuffix("/v1"), "ab").out == "x\n"
        assert server.asked[-1].startswith("POST /v1/completions ")


def test_what_a_server_does_not_know() -> None:
    """Certainly not: an error. Perhaps not: a warning, once, and it is sent."""
    with hostile(stream("x"), owned_by="library") as server:
        assert "--top-k: ollama has no such option" in failed(generate(server, "--top-k", "5"), 2)
    with hostile(stream("x"), owned_by="vllm") as server:
        assert "--typical-p: vLLM has" in failed(generate(server, "--typical-p", "0.5"), 2)
        assert generate(server, "--top-k", "5").err == "seed 7\n"
    with hostile(stream("x"), owned_by="llamacpp") as server:
        generate(server, "--repetition-penalty", "1.5")
        assert server.bodies[-1]["repeat_penalty"] == 1.5
        assert server.bodies[-1]["repeat_last_n"] > 1024
    with hostile(stream("x")) as server:
        done = generate(server, "--top-k", "5", "--min-p", "0.1")
    assert "may ignore --min-p, --top-k: they are not of OpenAI's API" in done.err
    assert server.bodies[-1]["top_k"] == 5


@pytest.mark.parametrize(
    "arguments",
    [
        ("--device", "cpu"),
        ("--precision", "fp32"),
        ("--revision", "main"),
        ("--draft", "off"),
        ("--rng", "transformers"),
        ("--overflow", "slide"),
        ("--max-length", "9"),
        ("--special-tokens",),
    ],
)
def test_what_no_server_is_told(arguments: tuple[str, ...]) -> None:
    said = failed(call("generate", "-m", "http://127.0.0.1:9/v1", *arguments, "ab"), 2)
    assert f"{arguments[0]} is for a model on this machine\nhint: " in said


@pytest.mark.parametrize(
    "command",
    ["score", "inspect", "features", "finetune", "verify", "bench", "show", "serve", "pull", "export"],
)
def test_commands_that_need_the_model(command: str, tmp_path: Path) -> None:
    """One line says so, and what to do."""
    url = "http://127.0.0.1:9/v1#m"
    made = str(tmp_path / "made")
    arguments: dict[str, tuple[str, ...]] = {
        **dict.fromkeys(("verify", "show", "pull"), (url,)),
        **dict.fromkeys(("serve", "bench"), ("-m", url)),
        "export": (url, made),
        "finetune": ("-m", url, __file__, "-o", made),
    }
    done = call(command, *arguments.get(command, ("-m", url, "ab")))
    assert "address of a server" in failed(done, 2)


def test_addresses() -> None:
    endpoint, model = parse_address("HTTPS://Example.org:8000/v1/#owner/name")
    assert (endpoint.url, model) == ("https://example.org:8000/v1", "owner/name")
    assert parse_address("http://[::1]")[0].url == "http://[::1]/v1"
    assert parse_address("http://127.0.0.2")[0].is_loopback
    assert not parse_address("http://127.evil.example")[0].is_loopback
    for bad in (
        "http://",
        "ftp://a",
        "http://a:0",
        "http://a:x",
        "http://a b/",
        "http://a/?key=x",
        "http://[",
        "http://a/\r\nx",
    ):
        with pytest.raises(UsageError):
            parse_address(bad)


@pytest.mark.parametrize("flag", ["-m", "--endpoint"])
def test_a_password_in_the_address_is_refused(flag: str) -> None:
    said = failed(call("generate", flag, f"http://me:{KEY}@127.0.0.1:9/v1#m", "ab"), 2)
    assert "user or a password in it is refused" in said
    assert "--api-key-file FILE" in said
    assert KEY not in failed(call("score", "-m", f"http://me:{KEY}@127.0.0.1:9/v1#m", "ab"), 2)


def test_the_key(tmp_path: Path) -> None:
    """From a file or the environment, to the server, and nowhere else."""
    file = tmp_path / "key.txt"
    file.write_text(f"# mine\n{KEY}\n")
    file.chmod(0o600)
    with hostile(stream("x")) as server:
        done = generate(server, "--api-key-file", file, "--json", GPT2CLI_API_KEY="another")
        assert server.of("authorization") == f"bearer {KEY}"
        assert KEY not in done.out + done.err
    assert "is for a model on a server" in failed(call("generate", "--api-key-file", file, "ab"), 2)
    file.write_text("two words\n")
    assert "characters that no key has" in failed(generate(server, "--api-key-file", file), 2)
    assert KEY not in repr(Key(KEY))


def test_401_says_how_to_give_a_key() -> None:
    with hostile(stream("x"), models=error(401, "who are you?")) as server:
        said = failed(generate(server), 4)
    assert "it wants a key (401): who are you?\nhint: write it into a file and give --api-key-file" in said


def certificate(folder: Path) -> ssl.SSLContext:
    """What a server has whose certificate nobody vouches for."""
    pem = folder / "server.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", pem, "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", pem)
    return context


def test_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is not trusted is refused before the key is sent; SSL_CERT_FILE makes it trusted."""
    with hostile(stream("x"), tls=certificate(tmp_path)) as server:
        said = failed(generate(server, GPT2CLI_API_KEY=KEY), 4)
        assert "its certificate is not trusted: self" in said
        assert "SSL_CERT_FILE" in said
        assert server.asked == []
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert generate(server, GPT2CLI_API_KEY=KEY).out == "x\n"
    with hostile(stream("x")) as server:
        secure = server.url.replace("http:", "https:")
        assert "is it an http:// address?" in failed(call("generate", "-m", secure, "ab"), 4)


def test_offline() -> None:
    said = failed(call("generate", "--offline", "-m", "http://example.invalid/v1#m", "ab"), 4)
    assert "offline" in said


def test_ctrl_c_in_the_middle() -> None:
    """The text so far, exit 130, and the connection is closed."""
    with hostile(then(raw(STREAM, event("so far")), hang)) as server:
        process = start("generate", "-m", server.url, "--seed", "7", "ab")
        assert process.stdout is not None
        assert os.read(process.stdout.fileno(), 100) == b"so far"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (130, b"\n", b"seed 7\n")
        end = time.monotonic() + 10
        while server.at_once:
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.mark.parametrize("step", [hang, error(500, "x", retry_after="30")], ids=["waits", "tries again"])
def test_ctrl_c_before_there_is_text(step: Step) -> None:
    with hostile(step) as server:
        process = start("generate", "-m", server.url, "ab")
        end = time.monotonic() + 20
        while not server.bodies:
            assert time.monotonic() < end
            time.sleep(0.01)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in err


def chat(server: Hostile, *arguments: str, stdin: bytes) -> Outcome:
    return call("chat", "-m", server.url, "--seed", "7", *arguments, stdin=stdin)


def said(content: str, **fields: object) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None, **fields}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def test_chat_by_messages(tmp_path: Path) -> None:
    """The server lays the turns out; an answer that breaks off stays and is seen by the next turn."""
    good = raw(STREAM, said("hello"), said("", finish_reason="stop"), b"data: [DONE]\n\n")
    with hostile(raw(STREAM, said("half")), good) as server:
        done = chat(server, "--system", "Be kind.", "--json", stdin=b"one\ntwo\n")
    assert done.code == 1
    first, second = (body["messages"] for body in server.bodies)
    assert first == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "one"}]
    assert second[2:] == [{"role": "assistant", "content": "half"}, {"role": "user", "content": "two"}]
    assert server.asked[-1].startswith("POST /v1/chat/completions ")
    assert done.events[-1]["answer"] == "hello"


def test_chat_by_text() -> None:
    with hostile(stream(" fine.")) as server:
        done = chat(server, "--format", "transcript", "--top-k", "3", stdin=b"How are you?\n")
    assert done.out == "fine.\n"
    assert server.bodies[0]["prompt"] == "User: How are you?\nAssistant:"
    assert server.bodies[0]["stop"] == ["\nUser:", "\nAssistant:"]
    assert done.err.count("may ignore --top-k") == 1


@pytest.mark.slow
def test_compare_without_log_probabilities() -> None:
    """A server that tells none; it is not asked for them either."""
    with hostile(stream("x"), stream("y")) as server:
        runs = call("compare", "-m", server.url, "--seed", "1", "--seed", "2", "--json", "ab").document[
            "runs"
        ]
    assert [run["text"] for run in runs] == ["x", "y"]
    assert {run["refused"] for run in runs} == {"the server tells no log-probabilities"}
    assert "logprobs" not in server.bodies[0]


def test_little_is_imported() -> None:
    """Neither the engine nor its arithmetic is needed for what is computed elsewhere."""
    with hostile(stream("x")) as server:
        loaded = modules_loaded_by("generate", "-q", "-m", server.url, "ab")
    assert loaded.isdisjoint({"numpy", "torch", "tokenizers", "huggingface_hub", "rich"})


def test_text_of_chunks() -> None:
    """The chunked encoding cuts lines and characters anywhere."""
    body = text("né", "e")
    pieces = [b"%x\r\n%s\r\n" % (1, body[at : at + 1]) for at in range(len(body))]
    with hostile(raw(CHUNKED, b"".join(pieces), b"0\r\n\r\n")) as server:
        assert generate(server).out == "née\n"
