"""A text in the place of a command, `generate --repeat`, and `man`."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli import call, shell, start

from gpt2cli.cli.app import COMMANDS
from gpt2cli.cli.default_command import is_text
from gpt2cli.cli.man import find_page
from gpt2cli.terminal.manual import plain_page

SAY = ("--seed", "7", "--max-new-tokens", "8")


# A text in the place of a command


def test_a_text_is_continued() -> None:
    wanted = call("generate", *SAY, "Once upon a time")
    assert wanted.code == 0 and wanted.out
    assert call("Once upon a time", *SAY).out == wanted.out
    assert call("Once upon", "a time", *SAY).out == wanted.out


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("generat", "Did you mean 'generate'?"),
        ("Generate", "No such command"),
        ("Hello", "a text stands in quotes"),
        ("", "No such command"),
        (" ", "No such command"),
    ],
)
def test_one_word_is_a_command(word: str, said: str) -> None:
    """A command that is misspelt must not be drawn from."""
    outcome = call(word, *SAY)
    assert outcome.code == 2 and outcome.out == "" and said in outcome.err


def test_what_is_a_text() -> None:
    assert is_text("Once upon") and is_text("Once\n") and is_text("Es war\u00a0einmal")
    assert not any(map(is_text, [*COMMANDS, "-x y", "--greedy", "- a list", "", " ", "\n"]))


def test_options_before_the_text_are_no_command() -> None:
    outcome = call("--greedy", "Once upon a time")
    assert outcome.code == 2 and "No such option: --greedy" in outcome.err


# generate --repeat


def repeat(*arguments: str, stdin: str) -> list[str]:
    """The texts of a run, and nothing else on stdout."""
    outcome = call("generate", "--repeat", *arguments, stdin=stdin.encode())
    assert outcome.code == 0, outcome.err
    assert outcome.out.endswith("---\n") or not outcome.out
    return outcome.out.split("---\n")[:-1]


def test_each_line_is_a_run_of_its_own(tiny_model: Path) -> None:
    """The texts are those of single runs with the seed; nothing of a line is in the next one's."""
    lines = ["ab", "abc", "ab", "", "xyz  "]
    single = [call("generate", "-m", tiny_model, *SAY, "-p", line).out for line in lines]
    assert repeat("-m", str(tiny_model), *SAY, stdin="\n".join(lines)) == single
    assert repeat("-m", str(tiny_model), *SAY, stdin="\r\n".join(lines) + "\r\n") == single


def test_no_line_is_no_text() -> None:
    assert repeat(*SAY, stdin="") == []


def test_without_a_seed_each_line_has_one_that_is_reported() -> None:
    outcome = call("generate", "--repeat", "--max-new-tokens", "8", stdin=b"Once upon\nOnce upon\n")
    seeds = re.findall(r"^seed (\d+)$", outcome.err, re.MULTILINE)
    assert len(set(seeds)) == 2
    texts = outcome.out.split("---\n")[:-1]
    for seed, text in zip(seeds, texts, strict=True):
        assert call("generate", "--seed", seed, "--max-new-tokens", "8", "Once upon").out == text


def test_documents(tiny_model: Path) -> None:
    asked = [
        "ab",
        {"prompt": "ab", "id": "b", "seed": 3, "max_new_tokens": 4},
        {"prompt": "ab", "max_length": 5, "stop": "z", "num_return_sequences": 2},
    ]
    stdin = "\n\n".join(map(json.dumps, asked)).encode()
    found = call("generate", "--repeat", "--jsonl", "-m", tiny_model, *SAY, stdin=stdin).events
    assert [(event["line"], event.get("id")) for event in found] == [(1, None), (3, "b"), (5, None)]
    for event, flags in zip(
        found,
        ((), ("--seed", "3", "--max-new-tokens", "4"), ("--max-length", "5", "--stop", "z", "-n", "2")),
        strict=True,
    ):
        base = SAY[:2] if "--max-length" in flags else SAY
        single = call("generate", "--json", "-m", tiny_model, *base, *flags, "ab").document
        assert event["choices"] == single["choices"] and event["options"] == single["options"]
        assert event["usage"] == single["usage"] and event["prompt"] == "ab"


def test_a_line_has_its_own_kind_of_length(tiny_model: Path) -> None:
    """Whichever of the two the command line gives."""
    line = b'{"prompt": "ab", "max_new_tokens": 3}'
    flags = ("--repeat", "--jsonl", "-m", tiny_model, "--seed", "7", "--ignore-eos", "--max-length", "50")
    done = call("generate", *flags, stdin=line)
    assert done.code == 0 and done.events[0]["usage"]["completion_tokens"] == 3


BAD = [
    "nope",
    "[1]",
    "5",
    "{}",
    '{"prompt": 5}',
    '{"prompt": "a", "unknown": 1}',
    '{"prompt": "a", "seed": -1}',
    '{"prompt": "a", "temperature": "hot"}',
    '{"prompt": "a", "stop": 5}',
    '{"prompt": "a", "ignore_eos": 1}',
    '{"prompt": "a", "fields": {"x": "y"}}',
    '{"prompt": "a", "fields": 5}',
    '{"prompt": "a", "rng": "transformers"}',
    "[" * 100_000,
]


def test_an_error_is_said_for_its_line_and_the_rest_goes_on(tiny_model: Path) -> None:
    stdin = "\n".join([*BAD, '"ab"']).encode()
    outcome = call("generate", "--repeat", "--jsonl", "-m", tiny_model, *SAY, stdin=stdin)
    assert outcome.code == 2 and "Traceback" not in outcome.err
    errors, last = outcome.events[:-1], outcome.events[-1]
    assert [event["line"] for event in errors] == [*range(1, len(BAD) + 1)]
    assert all(event["error"]["exit_code"] == 2 and event["error"]["message"] for event in errors)
    assert outcome.err.count("error: line ") == len(BAD)
    assert last["choices"][0]["text"] == call("generate", "-m", tiny_model, *SAY, "ab").out.removesuffix("\n")


def test_a_prompt_that_is_too_long_is_an_empty_text(tiny_model: Path) -> None:
    stdin = f"{'ab ' * 400}\nab\n".encode()
    outcome = call("generate", "--repeat", "-m", tiny_model, *SAY, stdin=stdin)
    first, second, end = outcome.out.split("---\n")
    assert (first, end, outcome.code) == ("", "", 6)
    assert second == call("generate", "-m", tiny_model, *SAY, "ab").out
    assert "error: line 1: " in outcome.err


def test_bytes_that_are_no_text(tiny_model: Path) -> None:
    outcome = call("generate", "--repeat", "--strict", "-m", tiny_model, *SAY, stdin=b"\xff\nab\n")
    assert outcome.code == 2 and outcome.out.startswith("---\n") and len(outcome.out) > 8


def test_repeat_with_a_preset() -> None:
    flags = ("--preset", "answer", "--max-new-tokens", "5")
    single = call("generate", *flags, "Who?").out
    assert repeat(*flags, stdin="Who?\n") == [single]
    asked = json.dumps({"prompt": "Who?", "fields": {"pairs": ""}}).encode()
    event = call("generate", "--repeat", "--jsonl", *flags, stdin=asked).events[0]
    assert event["prompt"] == "Q: Who?\nA:"


@pytest.mark.parametrize(
    "flags",
    [
        ("a b",),
        ("--prompt", "x"),
        ("-f", "x"),
        ("--json",),
        ("-o", "x.txt"),
        ("-n", "2"),
        ("-m", "http://127.0.0.1:9/v1#x"),
    ],
)
def test_what_does_not_go_with_repeat(flags: tuple[str, ...]) -> None:
    outcome = call("generate", "--repeat", *flags, stdin=b"x\n")
    assert outcome.code == 2 and "--repeat" in outcome.err


def test_an_answer_comes_before_the_next_question(tiny_model: Path) -> None:
    """Each one is flushed: a coproc waits for it, with the model loaded once."""
    process = start("generate", "--repeat", "--jsonl", "-m", tiny_model, *SAY)
    assert process.stdin is not None and process.stdout is not None
    try:
        for number in (1, 2, 3):
            process.stdin.write(b'"ab"\n')
            line = b""
            while not line.endswith(b"\n"):
                line += process.stdout.read(2**16)
            assert json.loads(line)["line"] == number
        process.stdin.close()
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_ctrl_c_while_a_line_is_waited_for(tiny_model: Path) -> None:
    process = start("generate", "--repeat", "--jsonl", "-m", tiny_model, *SAY)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b'"ab"\n')
    assert process.stdout.read(10)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in err


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_a_coproc_of_bash(tiny_model: Path) -> None:
    script = (
        f'coproc M {{ $G generate -q --repeat -m "{tiny_model}" {" ".join(SAY)}; }}; '
        'ask() { printf "%s\\n" "$1" >&"${M[1]}"; while IFS= read -r l <&"${M[0]}" && [ "$l" != --- ]; '
        'do printf "%s\\n" "$l"; done; }; ask ab; ask abc'
    )
    outcome = shell(script)
    assert outcome.out == "".join(
        call("generate", "-m", tiny_model, *SAY, text).out for text in ("ab", "abc")
    )


# man


def test_man_gives_its_source_to_a_pipe() -> None:
    assert call("man").out == find_page().read_text("utf-8")


def test_without_man_a_terminal_gets_plain_text(tmp_path: Path) -> None:
    shown = call("man", tty="out", PATH=str(tmp_path)).out
    assert shown == plain_page(find_page().read_text("utf-8"))
    assert shown.startswith("NAME\n       gpt2cli - ") and "\nEXIT STATUS\n" in shown
    assert "\\" not in shown.replace("\\n", "") and max(map(len, shown.splitlines())) < 130


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such script")
@pytest.mark.parametrize("code", [0, 3])
def test_man_is_asked_on_a_terminal(tmp_path: Path, code: int) -> None:
    """It gets the page as a file; where it fails the plain text is shown all the same."""
    program = tmp_path / "man"
    program.write_text(f'#!/bin/sh\nprintf "%s" "$1" > "{tmp_path}/asked"\nexit {code}\n')
    program.chmod(0o755)
    outcome = call("man", tty="out", PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert (tmp_path / "asked").read_text() == str(find_page())
    assert outcome.code == 0 and bool(outcome.out) == bool(code)


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed")
def test_the_plain_text_has_the_words_that_man_shows() -> None:
    page = find_page()
    done = subprocess.run(
        ["man", "-l", page],
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "100", "MAN_KEEP_FORMATTING": ""},
    )
    theirs = re.sub(r".\x08", "", done.stdout).split("\n", 1)[1].rsplit("\n", 2)[0]

    def words(text: str) -> list[str]:
        # man breaks words at hyphens, and puts spaces between words of a line.
        return re.sub(r"[\s\u2010-]+", "", text).split()

    assert words(plain_page(page.read_text("utf-8"))) == words(theirs)
