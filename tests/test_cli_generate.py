"""The contract of `generate`, in process."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from cli import Outcome, call
from schema import DOCUMENT, EVENTS
from support import make_model, shared

SAY = ("--seed", "7", "--max-new-tokens", "12")


def generate(model: Path, *arguments: str, **keywords: str | bytes) -> Outcome:
    return call("generate", "-m", model, *arguments, **keywords)  # type: ignore[arg-type]


def choice_texts(outcome: Outcome) -> list[str]:
    return [choice["text"] for choice in outcome.document["choices"]]


def test_document_follows_the_schema(tiny_model: Path) -> None:
    """A field that goes missing breaks scripts."""
    outcome = generate(tiny_model, *SAY, "--json", "-n", "3", "--logprobs", "2", "ab")
    jsonschema.validate(outcome.document, DOCUMENT)
    document = outcome.document
    assert [c["seed"] for c in document["choices"]] == [7, 8, 9]
    assert document["usage"]["completion_tokens"] == sum(len(c["token_ids"]) for c in document["choices"])
    for choice in document["choices"]:
        assert [entry["token_id"] for entry in choice["logprobs"]] == choice["token_ids"]
        assert all(len(entry["top_logprobs"]) == 2 for entry in choice["logprobs"])


def test_events_are_complete_and_interleaved(tiny_model: Path) -> None:
    """The token events and the end of a choice together are its text."""
    # A text whose tokens were guessed has several of them at once.
    arguments = (*SAY, "-n", "3", "--ignore-eos", "--draft", "off", "ab")
    events = generate(tiny_model, "--jsonl", *arguments).events
    for event in events:
        jsonschema.validate(event, EVENTS[event["event"]])
    assert [events[0]["event"], events[-1]["event"]] == ["start", "summary"]
    assert [e["index"] for e in events if e["event"] == "token"][:6] == [0, 1, 2, 0, 1, 2]
    texts = ["".join(e["text"] for e in events[1:-1] if e["index"] == i) for i in range(3)]
    assert texts == choice_texts(generate(tiny_model, "--json", *arguments))


def test_penalties_and_biases(tiny_model: Path) -> None:
    """A token of bias 100 always comes, until its frequency outweighs the bias."""
    arguments = ("--greedy", "--max-new-tokens", "6", "--json", "ab")
    document = generate(tiny_model, "--logit-bias", "70=100", *arguments).document
    assert document["choices"][0]["token_ids"] == [70] * 6
    assert document["options"]["logit_bias"] == [[70, 100.0]]
    biases = ("--logit-bias", "70=100", "--logit-bias", "71=99")
    document = generate(tiny_model, *biases, "--presence-penalty", "2", *arguments).document
    assert document["choices"][0]["token_ids"][:2] in ([70, 71], [71, 70])


@pytest.mark.parametrize("flags", [(), ("--no-stream",), ("-o", "-"), ("-q",)])
def test_stdout_is_the_continuation_only(tiny_model: Path, flags: tuple[str, ...]) -> None:
    """However it is written: the text, and one newline if it has none."""
    text = choice_texts(generate(tiny_model, *SAY, "--json", "ab"))[0]
    outcome = generate(tiny_model, *SAY, *flags, "ab")
    assert outcome.out == text + ("" if text.endswith("\n") else "\n")


def test_several_texts_in_a_pipe(tiny_model: Path) -> None:
    texts = choice_texts(generate(tiny_model, *SAY, "--json", "-n", "3", "ab"))
    blocks = [text + ("" if text.endswith("\n") else "\n") for text in texts]
    assert generate(tiny_model, *SAY, "-n", "3", "ab").out == "---\n".join(blocks)
    echoed = "---\n".join("ab" + block for block in blocks)
    assert generate(tiny_model, *SAY, "-n", "3", "--echo", "ab").out == echoed


def test_terminal_shows_headers_and_the_prompt_dimmed(tiny_model: Path) -> None:
    outcome = generate(tiny_model, *SAY, "-n", "2", "ab", tty="out err")
    assert outcome.out.startswith("\x1b[2m=== 1/2 seed 7 ===\x1b[0m\n\x1b[2mab\x1b[0m")
    assert "\x1b[2m=== 2/2 seed 8 ===\x1b[0m\n" in outcome.out
    assert "seed 7" in outcome.err and "tokens" in outcome.err


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_style_where_it_is_not_wanted(tiny_model: Path, environ: dict[str, str]) -> None:
    outcome = generate(tiny_model, *SAY, "ab", tty="out err", **environ)
    assert outcome.out.startswith("ab")
    assert "\x1b" not in outcome.out + outcome.err


def test_no_escape_code_in_a_pipe_but_the_models_own(tmp_path: Path) -> None:
    """ESC drawn by a model reaches a pipe raw, and neither a terminal, ``--sanitize`` nor JSON."""
    model = make_model(tmp_path / "m")
    escape = "ab" + "\x1b[31m"
    found = next(
        seed
        for seed in range(200)
        if "\x1b" in generate(model, "--seed", str(seed), "--top-k", "0", escape).out
    )
    flags = ("--seed", str(found), "--top-k", "0")
    assert "\x1b" not in generate(model, *flags, "--sanitize", escape).out
    assert "\x1b" not in generate(model, *flags, escape, tty="out", NO_COLOR="1").out
    assert "\x1b" not in generate(model, *flags, "--json", escape).out
    assert "\x1b" in choice_texts(generate(model, *flags, "--json", escape))[0]
    assert "\x1b" not in choice_texts(generate(model, *flags, "--json", "--sanitize", escape))[0]


def test_sanitize_holds_for_the_echoed_prompt_too(tiny_model: Path) -> None:
    prompt = "ab\x1b[31m"
    assert "\x1b" in generate(tiny_model, *SAY, "--echo", prompt).out
    assert "\x1b" not in generate(tiny_model, *SAY, "--echo", "--sanitize", prompt).out


def test_seed_is_always_reported(tiny_model: Path) -> None:
    """A text drawn without a seed can be drawn again with the one reported."""
    first = generate(tiny_model, "ab")
    seed = first.err.splitlines()[-1].removeprefix("seed ")
    again = generate(tiny_model, "--seed", seed, "ab")
    assert again.out == first.out
    assert generate(tiny_model, "-q", "ab").err == ""


def test_same_seed_streamed_whole_and_alone(tiny_model: Path) -> None:
    """Sequence i of -n is what its seed gives alone, streamed or not."""
    texts = choice_texts(generate(tiny_model, *SAY, "--json", "-n", "3", "ab"))
    for i, text in enumerate(texts):
        flags = ("--seed", str(7 + i), "--max-new-tokens", "12")
        assert choice_texts(generate(tiny_model, *flags, "--json", "ab")) == [text]
        events = generate(tiny_model, *flags, "--jsonl", "ab").events
        assert "".join(event.get("text", "") for event in events[1:-1]) == text


@pytest.mark.parametrize(
    ("arguments", "stdin", "prompt"),
    [
        (("a", "b"), b"", "a b"),
        (("-p", "a  b"), b"", "a  b"),
        ((), b"from stdin\n", "from stdin"),
        ((), b"two\n\n", "two\n"),
        ((), b"crlf\r\n", "crlf"),
        (("-",), b"from stdin\n", "from stdin"),
        (("a", "-"), b"b\n", "a b"),
        (("-p", "a\n", "-"), b"b\n", "a\nb"),
        (("-f", "-"), b"b\n", "b"),
        (("--", "--not-a-flag"), b"", "--not-a-flag"),
        (("-p", ""), b"ignored", ""),
        ((), b"\xef\xbb\xbfbom", "bom"),
    ],
)
def test_prompt_sources(tiny_model: Path, arguments: tuple[str, ...], stdin: bytes, prompt: str) -> None:
    """Every way to give a prompt, and what is joined how."""
    flags = ("--json", "--max-new-tokens", "1")
    assert generate(tiny_model, *flags, *arguments, stdin=stdin).document["prompt"] == prompt


def test_prompt_from_a_file(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "a prompt.txt"
    file.write_bytes(b"from file\n")
    flags = ("--json", "--max-new-tokens", "1", "-f", str(file))
    assert generate(tiny_model, *flags).document["prompt"] == "from file"
    assert generate(tiny_model, *flags, "-", stdin=b"and more").document["prompt"] == "from file and more"


def test_empty_prompt_starts_from_bos(tiny_model: Path, tmp_path: Path) -> None:
    assert generate(tiny_model, "--json", "-p", "").document["usage"]["prompt_tokens"] == 1
    model = make_model(tmp_path / "m", bos_token_id=None, eos_token_id=None)
    assert generate(model, "-p", "").code == 2


@pytest.mark.parametrize("bad", [b"a\xffb", b"a\x00b", "a\ud800b".encode("utf-8", "surrogatepass")])
def test_bad_bytes_are_replaced_with_a_warning(tiny_model: Path, bad: bytes) -> None:
    outcome = generate(tiny_model, "--json", stdin=bad)
    assert outcome.code == 0
    assert "replaced" in outcome.err
    assert "\ufffd" in outcome.document["prompt"]
    strict = generate(tiny_model, "--strict", stdin=bad)
    assert (strict.code, strict.out) == (2, "")


def test_no_prompt_on_a_terminal_does_not_wait(tiny_model: Path) -> None:
    outcome = generate(tiny_model, tty="in out err")
    assert outcome.code == 2
    assert "no prompt" in outcome.err


def test_special_tokens_only_when_asked(tiny_model: Path) -> None:
    typed = ("--json", "--max-new-tokens", "1", "<|endoftext|>")
    assert generate(tiny_model, *typed).document["usage"]["prompt_tokens"] == 13
    assert generate(tiny_model, "--special-tokens", *typed).document["usage"]["prompt_tokens"] == 1


def test_output_file_is_whole(tiny_model: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    target.write_text("old")
    outcome = generate(tiny_model, *SAY, "-o", str(target), "ab")
    assert (outcome.code, outcome.out) == (0, "")
    assert target.read_text() == generate(tiny_model, *SAY, "ab").out
    generate(tiny_model, *SAY, "--json", "-o", str(target), "ab")
    jsonschema.validate(json.loads(target.read_text()), DOCUMENT)
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]


def test_stop_is_not_printed(tiny_model: Path) -> None:
    text = choice_texts(generate(tiny_model, *SAY, "--json", "ab"))[0]
    stop = text[2:5]
    outcome = generate(tiny_model, *SAY, "--json", "--stop", stop, "ab")
    assert choice_texts(outcome) == [text[: text.find(stop)]]
    assert outcome.document["choices"][0]["finish_reason"] == "stop"


def test_overflow(tiny_model: Path) -> None:
    """Context 64: refused, truncated to half, or slid on beyond the end."""
    long = "x" * 80
    assert generate(tiny_model, long).code == 6
    flags = ("--json", "--ignore-eos", "--max-new-tokens", "100", long)
    truncated = generate(tiny_model, "--overflow", "truncate", *flags)
    assert truncated.document["usage"] == {
        "prompt_tokens": 80,
        "completion_tokens": 32,
        "dropped_tokens": 48,
    }
    assert truncated.document["choices"][0]["finish_reason"] == "context"
    assert "48 tokens were dropped" in truncated.err
    slid = generate(tiny_model, "--overflow", "slide", *flags)
    assert slid.document["usage"]["completion_tokens"] == 100
    assert slid.document["choices"][0]["finish_reason"] == "length"


def test_reaching_the_end_of_the_context_is_no_error(tiny_model: Path) -> None:
    outcome = generate(tiny_model, "--ignore-eos", "--json", "x" * 60)
    assert outcome.code == 0
    assert outcome.document["choices"][0]["finish_reason"] == "context"
    assert "--overflow slide" in outcome.err


def test_defaults_come_in_their_order(tmp_path: Path) -> None:
    """flag > environment > config.toml > generation_config > default."""
    model = make_model(
        tmp_path / "m", generation={"temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.1}
    )

    def options(*flags: str, **environ: str) -> dict[str, float]:
        found: dict[str, float] = generate(model, "--json", *flags, "ab", **environ).document["options"]
        return found

    assert (options()["temperature"], options()["typical_p"]) == (0.5, 1.0)
    for key, value in (("top_k", "4"), ("top_p", "0.6"), ("min_p", "0.2")):
        assert call("config", "set", key, value).code == 0
    environ = {"GPT2CLI_TOP_P": "0.7", "GPT2CLI_MIN_P": "0.3"}
    found = options("--min-p", "0.4", **environ)
    assert [found[key] for key in ("temperature", "top_k", "top_p", "min_p")] == [0.5, 4, 0.7, 0.4]


def test_setting_does_not_get_in_a_flags_way(tiny_model: Path) -> None:
    """max-length and max-new-tokens exclude each other as flags, not as flag and setting."""
    call("config", "set", "max-new-tokens", "5")
    assert generate(tiny_model, "--max-length", "10", "ab").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--top-p", "0", "x"), 2, "--top-p: 0.0 is not allowed"),
        (("--temperature", "nan", "x"), 2, "--temperature"),
        (("--temperature", "0.0001", "x"), 2, "0.001 and more"),
        (("--top-k", "-1", "x"), 2, "--top-k"),
        (("--seed", "4294967296", "x"), 2, "--seed"),
        (("--seed", "4294967295", "-n", "2", "x"), 2, "0 to 4294967294"),
        (("--max-length", "1", "abc"), 2, "--max-length"),
        (("--max-length", "9", "--max-new-tokens", "3", "x"), 2, "--max-length"),
        (("--greedy", "-n", "2", "x"), 2, "greedy"),
        (("--greedy", "--temperature", "0.5", "x"), 2, "--greedy"),
        (("--stop", "", "x"), 2, "--stop"),
        (("--json", "--jsonl", "x"), 2, "--jsonl"),
        (("--logprobs", "2", "x"), 2, "--json"),
        (("--logit-bias", "5", "x"), 2, "--logit-bias: '5' is not ID=X"),
        (("--logit-bias", "257=1", "x"), 2, "--logit-bias: the model's vocabulary has 257 tokens"),
        (("--frequency-penalty", "3", "x"), 2, "--frequency-penalty: 3.0 is not allowed"),
        (("--overflow", "bogus", "x"), 2, "bogus"),
        (("--bogus", "x"), 2, "--bogus"),
        (("-p", "a", "b"), 2, "twice"),
        (("-f", "/nonexistent", "-q"), 2, "/nonexistent"),
        (("-f", "/", "-q"), 2, "irectory"),
        (("-o", "/nonexistent/x", "a"), 2, "/nonexistent"),
        (("--device", "cuda", "x"), 2, "cuda"),
        (("--revision", "../x", "x"), 2, "revision"),
    ],
)
def test_wrong_usage(tiny_model: Path, arguments: tuple[str, ...], code: int, says: str) -> None:
    """One line that says what is wrong, the code, and nothing on stdout."""
    outcome = generate(tiny_model, *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    lines = outcome.err.splitlines()
    assert lines[0].startswith("error: ") and says in lines[0]
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: "))


def test_wrong_models(tmp_path: Path) -> None:
    assert generate(Path("no-such-model"), "x", HF_HUB_OFFLINE="0").code == 3
    assert generate(Path("no-such-model"), "--offline", "x").code == 4
    assert generate(Path("no-such-model"), "x", HF_HUB_OFFLINE="1").code == 4
    (tmp_path / "empty").mkdir()
    assert generate(tmp_path / "empty", "x").code == 3
    assert generate(make_model(tmp_path / "ids", tokenizer=None), "x").code == 5


def test_damaged_settings_are_named(tiny_model: Path) -> None:
    call("config", "set", "top-k", "4")
    path = Path(call("config", "path").out.strip())
    path.write_text("top_k = [")
    outcome = generate(tiny_model, "x")
    assert outcome.code == 2
    assert str(path) in outcome.err


def test_debug_shows_the_traceback(tiny_model: Path) -> None:
    assert "Traceback" not in generate(tiny_model, "--top-p", "0", "x").err
    assert "Traceback" in generate(tiny_model, "--top-p", "0", "--debug", "x").err


def test_reference_answer() -> None:
    """The acceptance line of the project's first issue, as a user types it."""
    folder = shared("models", "slm_4096_kunal")
    answers = json.loads((folder / "expected.json").read_text())["greedy_until_newline_sliding_window_128"]
    for prompt, whole in answers.items():
        outcome = generate(folder / "hf", "--greedy", "--stop", "\n", "-p", prompt)
        expected = whole.removeprefix(prompt).removesuffix("\n")
        # The reference slides its window by one token once the context of 128 is full.
        assert outcome.out.removesuffix("\n") == expected[: 128 - len(prompt)]
        slid = generate(folder / "hf", "--greedy", "--stop", "\n", "--overflow", "slide", "-p", prompt)
        assert slid.code == 0 and slid.out.startswith(expected[: 128 - len(prompt)])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("generate", "--top-k", "x"), "--top-k: 'x' is not a whole number"),
        (("generate", "--temp", "abc"), "--temperature: 'abc' is not a number"),
        (("generate", "--precision", "fp9"), "--precision: 'fp9' is not one of 'auto', 'fp32'"),
        (("compare", "--seed", "1.5"), "--seed: '1.5' is not a whole number"),
        (("gc", "--days", "-1"), "--days: '-1' is less than 0"),
    ],
)
def test_a_value_that_cannot_be_read_is_said_in_our_words(arguments: tuple[str, ...], says: str) -> None:
    """pydantic's "Input should be a valid integer, unable to parse string as an integer" came through."""
    outcome = call(*arguments)
    assert outcome.code == 2 and outcome.err.startswith(f"error: {says}")
    assert f"hint: see gpt2cli {arguments[0]} --help" in outcome.err


EMPTY = {
    "generate": ("--max-new-tokens", "3"),
    "score": ("--json",),
    "score --choice": (" a", "--choice", " b"),
    "features": ("--pool", "mean"),
    "inspect": (),
    "inspect --explain": (),
    "compare": ("--max-new-tokens", "3"),
}


@pytest.mark.parametrize("command", EMPTY)
def test_an_empty_text_starts_from_the_bos_in_every_command(
    tiny_model: Path, tmp_path: Path, command: str
) -> None:
    """It was a usage error, no output, or the bos token, by command."""
    without = make_model(tmp_path / "without", bos_token_id=None, eos_token_id=None)
    arguments = (*command.split(), *EMPTY[command])
    for stdin in (("-p", ""), ()):
        assert call(*arguments, "-m", tiny_model, *stdin).code == 0
        refused = call(*arguments, "-m", without, *stdin)
        assert (refused.code, refused.out) == (2, ""), refused.err
        assert refused.err.startswith("error: ") and "empty" in refused.err


def test_an_empty_text_with_bos_has_it_once(tiny_model: Path) -> None:
    for flags in ((), ("--bos",)):
        rows = call("features", "-m", tiny_model, "--pool", "mean", *flags, "-p", "").events
        assert rows[0]["token_ids"] == [256]
        total = call("score", "--json", "-m", tiny_model, *flags, "-p", "").document["total"]
        assert (total["tokens"], total["unscored_tokens"], total["nll"]) == (0, 1, 0)
        scored = call("score", "--json", "--eos", "-m", tiny_model, *flags, "-p", "").document["total"]
        assert scored["tokens"] == 1
        lines = call("score", "--lines", "--json", "-m", tiny_model, *flags, stdin=b"\nab\n").document
        assert [text["tokens"] for text in lines["texts"]] == [0, 2 if flags else 1]


@pytest.mark.parametrize("command", ["score", "features", "score --task lambada", "score --choices a,b"])
@pytest.mark.parametrize("flag", ["--lines", "--from-jsonl"])
def test_no_text_at_all_is_wrong_input(tiny_model: Path, command: str, flag: str) -> None:
    """`score --lines` and `features` said nothing of an empty file."""
    outcome = call(*command.split(), flag, "-m", tiny_model)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "error: standard input holds no text\n"


REPEATS = (
    *("--seed", "1", "--greedy", "--repetition-penalty", "1", "--no-repeat-ngram-size", "0", "--ignore-eos"),
    *("--max-new-tokens", "120", "It was a dark night and"),
)
"""Greedy texts of a small model go round in circles."""


def test_drafts_change_figures_and_no_text() -> None:
    """The built-in model, since a text of random weights may never repeat."""
    off, lookup, model = (
        call("generate", "--json", "--draft", draft, *REPEATS).document for draft in ("off", "lookup", "tiny")
    )
    assert off["choices"] == lookup["choices"] == model["choices"]
    assert [document["options"]["draft"] for document in (off, lookup, model)] == ["off", "lookup", "tiny"]
    assert off["speculation"] == {"steps": 119, "drafted": 0, "accepted": 0}
    figures = lookup["speculation"]
    assert 0 < figures["accepted"] <= figures["drafted"]
    assert figures["steps"] + figures["accepted"] in (119, 120)


def test_events_mark_what_was_guessed() -> None:
    events = call("generate", "--jsonl", "--draft", "lookup", *REPEATS).events
    for event in events:
        jsonschema.validate(event, EVENTS[event["event"]])
    assert sum(event.get("drafted", False) for event in events) == events[-1]["speculation"]["accepted"] > 0


def test_a_draft_model_is_checked(tiny_model: Path) -> None:
    cases = (
        (tiny_model, 2, f"error: {tiny_model}: it cannot guess ahead for this model"),
        ("nothing-here", 4, "error: --draft: nothing-here"),
    )
    for draft, code, says in cases:
        done = call("generate", "--draft", str(draft), "Once")
        assert done.code == code, done.err
        assert says in done.err and "hint: " in done.err and done.out == ""


def test_drafts_as_a_setting(tiny_model: Path) -> None:
    done = generate(tiny_model, "--json", "ab", GPT2CLI_DRAFT="lookup")
    assert done.document["options"]["draft"] == "lookup"
    done = generate(tiny_model, "--json", "--draft", "off", "ab", GPT2CLI_DRAFT="nothing-here")
    assert done.document["options"]["draft"] == "off"
