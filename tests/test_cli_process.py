"""The contract of `generate` as a process: exit codes, pipes, closed streams, signals, a real terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from subprocess import DEVNULL

import jsonschema
import pytest
from cli import run, shell, start
from schema import DOCUMENT, EVENTS
from support import make_model, some_slow

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and descriptors")


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a long context, so that there is time to interrupt it."""
    directory = tmp_path_factory.mktemp("models") / "slow"
    return make_model(directory, n_positions=8192, n_embd=256, n_layer=8, std=0.05)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("generate", "-m", "MODEL", "--seed", "1", "ab"), 0),
        (("generate", "-m", "MODEL", "--top-p", "2", "ab"), 2),
        (("generate", "-m", "MODEL", "--bogus"), 2),
        (("generate", "-m", "no-such-model", "ab"), 3),
        (("generate", "-m", "no-such-model", "--offline", "ab"), 4),
        (("generate", "-m", "DAMAGED", "ab"), 5),
        (("generate", "-m", "MODEL", "x" * 64), 6),
        (("--help",), 0),
        (("--version",), 0),
        ((), 0),
        (("no-such-command",), 2),
    ],
)
def test_exit_codes(tiny_model: Path, tmp_path: Path, arguments: tuple[str, ...], code: int) -> None:
    (tmp_path / "config.json").write_text('{"n_layer": -1}')
    places = {"MODEL": tiny_model, "DAMAGED": tmp_path}
    environ = {**os.environ, "HF_HUB_OFFLINE": "0"}
    outcome = run(*(places.get(argument, argument) for argument in arguments), env=environ)
    assert outcome.code == code
    assert "Traceback" not in outcome.err
    assert "\x1b" not in outcome.err
    if code:
        assert outcome.out == ""
        assert outcome.err.startswith("error: ")


def test_reader_that_goes_away(slow_model: Path) -> None:
    """``| head`` ends it quietly, with 141."""
    line = f"$G generate -m {slow_model} --seed 1 ab | head -c 5; echo ${{PIPESTATUS[0]}} >&2"
    outcome = shell(line)
    assert len(outcome.out.encode("utf-8", "replace")) >= 5
    assert outcome.err.strip() == "141"


@pytest.mark.parametrize("flag", ["--help", "generate --help", "config list"])
def test_reader_that_is_already_gone(flag: str) -> None:
    """Help pages and lists do not complain either."""
    outcome = shell(f"($G {flag}; echo $? >&2) | true")
    assert outcome.err.strip() in ("0", "141")


@pytest.mark.parametrize(
    ("redirection", "code"),
    [
        ("-p ab </dev/null", 0),
        ("-p ab <&-", 0),
        ("-p ab >&-", 1),
        ("-p ab >&- 2>&-", 1),
        ("-p ab 2>&-", 0),
        ("-p ab >/dev/full", 1),
        ("-p ab 2>/dev/full", 0),
        ("</dev/null", 0),
        ("<&-", 0),
        ("-p ab -o OUT >&-", 0),
        ("-p ab -o /dev/null", 0),
        ("-p ab -o /dev/full", 1),
        ("-f /dev/null", 0),
    ],
)
def test_streams_that_are_not_there(tiny_model: Path, tmp_path: Path, redirection: str, code: int) -> None:
    """No traceback, no hang, no model file that becomes stdout because descriptor 1 was free."""
    line = f"$G generate -m {tiny_model} --seed 1 {redirection.replace('OUT', str(tmp_path / 'out'))}"
    before = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    outcome = shell(line)
    assert outcome.code == code
    assert "Traceback" not in outcome.err and "Exception" not in outcome.err
    assert before == {path.name: path.read_bytes() for path in tiny_model.iterdir()}


@pytest.mark.slow
def test_ten_megabytes_of_binary_on_stdin(tiny_model: Path) -> None:
    """What cannot fit is refused before it is tokenised."""
    data = bytes(range(256)) * (10 * 2**20 // 256)
    outcome = run("generate", "-m", tiny_model, "--seed", "1", stdin=data)
    assert outcome.code == 6
    assert "replaced" in outcome.err
    assert run("generate", "-m", tiny_model, "--strict", stdin=data).code == 2


@pytest.mark.slow
def test_megabytes_of_which_the_end_is_kept(tiny_model: Path) -> None:
    data = bytes(range(256)) * (2**20 // 256)
    outcome = run("generate", "-m", tiny_model, "--json", "--overflow", "truncate", stdin=data)
    usage = outcome.document["usage"]
    assert usage["prompt_tokens"] - usage["dropped_tokens"] == 32


def test_more_than_the_cap_on_stdin(tiny_model: Path) -> None:
    outcome = run("generate", "-m", tiny_model, stdin=b"a" * (33 * 2**20))
    assert (outcome.code, outcome.out) == (2, "")
    assert "32 MiB" in outcome.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_keeps_the_text_so_far(slow_model: Path, number: signal.Signals, code: int) -> None:
    """What was shown is a prefix of the whole text, whole characters, one newline."""
    arguments = ("generate", "-m", slow_model, "--seed", "1", "--max-new-tokens", "8000", "ab")
    process = start(*arguments, stdin=DEVNULL)
    assert process.stdout is not None
    first = process.stdout.read(8)
    process.send_signal(number)
    sent = time.monotonic()
    rest, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert time.monotonic() - sent < 5
    text = (first + rest).decode()
    assert text.endswith("\n")
    assert "seed 1" in err.decode() and "Traceback" not in err.decode()


@pytest.mark.slow
def test_interrupted_documents_are_complete(slow_model: Path, tmp_path: Path) -> None:
    """JSON, events and files hold the text so far too."""
    arguments = ("generate", "-m", slow_model, "--seed", "1", "-n", "2", "--max-new-tokens", "8000", "ab")
    process = start(*arguments, "--jsonl", stdin=DEVNULL)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(5)]
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    events = [json.loads(line) for line in [*lines, *out.splitlines()]]
    for event in events:
        jsonschema.validate(event, EVENTS[event["event"]])
    ends = [event for event in events if event["event"] == "end"]
    assert [(end["index"], end["finish_reason"]) for end in ends] == [(0, "interrupted"), (1, "interrupted")]
    assert events[-1]["event"] == "summary"

    target = tmp_path / "out.json"
    process = start(*arguments, "--json", "-o", target, stdin=DEVNULL)
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    if target.exists():
        # On a very busy machine the signal may come before the first token: then there is no text to keep.
        jsonschema.validate(json.loads(target.read_text()), DOCUMENT)


def test_an_interrupt_that_was_ignored_from_the_start(slow_model: Path) -> None:
    """As in the background of a script: the keys are meant for somebody else."""
    line = f"trap '' INT; exec {sys.executable} -m gpt2cli generate -m {slow_model} --max-new-tokens 40 -q ab"
    process = subprocess.Popen(["bash", "-c", line], stdin=DEVNULL, stdout=subprocess.PIPE, bufsize=0)
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert first and rest.endswith(b"\n")


@pytest.mark.parametrize("delay", [0.02, 0.1, 0.3, 0.6, 0.9, 1.2])
def test_signal_while_starting(slow_model: Path, delay: float) -> None:
    """While torch or the model loads: 130 and no traceback; while Python itself starts, what Python does."""
    process = start("generate", "-m", slow_model, "--max-new-tokens", "8000", "ab", stdin=DEVNULL)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=5 if delay < 0.1 else 20)
    except subprocess.TimeoutExpired:
        # Python can lose the first in an import of its own, and then a user presses the keys again.
        assert delay < 0.1
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    if delay >= 0.3:
        assert process.returncode == 130
        assert "Traceback" not in err.decode()
    assert process.returncode in (130, -signal.SIGINT, 1)


@pytest.mark.parametrize("delay", [0.3, 0.34, 0.36, 0.38, 0.4, 0.45, 0.6, 1.0])
def test_signal_while_torch_loads(slow_model: Path, delay: float) -> None:
    """A torn import is retried by Python and loses the signal, or ends in an error that is none."""
    process = start("generate", "-m", slow_model, "--jsonl", "--max-new-tokens", "8000", "ab", stdin=DEVNULL)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, b"")
    events = [json.loads(line) for line in out.splitlines()]
    assert not events or events[-1]["event"] == "summary"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_while_nobody_reads(tiny_model: Path, number: signal.Signals, code: int) -> None:
    """``timeout`` must be able to end a program whose pipe is stuck."""
    flags = ("--overflow", "slide", "--ignore-eos", "--max-new-tokens", "100000", "--jsonl")
    process = start("generate", "-m", tiny_model, *flags, "ab", stdin=DEVNULL)
    time.sleep(3)
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(timeout=10) == code
    process.communicate()


def test_signal_while_prefilling(tmp_path: Path) -> None:
    """The events end as they do otherwise, and the JSON is a document."""
    model = make_model(tmp_path / "m", n_positions=16384, n_embd=256, n_layer=8, std=0.05)
    (tmp_path / "prompt").write_text("x" * 16000)
    process = start("generate", "-m", model, "--jsonl", "-f", tmp_path / "prompt", stdin=DEVNULL)
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    events = [json.loads(line) for line in [first, *out.splitlines()]]
    assert [event["event"] for event in events] == ["start", "end", "summary"]
    assert events[1]["finish_reason"] == "interrupted"


def test_output_to_a_descriptor_that_is_appended_to(tiny_model: Path, tmp_path: Path) -> None:
    """``-o /dev/stdout >> log`` must not replace the log."""
    log = tmp_path / "log"
    log.write_text("keep\n")
    shell(f"$G generate -m {tiny_model} --seed 1 -q -o /dev/stdout ab >> {log}")
    assert log.read_text().startswith("keep\n")
    assert len(log.read_text()) > 5


@pytest.mark.slow
def test_prompt_from_a_descriptor_that_does_not_block(tiny_model: Path) -> None:
    process = start("generate", "-q", "-m", tiny_model, "--json", **piped_without_blocking())
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert json.loads(out)["prompt"] == "late"


def piped_without_blocking() -> dict[str, int]:
    """A pipe as stdin that has its text only later."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)

    def later() -> None:
        time.sleep(1.5)
        os.write(writer, b"late")
        os.close(writer)

    threading.Thread(target=later, daemon=True).start()
    return {"stdin": reader}


@pytest.mark.parametrize("arguments", ["--help", "generate --help", "config list"])
def test_full_disk_is_no_defect(arguments: str) -> None:
    # Buffered as it is for users, whatever the tests run under.
    outcome = shell(f"$G {arguments} >/dev/full", PYTHONUNBUFFERED="")
    assert outcome.code == 1
    assert len(outcome.err.splitlines()) == 1
    assert "No space left" in outcome.err and "defect" not in outcome.err


@pytest.mark.parametrize("arguments", ["", "config"])
def test_a_group_alone_shows_its_help(arguments: str) -> None:
    outcome = shell(f"$G {arguments}")
    assert (outcome.code, outcome.err) == (0, "")
    assert "Usage: gpt2cli" in outcome.out


def test_same_text_in_another_process(tiny_model: Path) -> None:
    arguments = ("generate", "-m", tiny_model, "--seed", "5", "-q", "ab")
    first, second = run(*arguments), run(*arguments, "--no-stream")
    assert first == second
    assert first.out


def test_nothing_but_the_continuation_in_a_pipe(tiny_model: Path) -> None:
    document = run("generate", "-m", tiny_model, "--seed", "5", "--json", "ab").document
    jsonschema.validate(document, DOCUMENT)
    text = document["choices"][0]["text"]
    outcome = run("generate", "-m", tiny_model, "--seed", "5", "ab")
    assert outcome.out == text + ("" if text.endswith("\n") else "\n")


@pytest.mark.parametrize("seed", some_slow(range(6), 1))
def test_real_terminal(tiny_model: Path, seed: int) -> None:
    """On a pty: prompt, text and summary; a drawn ESC, title or cursor movement changes nothing."""
    pexpect = pytest.importorskip("pexpect")
    pyte = pytest.importorskip("pyte")
    flags = ["--seed", str(seed), "--top-k", "0", "--max-new-tokens", "30"]
    command = ["-m", "gpt2cli", "generate", "-m", str(tiny_model), *flags]
    child = pexpect.spawn(sys.executable, [*command, "\x1b]0;title\x07 Hi"], dimensions=(24, 80), timeout=60)
    data = child.read()
    child.close()
    assert child.exitstatus == 0
    screen = pyte.Screen(80, 24)
    stream = pyte.ByteStream(screen)
    stream.feed(data)
    assert screen.title == ""
    assert data.count(b"\x1b") == 4, "the dim prompt and the dim summary, each switched on and off"
    assert any(f"seed {seed}" in line for line in screen.display)
